"""The log on SQLite.

The write connection is the standard library's, used from the ledger's own thread: one durable commit costs as
much as the file system asks and nothing more. Read models are queried through SQLAlchemy and aiosqlite, on
connections of their own, so that a long read never holds up a write (WAL).

A queue of file locks stands in front of `BEGIN IMMEDIATE`: SQLite's own waiting is by polling, and starves some
processes for seconds. Nothing rests on the queue but fairness.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from ledger.background_imports import import_in_thread
from ledger.cancellation import cancellation_shield
from ledger.codec import GENESIS_HASH, Row, row_from_columns
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.runtime import inherits_connections
from ledger.store.contract import (
    PAGE_ROWS,
    SCHEMA_VERSION,
    CommitOutcomeUnknown,
    RowExists,
    Value,
    WhileWaiting,
    check_schema_version,
    do_nothing,
    driver_message,
    is_sqlalchemy_error,
)
from ledger.values import LARGEST_INTEGER

from .head_probe import HeadProbe
from .reader import BUSY_TIMEOUT_SECONDS, SqliteReader, read_access, sqlite_reader, transaction
from .write_lock_queue import WriteLockQueue

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

V = TypeVar("V")

_COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
_HEAD = """SELECT position, hash, recorded_at_ns, (SELECT version FROM allowance_schema)
           FROM allowance_ledgers WHERE ledger = ? AND validator_ss58 = ?"""
_READ = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND position > ? ORDER BY position LIMIT ?"
_POSITIONS = """WITH asked (value) AS (VALUES {values})
             SELECT (SELECT position FROM allowance_events INDEXED BY allowance_events_{column}
                     WHERE ledger = ? AND {column} = asked.value {of_many})
             FROM asked"""
"""A look-up in the index for each value. Asked by `IN` or a join, SQLite, which takes a ledger to have few rows, would
rather read all that is in the index."""
_OF_MANY = {"job_uuid": "ORDER BY attempt DESC LIMIT 1"}
"""Which row is meant where several have the value."""
_ROWS = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND position IN ({{values}})"
LOOKUP_VALUES = 500
"""Values in one statement: SQLite limits how many it may carry."""
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
        self.readers_block_writers = path is None
        self._path = None if path is None else Path(path)
        self._read_only = read_only
        self._memory_name = f"/allowance-{uuid4().hex}"
        self._connection: sqlite3.Connection | None = None
        self._engine: AsyncEngine | None = None
        self._file_identity: object = None
        self._engine_file_identity: object = None
        self._write_lock_queue = None if path is None or read_only else WriteLockQueue(path)
        self._head_probe = None if path is None or read_only else HeadProbe(self._connect)
        self._process_lock = asyncio.Lock()
        """Writers of this process take turns here, since a writer that SQLite made wait would stop the loop."""
        self._changes_waiting = 0
        """How many changes wait for that turn."""
        self._gate = SharedLock()
        """Whoever uses the read models' connections passes it."""

    async def open(self, create: Callable[[], MetaData] | None) -> Head:
        if inherits_connections() and self._path is not None:
            raise StorageUnavailable("this process was forked while a ledger was in use; start it anew")
        with _SqliteErrors():
            if create is not None:
                if self._path is not None:
                    _create_private(self._path)
                # One at a time: of those who set a new file to WAL at once, SQLite lets none wait but refuses them.
                async with self._with_write_lock():
                    self._open_connection()
                async with self._exclusive():
                    self._create(create)
            self._open_connection()
            self._check_schema()
            self.ledger = self._find_ledger()
            return self._head()

    async def close(self) -> None:
        await self._dispose()
        if self._head_probe is not None:
            self._head_probe.close()
        self._close_connections()

    @asynccontextmanager
    async def paused_for_fork(self) -> AsyncIterator[Callable[[], None]]:
        """Until left, nobody writes, and nobody reads the read models; gives what closes the last connection.

        A forked child shares the memory in which SQLite keeps the locks that the process holds on a file, but not
        the locks. What it then commits is lost when its parent, alone as far as it can see, removes the WAL.
        """
        if self._path is None:
            yield _close_nothing
            return
        async with self._process_lock, self._gate.shut():
            await self._dispose()
            with nullcontext() if self._head_probe is None else self._head_probe.paused_for_fork():
                yield self._close_connections

    async def _dispose(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def _close_connections(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._write_lock_queue is not None:
            self._write_lock_queue.close()

    async def head(self) -> Head:
        with _SqliteErrors():
            async with self._between_writes():
                return self._head()

    def probe_head(self) -> Head | None:
        with suppress(StorageUnavailable):
            if self._head_probe is not None and self._current_file_identity() == self._file_identity:
                row = self._head_probe.row(_HEAD, self.ledger, self.validator_ss58)
                if row is not None and row[3] == SCHEMA_VERSION:
                    return Head(*row[:3])
        return None

    async def read(self, after: int) -> list[Row]:
        with _SqliteErrors():
            async with self._between_writes():
                return self._read(after)

    async def find(self, lookup: Lookup) -> LookupResult:
        with _SqliteErrors():
            async with self._between_writes():
                return self._find(lookup)

    @asynccontextmanager
    async def transaction(self, meanwhile: WhileWaiting = do_nothing) -> AsyncIterator[SqliteTransaction]:
        with _SqliteErrors():
            async with self._exclusive(meanwhile):
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

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with _SqliteErrors():
            async with self._between_writes():
                return self._open_connection().execute(statement).fetchall()

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[SqliteReader]:
        if self._path is not None:
            async with self._gate.passed():
                with sqlite_reader(self._path) as reader:
                    yield reader
            return
        async with self._process_lock:
            with transaction(self._uri()) as connection:
                yield SqliteReader(connection)

    @asynccontextmanager
    async def read_connection(self) -> AsyncIterator[AsyncConnection]:
        # Before anything is locked: see `import_in_thread`.
        await import_in_thread("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.sqlite.aiosqlite", "aiosqlite")
        with _SqliteErrors():
            async with self._between_writes(), self._gate.passed(), self._read_models() as connection:
                yield connection

    @asynccontextmanager
    async def write_read_models(self) -> AsyncIterator[SqliteReadModelTransaction]:
        with _SqliteErrors():
            try:
                async with self._exclusive(derived=True):
                    self._check_schema()
                    yield SqliteReadModelTransaction(self._open_connection())
            except CommitOutcomeUnknown as cause:
                raise StorageUnavailable(str(cause)) from cause

    @asynccontextmanager
    async def _read_models(self) -> AsyncIterator[AsyncConnection]:
        with cancellation_shield():
            async with (await self._renewed_engine()).connect() as connection:
                yield connection

    @asynccontextmanager
    async def _exclusive(self, meanwhile: WhileWaiting = do_nothing, *, derived: bool = False) -> AsyncIterator[None]:
        """Alone on the database; commits at the end, rolls back at an exception."""
        async with self._with_write_lock(meanwhile, derived=derived):
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
            async with self._process_lock:
                yield

    @asynccontextmanager
    async def _with_write_lock(
        self, meanwhile: WhileWaiting = do_nothing, *, derived: bool = False
    ) -> AsyncIterator[None]:
        """Alone among the writers of this process and, by the file locks, of all processes.

        Who writes what is derived from the log makes no change wait for the line twice: one that waits for it goes
        on with the same turn, though it has then to fold under the lock what others have appended meanwhile.
        """
        async with self._with_process_lock(derived=derived):
            queue = self._write_lock_queue
            if queue is None:
                yield
                return
            await queue.acquire(meanwhile)
            try:
                yield
            finally:
                if derived and self._changes_waiting:
                    queue.offer()
                else:
                    queue.release()

    @asynccontextmanager
    async def _with_process_lock(self, *, derived: bool) -> AsyncIterator[None]:
        """Alone among the writers of this process."""
        self._changes_waiting += not derived
        try:
            await self._process_lock.acquire()
        finally:
            self._changes_waiting -= not derived
        try:
            yield
        finally:
            self._process_lock.release()

    async def _renewed_engine(self) -> AsyncEngine:
        if self._file_was_replaced() or self._engine_file_identity != self._file_identity:
            self._open_connection()
            await self._dispose()
        return self._open_engine()

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine_file_identity = self._file_identity
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
            raise CommitOutcomeUnknown(str(cause)) from cause

    def _open_connection(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None and connection.in_transaction:
            return connection
        has_moved = self._file_was_replaced()
        if connection is not None and not has_moved:
            return connection
        if connection is not None:
            self._connection = None
            connection.close()
        self._file_identity = self._current_file_identity()
        self._connection = self._connect()
        if not self._read_only:
            # A layered file system may know a file by another number once it was opened for writing.
            self._file_identity = self._current_file_identity()
        if self.ledger:
            # In a file that took the place of the one before, the ledger may have another number.
            self._check_schema()
            self.ledger = self._find_ledger()
        return self._connection

    def _file_was_replaced(self) -> bool:
        """Whether the file is to be opened anew. Raises where another one took its place under a writer.

        What lies beside the file, its log of changes above all, may then belong to the one before.
        """
        found = self._current_file_identity()
        if self._file_identity in (None, found):
            return False
        if not self._read_only:
            raise StorageUnavailable(f"another file took the place of {self._path}: start this process anew")
        return True

    def _current_file_identity(self) -> object:
        """What an open file is known by; to a reader, also how it can be read without a trace."""
        if self._path is None:
            return None
        try:
            if self._read_only:
                return read_access(self._path)
            found = self._path.stat()
        except FileNotFoundError as cause:
            raise StorageUnavailable(f"there is no file {self._path}") from cause
        return found.st_dev, found.st_ino

    def _uri(self) -> str:
        if self._path is None:
            return f"file:{self._memory_name}?vfs=memdb"
        if self._read_only:
            return read_access(self._path).uri
        return f"file:{quote(str(self._path.absolute()))}?mode=rw"

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._new_connection()
        except sqlite3.Error as cause:
            raise StorageUnavailable(self._open_error_message(cause)) from cause

    def _open_error_message(self, error: sqlite3.Error) -> str:
        """Why the database cannot be opened; SQLite itself names neither the file nor, mostly, the reason."""
        path = self._path
        if path is None:
            return str(error)
        if path.is_dir():
            return f"{path} is a directory; name a file in it"
        return f"{path}: {error}"

    def _new_connection(self) -> sqlite3.Connection:
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
            from ledger.store.tables import sqlite_schema

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
        connection = self._open_connection()
        stored = connection.execute(_HEAD, (self.ledger, self.validator_ss58)).fetchone()
        if stored is None:
            raise LedgerNotFound(self.validator_ss58)
        position, a_hash, recorded_at_ns, schema_version = stored
        check_schema_version(schema_version)
        return Head(position, a_hash, recorded_at_ns)

    def _read(self, after: int) -> list[Row]:
        return list(map(row_from_columns, self._open_connection().execute(_READ, (self.ledger, after, PAGE_ROWS))))

    def _find(self, lookup: Lookup) -> LookupResult:
        known = LookupResult()
        of_keys, of_jobs = self._positions_of("key", lookup.keys), self._positions_of("job_uuid", lookup.jobs)
        asked = {position for position in lookup.positions if position <= LARGEST_INTEGER}
        for row in self._rows_at({*of_keys, *of_jobs, *asked}):
            if row.position in of_keys and row.key is not None:
                known.keys[row.key] = row
            if row.position in of_jobs and row.job_uuid is not None:
                known.jobs[row.job_uuid] = row
            if row.position in asked:
                known.rows[row.position] = row
        made = {*known.rows, *of_jobs}
        for row in self._rows_at(self._positions_of("settles", made)):
            if row.settles is not None:
                known.settlements[row.settles] = row
        return known

    def _positions_of(self, column: str, values: Collection[str | int]) -> set[int]:
        """Where the rows with one of the values stand: many in a statement cost a tenth of a statement for each."""
        positions: set[int] = set()
        for batch in _batches(values):
            values_asked = ", ".join(["(?)"] * len(batch))
            query = _POSITIONS.format(column=column, values=values_asked, of_many=_OF_MANY.get(column, ""))
            found = self._open_connection().execute(query, (*batch, self.ledger))
            positions.update(position for (position,) in found if position is not None)
        return positions

    def _rows_at(self, positions: Collection[int]) -> Iterator[Row]:
        """The rows at these positions, as far as they are there."""
        for batch in _batches(positions):
            query = _ROWS.format(values=", ".join("?" * len(batch)))
            yield from map(row_from_columns, self._open_connection().execute(query, (self.ledger, *batch)))

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


class SqliteReadModelTransaction:
    """A transaction on the read models."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.IntegrityError as cause:
            raise RowExists(str(cause)) from cause


class SqliteTransaction:
    """A write transaction on a `SqliteStore`."""

    def __init__(self, store: SqliteStore, head: Head) -> None:
        self._head = head
        self._store = store

    async def head(self) -> Head:
        return self._head

    async def read(self, after: int) -> list[Row]:
        return self._store._read(after)

    async def find(self, lookup: Lookup) -> LookupResult:
        return self._store._find(lookup)

    async def append(self, rows: list[Row]) -> None:
        self._store._append(self._head, rows)
        self._head = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)


class SharedLock:
    """Many may be inside at a time; `shut` waits until nobody is, and keeps everybody out."""

    def __init__(self) -> None:
        self._process_lock = asyncio.Lock()
        self._inside = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Inside."""
        async with self._process_lock:
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Alone inside."""
        async with self._process_lock:
            while self._inside:
                self._left.clear()
                await self._left.wait()
            yield


def _batches(values: Collection[V]) -> Iterator[list[V]]:
    """The values, as many at a time as one statement takes."""
    wanted = iter(values)
    while batch := list(islice(wanted, LOOKUP_VALUES)):
        yield batch


def _close_nothing() -> None:
    """What a database in memory lets go of: a forked child cannot use it anyway."""


def _create_private(path: Path) -> None:
    """Makes the file readable by its owner only, before SQLite makes it readable by others."""
    if not path.exists():
        left = [file for file in (path.with_name(f"{path.name}-{part}") for part in ("wal", "shm")) if file.exists()]
        if left:
            # SQLite would take them for the new file's own.
            raise StorageUnavailable(f"{left[0]} belongs to a file that was moved: stop what has it open, move it too")
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class _SqliteErrors:
    """Turns the driver's and the file system's errors into `StorageUnavailable`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and (
            isinstance(error, (sqlite3.Error, OSError, UnicodeDecodeError)) or is_sqlalchemy_error(error)
        ):
            raise StorageUnavailable(driver_message(error)) from error


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
