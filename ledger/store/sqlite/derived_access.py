"""Queries of a store: of the log, and of the derived tables in a file of their own, or in memory beside the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ledger.background_imports import import_in_thread
from ledger.cancellation import cancellation_shield
from ledger.errors import StorageUnavailable
from ledger.store.contract import CommitOutcomeUnknown

from .derived import DerivedTables
from .derived_sql import ENGINE_MODULES, SqlTransaction, new_engine
from .errors import SqliteErrors
from .lookups import LogQueries
from .shared_lock import SharedLock
from .writing import SqliteWriting

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class SqliteDerivedAccess(SqliteWriting):
    """A writer of the log that also queries it, the derived tables and the results of verifications."""

    def __init__(self, path: str | None, validator_ss58: str, *, read_only: bool) -> None:
        super().__init__(path, validator_ss58, read_only=read_only)
        self._engine: AsyncEngine | None = None
        self._derived = None if path is None else DerivedTables(path, self, read_only=read_only)
        # Held by every reader with a connection of its own, so that a fork can wait until no such connection is in use.
        self._readers_lock = SharedLock()

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with SqliteErrors():
            async with self._between_writes():
                return self._open_connection().execute(statement).fetchall()

    def hash_at(self, position: int) -> bytes | None:
        """Return the hash of the event at a position, None if the log has none there."""
        with SqliteErrors():
            return self._queries().hash_at(position)

    @property
    def keeps_derived_apart(self) -> bool:
        return self._derived is not None

    async def derived_query(self, statement: str) -> list[tuple[Any, ...]]:
        return await self.query(statement) if self._derived is None else self._derived.query(statement)

    @asynccontextmanager
    async def derived_connection(self) -> AsyncIterator[AsyncConnection]:
        async with self._connection_in_memory() if self._derived is None else self._derived.connection() as connection:
            yield connection

    @asynccontextmanager
    async def write_derived(self, *, all_ledgers: bool = False) -> AsyncIterator[SqlTransaction]:
        # A file has one write lock, so a transaction always excludes all ledgers.
        async with self.write_verifications() if self._derived is None else self._derived.write() as transaction:
            yield transaction

    @asynccontextmanager
    async def write_verifications(self, *, all_ledgers: bool = False) -> AsyncIterator[SqlTransaction]:
        with SqliteErrors():
            try:
                async with self._exclusive(for_read_models=True):
                    # `head` checks the schema for appends; here nothing else would.
                    self._check_schema()
                    yield SqlTransaction(self._open_connection())
            except CommitOutcomeUnknown as cause:
                # What is written here can be found out again, so nobody needs to know the outcome.
                raise StorageUnavailable(str(cause)) from cause

    @asynccontextmanager
    async def _connection_in_memory(self) -> AsyncIterator[AsyncConnection]:
        # Before anything is locked: see `import_in_thread`.
        await import_in_thread(*ENGINE_MODULES)
        with SqliteErrors():
            async with self._between_writes(), self._readers_lock.shared():
                # A statement that is cancelled while it runs in the driver's thread would keep its locks.
                with cancellation_shield():
                    async with self._open_engine().connect() as connection:
                        yield connection

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = new_engine(self._uri(), in_memory=True)
        return self._engine

    def _derived_paused(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._derived is None else self._derived.paused_for_fork()

    async def _dispose(self) -> None:
        if self._derived is not None:
            await self._derived.dispose()
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def _queries(self) -> LogQueries:
        # A reader may have older tables open, and beside it a writer may upgrade them.
        return LogQueries(self._open_connection(), self.ledger, self._streams, old_tables=self._read_only)
