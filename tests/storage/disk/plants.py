"""Defects of the product that the disk must find: each function breaks the calling process."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any

from ledger.codec import Row
from ledger.store.contract import CommitOutcomeUnknown
from ledger.store.sqlite import creation, durability
from ledger.store.sqlite.durability import Durability
from ledger.store.sqlite.store import SqliteStore


def _flush_less(level: str) -> None:
    """Make every connection flush less than the product asks for."""

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement.startswith("PRAGMA synchronous"):
                statement = f"PRAGMA synchronous = {level}"
            return super().execute(statement, *values)

    connect = sqlite3.connect
    sqlite3.connect = partial(connect, factory=Connection)  # type: ignore[assignment]


def _answer_from_a_read() -> None:
    """After a failed COMMIT, close the connection and believe what a new one reads, without any proof."""

    def commit(self: SqliteStore, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as cause:
            durability.roll_back(connection)
            connection.close()
            self._connection = None
            raise CommitOutcomeUnknown(str(cause)) from cause

    async def resolve_commit(self: SqliteStore, first: Row) -> bool:
        stored = await self.read(first.position - 1)
        return bool(stored) and stored[0].hash == first.hash

    _set(SqliteStore, "_commit", commit)
    _set(SqliteStore, "resolve_commit", resolve_commit)
    _trust_every_storage()


def _trust_every_storage() -> None:
    """Believe the WAL that a crash left, and accept changes after a failed flush."""
    _set(Durability, "is_proved", property(lambda _: True))


def _set(owner: object, name: str, value: object) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} to break"
    setattr(owner, name, value)


PLANTS: dict[str, Callable[[], None]] = {
    "synchronous-normal": partial(_flush_less, "NORMAL"),
    "synchronous-off": partial(_flush_less, "OFF"),
    "answers-from-a-read": _answer_from_a_read,
    "trusts-every-storage": _trust_every_storage,
    "no-fence": partial(_set, Durability, "settle", lambda self, connection: None),
    "wal-not-written-again": partial(_set, durability, "_write_again", lambda wal: None),
    "directories-not-flushed": partial(_set, creation, "flush_directory", lambda directory: None),
}
