"""The log on SQLite.

The store writes through the standard library's `sqlite3`, on the runtime's own thread. A driver with its own thread
would add two thread switches, which cost about as much as the commit itself. Read models are queried through SQLAlchemy
and aiosqlite on separate connections; in WAL mode a long read then never blocks a write.

Before `BEGIN IMMEDIATE` a writer waits in a queue of file locks, because SQLite itself waits by polling, which starves
some processes for seconds. The queue provides only fairness; SQLite's own lock provides correctness.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext, suppress
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
    RowsBehind,
    Schema,
    WhileWaiting,
    check_schema_version,
    do_nothing,
    driver_message,
    is_sqlalchemy_error,
    next_page,
    refuse_other_versions,
)
from ledger.values import LARGEST_INTEGER

from .derived import DerivedTables
from .derived_sql import ENGINE_MODULES, SqlTransaction, new_engine
from .durability import Durability, flush_directory, roll_back
from .head_probe import HeadProbe
from .reader import BUSY_TIMEOUT_SECONDS, SqliteReader, read_access, sqlite_reader, transaction
from .shared_lock import SharedLock
from .wal_size import WAL_LIMIT_BYTES, WalSize
from .write_lock_queue import WriteLockQueue

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

V = TypeVar("V")

_COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
_HEAD = """SELECT position, hash, recorded_at_ns, (SELECT version FROM allowance_schema)
           FROM allowance_ledgers WHERE ledger = ? AND validator_ss58 = ?"""
_READ = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND position > ? ORDER BY position LIMIT ?"
# One index look-up for each value. With `IN` or a join SQLite would read the whole index: its planner assumes that a
# ledger, the first column of the index, has few rows.
_POSITIONS = """WITH asked (value) AS (VALUES {values})
             SELECT (SELECT position FROM allowance_events INDEXED BY allowance_events_{column}
                     WHERE ledger = ? AND {column} = asked.value {of_many})
             FROM asked"""
# How to choose one of several rows with the same value: of a job, the last attempt.
_OF_MANY = {"job_uuid": "ORDER BY attempt DESC LIMIT 1"}
_ROWS = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = ? AND position IN ({{values}})"
_ATTEMPTS = """SELECT position FROM allowance_events INDEXED BY allowance_events_job_uuid
               WHERE ledger = ? AND job_uuid = ? ORDER BY attempt"""
_HASH = "SELECT hash FROM allowance_events WHERE ledger = ? AND position = ?"
# Values in one statement. SQLite limits the parameters of a statement, to 999 before version 3.32.
LOOKUP_VALUES = 500
_INSERT = f"INSERT INTO allowance_events (ledger, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_MOVE_HEAD = """UPDATE allowance_ledgers SET position = ?, hash = ?, recorded_at_ns = ?
                WHERE ledger = ? AND position = ? AND hash = ?"""


class SqliteStore:
    """One ledger in one SQLite database: a file, or the memory of this process."""

    # Every append needs the lock for its commit anyway, and to decide takes a tenth of the commit's time. So a decision
    # before the lock would save nothing, and could be in vain.
    optimistic = False

    def __init__(self, path: str | None, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        # In memory there is no WAL, so reads and writes exclude each other.
        self.reads_wait_for_writes = path is None
        self._path = None if path is None else Path(path)
        self._read_only = read_only
        self._memory_name = f"/allowance-{uuid4().hex}"
        self._connection: sqlite3.Connection | None = None
        self._engine: AsyncEngine | None = None
        self._file_identity: object = None
        self._write_lock_queue = None if path is None or read_only else WriteLockQueue(path)
        self._head_probe = None if path is None or read_only else HeadProbe(self._connect)
        self._durability = None if path is None or read_only else Durability(path)
        self._wal_size = None if path is None or read_only else WalSize(path)
        self._derived = None if path is None else DerivedTables(path, self, read_only=read_only)
        # Serializes the writers of this process. They share one connection, and a writer that waited inside of SQLite
        # would block the loop that the other writer needs to finish.
        self._process_lock = asyncio.Lock()
        # Transactions on the log that wait for the process lock; those on read models do not count.
        self._appends_waiting = 0
        # Held by every reader with a connection of its own, so that a fork can wait until no such connection is in use.
        self._readers_lock = SharedLock()

    @property
    def in_doubt(self) -> bool:
        return self._durability is not None and self._durability.owes_proof

    async def open(self, create: Callable[[], Schema] | None) -> Head:
        if inherits_connections() and self._path is not None:
            raise StorageUnavailable("this process was forked while a ledger was in use; start a new process instead")
        if self._derived is not None:
            self._derived.create = create
        with _SqliteErrors():
            if create is not None:
                if self._path is not None:
                    _create_private(self._path)
                # Under the queue's lock: if several processes set a new file to WAL mode at the same time, SQLite does
                # not let them wait but fails some of them at once.
                async with self._with_write_lock():
                    self._open_connection()
                    self._refuse_newer_schema()
                try:
                    async with self._exclusive():
                        self._create(create)
                except CommitOutcomeUnknown as cause:
                    # Creating a schema and a ledger can be repeated, so nobody needs to know the outcome.
                    raise StorageUnavailable(str(cause)) from cause
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
        """Stop all writes and reads until left; yield a function that closes the last connection.

        SQLite keeps a process's locks on a file in the process's memory. A forked child inherits this memory but not
        the locks. If a connection stayed open during the fork, the parent would later believe that it is the only user
        of the file, remove the WAL when it closes, and lose the child's commits with it.
        """
        if self._path is None:
            # A memory database would be lost if its connection closed. A child cannot use its copy: the ledger's
            # lifecycle refuses it there.
            yield _close_nothing
            return
        async with self._process_lock, self._readers_lock.exclusive(), self._derived_paused():
            with nullcontext() if self._head_probe is None else self._head_probe.paused_for_fork():
                yield self._close_connections

    def _derived_paused(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._derived is None else self._derived.paused_for_fork()

    async def _dispose(self) -> None:
        if self._derived is not None:
            await self._derived.dispose()
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def _close_connections(self) -> None:
        if self._derived is not None:
            self._derived.close()
        connection, self._connection = self._connection, None
        if connection is not None and self._durability is not None:
            self._durability.close(connection, self._read_only_uri())
        elif connection is not None:
            connection.close()
        if self._write_lock_queue is not None:
            self._write_lock_queue.close()

    async def head(self) -> Head:
        with _SqliteErrors():
            async with self._between_writes():
                return self._head()

    async def schema_version(self) -> int:
        with _SqliteErrors():
            async with self._between_writes():
                return self._stored_schema_version() or 0

    def probe_head(self) -> Head | None:
        # None for a newer schema too: the caller then asks `head`, which raises the error.
        with suppress(StorageUnavailable):
            if self._head_probe is not None and self._current_file_identity() == self._file_identity:
                row = self._head_probe.row(_HEAD, self.ledger, self.validator_ss58)
                if row is not None and row[3] == SCHEMA_VERSION:
                    return Head(*row[:3])
        return None

    async def read(self, after: int, limit: int | None = None) -> list[Row]:
        with _SqliteErrors():
            async with self._between_writes():
                return self._read(after, limit)

    async def find(self, lookup: Lookup) -> LookupResult:
        with _SqliteErrors():
            async with self._between_writes():
                return self._find(lookup)

    async def attempts_of(self, job_uuid: str) -> list[int]:
        with _SqliteErrors():
            async with self._between_writes():
                rows = self._open_connection().execute(_ATTEMPTS, (self.ledger, job_uuid))
                return [position for (position,) in rows]

    def hash_at(self, position: int) -> bytes | None:
        """Return the hash of the event at a position, None if the log has none there."""
        with _SqliteErrors():
            row = self._open_connection().execute(_HASH, (self.ledger, position)).fetchone()
            return None if row is None else bytes(row[0])

    @asynccontextmanager
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[SqliteTransaction]:
        with _SqliteErrors():
            async with self._exclusive(while_waiting):
                yield SqliteTransaction(self, self._head())

    async def append(
        self, events: RowsBehind, expected: Mapping[str, int], *, at: Head | None = None
    ) -> list[Row] | None:
        # The writer never calls this: on SQLite it decides under the lock. It exists because all engines have one
        # contract, whose tests run on each.
        try:
            async with self.transaction() as transaction:
                head = await transaction.head()
                if at is not None and at != head:
                    return None
                rows = events(head)
                await transaction.append(rows, expected)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise RowExists(str(error.__cause__)) from error
            raise
        return rows

    async def resolve_commit(self, first: Row) -> bool:
        with _SqliteErrors():
            async with self._with_write_lock():
                if self._durability is not None:
                    self._durability.settle(self._open_connection())
                stored = self._read(first.position - 1)
        # Another process may have appended a different row at this position. The hash covers the content and the whole
        # log before it, so an equal hash proves that the row is this batch's. A commit is atomic: if the first row is
        # stored, all are.
        return bool(stored) and stored[0].hash == first.hash

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with _SqliteErrors():
            async with self._between_writes():
                return self._open_connection().execute(statement).fetchall()

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[SqliteReader]:
        if self._path is not None:
            async with self._readers_lock.shared():
                with sqlite_reader(self._path) as reader:
                    yield reader
            return
        # In memory there is no WAL, so the reader must keep writers out until it ends.
        async with self._process_lock:
            with transaction(self._uri()) as connection:
                yield SqliteReader(connection)

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
    async def write_derived(self) -> AsyncIterator[SqlTransaction]:
        async with self.write_verifications() if self._derived is None else self._derived.write() as transaction:
            yield transaction

    @asynccontextmanager
    async def write_verifications(self) -> AsyncIterator[SqlTransaction]:
        with _SqliteErrors():
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
        with _SqliteErrors():
            async with self._between_writes(), self._readers_lock.shared():
                # A statement that is cancelled while it runs in the driver's thread would keep its locks.
                with cancellation_shield():
                    async with self._open_engine().connect() as connection:
                        yield connection

    @asynccontextmanager
    async def _exclusive(
        self, while_waiting: WhileWaiting = do_nothing, *, for_read_models: bool = False
    ) -> AsyncIterator[None]:
        """Write alone to the database; commit at the end, roll back at an exception."""
        async with self._with_write_lock(while_waiting, for_read_models=for_read_models):
            connection = self._open_connection()
            if self._durability is not None and not self._durability.is_proved:
                await self._durability.prove(connection)
            # IMMEDIATE takes SQLite's write lock now. A plain BEGIN would take it at the first write, and SQLite fails
            # it there if anybody has committed since the first read.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                roll_back(connection)
                raise
            self._commit(connection)

    @asynccontextmanager
    async def _between_writes(self) -> AsyncIterator[None]:
        """In a memory database, wait for the write under way: without WAL, reads and writes exclude each other.

        On a file, the reads of the log share the connection that writes. They see no half-written transaction, because
        they run on one event loop and no coroutine suspends between the first write of a transaction and its COMMIT:
        the methods of a transaction never suspend, and its users await nothing else in between.
        """
        if self._path is not None:
            yield
        else:
            async with self._process_lock:
                yield

    @asynccontextmanager
    async def _with_write_lock(
        self, while_waiting: WhileWaiting = do_nothing, *, for_read_models: bool = False
    ) -> AsyncIterator[None]:
        """Be the only writer of this process and, by the lock files, of all processes."""
        async with self._with_process_lock(for_read_models=for_read_models):
            queue = self._write_lock_queue
            if queue is None:
                yield
                return
            await queue.acquire(while_waiting)
            try:
                yield
            finally:
                # An append that waited for this process to write a read model would have to wait in the queue a second
                # time. So it continues with the same lock, although it must then fold under the lock what others have
                # appended. An append releases the lock, so other processes get theirs.
                if for_read_models and self._appends_waiting:
                    queue.hand_over()
                else:
                    queue.release()

    @asynccontextmanager
    async def _with_process_lock(self, *, for_read_models: bool) -> AsyncIterator[None]:
        """Be the only writer of this process."""
        self._appends_waiting += not for_read_models
        try:
            await self._process_lock.acquire()
        finally:
            self._appends_waiting -= not for_read_models
        try:
            yield
        finally:
            self._process_lock.release()

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = new_engine(self._uri(), in_memory=True)
        return self._engine

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            if self._durability is None:
                connection.execute("COMMIT")
            else:
                self._durability.commit(connection)
        except (sqlite3.Error, OSError, MemoryError) as cause:
            # The connection stays open: see `durability.py`.
            roll_back(connection)
            raise CommitOutcomeUnknown(driver_message(cause)) from cause
        if self._wal_size is not None:
            self._wal_size.after_commit()

    def _open_connection(self) -> sqlite3.Connection:
        """Return the connection; open it if there is none, or if a reader's file was replaced."""
        connection = self._connection
        # In the middle of a transaction the check could only do harm: the statements must reach the same file.
        if connection is not None and connection.in_transaction:
            return connection
        was_replaced = self._file_was_replaced()
        if connection is not None and not was_replaced:
            return connection
        if connection is not None:
            self._connection = None
            connection.close()
        self._file_identity = self._current_file_identity()
        self._connection = self._connect()
        if not self._read_only:
            # A layered file system (overlayfs) may copy a file when it is opened for writing, and then give it another
            # inode number. So the identity is read again afterwards.
            self._file_identity = self._current_file_identity()
        if self.ledger:
            # In a file that replaced another one, the same validator's ledger may have another id.
            self._check_schema()
            self.ledger = self._find_ledger()
        return self._connection

    def _file_was_replaced(self) -> bool:
        """Whether a reader must open the file again. Raises `StorageUnavailable` for a writer.

        A writer cannot just open the new file: the `-wal` file beside it may belong to the previous one, and SQLite
        would apply it to the wrong database.
        """
        found = self._current_file_identity()
        if self._file_identity in (None, found):
            return False
        if not self._read_only:
            raise StorageUnavailable(f"{self._path} was replaced by another file; restart this process")
        return True

    def _current_file_identity(self) -> object:
        """Return what identifies the file; for a read-only store this includes how the file can be read."""
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

    def _read_only_uri(self) -> str:
        return self._uri().replace("?mode=rw", "?mode=ro")

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._new_connection()
        except sqlite3.Error as cause:
            raise StorageUnavailable(self._open_error_message(cause)) from cause

    def _open_error_message(self, error: sqlite3.Error) -> str:
        """Describe why the database cannot be opened; SQLite's own message does not name the file."""
        path = self._path
        if path is None:
            return str(error)
        if path.is_dir():
            return f"{path} is a directory; give the path of a file in it"
        return f"{path}: {error}"

    def _new_connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._uri(), uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_SECONDS
        )
        try:
            # Some builds of SQLite default to NORMAL in WAL mode. It does not flush each commit, so a power failure
            # could lose commits that were already reported to callers.
            connection.execute("PRAGMA synchronous = FULL")
            if not self._read_only and self._path is not None:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}").fetchone()
            # SQLite reads the file only when a statement needs it. Read something now, to fail here if it cannot.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self, tables: Callable[[], Schema]) -> None:
        connection = self._open_connection()
        stored = self._stored_schema_version()
        if stored is None:
            from ledger.store.tables import sqlite_derived_schema, sqlite_schema

            # Inside of one transaction: SQLite rolls back table definitions too, so the schema is complete or absent.
            schema = tables()
            statements = sqlite_schema(schema.log)
            if self._derived is None:
                statements += [*sqlite_derived_schema(schema.derived), *schema.views]
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO allowance_schema VALUES (1, ?)", (SCHEMA_VERSION,))
        elif stored < SCHEMA_VERSION:
            _upgrade(connection, stored)
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

    def _refuse_newer_schema(self) -> None:
        """Refuse a newer release's database before anything is written to it."""
        stored = self._stored_schema_version()
        if stored is not None:
            check_schema_version(stored)

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

    def _read(self, after: int, limit: int | None = None) -> list[Row]:
        most = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
        with closing(self._open_connection().execute(_READ, (self.ledger, after, most))) as found:
            return next_page(map(row_from_columns, found), most)

    def _version(self, stream: str) -> int:
        query = "SELECT coalesce(max(version), 0) FROM allowance_events WHERE ledger = ? AND stream = ?"
        return int(self._open_connection().execute(query, (self.ledger, stream)).fetchone()[0])

    def _find(self, lookup: Lookup) -> LookupResult:
        known = LookupResult()
        of_keys, of_jobs = self._positions_of("key", lookup.keys), self._positions_of("job_uuid", lookup.jobs)
        # A caller may pass any integer as a reservation id. One that no column can hold names no row.
        requested = {position for position in lookup.positions if position <= LARGEST_INTEGER}
        for row in self._rows_at({*of_keys, *of_jobs, *requested}):
            if row.position in of_keys and row.key is not None:
                known.keys[row.key] = row
            if row.position in of_jobs and row.job_uuid is not None:
                known.jobs[row.job_uuid] = row
            if row.position in requested:
                known.rows[row.position] = row
        reservations = {*known.rows, *of_jobs}
        for row in self._rows_at(self._positions_of("settles", reservations)):
            if row.settles is not None:
                known.settlements[row.settles] = row
        return known

    def _positions_of(self, column: str, values: Collection[str | int]) -> set[int]:
        """Return the positions of the rows with one of these values.

        A statement for many values costs a tenth of one statement per value.
        """
        positions: set[int] = set()
        for batch in _batches(values):
            placeholders = ", ".join(["(?)"] * len(batch))
            query = _POSITIONS.format(column=column, values=placeholders, of_many=_OF_MANY.get(column, ""))
            found = self._open_connection().execute(query, (*batch, self.ledger))
            positions.update(position for (position,) in found if position is not None)
        return positions

    def _rows_at(self, positions: Collection[int]) -> Iterator[Row]:
        """Yield the rows at these positions; absent positions yield nothing."""
        for batch in _batches(positions):
            query = _ROWS.format(values=", ".join("?" * len(batch)))
            yield from map(row_from_columns, self._open_connection().execute(query, (self.ledger, *batch)))

    def _append(self, head: Head, rows: list[Row], expected: Mapping[str, int]) -> None:
        connection = self._open_connection()
        ledger = self.ledger
        refuse_other_versions(expected, {stream: self._version(stream) for stream in expected})
        connection.executemany(_INSERT, [(ledger, *row) for row in rows])
        last = rows[-1]
        moved = connection.execute(
            _MOVE_HEAD, (last.position, last.hash, last.recorded_at_ns, ledger, head.position, head.hash)
        )
        # The comparison with the head cannot fail under the lock, unless the file system does not really lock.
        if moved.rowcount != 1:
            raise StorageUnavailable(
                "the head moved inside a write transaction: the file system does not lock the file"
            )


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

    async def append(self, rows: list[Row], expected: Mapping[str, int]) -> None:
        self._store._append(self._head, rows, expected)
        self._head = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)


