"""The databases as the harness sees them: past the product, through plain drivers."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from ledger import current_runtime
from tests.support.servers import PostgresServer, connected

from .replay import Stored

COLUMNS = ", ".join(Stored._fields)
ALL_ROWS = f"SELECT {COLUMNS} FROM allowance_events WHERE ledger = 1 ORDER BY position"
COUNT_CLAIMS = "SELECT count(*) FROM allowance_events WHERE ledger = 1 AND settles IS NULL AND stream LIKE '%\t%'"
"""An account's stream has a tab in its name; what in it settles nothing is a reservation."""
CRASHED_SHARE = 0.3
"""Of the disturbances of a PostgreSQL database that may be crashed at all."""


class Database(Protocol):
    """One database with one ledger in it."""

    url: str

    def rows(self) -> list[Stored]:
        """All stored events, by position."""
        ...

    def claims(self) -> int:
        """How many reservations are stored."""
        ...

    def strip(self) -> None:
        """Takes all constraints and triggers off the events, so that only the code protects them."""
        ...

    def disturb(self, rng: random.Random) -> None:
        """Does something to the database that it should survive."""
        ...


class SqliteDatabase:
    """A SQLite file. Killing those who have it open is all that can be done to it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "allowance.db"
        self.url = f"sqlite:///{self._path}"

    def rows(self) -> list[Stored]:
        with closing(sqlite3.connect(self._path)) as connection:
            return [Stored(*row) for row in connection.execute(ALL_ROWS)]

    def claims(self) -> int:
        with closing(sqlite3.connect(self._path)) as connection:
            return int(connection.execute(COUNT_CLAIMS).fetchone()[0])

    def strip(self) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (trigger,) in triggers:
                connection.execute(f"DROP TRIGGER {trigger}")
            connection.execute("CREATE TABLE bare AS SELECT * FROM allowance_events")
            connection.execute("DROP TABLE allowance_events")
            connection.execute("ALTER TABLE bare RENAME TO allowance_events")
            for column in ("position", "stream, version", "key", "job_uuid", "settles"):
                # Under the names that look-ups know them by, but unique no more.
                name = f"allowance_events_{column.partition(',')[0]}"
                connection.execute(f"CREATE INDEX {name} ON allowance_events (ledger, {column})")

    def disturb(self, rng: random.Random) -> None:
        """Nothing: there is no server to disturb."""


class PostgresDatabase:
    """A PostgreSQL database, whose backends are terminated and whose server crashes and recovers."""

    def __init__(self, url: str, server: PostgresServer | None = None) -> None:
        self.url = url
        self._server = server
        """Crashed now and then, where it is given; nobody else may need it meanwhile."""

    def rows(self) -> list[Stored]:
        return [Stored(*row) for row in current_runtime().run_blocking(self._fetch(ALL_ROWS))]

    def claims(self) -> int:
        return int(current_runtime().run_blocking(self._fetch(COUNT_CLAIMS))[0][0])

    def strip(self) -> None:
        current_runtime().run_blocking(self._execute(_STRIP))

    def disturb(self, rng: random.Random) -> None:
        """Mostly ends some of the ledger's connections; now and then crashes the whole server."""
        if self._server is not None and rng.random() < CRASHED_SHARE:
            self._server.crash()
        else:
            current_runtime().run_blocking(self._execute(_TERMINATE_SOME))

    async def _fetch(self, statement: str) -> list[Any]:
        async with connected(self.url) as connection:
            return list(await connection.fetch(statement))

    async def _execute(self, statement: str) -> None:
        async with connected(self.url) as connection:
            await connection.execute(statement)


_STRIP = """
    DROP TRIGGER allowance_ledgers_no_step_back ON allowance_ledgers;
    CREATE TABLE bare AS SELECT * FROM allowance_events;
    DROP TABLE allowance_events;
    ALTER TABLE bare RENAME TO allowance_events;
    CREATE INDEX ON allowance_events (ledger, position);
    CREATE INDEX ON allowance_events (ledger, key);
    CREATE INDEX ON allowance_events (ledger, job_uuid);
    CREATE INDEX ON allowance_events (ledger, settles);"""

_TERMINATE_SOME = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'allowance-ledger' AND datname = current_database() AND random() < 0.4"""
