"""Random mutations of a stored log, made below the library, with the first position at which each can be detected."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ledger import Head, Row, StoredLedger
from ledger.codec import row_hash

Value = Any

OTHER_VALUES: tuple[Value, ...] = (
    None,
    0,
    1,
    -1,
    2**63 - 1,
    1.5,
    float("inf"),
    "",
    "x",
    "5Anna\tgpu",
    b"",
    b"x",
    bytes(32),
)
FAR = 10**6


@dataclass
class Stored:
    """A log as stored: its rows in order, its head row, and heads that were noted elsewhere.

    `bad` is the first position at which a verification must report a finding.
    """

    rows: list[Row]
    head: StoredLedger
    noted: list[Head] = field(default_factory=list)
    bad: int = 0

    @property
    def last(self) -> int:
        """The number of rows."""
        return len(self.rows)


class StoredReader:
    """A `LogReader` of a log in memory, in the order in which SQLite returns its rows."""

    def __init__(self, stored: Stored, page_rows: int = 16) -> None:
        self._stored = stored
        self._page_rows = page_rows

    async def ledgers(self) -> list[StoredLedger]:
        return [self._stored.head]

    async def pages(self, _: StoredLedger, after: int | None = None) -> AsyncIterator[list[Row]]:
        for start in range(0, len(self._stored.rows), self._page_rows):
            yield self._stored.rows[start : start + self._page_rows]

    async def head(self, _: StoredLedger) -> StoredLedger:
        return self._stored.head

    async def versions(self, _: StoredLedger) -> dict[Any, Any]:
        return {}

    def check_unchanged(self) -> None:
        return None


def changed(log: Stored, draw: random.Random) -> tuple[str, Stored]:
    """Return the name of one random mutation, and the log after it."""
    while True:
        change = draw.choice(CHANGES)
        made = change(log, draw)
        if made is not None and (made.rows, made.head) != (log.rows, log.head):
            made.rows.sort(key=_sqlite_order)
            return change.__name__, made


def a_bit_of_a_column(log: Stored, draw: random.Random) -> Stored | None:
    """Flip any bit of any column that is not NULL."""
    at, column = draw.randrange(log.last), draw.choice(Row._fields)
    return _with_value(log, at, column, _bit_flipped(getattr(log.rows[at], column), draw))


def a_column_to_another_value(log: Stored, draw: random.Random) -> Stored | None:
    """Set any column to another value, another type, NULL, or the value of another row."""
    at, column = draw.randrange(log.last), draw.choice(Row._fields)
    return _with_value(log, at, column, draw.choice([*OTHER_VALUES, getattr(draw.choice(log.rows), column)]))


def a_row_removed(log: Stored, draw: random.Random) -> Stored:
    """Remove any row, including the first and the last."""
    at = draw.randrange(log.last)
    return replace(log, rows=log.rows[:at] + log.rows[at + 1 :], bad=at + 1)


def a_row_inserted(log: Stored, draw: random.Random) -> Stored:
    """Insert an invented row, or a copy of another, at a free position."""
    position = draw.choice([0, -1, -(2**63), log.last + 1, log.last + 2, FAR])
    row = draw.choice(log.rows)._replace(position=position)
    if draw.random() < 0.5:
        row = row._replace(stream="made up", version=1, key=None)
    bad = position if 1 <= position <= log.last + 1 else 1 if position < 1 else log.last + 1
    return replace(log, rows=[*log.rows, row], bad=bad)


def a_row_appended_that_fits(log: Stored, draw: random.Random) -> Stored:
    """Append a row with the right hash, without updating the head row."""
    row = log.rows[-1]._replace(position=log.last + 1, stream="made up", version=1, key=None, job_uuid=None)
    row = row._replace(attempt=None, settles=None)
    row = row._replace(hash=row_hash(log.rows[-1].hash, row))
    return replace(log, rows=[*log.rows, row], bad=log.last + 1)


def two_rows_swapped(log: Stored, draw: random.Random) -> Stored:
    """Swap the contents of two positions."""
    first, second = sorted(draw.sample(range(log.last), 2))
    rows = list(log.rows)
    rows[first] = log.rows[second]._replace(position=first + 1)
    rows[second] = log.rows[first]._replace(position=second + 1)
    return replace(log, rows=rows, bad=first + 1)


def the_tail_cut(log: Stored, draw: random.Random) -> Stored:
    """Remove any number of rows at the end, without updating the head row."""
    left = draw.randrange(log.last)
    return replace(log, rows=log.rows[:left], bad=left + 1)


def the_tail_cut_with_the_head_rewritten(log: Stored, draw: random.Random) -> Stored:
    """Remove rows at the end and rewrite the head row, like an older backup: only a noted head can detect it."""
    left = draw.randrange(log.last)
    noted = draw.randrange(left + 1, log.last + 1)
    return replace(
        log, rows=log.rows[:left], head=_head_of(log, log.rows[:left]), noted=_noted(log, noted), bad=left + 1
    )


def a_row_hashed_again(log: Stored, draw: random.Random) -> Stored:
    """Change a row and its own hash only: the next row's hash does not follow from it."""
    at = draw.randrange(log.last)
    rows = list(log.rows)
    rows[at] = _rewritten(rows[at], rows[at - 1].hash if at else bytes(32), draw)
    return replace(log, rows=rows, bad=min(at + 2, log.last))


