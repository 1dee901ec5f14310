"""The databases under test. The harness uses plain drivers, and none of the product's code, to look at them."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from ledger import current_runtime
from tests.support.servers import PostgresServer, connected

from .replay import Stored

ALL_ROWS = """SELECT log.position, log.stream, log.version, log.recorded_at_ns, log.key, log.job_uuid, log.attempt,
              log.settles, events.payload, events.hash
              FROM allowance_log AS log JOIN allowance_events AS events
              ON events.ledger = (SELECT ledger FROM allowance_ledgers) AND events.position = log.position
              ORDER BY log.position"""
"""With the ledger, so that the events are looked up by their primary key: there is only one."""
COUNT_CLAIMS = "SELECT count(*) FROM allowance_log WHERE settles IS NULL AND stream LIKE '%\t%'"
"""Only the stream of an account has a tab in its name, and each event in it reserves or settles."""
CRASHED_SHARE = 0.3
"""The share of disturbances that crash the PostgreSQL server, if the plan allows crashes."""


class Database(Protocol):
    """A database with one ledger in it."""

    url: str

    def rows(self) -> list[Stored]:
        """Return all stored events, ordered by position."""
        ...

    def claims(self) -> int:
        """Return the number of stored reservations."""
        ...

    def drop_constraints(self) -> None:
        """Drop all constraints and triggers of the events, so that only the code protects them."""
        ...

    def disturb(self, rng: random.Random) -> None:
        """Do something to the database that the ledger should survive."""
        ...


class SqliteDatabase:
    """A SQLite file. It has no server to disturb; the harness can only kill the processes that have it open."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "allowance.db"
        self.url = f"sqlite:///{self._path}"

    def rows(self) -> list[Stored]:
        with closing(sqlite3.connect(self._path)) as connection:
            return [Stored(*row) for row in connection.execute(ALL_ROWS)]

    def claims(self) -> int:
        with closing(sqlite3.connect(self._path)) as connection:
            return int(connection.execute(COUNT_CLAIMS).fetchone()[0])

    def drop_constraints(self) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (trigger,) in triggers:
                connection.execute(f"DROP TRIGGER {trigger}")
            (view,) = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'view'").fetchone()
            connection.execute("DROP VIEW allowance_log")
            connection.execute("CREATE TABLE unconstrained AS SELECT * FROM allowance_events")
            connection.execute("DROP TABLE allowance_events")
            connection.execute("ALTER TABLE unconstrained RENAME TO allowance_events")
            for column in ("position", "stream, version", "key", "job_uuid", "settles"):
                # Look-ups name their index (INDEXED BY), so it must exist, but no longer unique.
                name = f"allowance_events_{column.partition(',')[0]}"
                connection.execute(f"CREATE INDEX {name} ON allowance_events (ledger, {column})")
            connection.execute(view)

    def disturb(self, rng: random.Random) -> None:
        """Do nothing: SQLite has no server."""


class PostgresDatabase:
    """A PostgreSQL database. The harness terminates its backends, and crashes its server."""

    def __init__(self, url: str, server: PostgresServer | None = None) -> None:
        self.url = url
        # If a server is given, the harness crashes it, so no other test may use it at the same time.
        self._server = server

    def rows(self) -> list[Stored]:
        return [Stored(*row) for row in current_runtime().run_blocking(self._fetch(ALL_ROWS))]

    def claims(self) -> int:
        return int(current_runtime().run_blocking(self._fetch(COUNT_CLAIMS))[0][0])

    def drop_constraints(self) -> None:
        current_runtime().run_blocking(self._execute(_DROP_CONSTRAINTS))

    def disturb(self, rng: random.Random) -> None:
        """Terminate some of the ledger's connections, or crash the whole server."""
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


_DROP_CONSTRAINTS = """
    DROP TRIGGER allowance_ledgers_no_step_back ON allowance_ledgers;
    DO $$ DECLARE view text := pg_get_viewdef('allowance_log'); BEGIN
        DROP VIEW allowance_log;
        CREATE TABLE unconstrained AS SELECT * FROM allowance_events;
        DROP TABLE allowance_events;
        ALTER TABLE unconstrained RENAME TO allowance_events;
        EXECUTE 'CREATE VIEW allowance_log AS ' || view;
    END $$;
    CREATE INDEX ON allowance_events (ledger, position);
    CREATE INDEX ON allowance_events (ledger, key);
    CREATE INDEX ON allowance_events (ledger, job_uuid);
    CREATE INDEX ON allowance_events (ledger, settles);"""

_TERMINATE_SOME = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'allowance-ledger' AND datname = current_database() AND random() < 0.4"""