def _upgrade(connection: sqlite3.Connection, stored: int) -> None:
    """Execute the missing schema steps, inside of the transaction under way."""
    from ledger.store.schema_steps import log_step, missing_steps

    for step in missing_steps(stored):
        log_step(step)
        for statement in step.sqlite:
            connection.execute(statement)
        connection.execute("UPDATE allowance_schema SET version = ?", (step.version,))


def _batches(values: Collection[V]) -> Iterator[list[V]]:
    """Split values into lists that are short enough for one statement."""
    remaining = iter(values)
    while batch := list(islice(remaining, LOOKUP_VALUES)):
        yield batch


def _close_nothing() -> None:
    """Close nothing: for a memory database."""


def _create_private(path: Path) -> None:
    """Create the file with mode 0600, before SQLite would create it readable by others."""
    if not path.exists():
        left = [file for file in (path.with_name(f"{path.name}-{part}") for part in ("wal", "shm")) if file.exists()]
        if left:
            # SQLite would apply them to the new file, to which they do not belong.
            raise StorageUnavailable(
                f"{left[0]} belongs to a file that was moved; stop the processes that have it open, then move it too"
            )
        _make_directories(path.parent)
        # O_EXCL: of several processes exactly one creates it, and none truncates another's file.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _make_directories(directory: Path) -> None:
    """Make missing directories, and make their entries durable; the files in them are SQLite's matter.

    Those that exist are flushed too: an earlier attempt may have made them and failed before its flush.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for parent in directory.absolute().parents:
        flush_directory(str(parent))


class _SqliteErrors:
    """Raise `StorageUnavailable` for errors of the driver, of the file system and of SQLAlchemy."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and (
            isinstance(error, (sqlite3.Error, OSError, MemoryError, UnicodeDecodeError)) or is_sqlalchemy_error(error)
        ):
            raise StorageUnavailable(driver_message(error)) from error
