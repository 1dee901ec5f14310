"""The log on SQLite.

The write connection is the standard library's, used from the ledger's own thread: one durable commit costs as
much as the file system asks and nothing more. Read models go through SQLAlchemy and aiosqlite, on connections of
their own, so that a long read never holds up a write (WAL).

A file lock stands in front of `BEGIN IMMEDIATE`: SQLite's own waiting is by polling, and starves some processes
for seconds. Nothing rests on the file lock but fairness.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from .codec import GENESIS_HASH, Row
from .errors import LedgerNotFound, StorageUnavailable
from .interruption import uninterrupted
from .log import (
    PAGE_ROWS,
    SCHEMA_VERSION,
    CommitUncertain,
    Head,
    Known,
    Lookup,
    check_schema_version,
    is_sqlalchemy_error,
)
from .runtime import inherits_connections
from .values import LARGEST_INTEGER

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover - no fair queue where there is no flock
    fcntl = None

BUSY_TIMEOUT_SECONDS = 30.0

_COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
_HEAD = """SELECT position, hash, recorded_at_ns, (SELECT version FROM allowance_schema)
           FROM allowance_ledgers WHERE ledger = ?"""
_READ = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND position > ? ORDER BY position LIMIT ?"
_BY_KEY = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND key = ?"
_BY_JOB = f"""SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND job_uuid = ?
              ORDER BY attempt DESC LIMIT 1"""
_BY_POSITION = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND position = ?"
_BY_SETTLES = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND settles = ?"
_INSERT = f"INSERT INTO allowance_events (ledger, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_MOVE_HEAD = """UPDATE allowance_ledgers SET position = ?, hash = ?, recorded_at_ns = ?
                WHERE ledger = ? AND position = ? AND hash = ?"""


class SqliteStore:
    """One ledger in one SQLite database: a file, or the memory of this process."""

    optimistic = False
    """The lock costs nothing that an append does not need anyway."""

    def __init__(self, path: str | None, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        self.takes_turns = path is None
        self._path = None if path is None else Path(path)
        self._read_only = read_only
        self._memory_name = f"/allowance-{uuid4().hex}"
        self._connection: sqlite3.Connection | None = None
        self._engine: AsyncEngine | None = None
        self._lock = None if path is None or read_only else FileLock(f"{path}.lock")
        self._turn = asyncio.Lock()
        """Writers of this process take turns here, since a writer that SQLite made wait would stop the loop."""
        self._gate = Gate()
        """Whoever uses the read models' connections passes it."""

    async def open(self, create: Callable[[], MetaData] | None) -> Head:
        if inherits_connections() and self._path is not None:
            raise StorageUnavailable("this process was forked while a ledger was in use; start it anew")
        with _StorageErrors():
            if create is not None:
                if self._path is not None:
                    _create_private(self._path)
                # One at a time: of those who set a new file to WAL at once, SQLite lets none wait but refuses them.
                async with self._in_line():
                    self._open_connection()
                async with self._exclusive():
                    self._create(create)
            self._open_connection()
            self._check_schema()
            self.ledger = self._find_ledger()
            return self._head()

    async def close(self) -> None:
        await self._dispose()
        self._let_go()

    @asynccontextmanager
    async def parked(self) -> AsyncIterator[Callable[[], None]]:
        """Until left, nobody writes, and nobody reads the read models; gives what closes the last connection.

        A forked child shares the memory in which SQLite keeps the locks that the process holds on a file, but not
        the locks. What it then commits is lost when its parent, alone as far as it can see, removes the WAL.
        """
        if self._path is None:
            yield _nothing
            return
        async with self._turn, self._gate.shut():
            await self._dispose()
            yield self._let_go

    async def _dispose(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()

    async def head(self) -> Head:
        with _StorageErrors():
            async with self._between_writes():
                return self._head()

    async def read(self, after: int) -> list[Row]:
        with _StorageErrors():
            async with self._between_writes():
                return self._read(after)

    async def find(self, lookup: Lookup) -> Known:
        with _StorageErrors():
            async with self._between_writes():
                return self._find(lookup)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[SqliteTransaction]:
        with _StorageErrors():
            async with self._exclusive():
                yield SqliteTransaction(self, self._head())

    async def compare_and_append(self, head: Head, rows: list[Row]) -> bool:
        try:
            async with self.transaction() as transaction:
                if await transaction.head() != head:
                    return False
                await transaction.append(rows)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                return False
            raise
        return True

    async def select(self, statement: str) -> list[tuple[Any, ...]]:
        with _StorageErrors():
            async with self._between_writes():
                return self._open_connection().execute(statement).fetchall()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        with _StorageErrors():
            async with self._between_writes(), self._gate.passed(), self._read_models() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        with _StorageErrors():
            async with self._in_line(), self._gate.passed(), self._read_models() as connection:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection
                try:
                    await connection.commit()
                except BaseException:
                    # SQLAlchemy takes the transaction for ended, SQLite may not: whoever got this connection next
                    # would be inside it, and everybody else locked out.
                    await connection.invalidate()
                    raise

    @asynccontextmanager
    async def _read_models(self) -> AsyncIterator[AsyncConnection]:
        with uninterrupted():
            async with self._open_engine().connect() as connection:
                yield connection

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """Alone on the database; commits at the end, rolls back at an exception."""
        async with self._in_line():
            connection = self._open_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                _roll_back(connection)
                raise
            self._commit(connection)

    @asynccontextmanager
    async def _between_writes(self) -> AsyncIterator[None]:
        """In memory there is no WAL: reads and writes keep each other out, so they take turns."""
        if self._path is not None:
            yield
        else:
            async with self._turn:
                yield

    @asynccontextmanager
    async def _in_line(self) -> AsyncIterator[None]:
        """Alone among the writers of this process and, by the file lock, of all processes."""
        async with self._turn:
            if self._lock is None:
                yield
                return
            await self._lock.acquire()
            try:
                yield
            finally:
                self._lock.release()

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = _engine(self._uri(), in_memory=self._path is None)
        return self._engine

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as cause:
            # After a failed sync nobody can say what is on the disk: a new connection reads the truth.
            _roll_back(connection)
            connection.close()
            self._connection = None
            raise CommitUncertain(str(cause)) from cause

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _uri(self) -> str:
        if self._path is None:
            return f"file:{self._memory_name}?vfs=memdb"
        mode = "ro" if self._read_only else "rw"
        return f"file:{quote(str(self._path.absolute()))}?mode={mode}"

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.Error as cause:
            raise StorageUnavailable(self._why_not(cause)) from cause

    def _why_not(self, error: sqlite3.Error) -> str:
        """Why the database cannot be opened; SQLite itself names neither the file nor, mostly, the reason."""
        path = self._path
        if path is None:
            return str(error)
        if path.is_dir():
            return f"{path} is a directory; name a file in it"
        return f"{path}: {error}" if path.exists() else f"there is no file {path}"

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._uri(), uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_SECONDS
        )
        try:
            if not self._read_only and self._path is not None:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, tables: Callable[[], MetaData]) -> None:
        connection = self._open_connection()
        if self._stored_schema_version() is None:
            from .tables import sqlite_schema

            for statement in sqlite_schema(tables()):
                connection.execute(statement)
            connection.execute("INSERT INTO allowance_schema VALUES (1, ?)", (SCHEMA_VERSION,))
        self._check_schema()
        connection.execute(
            """INSERT INTO allowance_ledgers (ledger, validator_ss58, position, hash, recorded_at_ns)
               SELECT coalesce((SELECT max(ledger) FROM allowance_ledgers), 0) + 1, ?, 0, ?, 0
               WHERE NOT EXISTS (SELECT 1 FROM allowance_ledgers WHERE validator_ss58 = ?)""",
            (self.validator_ss58, GENESIS_HASH, self.validator_ss58),
        )

    def _stored_schema_version(self) -> int | None:
        connection = self._open_connection()
        exists = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'allowance_schema'"
        ).fetchone()
        row = exists and connection.execute("SELECT version FROM allowance_schema").fetchone()
        return None if row is None else int(row[0])

    def _check_schema(self) -> None:
        stored = self._stored_schema_version()
        if stored is None:
            raise LedgerNotFound(self.validator_ss58)
        check_schema_version(stored)

    def _find_ledger(self) -> int:
        row = (
            self._open_connection()
            .execute("SELECT ledger FROM allowance_ledgers WHERE validator_ss58 = ?", (self.validator_ss58,))
            .fetchone()
        )
        if row is None:
            raise LedgerNotFound(self.validator_ss58)
        return int(row[0])

    def _head(self) -> Head:
        position, a_hash, recorded_at_ns, schema_version = (
            self._open_connection().execute(_HEAD, (self.ledger,)).fetchone()
        )
        check_schema_version(schema_version)
        return Head(position, a_hash, recorded_at_ns)

    def _read(self, after: int) -> list[Row]:
        rows = self._open_connection().execute(_READ, (self.ledger, after, PAGE_ROWS))
        return [Row(*row) for row in rows]

    def _find(self, lookup: Lookup) -> Known:
        known = Known()
        for key in lookup.keys:
            row = self._one(_BY_KEY, key)
            if row is not None:
                known.keys[key] = row
        for job_uuid in lookup.jobs:
            row = self._one(_BY_JOB, job_uuid)
            if row is not None:
                known.jobs[job_uuid] = row
                self._find_settlement(known, row.position)
        for position in lookup.positions:
            row = self._one(_BY_POSITION, position)
            if row is not None:
                known.rows[position] = row
                self._find_settlement(known, position)
        return known

    def _find_settlement(self, known: Known, position: int) -> None:
        row = self._one(_BY_SETTLES, position)
        if row is not None:
            known.settlements[position] = row

    def _one(self, statement: str, value: str | int) -> Row | None:
        if isinstance(value, int) and value > LARGEST_INTEGER:
            return None
        row = self._open_connection().execute(statement, (self.ledger, value)).fetchone()
        return None if row is None else Row(*row)

    def _append(self, head: Head, rows: list[Row]) -> None:
        connection = self._open_connection()
        ledger = self.ledger
        connection.executemany(_INSERT, [(ledger, *row) for row in rows])
        last = rows[-1]
        moved = connection.execute(
            _MOVE_HEAD, (last.position, last.hash, last.recorded_at_ns, ledger, head.position, head.hash)
        )
        if moved.rowcount != 1:
            raise StorageUnavailable("the head moved inside a write transaction: the file is not locked")


