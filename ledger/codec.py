"""Encode events to stored bytes, decode them, and chain the rows by hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from struct import Struct
from typing import Any, NamedTuple, get_args

import msgspec

from .errors import CorruptLedger, NewerLedger
from .events import AllowanceReserved, Event

EVENT_TAGS = tuple(sorted(str(event.__struct_config__.tag) for event in get_args(Event)))
"""The tags of all events that this release knows, by name."""
GENESIS_HASH = bytes(32)
"""The previous hash of the first row."""

MOST_RESERVED_BLOCKS = 2**24
"""Blocks in one reservation, about six years of them (this project's choice).

A forged log may name any range. Readers list the blocks of a reservation, so an unlimited range would fill their
memory.
"""

UNKNOWN_OUTCOME_PREFIX = "lost:"
"""The beginning of every `unknown_outcome_key`: the response to that change was lost.

It never changes. Callers keep such keys to retry with, and a retry of a change that had not been done stores its key.
"""
MOST_POSITION_DIGITS = 18
"""All numbers of so many digits fit into the 63 bits that both databases store."""

ID_HASH_BITS = 20
"""The number of bits of its event's hash that a reservation id carries below the position."""
_ID_HASH_BYTES = -(-ID_HASH_BITS // 8)
"""The bytes of a hash that contain its first `ID_HASH_BITS` bits."""
_ID_SURPLUS_BITS = 8 * _ID_HASH_BYTES - ID_HASH_BITS

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_tag_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DECODING_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError)
"""msgspec raises the second one for bytes that are not UTF-8."""
_numbers = Struct(">qqqqq")
_length = Struct(">i")
_NO_TEXT = _length.pack(-1)


class Row(NamedTuple):
    """One stored event, with the columns of its row.

    `key` is the idempotency key. `attempt` numbers the reservations of a job, from 1. `settles` is the position of
    the reservation that a settlement closes. The key, the pair of job and attempt, and `settles` are each unique in
    their ledger if present.
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
"""Make a row of its ten stored columns; faster than `Row._make`, which is a Python function."""


def encode(event: Event) -> bytes:
    """Return the event's stored bytes: compact JSON with the tag first."""
    return _encoder.encode(event)


def decode(position: int, payload: bytes) -> Event:
    """Return the event in stored bytes.

    Raises `NewerLedger` for a type or field of a newer release, `CorruptLedger` for other bytes that are no event.
    """
    try:
        event = _decoder.decode(payload)
    except _DECODING_ERRORS as cause:
        raise _undecodable(position, payload, cause) from cause
    if type(event) is AllowanceReserved:
        blocks = 0
        for first, last in event.blocks:
            # A forged run may be reversed, and must not lower the sum. A run of one block counts as 0. That is enough:
            # only a long range takes more memory as blocks than as bytes, and these bytes are in memory already.
            blocks += abs(last - first)
        if blocks > MOST_RESERVED_BLOCKS:
            raise CorruptLedger(position, f"a reservation of more than {MOST_RESERVED_BLOCKS:,} blocks")
    return event


def row_hash(previous: bytes, row: Row) -> bytes:
    """Return SHA-256 over the previous row's hash and all columns of this row except `hash`.

    Texts and the payload are length-prefixed (-1 for None), so that no two different rows hash the same bytes. The
    exception is None and 0 in `attempt` and `settles`, which hash alike. Attempts and positions count from 1, so this
    library writes no 0 there, and the audit's checks of rows refuse one.
    The payload is hashed as stored, never re-encoded: a release whose encoder differs still verifies old logs.
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
    """Return a reservation's id: its event's position, followed by `ID_HASH_BITS` bits of the event's hash.

    The position makes ids ascend. The hash bits protect against ids issued before a backup was restored: when the log
    grows again, an id from the lost tail does not name the reservation that is now at the same position.
    """
    return position << ID_HASH_BITS | int.from_bytes(event_hash[:_ID_HASH_BYTES], "big") >> _ID_SURPLUS_BITS


def reservation_position(an_id: int) -> int:
    """Return the position at which this ledger would have recorded the reservation."""
    return an_id >> ID_HASH_BITS


def unknown_outcome_key(row: Row, request: str = "") -> str:
    """Return a key for a change that was requested without a key and whose outcome is unknown.

    The key names the change's row by position and hash, so a retry with it finds the row if it was appended.
    `request` is the digest of the whole call, for calls that the row alone does not identify.
    """
    key = f"{UNKNOWN_OUTCOME_PREFIX}{row.position}:{row.hash.hex()}"
    return f"{key}:{request}" if request else key


def key_names_row(key: str, row: Row) -> bool:
    """Return whether the key is an `unknown_outcome_key` of the row, with any request."""
    named = unknown_outcome_key(row)
    return key == named or key.startswith(f"{named}:")


def request_in_key(key: str) -> str:
    """Return the request in an `unknown_outcome_key`; empty if it has none."""
    return key.removeprefix(UNKNOWN_OUTCOME_PREFIX).partition(":")[2].partition(":")[2]


def position_in_key(key: str) -> int | None:
    """Return the position in a key that begins like an `unknown_outcome_key`; None for all others.

    A caller's own key may begin like that too, so the row at the position must be compared: `key_names_row`.
    """
    position, separator, _ = key.removeprefix(UNKNOWN_OUTCOME_PREFIX).partition(":")
    if not key.startswith(UNKNOWN_OUTCOME_PREFIX) or not separator or not position.isascii() or not position.isdigit():
        return None
    return int(position) if len(position) <= MOST_POSITION_DIGITS else None


def event_tag(payload: bytes) -> str | None:
    """Return the event tag in stored bytes; None if there is none."""
    try:
        return msgspec.json.decode(_tag_decoder.decode(payload)["type"], type=str)
    except (*_DECODING_ERRORS, KeyError):
        return None


def _prefixed(text: str) -> bytes:
    # A forged row may contain lone surrogates; its hash must be computable, so that it is found to be wrong.
    encoded = text.encode("utf-8", "surrogatepass")
    return _length.pack(len(encoded)) + encoded


def _undecodable(position: int, payload: bytes, cause: Exception) -> NewerLedger | CorruptLedger:
    tag = event_tag(payload)
    if tag is None:
        return CorruptLedger(position, f"the payload is not an event: {cause}")
    if tag not in EVENT_TAGS:
        return NewerLedger(f"the event at position {position} of type", tag, ", ".join(EVENT_TAGS))
    if "unknown field" in str(cause):
        return NewerLedger(f"the event at position {position}, a", tag, str(cause))
    return CorruptLedger(position, f"the payload is not a valid {tag}: {cause}")