def all_from_a_row_on_hashed_again(log: Stored, draw: random.Random) -> Stored:
    """Change a row, all later hashes and the head row: only a noted head can detect it."""
    at = draw.randrange(log.last)
    rows = list(log.rows)
    previous = rows[at - 1].hash if at else bytes(32)
    for n in range(at, log.last):
        row = _rewritten(rows[n], previous, draw) if n == at else rows[n]
        rows[n] = row._replace(hash=row_hash(previous, row))
        previous = rows[n].hash
    noted = draw.randrange(at + 1, log.last + 1)
    earlier = _noted(log, draw.randrange(1, at + 1)) if at else []
    return replace(log, rows=rows, head=_head_of(log, rows), noted=[*earlier, *_noted(log, noted)], bad=noted)


def the_head_changed(log: Stored, draw: random.Random) -> Stored:
    """Flip a bit of the head row, change a value of it, or remove it."""
    column = draw.choice(StoredLedger._fields[1:])
    if column == "has_head":
        return replace(log, head=StoredLedger(log.head.ledger, has_head=False), bad=log.last)
    old = getattr(log.head, column)
    value = _bit_flipped(old, draw) if draw.random() < 0.5 else draw.choice(OTHER_VALUES)
    bad = log.last
    if column == "position" and type(value) is int:
        bad = min(max(value, 0), log.last) + 1
    return replace(log, head=log.head._replace(**{column: value}), bad=bad)


CHANGES: tuple[Callable[[Stored, random.Random], Stored | None], ...] = (
    *(a_bit_of_a_column, a_column_to_another_value) * 4,
    a_row_removed,
    a_row_inserted,
    a_row_appended_that_fits,
    two_rows_swapped,
    the_tail_cut,
    the_tail_cut_with_the_head_rewritten,
    a_row_hashed_again,
    all_from_a_row_on_hashed_again,
    *(the_head_changed,) * 2,
)


def _with_value(log: Stored, at: int, column: str, value: Value) -> Stored | None:
    row = log.rows[at]
    if type(value) is type(getattr(row, column)) and value == getattr(row, column):
        return None
    bad = at + 1
    if column == "position":
        if any(type(value) is type(each.position) and value == each.position for each in log.rows):
            return None  # No two rows of a ledger have one position.
        bad = min(bad, _first_bad_position(value))
    rows = [*log.rows[:at], row._replace(**{column: value}), *log.rows[at + 1 :]]
    return replace(log, rows=rows, bad=bad)


def _first_bad_position(position: Value) -> int:
    """Return the position at which a row with this stored position is out of order."""
    if position is None or (isinstance(position, (int, float)) and position < 1):
        return 1
    if isinstance(position, float) and math.isfinite(position):
        return math.floor(position) + 1
    return 2**63


def _bit_flipped(value: Value, draw: random.Random) -> Value:
    if isinstance(value, int):
        flipped = (value & (2**64 - 1)) ^ (1 << draw.randrange(64))
        return flipped - 2**64 if flipped >= 2**63 else flipped
    stored = value.encode() if isinstance(value, str) else value
    if not stored:
        return value
    changed_bytes = bytearray(stored)
    changed_bytes[draw.randrange(len(stored))] ^= 1 << draw.randrange(8)
    return changed_bytes.decode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(changed_bytes)


def _rewritten(row: Row, previous: bytes, draw: random.Random) -> Row:
    """Return the row with another valid content and the right hash."""
    row = draw.choice(
        [
            row._replace(payload=row.payload + b" "),
            row._replace(recorded_at_ns=row.recorded_at_ns + 1),
            row._replace(key=f"{row.key} too"),
        ]
    )
    return row._replace(hash=row_hash(previous, row))


def _noted(log: Stored, position: int) -> list[Head]:
    row = log.rows[position - 1]
    return [Head(position, row.hash, row.recorded_at_ns)]


def _head_of(log: Stored, rows: Sequence[Row]) -> StoredLedger:
    last = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns) if rows else Head()
    return log.head._replace(position=last.position, hash=last.hash, recorded_at_ns=last.recorded_at_ns)


def _sqlite_order(row: Row) -> tuple[int, Value]:
    position: Value = row.position
    if position is None:
        return 0, 0
    if isinstance(position, (int, float)):
        return 1, position
    return (2, position) if isinstance(position, str) else (3, position)
