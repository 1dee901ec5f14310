"""The log on PostgreSQL, and on databases that speak its language.

The store uses only tables, row locks and plain transactions: no advisory lock, `LISTEN` or sequence, which distributed
databases lack. An append without contention is one statement: it compares the head and the streams with the expected
ones, moves them and inserts the rows. Under contention a transaction first locks the head's row. Read models are
queried through SQLAlchemy, on connections with the same settings.

If the response to an append is lost, `fence.py` finds out whether it is in the log. Until then the store accepts no
change; reads go on, and show what the server shows as committed. All connections are cut when an outcome is in doubt,
so that reads, too, continue on the server that the next connection finds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from ledger.background_imports import import_in_thread
from ledger.codec import Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import StorageUnavailable
from ledger.store.contract import (
    PAGE_ROWS,
    RowExists,
    RowsBehind,
    Schema,
    TailReader,
    TransactionConflict,
    WhileWaiting,
    do_nothing,
    give_tail,
)

from .connecting import Connector
from .creation import create as create_ledger
from .creation import find_ledger, missing_triggers, stored_schema_version
from .derived import PostgresDerivedTransaction, begin_derived_write
from .driver_errors import PostgresErrors, check_committed
from .fenced_writes import ANY_LOG, FencedWrites
from .queries import PostgresQueries
from .reader import PostgresReader, open_reader
from .session import ServerSession
from .shared_connections import SharedConnections
from .sqlstates import is_constraint_violation, is_lock_timeout
from .standby import replication_lag_seconds
from .statements import ATTEMPTS, HEAD

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class PostgresStore:
    """One ledger in one PostgreSQL database."""

    reads_wait_for_writes = False
    keeps_derived_apart = False

    def __init__(self, database_url: str, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        self._connector = Connector(database_url, read_only=read_only)
        self._shared: SharedConnections | None = None
        # Three sessions, so that reads do not wait for an append, and appends do not wait for read models.
        self._writes = ServerSession(lambda: self._connections.appends)
        self._reads = ServerSession(
            lambda: self._connections.reads, begin=self._connector.begin() if read_only else None
        )
        self._derived_writes = ServerSession(lambda: self._connections.derived)
        self._fenced = FencedWrites(self._writes, self._connector, validator_ss58, self._drop_connections)
        self._queries = PostgresQueries()

    @property
    def optimistic(self) -> bool:
        # To append under the lock takes four round trips instead of one, and nobody else can append during them. But in
        # doubt nothing may be decided, not even that a call was done before, until the fence is raised; a transaction
        # does that first.
        return not self._fenced.in_doubt

    @property
    def in_doubt(self) -> bool:
        return self._fenced.in_doubt

    async def open(self, create: Callable[[], Schema] | None) -> Head:
        with PostgresErrors():
            if create is not None:
                await create_ledger(self._writes, self.validator_ss58, create)
            self.ledger, schema_version = await self._reads.run(
                lambda connection: find_ledger(connection, self.validator_ss58)
            )
        self._fenced.ledger = self._queries.ledger = self.ledger
        self._queries.note_schema_version(schema_version)
        return await self.head()

    async def close(self) -> None:
        if self._shared is not None:
            for session in self._sessions:
                session.close()
            shared, self._shared = self._shared, None
            await shared.leave()

    @asynccontextmanager
    async def paused_for_fork(self) -> AsyncIterator[Callable[[], None]]:
        """Yield a function that does nothing: a forked child never uses the sockets that it inherits.

        The child opens its own connections, and the server knows nothing of the fork.
        """
        yield lambda: None

    async def head(self) -> Head:
        with PostgresErrors():
            return self._fenced.head_of(
                await self._reads.run(lambda connection: connection.fetchrow(HEAD, self.ledger, self.validator_ss58))
            )

    async def schema_version(self) -> int:
        with PostgresErrors():
            return await self._reads.run(stored_schema_version) or 0

    async def missing_triggers(self) -> list[str]:
        with PostgresErrors():
            return await self._reads.run(missing_triggers)

    async def replication_lag_seconds(self) -> float | None:
        with PostgresErrors():
            return await self._reads.run(replication_lag_seconds)

    def probe_head(self) -> Head | None:
        """Return None: nobody can ask a server without waiting."""
        return None

    async def read(self, after: int, limit: int | None = None) -> list[Row]:
        most = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
        with PostgresErrors():
            return await self._reads.run(lambda connection: self._queries.page(connection, after, most))

    async def read_streams(self, streams: Collection[str], after: int, until: int) -> list[Row]:
        with PostgresErrors():
            return await self._reads.run(lambda connection: self._queries.of_streams(connection, streams, after, until))

    async def find(self, lookup: Lookup) -> LookupResult:
        with PostgresErrors():
            return await self._reads.run(lambda connection: self._queries.find(connection, lookup))

    async def attempts_of(self, job_uuid: str) -> list[int]:
        with PostgresErrors():
            found = await self._reads.run(lambda connection: connection.fetch(ATTEMPTS, self.ledger, job_uuid))
            return [position for (position,) in found]

    @asynccontextmanager
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[PostgresTransaction]:
        # `while_waiting` is never called: the server does not report who is next in the queue for a row lock.
        async with self._transaction(waits=True) as transaction:
            yield transaction

    @asynccontextmanager
    async def _transaction(self, *, waits: bool) -> AsyncIterator[PostgresTransaction]:
        with PostgresErrors(in_transaction=True):
            async with self._fenced.transaction(waits=waits) as (connection, head):
                yield PostgresTransaction(self._fenced, self._queries, connection, head)

    async def append(
        self,
        events: RowsBehind,
        expected: Mapping[str, int],
        *,
        at: Head | None = None,
        since: Head | None = None,
        read_tail: TailReader | None = None,
    ) -> list[Row] | None:
        if at is None:
            return await self._append_locked(events, expected, since or ANY_LOG, read_tail)
        rows = events(at)
        with PostgresErrors():
            return rows if await self._fenced.append_at(at, rows, expected, since or ANY_LOG) else None

    async def _append_locked(
        self, events: RowsBehind, expected: Mapping[str, int], since: Head, read_tail: TailReader | None
    ) -> list[Row] | None:
        try:
            async with self._transaction(waits=False) as transaction:
                await give_tail(transaction, since, read_tail)
                rows = events(await transaction.head())
                return rows if await transaction.append_since(since, rows, expected) else None
        except StorageUnavailable as error:
            if error.__cause__ is not None and is_constraint_violation(error.__cause__):
                raise RowExists(str(error.__cause__)) from error
            if error.__cause__ is not None and is_lock_timeout(error.__cause__):
                raise TransactionConflict(str(error.__cause__)) from error
            raise

    async def resolve_commit(self, first: Row) -> bool:
        return await self._fenced.resolve_commit(first)

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with PostgresErrors():
            return [tuple(row) for row in await self._reads.run(lambda connection: connection.fetch(statement))]

    async def derived_query(self, statement: str) -> list[tuple[Any, ...]]:
        return await self.query(statement)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[PostgresReader]:
        async with open_reader(self._connector) as reader:
            yield reader

    @asynccontextmanager
    async def derived_connection(self) -> AsyncIterator[AsyncConnection]:
        await import_in_thread("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg")
        with PostgresErrors():
            async with self._connections.engine.open().connect() as connection:
                yield connection

    @asynccontextmanager
    async def write_derived(self, *, all_ledgers: bool = False) -> AsyncIterator[PostgresDerivedTransaction]:
        session = self._derived_writes
        with PostgresErrors():
            async with session.held():
                begin = self._connector.begin()
                connection = await session.run_locked(
                    lambda connection: begin_derived_write(
                        session, connection, begin, self.ledger, all_ledgers=all_ledgers
                    )
                )
                try:
                    yield PostgresDerivedTransaction(connection)
                    check_committed(await connection.execute("COMMIT"))
                except BaseException:
                    await session.roll_back(connection)
                    raise

    def write_verifications(
        self, *, all_ledgers: bool = False
    ) -> AbstractAsyncContextManager[PostgresDerivedTransaction]:
        return self.write_derived(all_ledgers=all_ledgers)

    @property
    def _sessions(self) -> tuple[ServerSession, ...]:
        return self._writes, self._reads, self._derived_writes

    @property
    def _connections(self) -> SharedConnections:
        if self._shared is None:
            self._shared = SharedConnections.of(self._connector)
        return self._shared

    def _drop_connections(self) -> None:
        """Cut every connection on which something is read or written later, so that all lead to one server again.

        After a fail-over the old primary may still respond. Audits read one snapshot and keep their connections.
        """
        for session in self._sessions:
            session.drop()
        self._connections.retire()


class PostgresTransaction:
    """A write transaction on a `PostgresStore`."""

    def __init__(
        self, fenced: FencedWrites, queries: PostgresQueries, connection: asyncpg.Connection, head: Head
    ) -> None:
        self._fenced = fenced
        self._queries = queries
        self._connection = connection
        self._head = head

    async def head(self) -> Head:
        return self._head

    async def read(self, after: int) -> list[Row]:
        return await self._queries.page(self._connection, after, PAGE_ROWS)

    async def find(self, lookup: Lookup) -> LookupResult:
        return await self._queries.find(self._connection, lookup)

    async def append(self, rows: list[Row], expected: Mapping[str, int]) -> None:
        await self.append_since(ANY_LOG, rows, expected)

    async def append_since(self, since: Head, rows: list[Row], expected: Mapping[str, int]) -> bool:
        """Do the same as `append`; do nothing and return False if the log lacks the event at the head `since`."""
        continues = await self._fenced.append_in(self._connection, self._head, rows, expected, since)
        if continues:
            self._head = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)
        return continues
