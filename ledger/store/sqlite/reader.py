"""Read a SQLite database without leaving a trace.

When SQLite opens a database in WAL mode, even read-only, it creates the `-wal` and `-shm` files if they are missing,
and writes to them. An auditor must not change the evidence and may not be allowed to write to the directory. So this
module opens a file in a way that prevents those writes.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import quote

from ledger.codec import Row
from ledger.errors import CorruptLedger, StorageUnavailable
from ledger.store.contract import PAGE_BYTES, PAGE_ROWS, check_schema_version, next_page, payload_bytes
from ledger.store.reader import STREAMS, StoredLedger, check_streams, has_log_tables

from .columns import COLUMNS, StreamNames, rows_from

# How long SQLite waits for a lock. Writers usually wait in the write-lock queue instead, so this matters mainly beside
# programs that do not use the queue, such as a backup tool. As long as the timeout of a PostgreSQL statement.
BUSY_TIMEOUT_SECONDS = 30.0

_HEADS = "SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers ORDER BY ledger"
# The ledgers that have events, one look-up in the primary key each. DISTINCT would read the whole log.
_FIRST_WITH_EVENTS = "SELECT ledger FROM allowance_events ORDER BY ledger LIMIT 1"
_NEXT_WITH_EVENTS = "SELECT ledger FROM allowance_events WHERE ledger > ? ORDER BY ledger LIMIT 1"
_ROWS = f"SELECT {COLUMNS} FROM allowance_events WHERE ledger = ? {{after}} ORDER BY position"
_VERSIONS = "SELECT name, version FROM allowance_streams WHERE ledger = ?"
_STREAM = "SELECT name FROM allowance_streams WHERE ledger = ? AND stream = ?"
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class FileAccess(NamedTuple):
    """How a file can be read without a trace, and how to detect that this way has become invalid.

    `fingerprint` is the device, inode, size and modification time of a file that is read without locks. If it changes,
    somebody wrote to the file during the read. None if locks protect the read.
    """

    uri: str
    copied: bool
    fingerprint: tuple[int, int, int, int] | None


def read_access(path: Path) -> FileAccess:
    """Choose how to read a file as it is now, without touching it.

    There are four cases:

    - `-wal` and `-shm` exist: a process has the file open. Read through its shared memory.
    - A rollback `-journal` exists: read with SQLite's locks, which leave nothing behind in that mode.
    - Only a `-wal` with content exists: its writer was killed. SQLite would have to create the index `-shm` to read it,
      so read a copy.
    - None of them exists: the file is the whole database. Read it as immutable, without locks.
    """
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    wal, shm, journal = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))
    if wal.exists() and shm.exists():
        return FileAccess(f"{uri}&readonly_shm=1", copied=False, fingerprint=None)
    if journal.exists():
        return FileAccess(uri, copied=False, fingerprint=None)
    found = path.stat()
    fingerprint = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if wal.exists() and wal.stat().st_size:
        return FileAccess(uri, copied=True, fingerprint=fingerprint)
    return FileAccess(f"{uri}&immutable=1", copied=False, fingerprint=fingerprint)


class SqliteReader:
    """A `LogReader` of a database in one read transaction."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path | None = None, access: FileAccess | None = None
    ) -> None:
        self._connection = connection
        self._path = path
        self._access = access

    async def ledgers(self) -> list[StoredLedger]:
        with sqlite_errors():
            tables = self._tables()
            if not has_log_tables(tables):
                return []
            for (version,) in self._connection.execute("SELECT version FROM allowance_schema"):
                if isinstance(version, int):
                    check_schema_version(version)
                    check_streams(version, tables)
            # A head row may hold bytes that are not UTF-8. They must be reported, and must not stop the read.
            self._connection.text_factory = _text
            stored = [StoredLedger(*row) for row in self._connection.execute(_HEADS)]
            known = [each.ledger for each in stored]
            stored += [StoredLedger(each, has_head=False) for each in self._with_events() if each not in known]
            self._connection.text_factory = str
            return stored

    async def pages(self, stored: StoredLedger, after: int | None = None) -> AsyncIterator[list[Row]]:
        count = 0
        with sqlite_errors():
            try:
                rows = rows_from(self._rows(stored, after), self._stream_names(stored))
                while page := next_page(rows, PAGE_ROWS):
                    count += len(page)
                    yield page
                return
            except (sqlite3.DatabaseError, UnicodeDecodeError):
                # A row is damaged, or its text is not UTF-8. Only now pay for the slower loop, which reads row by row
                # and yields all good rows before the damage. An intact log never needs it.
                self._connection.text_factory = _text
        async for page in self._careful_pages(stored, after, count):
            yield page

    def _rows(self, stored: StoredLedger, after: int | None) -> sqlite3.Cursor:
        if after is None:
            return self._connection.execute(_ROWS.format(after=""), (stored.ledger,))
        return self._connection.execute(_ROWS.format(after="AND position > ?"), (stored.ledger, after))

    def _stream_names(self, stored: StoredLedger) -> StreamNames:
        """Return the names by number; a number without a name stays a number, which fits no hash."""
        has_streams = STREAMS in self._tables()

        def name(number: int) -> Any:
            found = self._connection.execute(_STREAM, (stored.ledger, number)).fetchone() if has_streams else None
            return number if found is None else found[0]

        return StreamNames(name)

    async def _careful_pages(self, stored: StoredLedger, after: int | None, skipped: int) -> AsyncIterator[list[Row]]:
        """Yield the rows after the first `skipped`, accept any bytes as text, and stop at the first unreadable row."""
        page: list[Row] = []
        size = 0
        last: object = after or 0
        with sqlite_errors():
            try:
                for count, row in enumerate(rows_from(self._rows(stored, after), self._stream_names(stored))):
                    last = row.position
                    if count >= skipped:
                        page.append(row)
                        size += payload_bytes(page[-1])
                    if len(page) == PAGE_ROWS or size >= PAGE_BYTES:
                        yield page
                        page, size = [], 0
            except sqlite3.DatabaseError as cause:
                # The low byte is the primary error code; SQLite adds details above it.
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

    async def versions(self, stored: StoredLedger) -> dict[Any, Any]:
        with sqlite_errors():
            return dict(self._connection.execute(_VERSIONS, (stored.ledger,))) if STREAMS in self._tables() else {}

    def check_unchanged(self) -> None:
        if self._path is None or self._access is None or self._access.fingerprint is None:
            return
        with sqlite_errors():
            # A file that was read without locks: another way to read it now means that a process has opened it.
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
    """Open the database in a file in one read transaction. Raises `StorageUnavailable`."""
    with sqlite_errors(), TemporaryDirectory(prefix="allowance-") as directory:
        access = _read_access(path)
        uri = access.uri
        if access.copied:
            uri = uri_of_copy(path, directory)
        with transaction(uri) as connection:
            yield SqliteReader(connection, path, access)


def _read_access(path: Path) -> FileAccess:
    try:
        return read_access(path)
    except FileNotFoundError as cause:
        raise StorageUnavailable(f"there is no file {path}") from cause


def uri_of_copy(path: Path, directory: str) -> str:
    """Copy a database and its WAL to a temporary directory, which may get the files that SQLite creates."""
    copy = Path(directory) / "copy.db"
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    return f"file:{quote(str(copy))}?mode=ro"


@contextmanager
def transaction(uri: str) -> Iterator[sqlite3.Connection]:
    """Connect and begin a read transaction: all reads see the same snapshot."""
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
    """Raise `StorageUnavailable` for errors of the driver and the file system.

    `UnicodeDecodeError` is among them: when the driver's message quotes a damaged schema, it fails to decode it.
    """
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise StorageUnavailable(str(error)) from error


def _text(stored: bytes) -> str:
    """Decode stored text; invalid bytes become lone surrogates, which valid UTF-8 cannot contain.

    So a damaged text never equals a text whose hash was computed, and the check of the hash finds the damage.
    """
    return stored.decode("utf-8", "surrogateescape")
