"""Writing alone: the locks of a process and of all processes, and the commit."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledger.store.contract import CommitOutcomeUnknown, WhileWaiting, do_nothing, driver_message

from .connection import SqliteConnection
from .durability import Durability, roll_back
from .wal_size import WalSize
from .write_lock_queue import WriteLockQueue


class SqliteWriting(SqliteConnection):
    """A connection whose transactions exclude those of all other processes."""

    def __init__(self, path: str | None, validator_ss58: str, *, read_only: bool) -> None:
        super().__init__(path, validator_ss58, read_only=read_only)
        self._write_lock_queue = None if path is None or read_only else WriteLockQueue(path)
        self._durability = None if path is None or read_only else Durability(path)
        self._wal_size = None if path is None or read_only else WalSize(path)
        # Serializes the writers of this process. They share one connection, and a writer that waited inside of SQLite
        # would block the loop that the other writer needs to finish.
        self._process_lock = asyncio.Lock()
        # Transactions on the log that wait for the process lock; those on read models do not count.
        self._appends_waiting = 0

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
                self._roll_back(connection)
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

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            if self._durability is None:
                connection.execute("COMMIT")
            else:
                self._durability.commit(connection)
        except (sqlite3.Error, OSError, MemoryError) as cause:
            # The connection stays open: see `durability.py`.
            self._roll_back(connection)
            raise CommitOutcomeUnknown(driver_message(cause)) from cause
        if self._wal_size is not None:
            self._wal_size.after_commit()

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        roll_back(connection)
        # Streams that the transaction created are gone, and others may get their numbers.
        self._streams.forget()
