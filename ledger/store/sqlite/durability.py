"""Whether the disk has confirmed what a SQLite file's write-ahead log (WAL) shows.

**After a COMMIT whose flush failed** the transaction's frames may be in the WAL, with their commit mark. SQLite hides
them from every open connection, because it publishes frames only after the flush. But if all connections close, the
next one recovers the WAL from its bytes and finds them. So a read proves nothing, and closing the connection makes
matters worse. The connection therefore stays open, and commits a transaction that changes nothing, the *fence*: its
frame takes the place of the first hidden frame. Each frame's checksum covers the frames before it, so no recovery gets
past the fence to the rest. Once the fence is flushed, the failed transaction is in the log for certain, or never will
be.

**After a crash** the WAL may show frames that the crashed process had not flushed, or could not flush. After
a failed flush Linux takes the written pages for clean, so a later flush succeeds without writing them. If such frames
were copied into the database, and the power failed before the end of the WAL was durable, a recovery would apply the
first part of the WAL to newer pages and damage the database. So the first writer that opens the file keeps other
writers out, writes the bytes of the WAL once more, in place, and commits a fence: its flush covers them.

In both cases a complete checkpoint must then succeed: the storage has proved itself. Until then no change is accepted.

How SQLite's errors are treated:

- Before the COMMIT (full disk, I/O error, lock, malformed file): no frame has a commit mark, so nothing was done.
  `StorageUnavailable`.
- In the COMMIT, whatever the error: a recovery may find the transaction. `CommitOutcomeUnknown`, and the above.
- In the fence or the checkpoint: nothing is proved yet. `StorageUnavailable`, and the next change tries again.
- In a checkpoint that SQLite begins by itself: ignored, because the WAL still has everything, and SQLite tries again.

One case cannot be seen from here. A checkpoint that a reader keeps from completing copies pages without flushing them;
a later checkpoint flushes them. If the kernel fails to write such a page in between, the flush that reports it fails.
But SQLite only repeats the flush and not the write, and then takes the page for durable.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ledger.errors import StorageUnavailable

from .lock_files import fcntl
from .wal_size import wal_path
from .writer_presence import WriterPresence

# A query of the library ends in a few ms; a reader that is still there after a quarter of a second may stay for hours.
# Other processes wait for their turns meanwhile.
CHECKPOINT_ATTEMPTS = 5
CHECKPOINT_PAUSE_SECONDS = 0.05

_COPIED_BYTES = 1 << 20
# A file system that cannot flush a directory refuses with one of these.
_CANNOT_FLUSH_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class Durability:
    """What one store knows of its file. Everything but `close` happens under the lock of the write-lock queue."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._wal = wal_path(path)
        self._presence = WriterPresence(path)
        # Whether the WAL was checked since the store connected.
        self._is_checked = False
        self._commit_failed = False
        self._owes_checkpoint = False
        # SQLite flushes the directory when it creates the WAL, but ignores an error of this flush.
        self._entry_is_durable = False

    @property
    def is_proved(self) -> bool:
        """Whether a change may begin; if not, call `prove`."""
        return self._is_checked and not self._owes_checkpoint

    @property
    def owes_proof(self) -> bool:
        """Whether a commit failed, and the storage has not proved itself since."""
        return self._owes_checkpoint

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit. After an error, `settle` and a read of the log show the outcome."""
        try:
            self._commit(connection)
        except BaseException:
            self._commit_failed = self._owes_checkpoint = True
            raise

    def settle(self, connection: sqlite3.Connection) -> None:
        """Make final whether a failed COMMIT is in the log. Raises `StorageUnavailable` if that is impossible now."""
        with self._doubts():
            if not self._is_checked:
                self._check(connection)
            if self._commit_failed:
                self._fence_or_make_room(connection)
                self._commit_failed = False

    async def prove(self, connection: sqlite3.Connection) -> None:
        """Let the storage prove itself. Raises `StorageUnavailable` if it does not."""
        self.settle(connection)
        if self._owes_checkpoint:
            await self._complete_checkpoint(connection)
            self._owes_checkpoint = False

    def close(self, connection: sqlite3.Connection, read_only_uri: str) -> None:
        """Close the store's last connection; other processes then see that this writer is gone.

        The last connection to a file copies the WAL into the database and removes it. Without proof that must not
        happen. A read-only connection cannot do it, so one is closed last; the next writer finds the WAL and checks it.
        """
        keeper = None if self.is_proved or not self._wal_bytes() else _connect_read_only(read_only_uri)
        connection.close()
        if keeper is not None:
            keeper.close()
        self._presence.leave()
        self._is_checked = self._entry_is_durable = False

    def _check(self, connection: sqlite3.Connection) -> None:
        """Make durable what the WAL shows, unless another writer that has the file open has done so."""
        try:
            if self._presence.enter() and self._wal_bytes():
                self._fence(connection, write_wal_again=True)
                # If a reader keeps the checkpoint from completing, somebody else has the file open. Then the frames,
                # which are durable now, are enough.
                _try_checkpoint(connection)
            self._presence.share()
        except BaseException:
            self._presence.leave()
            raise
        self._is_checked = True

    def _fence_or_make_room(self, connection: sqlite3.Connection) -> None:
        try:
            self._fence(connection)
        except (sqlite3.Error, OSError):
            # The disk may be full. Once the WAL is copied into the database, it starts again from its beginning, where
            # the fence needs no more space.
            _try_checkpoint(connection)
            self._fence(connection)

    def _fence(self, connection: sqlite3.Connection, *, write_wal_again: bool = False) -> None:
        """Commit a transaction that changes nothing but the WAL."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            if write_wal_again:
                _write_again(self._wal)
            # SQLite writes no frame for a row that is updated to its own values, but always one for this number.
            (number,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {number}")
            self._commit(connection)
        except BaseException:
            roll_back(connection)
            raise

    def _commit(self, connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")
        if not self._entry_is_durable:
            self._flush_entry()

    async def _complete_checkpoint(self, connection: sqlite3.Connection) -> None:
        for attempt in range(CHECKPOINT_ATTEMPTS):
            if attempt:
                await asyncio.sleep(CHECKPOINT_PAUSE_SECONDS)
            with self._doubts():
                if _try_checkpoint(connection):
                    return
        raise StorageUnavailable(
            f"a commit to {self._path} failed, and a program that reads the database keeps the storage from being"
            " proved; end that program or wait for it"
        )

    def _flush_entry(self) -> None:
        """Make the WAL's and the database's entries in their directory durable, once the WAL has content."""
        if fcntl is None or not self._wal_bytes():
            return
        flush_directory(os.path.dirname(self._wal))
        self._entry_is_durable = True

    def _wal_bytes(self) -> int:
        with suppress(FileNotFoundError):
            return os.stat(self._wal).st_size
        return 0

    @contextmanager
    def _doubts(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, MemoryError) as cause:
            raise StorageUnavailable(f"the disk has not confirmed what was written to {self._path}: {cause}") from cause


def roll_back(connection: sqlite3.Connection) -> None:
    """Roll back a transaction, if SQLite has not done so by itself."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def flush_directory(directory: str) -> None:
    """Make the entries of a directory durable, if the file system can do so."""
    try:
        file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return  # A directory that may be written but not listed, or one above that belongs to others.
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH_DIRECTORIES:
            raise
    finally:
        os.close(file)


def _write_again(wal: str) -> None:
    """Write the WAL's bytes to where they are, so that the next flush covers them all. Nobody may append meanwhile.

    SQLite has no locks on this file, which closing it here would release.
    """
    file = os.open(wal, os.O_RDWR | os.O_CLOEXEC)
    try:
        offset = 0
        while copied := os.pread(file, _COPIED_BYTES, offset):
            offset += os.pwrite(file, copied, offset)
    finally:
        os.close(file)


def _try_checkpoint(connection: sqlite3.Connection) -> bool:
    """Copy the whole WAL into the database, and flush both; return False if a reader prevents it."""
    (timeout_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    # This runs on the loop, on which the reader may have to go on.
    connection.execute("PRAGMA busy_timeout = 0").fetchone()
    try:
        busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {timeout_ms}").fetchone()
    return not busy and frames == copied


def _connect_read_only(uri: str) -> sqlite3.Connection | None:
    """Connect and read something, because SQLite opens the WAL only then; None if the file cannot be read."""
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error:
            connection.close()
            raise
        return connection
    return None
