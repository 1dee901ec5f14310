"""Read everything in a PostgreSQL database in one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import asyncpg

from ledger.codec import Row
from ledger.errors import StorageUnavailable
from ledger.store.contract import PAGE_BYTES, PAGE_ROWS, check_schema_version, driver_message
from ledger.store.reader import LOG_TABLES, StoredLedger, has_log_tables

# Errors of a connection that can no longer be used, besides the server's own errors. asyncpg raises InternalClientError
# if a connection breaks in the middle of its protocol.
BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_FOUND = "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL"
_HEADS = "SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers ORDER BY ledger"
# The ledgers that have events, one look-up in the primary key each. DISTINCT would read the whole log.
_FIRST_WITH_EVENTS = "SELECT ledger FROM allowance_events ORDER BY ledger LIMIT 1"
_NEXT_WITH_EVENTS = "SELECT ledger FROM allowance_events WHERE ledger > $1 ORDER BY ledger LIMIT 1"
COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
# A page of at most $3 rows, and without those that follow after $4 bytes of payload. The server adds the sizes up while
# it reads the page by the primary key, and sends no row that would not fit.
READ_PAGE = f"""SELECT {COLUMNS} FROM
                    (SELECT *, sum(octet_length(payload)) OVER (ORDER BY position) - octet_length(payload) AS before
                     FROM allowance_events WHERE ledger = $1 AND position > $2 ORDER BY position LIMIT $3) AS page
                WHERE before < $4 ORDER BY position"""
_ROWS = "SELECT {columns} FROM allowance_events WHERE ledger = $1 AND position >= $2 ORDER BY position"
_FIRST_OF_ALL = -(2**63)


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

    async def pages(self, stored: StoredLedger, after: int | None = None) -> AsyncIterator[list[Row]]:
        with postgres_errors():
            # Cursors keep one page in memory, not the whole log. A second one reads the sizes ahead, so that a page is
            # bounded before it is sent. Positions cannot divide a damaged log into pages: two rows may have the same.
            first = _FIRST_OF_ALL if after is None else after + 1
            rows, sizes = [
                await self._connection.cursor(_ROWS.format(columns=columns), stored.ledger, first)
                for columns in (COLUMNS, "octet_length(payload)")
            ]
            while ahead := [size for (size,) in await sizes.fetch(PAGE_ROWS)]:
                for count in _page_lengths(ahead):
                    yield [Row(*row) for row in await rows.fetch(count)]

    async def head(self, stored: StoredLedger) -> StoredLedger:
        return stored

    def check_unchanged(self) -> None:
        """Do nothing: the transaction reads one snapshot."""


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


async def read_page(connection: asyncpg.Connection, ledger: int, after: int, most_rows: int) -> list[Row]:
    """Return the rows after a position, at most `most_rows`, bounded by `PAGE_BYTES` of payload."""
    return [Row(*row) for row in await connection.fetch(READ_PAGE, ledger, after, most_rows, PAGE_BYTES)]


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Raise `StorageUnavailable` for errors of the server, the driver and the network."""
    try:
        yield
    except (asyncpg.PostgresError, *BROKEN, UnicodeError) as error:
        raise StorageUnavailable(driver_message(error)) from error
