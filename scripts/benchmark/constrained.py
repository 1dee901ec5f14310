"""The log's tables as a limit: rows appended through the store, without any decision; and the bytes that they take."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from itertools import count
from random import Random
from uuid import UUID

from ledger import Head, Row, Store, store_from_url
from ledger.codec import decode, row_hash
from ledger.events import AllowanceReserved, account_stream
from ledger.store.contract import PAGE_ROWS, versions_before
from routing import Routing
from routing.cli.demo.network import hotkeys

from .chain import HOTKEY, SEED, Feed
from .figures import Report, at_most, interleaved, ratio_at_least
from .jobs import pick_at_once
from .limits import SqliteRows, reservation_bytes
from .prepared import Ledger
from .workspace import Workspace

ROWS_PER_COMMIT = 256
LEAST_RATIO = 0.4
MOST_BYTES_PER_CLAIM, MOST_BYTES_PER_BLOCK = 200, 150
BLOCKS_MEASURED = 500
_LOG_BYTES = """SELECT sum(pgsize) FROM dbstat WHERE name IN (
                  SELECT name FROM sqlite_schema
                  WHERE tbl_name IN ('allowance_events', 'allowance_streams', 'allowance_ledgers'))"""
"""Whole pages of the log's tables and indexes."""
_ROW_BYTES = "SELECT sum(pgsize) FROM dbstat WHERE name = 'allowance_events'"
"""Whole pages of the rows alone."""


async def rows(workspace: Workspace, report: Report) -> None:
    """Measure rows of claims through the real store, whose tables have indexes, compared with bare rows."""
    for title, prepared in await workspace.both_logs():
        await _rows(workspace, report, title, prepared)


async def _rows(workspace: Workspace, report: Report, title: str, prepared: Ledger) -> None:
    copy = workspace.copied(prepared)
    commits = workspace.sizes.constrained_commits
    async with AsyncExitStack() as stack:
        store = store_from_url(copy.url, HOTKEY, read_only=False)
        appender = _Appender(store, workspace, await store.open(None), await _claims(store))
        stack.push_async_callback(store.close)
        bare = stack.enter_context(SqliteRows(workspace.new_file(), await reservation_bytes(prepared.url)))

        async def constrained() -> float:
            return await appender.rate(commits)

        async def unconstrained() -> float:
            return bare.rate(commits * ROWS_PER_COMMIT, rows_per_commit=ROWS_PER_COMMIT)

        ours, limit = await interleaved(workspace.sizes.repeat, constrained, unconstrained)
    name = f"rows of claims through the store, {ROWS_PER_COMMIT} a commit, {title}"
    report.add(name, "1/s", ours, ("bare rows", limit), ratio_at_least(LEAST_RATIO))


async def _claims(store: Store) -> list[Row]:
    """Return the reservations in the newest rows."""
    head = await store.head()
    newest = await store.read(max(0, head.position - PAGE_ROWS))
    return [row for row in newest if isinstance(decode(row.position, row.payload), AllowanceReserved)]


class _Appender:
    """Appends rows like claims, on accounts that the log does not have."""

    def __init__(self, store: Store, workspace: Workspace, head: Head, claims: list[Row]) -> None:
        self._store = store
        self._head = head
        self._claims = claims
        self._random = Random("rows")
        self._versions: dict[str, Iterator[int]] = {
            account_stream(miner, executor_class): count(1)
            for miner in hotkeys(SEED + 1, "miner", workspace.sizes.miners)
            for executor_class in workspace.classes
        }

    async def rate(self, commits: int) -> float:
        """Return rows per second. Making the rows does not count in the time."""
        seconds = 0.0
        for _ in range(commits):
            rows = self._next_rows()
            expected = versions_before(rows)
            started = time.perf_counter()
            async with self._store.transaction() as transaction:
                await transaction.append(rows, expected)
            seconds += time.perf_counter() - started
        return commits * ROWS_PER_COMMIT / seconds

    def _next_rows(self) -> list[Row]:
        rows, random, streams = [], self._random, list(self._versions)
        position, previous, recorded_at_ns = self._head
        for _ in range(ROWS_PER_COMMIT):
            position += 1
            stream = random.choice(streams)
            job_uuid = str(UUID(int=random.getrandbits(128), version=4))
            row = random.choice(self._claims)._replace(
                position=position, stream=stream, version=next(self._versions[stream]), recorded_at_ns=recorded_at_ns,
                key=None, job_uuid=job_uuid, attempt=1, settles=None,
            )  # fmt: skip
            row = row._replace(hash=row_hash(previous, row))
            previous = row.hash
            rows.append(row)
        self._head = Head(position, previous, recorded_at_ns)
        return rows


async def stored(workspace: Workspace, report: Report) -> None:
    """Measure the bytes of the log for a claim by a router, and for a block like the one before it."""
    prepared = workspace.copied(await workspace.short())
    async with prepared.open() as ledger:
        # So that no claim has to be settled, which would be another row.
        await ledger.change_settings(respect_executor_count=False)
        before, rows_before = log_bytes(prepared), log_bytes(prepared, _ROW_BYTES)
        await pick_at_once(Routing(ledger), workspace.jobs(workspace.sizes.claims), workspace.sizes.callers)
        claims = (log_bytes(prepared) - before) / workspace.sizes.claims
        claim_rows = (log_bytes(prepared, _ROW_BYTES) - rows_before) / workspace.sizes.claims
        feed, before = Feed(prepared.newest), log_bytes(prepared)
        for _ in range(BLOCKS_MEASURED):
            await feed.timed(ledger)
        blocks = (log_bytes(prepared) - before) / BLOCKS_MEASURED
    report.add("bytes of log per claim", "B", [claims], target=at_most(MOST_BYTES_PER_CLAIM))
    report.add("bytes of log per claim, without indexes", "B", [claim_rows])
    report.add("bytes of log per unchanged block", "B", [blocks], target=at_most(MOST_BYTES_PER_BLOCK))


def log_bytes(prepared: Ledger, which: str = _LOG_BYTES) -> int:
    """Return the size of the log's tables and indexes, or of a part of them, after a complete checkpoint."""
    with closing(sqlite3.connect(prepared.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (size,) = connection.execute(which).fetchone()
    return int(size)
