"""`FACTS.jsonl`: one chain fact or reservation per line, read as it arrives and checked line by line.

A line is either a block, `{"type": "block", "number", "created_at", "miners", "stakes", "block_hash"}`, or a manifest
sync, `{"type": "manifests", "block", "manifests"}`, or what another system had booked, `{"type": "reservation",
"miner_ss58", "executor_class", "blocks", "amount_seconds", "job_uuid", "reserved_at", "expires_at", "status"}`, where
`amount_seconds` and `job_uuid` may be null. If a block line leaves out `miners` or `stakes`, they are as in the
previous block line of the file; if it leaves out `block_hash`, the block has none.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from io import BufferedIOBase
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from routing import BlockFact, ImportedReservation, ManifestsFact, Miner

from .json_lines import BadLine, check_length, lines_as_they_arrive, problem_of, refuse_repeated_names, signature_of

Fact = BlockFact | ManifestsFact | ImportedReservation

BATCH_FACTS = 200
"""How many facts are recorded in one call, and so in one transaction."""

_Number = Annotated[int, Meta(ge=1, le=2**63 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Stake = Annotated[float, Meta(ge=0)]
_Hash = Annotated[str, Meta(pattern=r"^(0x)?[0-9a-fA-F]{64}\Z")]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class NumberedFact(NamedTuple):
    """A fact and the number of its line, counted from 1."""

    line: int
    fact: Fact


class _MinerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    hotkey_ss58: _Name
    address: str
    ip_version: int
    port: int


class _BlockLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="block", tag_field="type"):
    number: _Number
    created_at: Annotated[datetime, Meta(tz=True)]
    miners: list[_MinerEntry] | UnsetType = UNSET
    stakes: dict[_Name, _Stake] | UnsetType = UNSET
    block_hash: _Hash | UnsetType = UNSET


class _ManifestsLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="manifests", tag_field="type"):
    block: _Number
    manifests: dict[_Name, dict[_Name, _Count]]


class _ReservationLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="reservation", tag_field="type"):
    miner_ss58: _Name
    executor_class: _Name
    blocks: Annotated[list[tuple[_Number, _Number]], Meta(min_length=1)]
    amount_seconds: Annotated[float, Meta(gt=0)] | None
    job_uuid: _Name | None
    reserved_at: Annotated[datetime, Meta(tz=True)]
    expires_at: Annotated[datetime, Meta(tz=True)]
    status: Literal["reserved", "spent"]

    def reservation(self) -> ImportedReservation:
        return ImportedReservation(**msgspec.structs.asdict(self))


_decoder = msgspec.json.Decoder(_BlockLine | _ManifestsLine | _ReservationLine)
_metagraph_start = re.compile(rb',\s*"(miners|stakes)"\s*:')


class FactDecoder:
    """Decode the lines of a file in order, and remember the miners and stakes that later lines may leave out.

    Unchanged miners and stakes are returned as the same object as before, so that the ledger need not compare them.
    """

    def __init__(self) -> None:
        self._entries: list[_MinerEntry] | None = None
        self._miners: Sequence[Miner] | None = None
        self._stakes: dict[str, float] | None = None
        self._metagraph_end = b""
        """The end of the last line that named miners or stakes, if it has nothing else; it is not decoded again."""

    def fact(self, text: bytes) -> Fact:
        """Return the fact of one line. Raise `ValueError` or `RecursionError` if it is not valid."""
        check_length(text)
        line = self._line_that_repeats(text) or _decoded(text)
        if isinstance(line, _ManifestsLine):
            return ManifestsFact(block=line.block, manifests=line.manifests)
        if isinstance(line, _ReservationLine):
            return line.reservation()
        fact = self._block(line)
        if line.miners is not UNSET or line.stakes is not UNSET:
            self._metagraph_end = _metagraph_end(text)
        return fact

    def _line_that_repeats(self, text: bytes) -> _BlockLine | None:
        """Return a line that ends like the last one with a metagraph, as if it left that out; None for other lines.

        If what is before the end is a whole object without miners and stakes, both lines have the same ones.
        """
        if not self._metagraph_end or not text.endswith(self._metagraph_end):
            return None
        return _line_without_metagraph(text[: -len(self._metagraph_end)] + b"}")

    def _block(self, line: _BlockLine) -> BlockFact:
        if line.miners is not UNSET and line.miners != self._entries:
            self._miners = _miners(line.miners)
            self._entries = line.miners
        if line.stakes is not UNSET and line.stakes != self._stakes:
            self._stakes = line.stakes
        if self._miners is None or self._stakes is None:
            # Both are needed before the first block: `BlockFact` has no way to leave them out.
            absent = "miners" if self._miners is None else "stakes"
            raise ValueError(f"`{absent}` is left out, and no block line before this one names it")
        block_hash = None if line.block_hash is UNSET else line.block_hash
        return BlockFact(line.number, line.created_at, self._miners, self._stakes, block_hash)


def numbered_facts(stream: BufferedIOBase, *, batch_facts: int = BATCH_FACTS) -> Iterator[list[NumberedFact]]:
    """Yield the facts of a stream in batches of at most `batch_facts`, as soon as they can be read.

    Everything before a bad line is yielded; then `BadLine` is raised. Blank lines are skipped, but counted.
    """
    decoder = FactDecoder()
    number = 0
    for arrived in lines_as_they_arrive(stream):
        batch: list[NumberedFact] = []
        for text in arrived:
            number += 1
            if text.isspace() or not text:
                continue
            try:
                batch.append(NumberedFact(number, decoder.fact(text)))
            except (ValueError, RecursionError) as error:
                yield batch
                raise bad_line(number, text, error) from error
            if len(batch) >= batch_facts:
                yield batch
                batch = []
        if batch:
            yield batch


def bad_line(number: int, text: bytes, error: Exception) -> BadLine:
    """Return the error for a line: what is wrong, and what would be right."""
    signature = signature_of(number, text)
    if signature is not None:
        return BadLine(number, signature.problem, signature.expected)
    problem = problem_of(text, error)
    return BadLine(number, problem, _expected(problem))


def _decoded(text: bytes) -> _BlockLine | _ManifestsLine | _ReservationLine:
    line: _BlockLine | _ManifestsLine | _ReservationLine = _decoder.decode(text)
    # A second pass, because msgspec does not notice repeated names.
    json.loads(text, object_pairs_hook=refuse_repeated_names)
    return line


def _line_without_metagraph(text: bytes) -> _BlockLine | None:
    """Return a valid block line that names neither miners nor stakes; None for all others."""
    try:
        line = _decoded(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, _BlockLine) and line.miners is UNSET and line.stakes is UNSET else None


def _metagraph_end(text: bytes) -> bytes:
    """Return the end of a valid block line from its miners or stakes on; empty if another field comes after them."""
    found = _metagraph_start.search(text)
    if found is None or _line_without_metagraph(text[: found.start()] + b"}") is None:
        return b""
    return text[found.start() :]


def _miners(entries: Iterable[_MinerEntry]) -> list[Miner]:
    miners = [
        Miner(address=entry.address, ip_version=entry.ip_version, port=entry.port, hotkey_ss58=entry.hotkey_ss58)
        for entry in entries
    ]
    seen: set[str] = set()
    for index, miner in enumerate(miners):
        if miner.hotkey_ss58 in seen:
            raise ValueError(f"hotkey {miner.hotkey_ss58!r} is there twice, again - at `$.miners[{index}]`")
        seen.add(miner.hotkey_ss58)
    return miners


_BLOCK = '{"type":"block","number":1001,"created_at":"2024-01-01T12:00:12Z"}'
_MANIFESTS = '{"type":"manifests","block":1000,"manifests":{"5F…":{"always_on.gpu-24gb":3}}}'
_RESERVATION = (
    '{"type":"reservation","miner_ss58":"5F…","executor_class":"always_on.gpu-24gb","blocks":[[1000,1003]],'
    '"amount_seconds":15.5,"job_uuid":"…","reserved_at":"2024-01-01T12:00:00Z","expires_at":"2024-01-01T12:01:55Z",'
    '"status":"spent"}'
)
_MINER = '{"hotkey_ss58":"5F…","address":"192.0.2.7","ip_version":4,"port":8000}'

# A part of a problem, and what would be right then. The first match counts, so special cases come first.
_EXPECTATIONS = (
    ("`$.created_at`", 'a time with its time zone, such as "2024-01-01T12:00:12Z"'),
    ("field `created_at`", 'a time with its time zone, such as "created_at":"2024-01-01T12:00:12Z"'),
    ("`$.number`", "a whole number from 1 to 2^63 - 1, such as 1001"),
    ("`$.block_hash`", '64 hexadecimal digits, with or without "0x"'),
    ("`$.block`", "a whole number from 1 to 2^63 - 1, such as 1000"),
    ("`$.blocks", "runs of blocks, each the first and the last, such as [[1000,1003]]"),
    ("is left out", "a first block line with both `miners` and `stakes`"),
    ("is there twice", "each name once"),
    ("`$.miners", f"a list of miners such as {_MINER}, each hotkey once"),
    ("`$.stakes", 'an object of finite stakes from 0 on, such as {"5G…":1001.0}'),
    ("`$.manifests", 'executor counts from 0 on, such as {"5F…":{"always_on.gpu-24gb":3}}'),
    ("`$.type`", '"block", "manifests" or "reservation"'),
    ("field `type`", f"{_BLOCK} or {_MANIFESTS} or {_RESERVATION}"),
    ("`$.status`", '"reserved" or "spent"'),
    ("`$.amount_seconds`", "an amount above 0, or null"),
    ("`$.reserved_at`", 'a time with its time zone, such as "2024-01-01T12:00:00Z"'),
    ("`$.expires_at`", 'a time with its time zone, such as "2024-01-01T12:01:55Z"'),
    ("field `manifests`", _MANIFESTS),
    ("field `block`", _MANIFESTS),
    *((f"field `{field}`", _RESERVATION) for field in _ReservationLine.__struct_fields__),
    (
        "unknown field",
        "a block line with number, created_at, miners, stakes, block_hash, or a manifests line with block, manifests,"
        f" or a reservation line with {', '.join(_ReservationLine.__struct_fields__)}",
    ),
)


def _expected(problem: str) -> str:
    for part, expected in _EXPECTATIONS:
        if part in problem:
            return expected
    return f"one complete JSON object, such as {_BLOCK}"
