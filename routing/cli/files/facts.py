"""`FACTS.jsonl`: a chain fact per line, read as it comes, checked line by line.

A line is either `{"type": "block", "number", "created_at", "miners", "stakes"}`, where `miners` and `stakes`
left out mean the same as in the previous block line, or `{"type": "manifests", "block", "manifests"}`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from io import BufferedIOBase
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType

from routing import BlockFact, ManifestsFact, Miner
from routing.cli.errors import WrongInput
from routing.cli.io.render import printable

from .signatures import signature_of

Fact = BlockFact | ManifestsFact

BATCH_FACTS = 200
CHUNK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 64 << 20

_Number = Annotated[int, Meta(ge=1, le=2**63 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Stake = Annotated[float, Meta(ge=0)]
_Name = Annotated[str, Meta(min_length=1, max_length=128)]


class NumberedFact(NamedTuple):
    """A fact and the number, from 1, of the line that tells it."""

    line: int
    fact: Fact


class BadLine(WrongInput):
    """A line that tells no fact: `problem` says what is wrong with it, `expected` what would be right."""

    def __init__(self, line: int, problem: str, expected: str) -> None:
        super().__init__(
            f"line {line}: {problem}; right would be {expected}",
            line=line,
            problem=problem,
            expected=expected,
        )


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


class _ManifestsLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="manifests", tag_field="type"):
    block: _Number
    manifests: dict[_Name, dict[_Name, _Count]]


_decoder = msgspec.json.Decoder(_BlockLine | _ManifestsLine)


class FactLines:
    """Understands lines one after the other, remembering what later lines may leave out.

    What stays the same is handed out as the same object: the ledger then need not compare it.
    """

    def __init__(self) -> None:
        self._entries: list[_MinerEntry] | None = None
        self._miners: Sequence[Miner] | None = None
        self._stakes: dict[str, float] | None = None

    def fact(self, text: bytes) -> Fact:
        """Turns one line into its fact. Raises `ValueError` with what is wrong."""
        line = _decoder.decode(text)
        # A repeated name would silently replace the value before it.
        json.loads(text, object_pairs_hook=refuse_repeated_names)
        if isinstance(line, _ManifestsLine):
            return ManifestsFact(block=line.block, manifests=line.manifests)
        return self._block(line)

    def _block(self, line: _BlockLine) -> BlockFact:
        if line.miners is not UNSET and line.miners != self._entries:
            self._miners = _miners(line.miners)
            self._entries = line.miners
        if line.stakes is not UNSET and line.stakes != self._stakes:
            self._stakes = line.stakes
        if self._miners is None or self._stakes is None:
            absent = "miners" if self._miners is None else "stakes"
            raise ValueError(f"`{absent}` is left out, and no block line before this one names it")
        return BlockFact(number=line.number, created_at=line.created_at, miners=self._miners, stakes=self._stakes)


def numbered_facts(stream: BufferedIOBase, *, batch_facts: int = BATCH_FACTS) -> Iterator[list[NumberedFact]]:
    """Yields the facts of a stream in batches, as soon as they can be read.

    Everything before a bad line is yielded; then `BadLine` is raised. Blank lines are skipped, but counted.
    """
    lines = FactLines()
    number = 0
    for arrived in lines_as_they_arrive(stream):
        batch: list[NumberedFact] = []
        for text in arrived:
            number += 1
            if text.isspace() or not text:
                continue
            try:
                batch.append(NumberedFact(number, lines.fact(text)))
            except (ValueError, RecursionError) as error:
                yield batch
                raise bad_line(number, text, error) from error
            if len(batch) >= batch_facts:
                yield batch
                batch = []
        if batch:
            yield batch


def bad_line(number: int, text: bytes, error: Exception) -> BadLine:
    """Says in words what is wrong with a line and what would be right."""
    beginning = signature_of(number, text)
    if beginning is not None:
        return BadLine(number, beginning.problem, beginning.expected)
    problem = problem_of(text, error)
    return BadLine(number, problem, _expected(problem))


def lines_as_they_arrive(stream: BufferedIOBase) -> Iterator[list[bytes]]:
    """Yields the lines that each read completes, so that a live feed is not held back until a batch is full."""
    pieces: list[bytes] = []
    waiting_bytes = 0
    while chunk := stream.read1(CHUNK_BYTES):
        head, end, rest = chunk.rpartition(b"\n")
        if not end:
            pieces.append(chunk)
            waiting_bytes += len(chunk)
            if waiting_bytes > LONGEST_LINE_BYTES:
                break
            continue
        yield (b"".join(pieces) + head).split(b"\n")
        pieces, waiting_bytes = [rest], len(rest)
    last = b"".join(pieces)
    if last:
        yield [last]


def _miners(entries: Iterable[_MinerEntry]) -> list[Miner]:
    miners = [
        Miner(address=entry.address, ip_version=entry.ip_version, port=entry.port, hotkey_ss58=entry.hotkey_ss58)
        for entry in entries
    ]
    seen: set[str] = set()
    for place, miner in enumerate(miners):
        if miner.hotkey_ss58 in seen:
            raise ValueError(f"hotkey {miner.hotkey_ss58!r} is there twice, again - at `$.miners[{place}]`")
        seen.add(miner.hotkey_ss58)
    return miners


def refuse_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the name {name!r} is there twice in one object")
            seen.add(name)
    return names


def problem_of(text: bytes, error: Exception) -> str:
    if len(text) > LONGEST_LINE_BYTES:
        return f"longer than {LONGEST_LINE_BYTES:,} bytes"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start}): {error.reason}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return printable(str(error)[:300])


_BLOCK = '{"type":"block","number":1001,"created_at":"2024-01-01T12:00:12Z"}'
_MANIFESTS = '{"type":"manifests","block":1000,"manifests":{"5F…":{"always_on.gpu-24gb":3}}}'
_MINER = '{"hotkey_ss58":"5F…","address":"192.0.2.7","ip_version":4,"port":8000}'

# What would be right, by what the problem names; the first that fits.
_EXPECTATIONS = (
    ("`$.created_at`", 'a time with its time zone, such as "2024-01-01T12:00:12Z"'),
    ("field `created_at`", 'a time with its time zone, such as "created_at":"2024-01-01T12:00:12Z"'),
    ("`$.number`", "a whole number from 1 to 2^63 - 1, such as 1001"),
    ("`$.block`", "a whole number from 1 to 2^63 - 1, such as 1000"),
    ("is left out", "a first block line with both `miners` and `stakes`"),
    ("is there twice", "each name once"),
    ("`$.miners", f"a list of miners such as {_MINER}, each hotkey once"),
    ("`$.stakes", 'an object of finite stakes from 0 on, such as {"5G…":1001.0}'),
    ("`$.manifests", 'executor counts from 0 on, such as {"5F…":{"always_on.gpu-24gb":3}}'),
    ("`$.type`", '"block" or "manifests"'),
    ("field `type`", f"{_BLOCK} or {_MANIFESTS}"),
    ("field `manifests`", _MANIFESTS),
    ("field `block`", _MANIFESTS),
    (
        "unknown field",
        "a block line with number, created_at, miners, stakes, or a manifests line with block, manifests",
    ),
)


def _expected(problem: str) -> str:
    for words, expectation in _EXPECTATIONS:
        if words in problem:
            return expectation
    return f"one complete JSON object, such as {_BLOCK}"
