"""The derived tables of a SQLite log, in a file of their own beside it.

What can be made again from the log must not stand in its way. In a file of its own it has its own write lock, which no
append waits for, and its commits are not flushed (`synchronous = NORMAL`): after a power cut SQLite finds the file as
it was at an earlier commit, which is only further behind the log.

The file can be deleted at any time. It is believed only if it is bound to this log (`derived_binding.py`). A writer
makes a missing or damaged one again, empty; the projector fills it. Who only reads never creates anything, and reads
the file only if that leaves no trace.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ledger.background_imports import import_in_thread
from ledger.cancellation import cancellation_shield
from ledger.errors import StorageUnavailable
from ledger.store.contract import (
    REMAKE_DERIVED_TABLES,
    DerivedTablesUnavailable,
    Schema,
    driver_message,
    is_sqlalchemy_error,
)

from .derived_binding import Binding, BoundLog, belongs_to, bind_anew, binding, moved_on
from .derived_checkpoint import checkpoint_in_thread, is_checkpoint_due
from .derived_file import DerivedFile
from .derived_sql import ENGINE_MODULES, SqlTransaction, new_engine
from .durability import roll_back
from .reader import BUSY_TIMEOUT_SECONDS
from .shared_lock import SharedLock

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

BUSY_PAUSE_SECONDS = 0.005
"""Between two attempts to begin. Others write pieces of less than a millisecond, and rebuilds some of a few."""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class DerivedTables:
    """The derived tables of one store, in the file `<path>-derived`."""

    def __init__(self, path: str, log: BoundLog, *, read_only: bool) -> None:
        self.file = DerivedFile(path, read_only=read_only)
        self.create: Callable[[], Schema] | None = None
        """Returns the tables; None if a missing file cannot be made."""
        self._log = log
        self._connection: sqlite3.Connection | None = None
        self._identity: object = None
        self._engine: AsyncEngine | None = None
        self._engine_identity: object = None
        self._bound: Binding | None = None
        # Serializes the writers of this process, which share one connection.
        self._write_lock = asyncio.Lock()
        # Held by whoever has a connection of its own, so that a fork can wait until none is in use.
        self._users = SharedLock()
        self._checkpoint: asyncio.Task[None] | None = None

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement. Raises `DerivedTablesUnavailable`."""
        with self._errors():
            return self._open_bound().execute(statement).fetchall()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Connect through SQLAlchemy. Raises `DerivedTablesUnavailable`."""
        await import_in_thread(*ENGINE_MODULES)
        with self._errors():
            # A statement that is cancelled while it runs in the driver's thread would keep its locks.
            async with self._users.shared():
                with cancellation_shield():
                    async with (await self._renewed_engine()).connect() as connection:
                        yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqlTransaction]:
        """Begin a transaction, in a new file if there is none that can be used. Raises `DerivedTablesUnavailable`."""
        await self._import_tables_if_missing()
        async with self._write_lock:
            with self._errors():
                connection = self._open_to_write()
                await _begin(connection)
                try:
                    bound = self._bind(connection)
                    yield SqlTransaction(connection)
                    bound = moved_on(connection, self._log, bound)
                    connection.execute("COMMIT")
                except BaseException:
                    roll_back(connection)
                    raise
                self._bound = bound
        self._start_checkpoint_if_due()

    @asynccontextmanager
    async def paused_for_fork(self) -> AsyncIterator[None]:
        """Stop all work until left; `close` may be called meanwhile."""
        async with self._write_lock, self._users.exclusive():
            await self.dispose()
            yield

    async def dispose(self) -> None:
        """Close the connections that SQLAlchemy keeps; the checkpoint under way ends before."""
        if self._checkpoint is not None:
            await asyncio.wait([self._checkpoint])
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def close(self) -> None:
        """Close the file, after `dispose`; the next use opens it again."""
        connection, self._connection, self._bound = self._connection, None, None
        if connection is not None:
            connection.close()
        self.file.leave()

    def _bind(self, connection: sqlite3.Connection) -> Binding:
        """Return what the file is bound to, in the transaction under way; bind it to this log if it has another's."""
        bound = binding(connection, self._log.ledger)
        if bound is not None and (bound == self._bound or belongs_to(bound, self._log)):
            return bound
        return bind_anew(connection, self._log)

    async def _import_tables_if_missing(self) -> None:
        # Before anything is locked: see `import_in_thread`.
        with suppress(StorageUnavailable, sqlite3.Error, OSError):
            self._open()
        if self.create is not None and self.file.is_missing:
            await import_in_thread("ledger.store.tables")

    def _open_to_write(self) -> sqlite3.Connection:
        if self.file.read_only:
            raise DerivedTablesUnavailable(f"{self.file.path} is open for reading only")
        if self.create is not None and self.file.is_missing:
            self.file.make(self.create())
        return self._open()

    def _open_bound(self) -> sqlite3.Connection:
        """Return the connection if the file belongs to this log."""
        connection = self._open()
        if self._bound is None:
            bound = binding(connection, self._log.ledger)
            if not belongs_to(bound, self._log):
                raise DerivedTablesUnavailable(f"{self.file.path} was not derived from this log")
            self._bound = bound
        return connection

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is at the path now."""
        found = self.file.identity()
        if self._connection is None or found != self._identity:
            self.close()
            self._connection, self._identity = self._connect(), found
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        try:
            return self.file.connect()
        except BaseException as error:
            self.file.leave()
            if _error_code(error) in _DAMAGE:
                self.file.note_damage()
            raise

    async def _renewed_engine(self) -> AsyncEngine:
        """Return an engine on the file that is at the path now."""
        self._open_bound()
        if self._engine is not None and self._engine_identity != self._identity:
            await self._engine.dispose()
            self._engine = None
        if self._engine is None:
            self._engine, self._engine_identity = new_engine(self.file.uri(), in_memory=False), self._identity
        return self._engine

    def _start_checkpoint_if_due(self) -> None:
        is_running = self._checkpoint is not None and not self._checkpoint.done()
        if not is_running and is_checkpoint_due(self.file.path):
            self._checkpoint = asyncio.create_task(checkpoint_in_thread(self.file.uri()))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise `DerivedTablesUnavailable` for every error of the file; let a damaged file be deleted.

        A lost table is a plain `StorageUnavailable`, as in every database: a rebuild makes it again.
        """
        try:
            yield
        except (sqlite3.Error, OSError, MemoryError, UnicodeDecodeError) as error:
            raise self._unavailable(error) from error
        except Exception as error:
            if not is_sqlalchemy_error(error):
                raise
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StorageUnavailable:
        if _error_code(error) in _DAMAGE:
            self.close()
            self.file.note_damage()
        message = driver_message(error)
        if message.endswith(REMAKE_DERIVED_TABLES):
            return StorageUnavailable(message)
        return DerivedTablesUnavailable(f"{self.file.path}: {message}")


async def _begin(connection: sqlite3.Connection) -> None:
    """Begin a write transaction; wait for that of another process without blocking the loop."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if _error_code(error) != sqlite3.SQLITE_BUSY or loop.time() > give_up_at:
                raise
        await asyncio.sleep(BUSY_PAUSE_SECONDS)


def _error_code(error: BaseException | None) -> int:
    """Return SQLite's primary code of an error, or of the one that it wraps; 0 if there is none."""
    while error is not None and not isinstance(error, sqlite3.Error):
        error = getattr(error, "orig", None) or error.__cause__
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
