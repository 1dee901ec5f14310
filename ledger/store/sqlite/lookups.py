"""Reads of the log: pages, the rows of some streams, and look-ups by key, job, position and settlement."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from typing import Any

from ledger.codec import Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.store.contract import next_page
from ledger.values import LARGEST_INTEGER

from .columns import COLUMNS, narrow, rows_from
from .streams import Streams, batches, versions_of

_PAGE = f"SELECT {COLUMNS} FROM allowance_events WHERE ledger = ? AND position > ? ORDER BY position LIMIT ?"
_OF_STREAMS = f"""SELECT {COLUMNS} FROM allowance_events
                  WHERE ledger = ? AND position > ? AND position <= ? AND stream IN ({{values}}) ORDER BY position"""
_HAS = "SELECT 1 FROM allowance_events WHERE ledger = ? AND position = ? AND hash = ?"
_HASH = "SELECT hash FROM allowance_events WHERE ledger = ? AND position = ?"
_ATTEMPTS = """SELECT position FROM allowance_events INDEXED BY allowance_events_job_uuid
               WHERE ledger = ? AND job_uuid = ? ORDER BY attempt"""
_HAS_STREAMS = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'allowance_streams'"
# One index look-up for each value. With `IN` or a join SQLite would read the whole index: its planner assumes that a
# ledger, the first column of the index, has few rows.
_POSITIONS = """WITH asked (value) AS (VALUES {values})
             SELECT (SELECT position FROM allowance_events INDEXED BY allowance_events_{column}
                     WHERE ledger = ? AND {column} = asked.value {of_many})
             FROM asked"""
# How to choose one of several rows with the same value: of a job, the last attempt.
_OF_MANY = {"job_uuid": "ORDER BY attempt DESC LIMIT 1"}
_ROWS = f"SELECT {COLUMNS} FROM allowance_events WHERE ledger = ? AND position IN ({{values}})"


class LogQueries:
    """The reads of one ledger on one connection. `old_tables`: keys and jobs may be stored as text everywhere."""

    def __init__(self, connection: sqlite3.Connection, ledger: int, streams: Streams, *, old_tables: bool) -> None:
        self._connection = connection
        self._ledger = ledger
        self._old_tables = old_tables
        self._names = streams.names(connection, ledger)

    def page(self, after: int, most_rows: int) -> list[Row]:
        """Return the next rows after a position."""
        with closing(self._connection.execute(_PAGE, (self._ledger, after, most_rows))) as found:
            return next_page(rows_from(found, self._names), most_rows)

    def has(self, head: Head) -> bool:
        """Whether the log has a row with a head's position and hash."""
        return self._connection.execute(_HAS, (self._ledger, head.position, head.hash)).fetchone() is not None

    def hash_at(self, position: int) -> bytes | None:
        """Return the hash of the row at a position, None if there is none."""
        found = self._connection.execute(_HASH, (self._ledger, position)).fetchone()
        return None if found is None else bytes(found[0])

    def attempts_of(self, job_uuid: str) -> list[int]:
        """Return the positions of all reservations of a job, by attempt."""
        positions: list[int] = []
        for stored in self._stored_forms({job_uuid}):
            positions += [position for (position,) in self._connection.execute(_ATTEMPTS, (self._ledger, stored))]
        return positions

    def of_streams(self, names: Collection[str], after: int, until: int) -> list[Row]:
        """Return the rows of these streams after a position and up to another one."""
        stored = self._stored_streams(names)
        query = _OF_STREAMS.format(values=", ".join("?" * len(stored)))
        found = self._connection.execute(query, (self._ledger, after, until, *stored))
        return list(rows_from(found, self._names))

    def find(self, lookup: Lookup) -> LookupResult:
        """Return the stored rows for keys, jobs and positions."""
        known = LookupResult()
        of_keys = self._positions_of("key", self._stored_forms(lookup.keys))
        of_jobs = self._positions_of("job_uuid", self._stored_forms(lookup.jobs))
        # A caller may pass any integer as a reservation id. One that no column can hold names no row.
        requested = {position for position in lookup.positions if position <= LARGEST_INTEGER}
        for row in self._rows_at({*of_keys, *of_jobs, *requested}):
            if row.position in of_keys and row.key is not None:
                known.keys[row.key] = row
            if row.position in of_jobs and row.job_uuid is not None:
                known.jobs[row.job_uuid] = row
            if row.position in requested:
                known.rows[row.position] = row
        reservations = {*known.rows, *of_jobs}
        for row in self._rows_at(self._positions_of("settles", reservations)):
            if row.settles is not None:
                known.settlements[row.settles] = row
        return known

    def _stored_streams(self, names: Collection[str]) -> list[str | int]:
        if self._old_tables and not self._connection.execute(_HAS_STREAMS).fetchone():
            return list(names)
        numbers = [number for number, _ in versions_of(self._connection, self._ledger, names).values()]
        return [*numbers, *names]

    def _stored_forms(self, texts: Collection[str]) -> Collection[str | bytes | None]:
        narrowed = set(map(narrow, texts))
        return narrowed.union(texts) if self._old_tables else narrowed

    def _positions_of(self, column: str, values: Collection[Any]) -> set[int]:
        """Return the positions of the rows with one of these values.

        A statement for many values costs a tenth of one statement per value.
        """
        positions: set[int] = set()
        for batch in batches(values):
            placeholders = ", ".join(["(?)"] * len(batch))
            query = _POSITIONS.format(column=column, values=placeholders, of_many=_OF_MANY.get(column, ""))
            found = self._connection.execute(query, (*batch, self._ledger))
            positions.update(position for (position,) in found if position is not None)
        return positions

    def _rows_at(self, positions: Collection[int]) -> Iterator[Row]:
        """Yield the rows at these positions; absent positions yield nothing."""
        for batch in batches(positions):
            query = _ROWS.format(values=", ".join("?" * len(batch)))
            yield from rows_from(self._connection.execute(query, (self._ledger, *batch)), self._names)
