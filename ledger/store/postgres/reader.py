"""Reading all that a PostgreSQL database holds, as it stands at one moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import asyncpg

from ledger.codec import Row
from ledger.errors import StorageUnavailable
from ledger.store.contract import PAGE_ROWS, check_schema_version, driver_message
from ledger.store.reader import LOG_TABLES, StoredLedger, has_log_tables

BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What the driver raises, besides the server's own errors; the last where a connection broke at a bad moment."""

_FOUND = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
_HEADS = "SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers ORDER BY ledger"
_FIRST_WITH_EVENTS = "SELECT ledger FROM allowance_events ORDER BY ledger LIMIT 1"
_NEXT_WITH_EVENTS = "SELECT ledger FROM allowance_events WHERE ledger > $1 ORDER BY ledger LIMIT 1"
_ROWS = """SELECT position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash
           FROM allowance_events WHERE ledger = $1 ORDER BY position"""


class PostgresReader:
    """A database in one transaction, whose snapshot no append changes."""

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
            rows = await self._connection.cursor(_ROWS, stored.ledger)
            while page := await rows.fetch(PAGE_ROWS):
                yield [Row(*row) for row in page]

    async def head(self, stored: StoredLedger) -> StoredLedger:
        return stored

    def check_unchanged(self) -> None:
        """A snapshot never is."""


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Turns the driver's and the network's errors into `StorageUnavailable`."""
    try:
        yield
    except (asyncpg.PostgresError, *BROKEN, UnicodeError) as error:
        raise StorageUnavailable(driver_message(error)) from error
