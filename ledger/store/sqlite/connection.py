"""The connection of a store: which file it has open, how, and which ledger is in it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from uuid import uuid4

from ledger.domain.lookup import Head
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.store.contract import check_schema_version

from .reader import BUSY_TIMEOUT_SECONDS, read_access, uri_of_copy
from .streams import Streams
from .wal_size import WAL_LIMIT_BYTES

HEAD = """SELECT position, hash, recorded_at_ns, (SELECT version FROM allowance_schema)
          FROM allowance_ledgers WHERE ledger = ? AND validator_ss58 = ?"""
# 12 MB of WAL instead of SQLite's 4: random keys and jobs touch the same pages of an index again, and each page is
# copied once per checkpoint. The WAL then ends below its limit, so it is not cut and grown again in every round.
PAGES_BETWEEN_CHECKPOINTS = 3000
# The pages of the indexes between two checkpoints; SQLite's own limit is 2 MB.
CACHE_BYTES = 16 << 20


class SqliteConnection:
    """The connection to one database, a file or the memory of this process, opened again if a reader's file changes."""

    def __init__(self, path: str | None, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        self._path = None if path is None else Path(path)
        self._read_only = read_only
        self._memory_name = f"/allowance-{uuid4().hex}"
        self._connection: sqlite3.Connection | None = None
        self._file_identity: object = None
        self._copy: TemporaryDirectory[str] | None = None
        self._streams = Streams()

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
        self._streams.forget()
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
            access = read_access(self._path)
            return self._uri_of_new_copy(self._path) if access.copied else access.uri
        return f"file:{quote(str(self._path.absolute()))}?mode=rw"

    def _uri_of_new_copy(self, path: Path) -> str:
        """Copy a file whose writer was killed: SQLite would have to write beside it to read it."""
        self._delete_copy()
        self._copy = TemporaryDirectory(prefix="allowance-")
        return uri_of_copy(path, self._copy.name)

    def _delete_copy(self) -> None:
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None

    def _read_only_uri(self) -> str:
        return self._uri().replace("?mode=rw", "?mode=ro")

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._new_connection()
        except (sqlite3.Error, OSError) as cause:
            raise StorageUnavailable(self._open_error_message(cause)) from cause

    def _open_error_message(self, error: sqlite3.Error | OSError) -> str:
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
                connection.execute(f"PRAGMA wal_autocheckpoint = {PAGES_BETWEEN_CHECKPOINTS}").fetchone()
                connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}").fetchone()
            # SQLite reads the file only when a statement needs it. Read something now, to fail here if it cannot.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

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
        stored = connection.execute(HEAD, (self.ledger, self.validator_ss58)).fetchone()
        if stored is None:
            raise LedgerNotFound(self.validator_ss58)
        position, a_hash, recorded_at_ns, schema_version = stored
        check_schema_version(schema_version)
        return Head(position, a_hash, recorded_at_ns)
