"""Reading a SQLite database without leaving a trace.

To open a file in WAL mode, even for reading only, SQLite makes the files that go with it where they are missing,
and writes to them. What is opened here is opened so that it does not.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote

from ledger.codec import Row, row_from_columns
from ledger.errors import CorruptLedger, StorageUnavailable
from ledger.store.contract import PAGE_ROWS, check_schema_version
from ledger.store.reader import StoredLedger, has_log_tables

BUSY_TIMEOUT_SECONDS = 30.0

_HEADS = "SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers ORDER BY ledger"
_FIRST_WITH_EVENTS = "SELECT ledger FROM allowance_events ORDER BY ledger LIMIT 1"
_NEXT_WITH_EVENTS = "SELECT ledger FROM allowance_events WHERE ledger > ? ORDER BY ledger LIMIT 1"
_ROWS = """SELECT position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash
           FROM allowance_events WHERE ledger = ? ORDER BY position"""
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class FileAccess(NamedTuple):
    """How a file can be read without a trace, and by what one sees that this may have changed."""

    uri: str
    copied: bool
    seen: tuple[int, int, int, int] | None
    """Device, inode, size and time of a file that nobody may write to while it is read."""


def read_access(path: Path) -> FileAccess:
    """How to read a file at this moment; asking touches nothing.

    Where somebody has it open, the files beside it are there and can be read as they are. Where nobody has, the file is
    the whole database, if there is no log of changes beside it; with one, but no index to it, only a copy can be read
    without making one.
    """
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    wal, shm, journal = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    if wal.exists() and shm.exists():
        return FileAccess(f"{uri}&readonly_shm=1", copied=False, seen=None)
    if journal.exists():
        return FileAccess(uri, copied=False, seen=None)
    found = path.stat()
    seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if wal.exists() and wal.stat().st_size:
        return FileAccess(uri, copied=True, seen=seen)
    return FileAccess(f"{uri}&immutable=1", copied=False, seen=seen)


class SqliteReader:
    """A database in one read transaction."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None = None, access: FileAccess | None = None
    ) -> None:
        self._connection = connection
        self._path = path
        self._access = access

    async def ledgers(self) -> list[StoredLedger]:
        with sqlite_errors():
            if not has_log_tables(self._tables()):
                return []
            for (version,) in self._connection.execute("SELECT version FROM allowance_schema"):
                if isinstance(version, int):
                    check_schema_version(version)
            self._connection.text_factory = _text
            stored = [StoredLedger(*row) for row in self._connection.execute(_HEADS)]
            known = [each.ledger for each in stored]
            stored += [StoredLedger(each, has_head=False) for each in self._with_events() if each not in known]
            self._connection.text_factory = str
            return stored

    async def pages(self, stored: StoredLedger) -> AsyncIterator[list[Row]]:
        count = 0
        with sqlite_errors():
            try:
                rows = self._connection.execute(_ROWS, (stored.ledger,))
                while page := list(map(row_from_columns, rows.fetchmany(PAGE_ROWS))):
                    count += len(page)
                    yield page
                return
            except (sqlite3.DatabaseError, UnicodeDecodeError):
                # Something is there that is not as it should be: from here on with care.
                self._connection.text_factory = _text
        async for page in self._careful_pages(stored, count):
            yield page

    async def _careful_pages(self, stored: StoredLedger, skipped: int) -> AsyncIterator[list[Row]]:
        """The rows after so many that were read: any bytes are text, and each row counts that can be read at all."""
        page: list[Row] = []
        last: object = 0
        with sqlite_errors():
            try:
                for count, row in enumerate(self._connection.execute(_ROWS, (stored.ledger,))):
                    last = row[0]
                    if count >= skipped:
                        page.append(row_from_columns(row))
                    if len(page) == PAGE_ROWS:
                        yield page
                        page = []
            except sqlite3.DatabaseError as cause:
                if cause.sqlite_errorcode & 0xFF not in _CORRUPT:
                    raise
                if page:
                    yield page
                position = last + 1 if isinstance(last, int) else 1
                raise CorruptLedger(position, f"the rows that follow cannot be read: {cause}") from cause
            if page:
                yield page

    async def head(self, stored: StoredLedger) -> StoredLedger:
        return stored

    def check_unchanged(self) -> None:
        if self._path is None or self._access is None or self._access.seen is None:
            return
        with sqlite_errors():
            if read_access(self._path) != self._access:
                raise StorageUnavailable("a process began to write to the database while it was read; try again")

    def _tables(self) -> list[str]:
        rows = self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return [name for (name,) in rows]

    def _with_events(self) -> Iterator[object]:
        found = self._connection.execute(_FIRST_WITH_EVENTS).fetchone()
        while found is not None:
            yield found[0]
            found = self._connection.execute(_NEXT_WITH_EVENTS, found).fetchone()


@contextmanager
def sqlite_reader(path: Path) -> Iterator[SqliteReader]:
    """The database in a file."""
    with sqlite_errors(), TemporaryDirectory(prefix="allowance-") as directory:
        access = read_access(path)
        uri = access.uri
        if access.copied:
            copy = Path(directory) / "copy.db"
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
            uri = f"file:{quote(str(copy))}?mode=ro"
        with transaction(uri) as connection:
            yield SqliteReader(connection, path, access)


@contextmanager
def transaction(uri: str) -> Iterator[sqlite3.Connection]:
    """A connection that sees one moment."""
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_SECONDS
    )
    try:
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """Turns the driver's and the file system's errors into `StorageUnavailable`.

    Where it quotes a damaged schema, the driver stumbles over bytes that are no text.
    """
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise StorageUnavailable(str(error)) from error


def _text(stored: bytes) -> str:
    """Stored text; bytes that are none become characters that no hash ever covered."""
    return stored.decode("utf-8", "surrogateescape")
