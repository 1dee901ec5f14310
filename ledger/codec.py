"""Events to stored bytes and back, and the chain of hashes over the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from .errors import CorruptLedger, NewerLedger
from .events import AllowanceReserved, Event

EVENT_TAGS = tuple(
    sorted(
        (
            "allowance-reserved",
            "block-recorded",
            "ledger-opened",
            "manifests-recorded",
            "reservation-expired",
            "reservation-released",
            "reservation-spent",
            "settings-changed",
        )
    )
)
GENESIS_HASH = bytes(32)
"""The hash before the first row."""

MOST_RESERVED_BLOCKS = 2**24
"""In a reservation: six years of them. Whoever forges a log may write any number; nobody is to count so far."""

UNKNOWN_OUTCOME_PREFIX = "lost:"
MOST_POSITION_DIGITS = 18

ID_HASH_BITS = 20
"""Bits of its event's hash that a reservation id carries below the position."""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_tag_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NOT_TO_BE_READ = (msgspec.MsgspecError, UnicodeDecodeError)
"""What bytes raise that are no event, or no text."""
_numbers = Struct(">qqqqq")
_length = Struct(">i")
_NO_TEXT = _length.pack(-1)


class Row(NamedTuple):
    """One event as it is stored; `payload` and `hash` are bytes, the rest columns of the same name.

    `settles` is the position of the reservation that a settlement ends. `attempt` counts the reservations of a
    job, from 1. Each is unique in its ledger where present, and so is `key`.
    """

    position: int
    stream: str
    version: int
    recorded_at_ns: int
    key: str | None
    job_uuid: str | None
    attempt: int | None
    settles: int | None
    payload: bytes
    hash: bytes


row_from_columns: Callable[[Iterable[Any]], Row] = partial(tuple.__new__, Row)
"""A row of its ten stored columns; does without the Python call that `Row._make` is."""


def encode(event: Event) -> bytes:
    """The event's stored bytes: compact JSON with the tag first."""
    return _encoder.encode(event)


def decode(position: int, payload: bytes) -> Event:
    """The event in stored bytes; a type of a newer release and bytes that are no event are told apart."""
    try:
        event = _decoder.decode(payload)
    except _NOT_TO_BE_READ as cause:
        raise _undecodable(position, payload, cause) from cause
    if type(event) is AllowanceReserved:
        blocks = 0
        for first, last in event.blocks:
            blocks += abs(last - first)
        if blocks > MOST_RESERVED_BLOCKS:
            raise CorruptLedger(position, f"a reservation of more than {MOST_RESERVED_BLOCKS:,} blocks")
    return event


def row_hash(previous: bytes, row: Row) -> bytes:
    """SHA-256 over the previous row's hash and every stored column of this one but the hash itself.

    Texts and the payload are length-prefixed (-1 for none) so that no two rows hash the same bytes.
    """
    position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, _ = row
    parts = (
        previous,
        _numbers.pack(position, version, recorded_at_ns, attempt or 0, settles or 0),
        _prefixed(stream),
        _NO_TEXT if key is None else _prefixed(key),
        _NO_TEXT if job_uuid is None else _prefixed(job_uuid),
        _length.pack(len(payload)),
        payload,
    )
    return sha256(b"".join(parts)).digest()


def reservation_id(position: int, event_hash: bytes) -> int:
    """A reservation's id: its event's position, and below it 20 bits of the event's hash.

    The position makes ids ascend; the bits make an id from a tail that was lost name nothing else.
    """
    return position << ID_HASH_BITS | int.from_bytes(event_hash[:3], "big") >> 4


def reservation_position(an_id: int) -> int:
    """The position of the event that made the reservation, if this ledger made it."""
    return an_id >> ID_HASH_BITS


def unknown_outcome_key(row: Row, request: str = "") -> str:
    """A key for a change whose outcome was lost and that had none of its own: it names the row it would have made.

    `request` is the digest of what was asked for, where the row does not tell it.
    """
    key = f"{UNKNOWN_OUTCOME_PREFIX}{row.position}:{row.hash.hex()}"
    return f"{key}:{request}" if request else key


def key_names_row(key: str, row: Row) -> bool:
    """Whether the key is a `unknown_outcome_key` of the row, for whatever request."""
    named = unknown_outcome_key(row)
    return key == named or key.startswith(f"{named}:")


def request_in_key(key: str) -> str:
    """The request that a `unknown_outcome_key` tells; empty where it tells none."""
    return key.removeprefix(UNKNOWN_OUTCOME_PREFIX).partition(":")[2].partition(":")[2]


def position_in_key(key: str) -> int | None:
    """The position that a `unknown_outcome_key` names; None for any other key."""
    position, separator, _ = key.removeprefix(UNKNOWN_OUTCOME_PREFIX).partition(":")
    if not key.startswith(UNKNOWN_OUTCOME_PREFIX) or not separator or not position.isascii() or not position.isdigit():
        return None
    return int(position) if len(position) <= MOST_POSITION_DIGITS else None


def event_tag(payload: bytes) -> str | None:
    """The type that stored bytes name; None where they name none."""
    try:
        return msgspec.json.decode(_tag_decoder.decode(payload)["type"], type=str)
    except (*_NOT_TO_BE_READ, KeyError):
        return None


def _prefixed(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return _length.pack(len(encoded)) + encoded


def _undecodable(position: int, payload: bytes, cause: Exception) -> NewerLedger | CorruptLedger:
    tag = event_tag(payload)
    if tag is None:
        return CorruptLedger(position, f"the payload is no event: {cause}")
    if tag not in EVENT_TAGS:
        return NewerLedger(f"the event at position {position} of type", tag, ", ".join(EVENT_TAGS))
    if "unknown field" in str(cause):
        return NewerLedger(f"the event at position {position}, a", tag, str(cause))
    return CorruptLedger(position, f"the payload is no {tag}: {cause}")
