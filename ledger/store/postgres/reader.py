"""Read everything in a PostgreSQL database in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from ledger.codec import Row
from ledger.errors import StorageUnavailable
from ledger.store.contract import (
    PAGE_BYTES,
    PAGE_ROWS,
    SCHEMA_VERSION,
    RecoveryConflict,
    check_schema_version,
    driver_message,
)
from ledger.store.reader import LOG_TABLES, STREAMS, StoredLedger, check_streams, has_log_tables

from .connecting import Connector
from .search_path import has_schema
from .standby import is_standby, recovery_conflict
from .statements import ALL_SIZES, STORED_SCHEMA_VERSION, log_queries

# Errors of a connection that can no longer be used, besides the server's own errors. asyncpg raises InternalClientError
# if a connection breaks in the middle of its protocol.
BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_FOUND = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
_HEADS = "SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers ORDER BY ledger"
# The ledgers that have events, one look-up in the primary key each. DISTINCT would read the whole log.
_FIRST_WITH_EVENTS = "SELECT ledger FROM allowance_events ORDER BY ledger LIMIT 1"
_NEXT_WITH_EVENTS = "SELECT ledger FROM allowance_events WHERE ledger > $1 ORDER BY ledger LIMIT 1"
_HAS_EVENTS = "SELECT to_regclass('allowance_events') IS NOT NULL"
# Before the first snapshot. A schema step rewrites the table, which would then be empty in an older snapshot. So the
# step waits for the end of this transaction, or this transaction for the step.
_KEEP_TABLE = "LOCK TABLE allowance_events IN ACCESS SHARE MODE"
_VERSIONS = "SELECT name, version FROM allowance_streams WHERE ledger = $1"
_FIRST_OF_ALL = -(2**63)


class PostgresReader:
    """A `LogReader` of a database in one repeatable-read transaction: appends do not change what it reads."""

    def __init__(self, connection: asyncpg.Connection, *, on_standby: bool) -> None:
        self._connection = connection
        self._on_standby = on_standby
        self._schema_version = SCHEMA_VERSION
        self._cursors = 0

    async def ledgers(self) -> list[StoredLedger]:
        with postgres_errors(on_standby=self._on_standby):
            tables = [name for (name,) in await self._connection.fetch(_FOUND, (*LOG_TABLES, STREAMS))]
            if not has_log_tables(tables):
                return []
            version = await self._connection.fetchval(STORED_SCHEMA_VERSION)
            if isinstance(version, int):
                check_schema_version(version)
                check_streams(version, tables)
                self._schema_version = version
            stored = [StoredLedger(*row) for row in await self._connection.fetch(_HEADS)]
            known = {each.ledger for each in stored}
            found = await self._connection.fetchval(_FIRST_WITH_EVENTS)
            while found is not None:
                if found not in known:
                    stored.append(StoredLedger(found, has_head=False))
                found = await self._connection.fetchval(_NEXT_WITH_EVENTS, found)
            return stored

    async def pages(self, stored: StoredLedger, after: int | None = None) -> AsyncIterator[list[Row]]:
        with postgres_errors(on_standby=self._on_standby):
            # Cursors keep one page in memory, not the whole log. A second one reads the sizes ahead, so that a page is
            # bounded before it is sent. Positions cannot divide a damaged log into pages: two rows may have the same.
            first = _FIRST_OF_ALL if after is None else after + 1
            rows = await self._declare(log_queries(self._schema_version).all, stored.ledger, first)
            sizes = await self._declare(ALL_SIZES, stored.ledger, first)
            while ahead := [size for (size,) in await self._connection.fetch(f"FETCH {PAGE_ROWS} FROM {sizes}")]:
                for count in _page_lengths(ahead):
                    yield [Row(*row) for row in await self._connection.fetch(f"FETCH {count} FROM {rows}")]

    async def _declare(self, query: str, ledger: int, first: int) -> str:
        """Open a cursor and return its name.

        It ends with the transaction. The driver's cursors have prepared statements, which a pool would give to others.
        """
        self._cursors += 1
        name = f"allowance_{self._cursors}"
        await self._connection.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {query}", ledger, first)
        return name

    async def head(self, stored: StoredLedger) -> StoredLedger:
        return stored

    async def versions(self, stored: StoredLedger) -> dict[Any, Any]:
        with postgres_errors(on_standby=self._on_standby):
            has_streams = await self._connection.fetch(_FOUND, [STREAMS])
            return dict(await self._connection.fetch(_VERSIONS, stored.ledger)) if has_streams else {}

    def check_unchanged(self) -> None:
        """Do nothing: the transaction reads one snapshot."""


@asynccontextmanager
async def open_reader(connector: Connector) -> AsyncIterator[PostgresReader]:
    """Begin a transaction that reads one snapshot, on a connection of its own."""
    with postgres_errors():
        connection = await connector.connect()
        on_standby = is_standby(connection)  # A closed connection no longer knows.
    with postgres_errors(on_standby=on_standby):
        try:
            await has_schema(connection)  # Raises if the search path is unusable.
            has_events = await connection.fetchval(_HAS_EVENTS)
            # Not `async with`: at its end it would hide the error of a connection that is lost.
            await connection.transaction(isolation="repeatable_read", readonly=True).start()
            # An audit may compute for longer than the timeout between two pages. It holds no row's lock meanwhile.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            if has_events:
                await connection.execute(_KEEP_TABLE)
            yield PostgresReader(connection, on_standby=on_standby)
        finally:
            # To cut the connection never waits, unlike an orderly end; a read-only transaction loses nothing.
            connection.terminate()


def _page_lengths(sizes: list[int | None]) -> Iterator[int]:
    """Yield the number of rows in each page, given all payloads' sizes; a page ends when it reaches `PAGE_BYTES`."""
    count = total = 0
    for size in sizes:
        count += 1
        total += size or 0
        if total >= PAGE_BYTES:
            yield count
            count = total = 0
    if count:
        yield count


@contextmanager
def postgres_errors(*, on_standby: bool = False) -> Iterator[None]:
    """Raise `StorageUnavailable` for errors of the server, the driver and the network.

    On a standby, `RecoveryConflict` if the connection is lost: between two statements a standby cuts the connection of
    a snapshot that is in its way, and the driver drops the reason.
    """
    try:
        yield
    except (asyncpg.PostgresError, *BROKEN, UnicodeError) as error:
        if on_standby and isinstance(error, BROKEN):
            raise RecoveryConflict(driver_message(error)) from error
        raise recovery_conflict(error) or StorageUnavailable(driver_message(error)) from error
