"""Read everything in a PostgreSQL database in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import asyncpg

from ledger.codec import Row
from ledger.errors import StorageUnavailable
from ledger.store.contract import PAGE_ROWS, check_schema_version, driver_message
from ledger.store.reader import LOG_TABLES, StoredLedger, has_log_tables

# Errors of a connection that can no longer be used, besides the server's own errors. asyncpg raises InternalClientError
# if a connection breaks in the middle of its protocol.
BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_FOUND = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
_HEADS = "SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers ORDER BY ledger"
# The ledgers that have events, one look-up in the primary key each. DISTINCT would read the whole log.
_FIRST_WITH_EVENTS = "SELECT ledger FROM allowance_events ORDER BY ledger LIMIT 1"
_NEXT_WITH_EVENTS = "SELECT ledger FROM allowance_events WHERE ledger > $1 ORDER BY ledger LIMIT 1"
_ROWS = """SELECT position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash
           FROM allowance_events WHERE ledger = $1 ORDER BY position"""


class PostgresReader:
    """A `LogReader` of a database in one repeatable-read transaction: appends do not change what it reads."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def ledgers(self) -> list[StoredLedger]:
        with postgres_errors():
            if not has_log_tables([name for (name,) in await self._connection.fetch(_FOUND, LOG_TABLES)]):
                return []
            version = await self._connection.fetchval("SELECT version FROM allowance_schema")
            if isinstance(version, int):
                check_schema_version(version)
            stored = [StoredLedger(*row) for row in await self._connection.fetch(_HEADS)]
            known = {each.ledger for each in stored}
            found = await self._connection.fetchval(_FIRST_WITH_EVENTS)
            while found is not None:
                if found not in known:
                    stored.append(StoredLedger(found, has_head=False))
                found = await self._connection.fetchval(_NEXT_WITH_EVENTS, found)
            return stored

    async def pages(self, stored: StoredLedger) -> AsyncIterator[list[Row]]:
        with postgres_errors():
            # A cursor keeps one page in memory, not the whole log.
            rows = await self._connection.cursor(_ROWS, stored.ledger)
            while page := await rows.fetch(PAGE_ROWS):
                yield [Row(*row) for row in page]

    async def head(self, stored: StoredLedger) -> StoredLedger:
        return stored

    def check_unchanged(self) -> None:
        """Do nothing: the transaction reads one snapshot."""


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Raise `StorageUnavailable` for errors of the server, the driver and the network."""
    try:
        yield
    except (asyncpg.PostgresError, *BROKEN, UnicodeError) as error:
        raise StorageUnavailable(driver_message(error)) from error
