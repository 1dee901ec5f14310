"""The file of derived tables as a file: where it is, who has it open, how it is made and deleted.

A file that others have open is never deleted, because a new file would get the companions (`-wal`, `-shm`) of the old
one. So everybody who may write holds a shared lock on `<path>-derived.lock-open` while the file is open, and a damaged
file is deleted under the exclusive one.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from ledger.store.contract import DerivedTablesUnavailable, Schema

from .derived_binding import BINDINGS_TABLE
from .derived_checkpoint import WAL_LIMIT_BYTES
from .reader import read_access
from .writer_presence import WriterPresence

LAYOUT_VERSION = 1
"""To be raised when the tables change: the file of an older release is then made again."""
OPENING_SECONDS = 1.0
"""How long an opening waits for SQLite's locks. In use, a connection never waits: it would stop the loop."""


class DerivedFile:
    """The file of derived tables beside a log."""

    def __init__(self, path: str, *, read_only: bool) -> None:
        # Beside the file to which a symbolic link points, like SQLite's own companions.
        self.path = f"{os.path.realpath(path)}-derived"
        self.read_only = read_only
        self._damaged: object = None
        """The identity of a file that was found damaged while others had it open."""
        self._presence = None if read_only else WriterPresence(self.path)

    @property
    def is_missing(self) -> bool:
        """Whether a writer must make the file."""
        return self.identity() is None

    def identity(self) -> object:
        """Return what identifies the file, and for a reader how it can be read; None if there is none to be read."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if not self.read_only:
                status = os.stat(self.path)
                return status.st_dev, status.st_ino
            access = read_access(Path(self.path))
            return None if access.copied else access  # A reader leaves no trace, and a history is not worth a copy.
        return None

    def uri(self) -> str:
        """Return the URI with which SQLite opens the file."""
        return read_access(Path(self.path)).uri if self.read_only else f"file:{quote(self.path)}?mode=rw"

    def connect(self) -> sqlite3.Connection:
        """Open the file. Raises `DerivedTablesUnavailable` if there is none, or one of another release."""
        if self.identity() is None or (self._damaged is not None and not self._delete_damaged()):
            raise DerivedTablesUnavailable(f"{self.path} is missing or damaged")
        if self._presence is not None:
            self._presence.enter()
            self._presence.share()
        connection = _new_connection(self.uri(), read_only=self.read_only)
        version, is_foreign = _layout_version(connection), _has_other_tables(connection)
        if version != LAYOUT_VERSION or is_foreign:
            connection.close()
            if is_foreign:
                raise DerivedTablesUnavailable(f"{self.path} has tables of somebody else; move it away")
            if version < LAYOUT_VERSION:  # A newer release's file is left to it.
                self.note_damage()
            raise DerivedTablesUnavailable(f"{self.path} has the tables of another release")
        return connection

    def leave(self) -> None:
        """Let others delete the file; all connections are closed."""
        if self._presence is not None:
            self._presence.leave()

    def note_damage(self) -> None:
        """Delete a damaged file, now or as soon as nobody else has it open; all connections are closed."""
        self._damaged = self.identity()
        if not self.read_only:
            self._delete_damaged()

    def make(self, schema: Schema) -> None:
        """Make the file with empty tables, unless another process has made it meanwhile."""
        from ledger.store.tables import sqlite_derived_schema

        if self._presence is None:
            return
        alone = self._presence.enter()
        try:
            # Without `flock` several processes may come here: O_EXCL lets one of them create the file.
            if alone and self.is_missing:
                self._delete()  # Companions that an earlier file has left would be taken for the new one's.
                with suppress(FileExistsError):
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                self._create([*sqlite_derived_schema(schema.derived), *schema.views, BINDINGS_TABLE])
        finally:
            self._presence.share()

    def _create(self, statements: list[str]) -> None:
        try:
            with closing(_new_connection(self.uri(), read_only=False)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {LAYOUT_VERSION}")
                connection.execute("COMMIT")
        except BaseException:
            self._delete()  # Half a file: the disk is full, for example.
            raise

    def _delete_damaged(self) -> bool:
        """Delete the file that was found damaged, if it is still there and nobody else has it open.

        Return False if there is no file that can be used now.
        """
        if self._damaged != self.identity():
            self._damaged = None
            return not self.is_missing
        if self._presence is not None:
            if self._presence.enter():
                self._delete()
                self._damaged = None
            # Whoever holds the lock without the file would keep others from making it.
            self._presence.leave()
        return False

    def _delete(self) -> None:
        for name in (self.path, f"{self.path}-wal", f"{self.path}-shm"):
            with suppress(FileNotFoundError):
                os.unlink(name)


def _new_connection(uri: str, *, read_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=OPENING_SECONDS)
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}").fetchone()
            # See `derived_checkpoint.py`.
            connection.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA busy_timeout = 0").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _has_other_tables(connection: sqlite3.Connection) -> bool:
    """Return whether the file belongs to somebody else, and must not be deleted."""
    query = """SELECT 1 FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'allowance%'
               AND name NOT LIKE 'sqlite%'"""
    return connection.execute(query).fetchone() is not None


def _layout_version(connection: sqlite3.Connection) -> int:
    """Return the version of the tables, 0 if it is not a file of derived tables."""
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'allowance_derived_from'").fetchone()
    except BaseException:
        connection.close()
        raise
    return int(version) if found else 0