class SqliteTransaction:
    """A write transaction on a `SqliteStore`."""

    def __init__(self, store: SqliteStore, head: Head) -> None:
        self._head = head
        self._store = store

    async def head(self) -> Head:
        return self._head

    async def read(self, after: int) -> list[Row]:
        return self._store._read(after)

    async def find(self, lookup: Lookup) -> Known:
        return self._store._find(lookup)

    async def append(self, rows: list[Row]) -> None:
        self._store._append(self._head, rows)


class Gate:
    """Many may be inside at a time; `shut` waits until nobody is, and keeps everybody out."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._inside = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Inside."""
        async with self._turn:
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Alone inside."""
        async with self._turn:
            while self._inside:
                self._left.clear()
                await self._left.wait()
            yield


class FileLock:
    """A lock file in front of the write lock: whoever waits is woken in turn, and no time is spent polling.

    Free, it is taken at once; held by another process, a thread of its own waits for it, so that this process
    goes on answering reads meanwhile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._waiting: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None] | None = None
        os.register_at_fork(after_in_child=self._forget)

    async def acquire(self) -> None:
        """Waits until this process alone may write."""
        if fcntl is None:
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await self._wait()

    def release(self) -> None:
        """Lets the next one write."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives the file back, and ends the waiting thread."""
        if self._waiting is not None:
            self._waiting.put(None)
            self._waiting = None
        self._forget()

    async def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = SimpleQueue()
            threading.Thread(
                target=self._wait_in_turn, args=(self._waiting,), name="allowance-lock", daemon=True
            ).start()
        loop = asyncio.get_running_loop()
        locked = loop.create_future()
        self._waiting.put((loop, locked))
        try:
            await locked
        except asyncio.CancelledError:
            if not locked.cancelled():  # The lock came, and the cancellation right after it.
                self.release()
            raise

    def _wait_in_turn(
        self, waiting: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None]
    ) -> None:
        while (one := waiting.get()) is not None:
            loop, locked = one
            if self._file is None:
                return
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with suppress(RuntimeError):  # the loop is gone, and with it whoever waited
                loop.call_soon_threadsafe(_wake, locked, self)

    def _forget(self) -> None:
        """Closes the file; a forked child must not keep its parent's lock alive."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _wake(locked: asyncio.Future[None], lock: FileLock) -> None:
    if locked.done():
        lock.release()
    else:
        locked.set_result(None)


def _nothing() -> None:
    """What a database in memory lets go of: a forked child cannot use it anyway."""


def _create_private(path: Path) -> None:
    """Makes the file readable by its owner only, before SQLite makes it readable by others."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class _StorageErrors:
    """Turns the driver's and the file system's errors into `StorageUnavailable`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (sqlite3.Error, OSError)) or is_sqlalchemy_error(error):
            raise StorageUnavailable(str(error)) from error


def _engine(uri: str, *, in_memory: bool) -> AsyncEngine:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import StaticPool

    options: dict[str, Any] = {"poolclass": StaticPool} if in_memory else {"pool_size": 2}
    # The driver's own transactions would begin as plain BEGIN and fail when they come to write: it begins none.
    return create_async_engine(
        f"sqlite+aiosqlite:///{uri}&uri=true",
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
        **options,
    )
