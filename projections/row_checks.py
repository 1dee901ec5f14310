"""What every row of a log must be, whatever its event: typed, dense, and next in the chain of hashes.

`verify` asks nothing more, and the audit asks it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from struct import error as StructError  # noqa: N812 - the standard library names it in lower case
from types import NoneType
from typing import Any, NamedTuple

from ledger import Row
from ledger.codec import GENESIS_HASH, row_hash
from ledger.errors import shortened

from .rules import Rule

_TYPES: tuple[tuple[type, ...], ...] = (
    (NoneType, NoneType, NoneType),
    (str, int, NoneType),
    (NoneType, NoneType, int),
)
"""Of job, attempt and settles: a row is about neither, makes a reservation for a job, or ends a reservation."""
ROW_SHAPES = frozenset((int, str, int, int, key, *about, bytes, bytes) for key in (str, NoneType) for about in _TYPES)
_numbers = Struct(">qqqqq").pack
_length = Struct(">i").pack
_NO_TEXT = _length(-1)
UNHASHABLE = (StructError, TypeError, AttributeError, ValueError, OverflowError)
"""What columns raise that no row can have had."""
COLUMN_TYPES: dict[str, tuple[type, ...]] = {
    "position": (int,),
    "stream": (str,),
    "version": (int,),
    "recorded_at_ns": (int,),
    "key": (str, NoneType),
    "job_uuid": (str, NoneType),
    "attempt": (int, NoneType),
    "settles": (int, NoneType),
    "payload": (bytes,),
    "hash": (bytes,),
}


class RowProblem(NamedTuple):
    """What is wrong with a row; `position` is where the log goes wrong, which for a hole is before the row."""

    position: int
    rule: Rule
    message: str
    details: dict[str, Any]


class _Stream:
    """A stream's last version, and its name as rows are hashed with it: every row of it bears the same."""

    __slots__ = ("hashed", "version")

    def __init__(self, stream: str) -> None:
        self.version = 0
        self.hashed = _hashed(stream)


class RowChecker:
    """Follows a log row by row. After a row that does not fit it goes on from there."""

    def __init__(self) -> None:
        self.position = 0
        self.hash: bytes = GENESIS_HASH
        self._streams: dict[str, _Stream] = {}

    def version(self, stream: str) -> int:
        """The last version of a stream; 0 where it has none."""
        known = self._streams.get(stream)
        return 0 if known is None else known.version

    def check(self, row: Row) -> Sequence[RowProblem]:
        """What is wrong with the next row; usually nothing.

        What a row nearly always is, is told at once. One that does not fit is looked at anew, by the ledger's own hash.
        """
        position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, stored = row
        try:
            known = self._streams.get(stream) or _Stream(stream)
            parts = (
                self.hash,
                _numbers(position, version, recorded_at_ns, attempt or 0, settles or 0),
                known.hashed,
                _NO_TEXT if key is None else _hashed(key),
                _NO_TEXT if job_uuid is None else _hashed(job_uuid),
                _length(len(payload)),
                payload,
            )
            computed = sha256(b"".join(parts)).digest()
        except UNHASHABLE:
            return self._problems(row)
        # Only values of the right types can be hashed, but for 0 and all that is empty: these are hashed as absent
        # ones are, and never stored.
        if attempt is None:
            shaped = job_uuid is None and (settles is None or settles)
        else:
            shaped = job_uuid is not None and settles is None and attempt
        if computed == stored and position == self.position + 1 and version == known.version + 1 and shaped:
            self.position = position
            self.hash = stored
            if version == 1:
                self._streams[stream] = known
            known.version = version
            return ()
        return self._problems(row)

    def _problems(self, row: Row) -> list[RowProblem]:
        place = self.position + 1
        if type(row.position) is not int or row.position < place:
            # The row belongs nowhere, and the log goes on as if it were not there.
            at = place if type(row.position) is not int else min(max(row.position, 1), place)
            return [*self._misshapen(at, row), _misplaced(at, place, row)]
        problems = self._misshapen(place, row)
        if row.position > place:
            problems.append(_missing(place, row.position))
        else:
            problems += self._unchained(place, row)
        if type(row.stream) is str and type(row.version) is int:
            problems += self._misversioned(row)
            self._stream(row.stream).version = row.version
        self.position = row.position
        self.hash = row.hash if type(row.hash) is bytes else b""
        return problems

    def _stream(self, stream: str) -> _Stream:
        if stream not in self._streams:
            self._streams[stream] = _Stream(stream)
        return self._streams[stream]

    def _misshapen(self, place: int, row: Row) -> list[RowProblem]:
        return [RowProblem(place, Rule.ROW_COLUMNS, message, details) for message, details in _misshapen(row)]

    def _unchained(self, place: int, row: Row) -> list[RowProblem]:
        computed = _hash_of(self.hash, row)
        if computed == row.hash:
            return []
        details = {"stored": _shown(row.hash), "computed": None if computed is None else computed.hex()}
        return [RowProblem(place, Rule.HASH_CHAIN, "the row is not what was hashed after the row before it", details)]

    def _misversioned(self, row: Row) -> list[RowProblem]:
        expected = self.version(row.stream) + 1
        if row.version == expected:
            return []
        message = f"version {row.version} of a stream that stands at {expected - 1}"
        details = {"stream": _shown(row.stream), "expected": expected}
        return [RowProblem(row.position, Rule.DENSE_VERSIONS, message, details)]


def _hashed(text: str) -> bytes:
    """A text as rows are hashed with it."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "surrogatepass")
    return _length(len(encoded)) + encoded


def _missing(place: int, found: int) -> RowProblem:
    last = found - 1
    missing = f"position {place} is missing" if last == place else f"positions {place} to {last} are missing"
    return RowProblem(place, Rule.DENSE_POSITIONS, missing, {"expected": place, "found": found})


def _misplaced(at: int, place: int, row: Row) -> RowProblem:
    message = f"a row that says it is at {shortened(row.position)} stands where {place} belongs"
    return RowProblem(at, Rule.DENSE_POSITIONS, message, {"expected": place, "found": _shown(row.position)})


def _misshapen(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """The columns that are not what columns are: by type, by value, or by what stands beside them."""
    wrong = [
        (f"{name} is {shortened(value)}", {"column": name, "found": _shown(value)})
        for (name, types), value in zip(COLUMN_TYPES.items(), row, strict=True)
        if type(value) not in types or (name in ("attempt", "settles") and value == 0)
    ]
    if wrong or tuple(map(type, row)) in ROW_SHAPES:
        return wrong
    details = {name: _shown(getattr(row, name)) for name in ("job_uuid", "attempt", "settles")}
    return [("job_uuid and attempt go together, and neither with settles", details)]


def _hash_of(previous: bytes, row: Row) -> bytes | None:
    """The row's hash after another; None where its columns cannot be hashed."""
    try:
        return row_hash(previous, row)
    except UNHASHABLE:
        return None


def _shown(value: object) -> Any:
    """A stored value as findings show it."""
    if isinstance(value, bytes):
        return shortened(value.hex())[1:-1]
    return value if value is None or isinstance(value, int) else shortened(value)
