"""What the machine can do: rows of the same bytes written and read with nothing in between.

One column beside the key, no index, no trigger: nobody who stores the same bytes durably is faster.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg
import msgspec

from ledger.events import Event

CONNECTIONS = 8
_ALL = """SELECT position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash
          FROM allowance_events ORDER BY ledger, position"""
_BYTES = """SELECT avg(length(stream) + ifnull(length(key), 0) + ifnull(length(job_uuid), 0) + length(payload)
                       + length(hash) + 5 * 8)
            FROM allowance_events WHERE job_uuid IS NOT NULL"""


def reservation_bytes(path: Path) -> int:
    """The bytes of a reservation's row, its numbers taken at 8 each: the mean over a ledger."""
    with closing(sqlite3.connect(path)) as connection:
        (mean,) = connection.execute(_BYTES).fetchone()
    return round(mean or 400)


class SqliteRows:
    """Rows of so many bytes in a SQLite file, through the standard library, in WAL with `synchronous=FULL`."""

    def __init__(self, path: Path, row_bytes: int) -> None:
        self._row = (os.urandom(row_bytes),)
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS bare (position INTEGER PRIMARY KEY, row BLOB NOT NULL)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def commits(self, commits: int, rows_per_commit: int = 1) -> list[float]:
        """Makes so many commits; answers the seconds that each took."""
        connection = self._connection
        rows = [self._row] * rows_per_commit
        taken = []
        for _ in range(commits):
            started = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO bare (row) VALUES (?)", rows)
            connection.execute("COMMIT")
            taken.append(time.perf_counter() - started)
        return taken

    def rate(self, rows: int, rows_per_commit: int = 1) -> float:
        """Rows a second."""
        commits = max(1, rows // rows_per_commit)
        return commits * rows_per_commit / sum(self.commits(commits, rows_per_commit))


class PostgresRows:
    """Rows of so many bytes in a PostgreSQL table, one a commit, on several connections at once."""

    def __init__(self, connections: list[asyncpg.Connection], row_bytes: int) -> None:
        self._connections = connections
        self._row = os.urandom(row_bytes)

    async def commits(self, commits: int) -> list[float]:
        """Makes so many commits on one connection; answers the seconds that each took."""
        insert = await self._connections[0].prepare(_INSERT)
        taken = []
        for _ in range(commits):
            started = time.perf_counter()
            await insert.fetch(self._row)
            taken.append(time.perf_counter() - started)
        return taken

    async def rate(self, rows: int) -> float:
        """Rows a second over all connections."""

        async def write(connection: asyncpg.Connection) -> None:
            insert = await connection.prepare(_INSERT)
            for _ in range(rows // len(self._connections)):
                await insert.fetch(self._row)

        started = time.perf_counter()
        await asyncio.gather(*map(write, self._connections))
        return rows // len(self._connections) * len(self._connections) / (time.perf_counter() - started)


_INSERT = "INSERT INTO bare (row) VALUES ($1)"


@asynccontextmanager
async def postgres_rows(url: str, row_bytes: int, connections: int = CONNECTIONS) -> AsyncIterator[PostgresRows]:
    """A bare table, and connections to write to it."""
    opened = [await asyncpg.connect(url) for _ in range(connections)]
    try:
        await opened[0].execute("CREATE TABLE IF NOT EXISTS bare (position BIGSERIAL PRIMARY KEY, row BYTEA NOT NULL)")
        yield PostgresRows(opened, row_bytes)
    finally:
        for connection in opened:
            await connection.close()


def read_and_decode(path: Path) -> float:
    """Events a second: every row of a ledger read and its payload decoded, and nothing done with it."""
    decode = msgspec.json.Decoder(Event).decode
    events = 0
    with closing(sqlite3.connect(path)) as connection:
        started = time.perf_counter()
        for row in connection.execute(_ALL):
            decode(row[8])
            events += 1
        return events / (time.perf_counter() - started)
