"""Checks that apply to every row of a log, whatever its event: column types, dense positions and versions, the hash.

`verify` makes no other checks of rows, and the audit makes these first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from struct import Struct
from struct import error as StructError  # noqa: N812 - the standard library names it in lower case
from types import NoneType
from typing import Any, NamedTuple

from ledger import Head, Row
from ledger.codec import GENESIS_HASH, row_hash
from ledger.errors import shortened

from .rules import Rule

_JOB_AND_SETTLES_TYPES: tuple[tuple[type, ...], ...] = (
    (NoneType, NoneType, NoneType),
    (str, int, NoneType),
    (NoneType, NoneType, int),
)
"""Types of job, attempt and settles: a row has none of them, reserves for a job, or settles a reservation."""
ROW_SHAPES = frozenset(
    (int, str, int, int, key, *types, bytes, bytes) for key in (str, NoneType) for types in _JOB_AND_SETTLES_TYPES
)
_numbers = Struct(">qqqqq").pack
_length = Struct(">i").pack
_NO_TEXT = _length(-1)
UNHASHABLE = (StructError, TypeError, AttributeError, ValueError, OverflowError)
"""Errors of hashing values that no appended row can have had."""
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
    """A broken rule; `position` is the first bad position, which for missing rows is before the row that was read."""

    position: int
    rule: Rule
    message: str
    details: dict[str, Any]


class _Stream:
    """A stream's last version, and its name encoded for hashing: encoding it for each of its rows would be slow."""

    __slots__ = ("encoded", "version")

    def __init__(self, stream: str) -> None:
        self.version = 0
        self.encoded = _encoded(stream)


class RowChecker:
    """Checks a log row by row; after a bad row it goes on with the values of that row.

    So one change is one finding, and not a finding for every row after it.
    """

    def __init__(self, start: Head | None = None) -> None:
        """Begin after the row at `start`; then the first version that is read of each stream is taken as it is."""
        self.position = 0 if start is None else start.position
        self.hash: bytes = GENESIS_HASH if start is None else start.hash
        self._begins_late = self.position > 0
        self._streams: dict[str, _Stream] = {}

    def version(self, stream: str) -> int:
        """Return the last version of a stream, 0 if it has no row."""
        known = self._streams.get(stream)
        return 0 if known is None else known.version

    def continue_after(self, position: int, a_hash: bytes, versions: Mapping[str, int]) -> None:
        """Continue after a row that was checked elsewhere, with the versions of all streams there."""
        self.position, self.hash = position, a_hash
        for stream, version in versions.items():
            self._stream(stream).version = version

    def check(self, row: Row) -> Sequence[RowProblem]:
        """Return what is wrong with the next row, usually nothing.

        This is the hot loop of `verify` and the audit, so it hashes a row without looking at each column, in the same
        bytes as `ledger.codec.row_hash`. Only a row that fails is checked column by column, with `row_hash` itself.
        """
        position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, stored = row
        try:
            known = self._streams.get(stream) or _Stream(stream)
            parts = (
                self.hash,
                _numbers(position, version, recorded_at_ns, attempt or 0, settles or 0),
                known.encoded,
                _NO_TEXT if key is None else _encoded(key),
                _NO_TEXT if job_uuid is None else _encoded(job_uuid),
                _length(len(payload)),
                payload,
            )
            computed = sha256(b"".join(parts)).digest()
        except UNHASHABLE:
            return self._problems(row)
        # A value of another type cannot be hashed, except 0 and empty values of any type: they have the same hash as
        # an absent value, so the hash alone would let them pass in `attempt` and `settles`.
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
        expected = self.position + 1
        if type(row.position) is not int or row.position < expected:
            # A row at an earlier or at no position is skipped: the rows after it may follow those before it.
            at = expected if type(row.position) is not int else min(max(row.position, 1), expected)
            return [*_column_problems(at, row), _position_problem(at, expected, row)]
        problems = _column_problems(expected, row)
        if row.position > expected:
            # The hash cannot be checked: the hash of the row before it is missing too.
            problems.append(_missing_rows_problem(expected, row.position))
        else:
            problems += self._hash_problems(row)
        if type(row.stream) is str and type(row.version) is int:
            problems += self._version_problems(row)
            self._stream(row.stream).version = row.version
        self.position = row.position
        self.hash = row.hash if type(row.hash) is bytes else b""
        return problems

    def _stream(self, stream: str) -> _Stream:
        if stream not in self._streams:
            self._streams[stream] = _Stream(stream)
        return self._streams[stream]

    def _hash_problems(self, row: Row) -> list[RowProblem]:
        computed = _hash_of(self.hash, row)
        if computed == row.hash:
            return []
        details = {"stored": _shown(row.hash), "computed": None if computed is None else computed.hex()}
        message = "the row's hash is not that of its columns and the row before it"
        return [RowProblem(row.position, Rule.HASH_CHAIN, message, details)]

    def _version_problems(self, row: Row) -> list[RowProblem]:
        expected = self.version(row.stream) + 1
        if row.version == expected or (self._begins_late and row.stream not in self._streams):
            return []
        message = f"the stream's next version must be {expected}, got {row.version}"
        details = {"stream": _shown(row.stream), "expected": expected}
        return [RowProblem(row.position, Rule.DENSE_VERSIONS, message, details)]


def _encoded(text: str) -> bytes:
    """Return a text as it is hashed: its length and its UTF-8. Text that was no UTF-8 is read as surrogates."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "surrogatepass")
    return _length(len(encoded)) + encoded


def _missing_rows_problem(expected: int, found: int) -> RowProblem:
    last = found - 1
    missing = f"position {expected} is missing" if last == expected else f"positions {expected} to {last} are missing"
    return RowProblem(expected, Rule.DENSE_POSITIONS, missing, {"expected": expected, "found": found})


def _position_problem(at: int, expected: int, row: Row) -> RowProblem:
    message = f"the next row must be at position {expected}, got {shortened(row.position)}"
    return RowProblem(at, Rule.DENSE_POSITIONS, message, {"expected": expected, "found": _shown(row.position)})


def _column_problems(at: int, row: Row) -> list[RowProblem]:
    return [RowProblem(at, Rule.ROW_COLUMNS, message, details) for message, details in _wrong_columns(row)]


def _wrong_columns(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """Return message and details for each column with a wrong type or value, else for a wrong combination."""
    wrong = [
        (f"{name} is {shortened(value)}", {"column": name, "found": _shown(value)})
        for (name, types), value in zip(COLUMN_TYPES.items(), row, strict=True)
        if type(value) not in types or (name in ("attempt", "settles") and value == 0)
    ]
    if wrong or tuple(map(type, row)) in ROW_SHAPES:
        return wrong
    details = {name: _shown(getattr(row, name)) for name in ("job_uuid", "attempt", "settles")}
    return [("a row must have job_uuid and attempt, or settles, or none of the three", details)]


def _hash_of(previous: bytes, row: Row) -> bytes | None:
    """Return the row's hash after another hash; None if its columns cannot be hashed."""
    try:
        return row_hash(previous, row)
    except UNHASHABLE:
        return None


def _shown(value: object) -> Any:
    """Return a stored value as findings show it."""
    if isinstance(value, bytes):
        return shortened(value.hex())[1:-1]
    return value if value is None or isinstance(value, int) else shortened(value)
