"""The limits of the machine: bare rows of the same size, written and read without any other work.

The table has one column besides its key, no index and no trigger. No code that stores as many bytes durably is faster.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Self

import asyncpg
import msgspec

from ledger import Row, store_from_url
from ledger.events import CHAIN_STREAM, Event
from ledger.store.contract import PAGE_ROWS

from .chain import HOTKEY

CONNECTIONS = 8
_ALL = """SELECT position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash
          FROM allowance_events ORDER BY ledger, position"""
_NUMBERS_BYTES = 5 * 8


async def reservation_bytes(url: str) -> int:
    """Return the mean size of the reservations in the newest rows of a ledger, with 8 bytes for each number."""
    store = store_from_url(url, HOTKEY, read_only=True)
    head = await store.open(None)
    sizes = [_row_bytes(row) for row in await store.read(max(0, head.position - PAGE_ROWS)) if row.attempt is not None]
    await store.close()
    return round(mean(sizes or [400]))


async def block_bytes(url: str) -> int:
    """Return the size of an unchanged block's row, with 8 bytes for each number."""
    store = store_from_url(url, HOTKEY, read_only=True)
    await store.open(None)
    least = min(_row_bytes(row) for row in await store.read(0) if row.stream == CHAIN_STREAM)
    await store.close()
    return least


def _row_bytes(row: Row) -> int:
    texts = (row.stream, row.key or "", row.job_uuid or "", row.payload, row.hash)
    return sum(map(len, texts)) + _NUMBERS_BYTES


class SqliteRows:
    """Rows of this size in a SQLite file, through the standard library, in WAL mode with `synchronous=FULL`."""

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
        """Make this many commits; return the seconds of each."""
        connection = self._connection
        rows = [self._row] * rows_per_commit
        elapsed_s = []
        for _ in range(commits):
            started = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO bare (row) VALUES (?)", rows)
            connection.execute("COMMIT")
            elapsed_s.append(time.perf_counter() - started)
        return elapsed_s

    def rate(self, rows: int, rows_per_commit: int = 1) -> float:
        """Return rows per second."""
        commits = max(1, rows // rows_per_commit)
        return commits * rows_per_commit / sum(self.commits(commits, rows_per_commit))


class PostgresRows:
    """Rows of this size in a PostgreSQL table, one per commit, on several connections at once."""

    def __init__(self, connections: list[asyncpg.Connection], row_bytes: int) -> None:
        self._connections = connections
        self._row = os.urandom(row_bytes)

    async def commits(self, commits: int) -> list[float]:
        """Make this many commits on one connection; return the seconds of each."""
        insert = await self._connections[0].prepare(_INSERT)
        elapsed_s = []
        for _ in range(commits):
            started = time.perf_counter()
            await insert.fetch(self._row)
            elapsed_s.append(time.perf_counter() - started)
        return elapsed_s

    async def rate(self, rows: int) -> float:
        """Return rows per second over all connections."""

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
    """Open connections and create a bare table."""
    opened = [await asyncpg.connect(url) for _ in range(connections)]
    try:
        await opened[0].execute("CREATE TABLE IF NOT EXISTS bare (position BIGSERIAL PRIMARY KEY, row BYTEA NOT NULL)")
        yield PostgresRows(opened, row_bytes)
    finally:
        for connection in opened:
            await connection.close()


def read_and_decode(path: Path) -> float:
    """Return events per second of reading every row of a ledger and decoding its payload, without using it."""
    decode = msgspec.json.Decoder(Event).decode
    events = 0
    with closing(sqlite3.connect(path)) as connection:
        started = time.perf_counter()
        for row in connection.execute(_ALL):
            decode(row[8])
            events += 1
        return events / (time.perf_counter() - started)
