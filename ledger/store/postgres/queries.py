"""Pages and look-ups of the log, whichever version its tables have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import asyncpg

from ledger.codec import Row, row_from_columns
from ledger.domain.lookup import Lookup, LookupResult
from ledger.store.contract import PAGE_BYTES, SCHEMA_VERSION
from ledger.values import LARGEST_INTEGER

from .statements import NUMBERED_STREAMS_VERSION, STORED_SCHEMA_VERSION, log_queries


class PostgresQueries:
    """Reads one ledger's rows. `note_schema_version` first; a store that only reads may find an older version."""

    def __init__(self) -> None:
        self.ledger = 0
        self._schema_version = SCHEMA_VERSION

    def note_schema_version(self, version: int) -> None:
        """Read tables of this version from now on."""
        self._schema_version = version

    async def page(self, connection: asyncpg.Connection, after: int, most_rows: int) -> list[Row]:
        """Return the rows after a position, at most `most_rows`, bounded by `PAGE_BYTES` of payload."""
        records = await self._fetch(connection, "page", after, most_rows, PAGE_BYTES)
        return list(map(row_from_columns, records))

    async def find(self, connection: asyncpg.Connection, lookup: Lookup) -> LookupResult:
        """Return the stored rows for keys, jobs and positions; one round trip."""
        # A caller may pass any integer as a reservation id. One that no column can hold names no row.
        positions = [position for position in lookup.positions if position <= LARGEST_INTEGER]
        records = await self._fetch(connection, "find", list(lookup.keys), list(lookup.jobs), positions)
        known = LookupResult()
        for *columns, found_by in records:
            _add(known, found_by, row_from_columns(columns))
        return known

    async def of_streams(
        self, connection: asyncpg.Connection, streams: Collection[str], after: int, until: int
    ) -> list[Row]:
        """Return the rows of streams after a position, up to another one."""
        return list(map(row_from_columns, await self._fetch(connection, "of_streams", list(streams), after, until)))

    async def _fetch(self, connection: asyncpg.Connection, query: str, *values: Any) -> Sequence[Any]:
        version = self._schema_version
        records: Sequence[Any] = await connection.fetch(getattr(log_queries(version), query), self.ledger, *values)
        if version < NUMBERED_STREAMS_VERSION:
            # If another process has upgraded the tables meanwhile, these rows have a number for their stream.
            self._schema_version = await connection.fetchval(STORED_SCHEMA_VERSION)
            if self._schema_version >= NUMBERED_STREAMS_VERSION:
                return await self._fetch(connection, query, *values)
        return records


def _add(known: LookupResult, found_by: str, row: Row) -> None:
    if found_by == "key" and row.key is not None:
        known.keys[row.key] = row
    elif found_by == "job" and row.job_uuid is not None:
        known.jobs[row.job_uuid] = row
    elif found_by == "position":
        known.rows[row.position] = row
    elif row.settles is not None:
        known.settlements[row.settles] = row
