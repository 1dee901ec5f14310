"""The log on SQLite.

The store writes through the standard library's `sqlite3`, on the runtime's own thread. A driver with its own thread
would add two thread switches, which cost about as much as the commit itself. Read models are queried through SQLAlchemy
and aiosqlite on separate connections; in WAL mode a long read then never blocks a write.

Before `BEGIN IMMEDIATE` a writer waits in a queue of file locks, because SQLite itself waits by polling, which starves
some processes for seconds. The queue provides only fairness; SQLite's own lock provides correctness.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress

from ledger.codec import Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import StorageUnavailable
from ledger.runtime import inherits_connections
from ledger.store.contract import (
    PAGE_ROWS,
    SCHEMA_VERSION,
    CommitOutcomeUnknown,
    RowExists,
    RowsBehind,
    Schema,
    TailReader,
    WhileWaiting,
    do_nothing,
    give_tail,
)
from ledger.store.triggers import SQLITE_TRIGGERS, trigger_names

from .appending import append_rows
from .connection import HEAD
from .creation import create_ledger, create_or_upgrade, create_private
from .derived_access import SqliteDerivedAccess
from .errors import SqliteErrors
from .head_probe import HeadProbe
from .reader import SqliteReader, sqlite_reader, transaction


class SqliteStore(SqliteDerivedAccess):
    """One ledger in one SQLite database: a file, or the memory of this process."""

    # Every append needs the lock for its commit anyway, and to decide takes a tenth of the commit's time. So a decision
    # before the lock would save nothing, and could be in vain.
    optimistic = False

    def __init__(self, path: str | None, validator_ss58: str, *, read_only: bool) -> None:
        super().__init__(path, validator_ss58, read_only=read_only)
        # In memory there is no WAL, so reads and writes exclude each other.
        self.reads_wait_for_writes = path is None
        self._head_probe = None if path is None or read_only else HeadProbe(self._connect)

    @property
    def in_doubt(self) -> bool:
        return self._durability is not None and self._durability.owes_proof

    async def open(self, create: Callable[[], Schema] | None) -> Head:
        if inherits_connections() and self._path is not None:
            raise StorageUnavailable("this process was forked while a ledger was in use; start a new process instead")
        if self._derived is not None:
            self._derived.create = create
        with SqliteErrors():
            if create is not None:
                if self._path is not None:
                    create_private(self._path)
                # Under the queue's lock: if several processes set a new file to WAL mode at the same time, SQLite does
                # not let them wait but fails some of them at once.
                async with self._with_write_lock():
                    self._open_connection()
                    self._refuse_newer_schema()
                try:
                    async with self._exclusive():
                        await self._create(create)
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

    def _close_connections(self) -> None:
        if self._derived is not None:
            self._derived.close()
        connection, self._connection = self._connection, None
        if connection is not None and self._durability is not None:
            self._durability.close(connection, self._read_only_uri())
        elif connection is not None:
            connection.close()
        self._delete_copy()
        if self._write_lock_queue is not None:
            self._write_lock_queue.close()

    async def head(self) -> Head:
        with SqliteErrors():
            async with self._between_writes():
                return self._head()

    async def schema_version(self) -> int:
        with SqliteErrors():
            async with self._between_writes():
                return self._stored_schema_version() or 0

    async def missing_triggers(self) -> list[str]:
        stored = {name for (name,) in await self.query("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        return [name for name in trigger_names(SQLITE_TRIGGERS) if name not in stored]

    async def replication_lag_seconds(self) -> None:
        """Return None: a file is no standby."""

    def probe_head(self) -> Head | None:
        # None for a newer schema too: the caller then asks `head`, which raises the error.
        with suppress(StorageUnavailable):
            if self._head_probe is not None and self._current_file_identity() == self._file_identity:
                row = self._head_probe.row(HEAD, self.ledger, self.validator_ss58)
                if row is not None and row[3] == SCHEMA_VERSION:
                    return Head(*row[:3])
        return None

    async def read(self, after: int, limit: int | None = None) -> list[Row]:
        with SqliteErrors():
            async with self._between_writes():
                return self._read(after, limit)

    async def read_streams(self, streams: Collection[str], after: int, until: int) -> list[Row]:
        with SqliteErrors():
            async with self._between_writes():
                return self._queries().of_streams(streams, after, until)

    async def find(self, lookup: Lookup) -> LookupResult:
        with SqliteErrors():
            async with self._between_writes():
                return self._find(lookup)

    async def attempts_of(self, job_uuid: str) -> list[int]:
        with SqliteErrors():
            async with self._between_writes():
                return self._queries().attempts_of(job_uuid)

    @asynccontextmanager
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[SqliteTransaction]:
        with SqliteErrors():
            async with self._exclusive(while_waiting):
                yield SqliteTransaction(self, self._head())

    async def append(
        self,
        events: RowsBehind,
        expected: Mapping[str, int],
        *,
        at: Head | None = None,
        since: Head | None = None,
        read_tail: TailReader | None = None,
    ) -> list[Row] | None:
        # The writer never calls this: on SQLite it decides under the lock. It exists because all engines have one
        # contract, whose tests run on each.
        try:
            async with self.transaction() as transaction:
                head = await transaction.head()
                if at is not None and at != head:
                    return None
                if since is not None and since.position and not self._has(since):
                    return None
                await give_tail(transaction, since, read_tail)
                rows = events(head)
                await transaction.append(rows, expected)
        except StorageUnavailable as error:
            if isinstance(error.__cause__, sqlite3.IntegrityError):
                raise RowExists(str(error.__cause__)) from error
            raise
        return rows

    async def resolve_commit(self, first: Row) -> bool:
        with SqliteErrors():
            async with self._with_write_lock():
                if self._durability is not None:
                    self._durability.settle(self._open_connection())
                stored = self._read(first.position - 1)
        # Another process may have appended a different row at this position. The hash covers the content and the whole
        # log before it, so an equal hash proves that the row is this batch's. A commit is atomic: if the first row is
        # stored, all are.
        return bool(stored) and stored[0].hash == first.hash

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

    async def _create(self, tables: Callable[[], Schema]) -> None:
        connection, stored = self._open_connection(), self._stored_schema_version()
        await create_or_upgrade(connection, stored, tables, with_derived=self._derived is None)
        self._check_schema()
        create_ledger(self._open_connection(), self.validator_ss58)

    def _read(self, after: int, limit: int | None = None) -> list[Row]:
        return self._queries().page(after, PAGE_ROWS if limit is None else min(limit, PAGE_ROWS))

    def _has(self, head: Head) -> bool:
        return self._queries().has(head)

    def _find(self, lookup: Lookup) -> LookupResult:
        return self._queries().find(lookup)

    def _append(self, head: Head, rows: list[Row], expected: Mapping[str, int]) -> None:
        append_rows(self._open_connection(), self.ledger, self._streams, head, rows, expected)


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


def _close_nothing() -> None:
    """Close nothing: for a memory database."""
