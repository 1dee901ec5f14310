"""Recording of facts on SQLite: unchanged and completely changed blocks, syncs, an import, and stored bytes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from statistics import median

from routing import Allowance, BlockFact, Miner
from routing.cli.demo.network import STARTED_AT, hotkeys

from .chain import SEED, Fact, facts_lines, parsed
from .figures import Report, at_most, interleaved
from .filling import record
from .limits import SqliteRows
from .picking import MS
from .workspace import Ledger, Workspace

BLOCK_SECONDS = 12
MANY_VALIDATORS = 64
MOST_BLOCKS_MEASURED = 900
"""So few that the ledger takes no snapshot, whose bytes do not belong to a block."""


async def unchanged_block(workspace: Workspace, report: Report) -> None:
    """Measure a block like the one before it: the time to record it, and the bytes in the file."""
    prepared = workspace.copied(await workspace.filled())
    async with prepared.open() as ledger:
        newest = newest_block(workspace.facts())
        with SqliteRows(workspace.new_file(), _block_bytes(prepared)) as bare:
            feed = Feed(newest)

            async def blocks() -> float:
                return median([await feed.timed(ledger) for _ in range(workspace.sizes.appends)]) * MS

            async def commits() -> float:
                return median(bare.commits(workspace.sizes.appends)) * MS

            ours, limit = await interleaved(workspace.sizes.repeat, blocks, commits)
    report.add("recording an unchanged block", "ms", ours, ("one bare commit", limit), at_most(1))
    fresh = workspace.new_ledger()
    async with fresh.open() as ledger:
        feed = Feed(newest)
        grown = []
        await feed.timed(ledger)
        for _ in range(workspace.sizes.repeat):
            before = stored_bytes(fresh)
            count = max(20, min(workspace.sizes.appends, MOST_BLOCKS_MEASURED // workspace.sizes.repeat))
            for _ in range(count):
                await feed.timed(ledger)
            grown.append((stored_bytes(fresh) - before) / count)
    report.add("bytes stored for an unchanged block", "B", grown, target=at_most(300))


class Feed:
    """Continues a chain with blocks that are like its newest block."""

    def __init__(self, newest: BlockFact) -> None:
        self._miners = tuple(newest.miners)
        self._stakes = newest.stakes
        self._number = newest.number
        self._created_at: datetime = newest.created_at

    def next(self) -> BlockFact:
        """Return the next block. Its miners are new objects, as those of a real feed."""
        self._number += 1
        self._created_at += timedelta(seconds=BLOCK_SECONDS)
        miners = [replace(miner) for miner in self._miners]
        return BlockFact(self._number, self._created_at, miners, dict(self._stakes))

    async def timed(self, ledger: Allowance) -> float:
        """Record the next block; return the seconds that it took."""
        block = self.next()
        started = time.perf_counter()
        await ledger.record_block(block.number, block.created_at, block.miners, block.stakes)
        return time.perf_counter() - started


async def changed_block(workspace: Workspace, report: Report) -> None:
    """Measure a block in which every miner has another address, and every validator another stake."""
    miners = hotkeys(SEED, "miner", workspace.sizes.miners)
    validators = hotkeys(SEED, "validator", MANY_VALIDATORS)
    prepared = workspace.new_ledger()
    async with prepared.open() as ledger:
        number = 0

        async def blocks() -> float:
            nonlocal number
            times_ms = []
            for _ in range(max(1, workspace.sizes.appends // 10)):
                number += 1
                moved = [Miner(f"192.0.2.{number % 250 + 1}", 4, 8000 + index, key) for index, key in enumerate(miners)]
                stakes = {key: 1000.0 + number + index for index, key in enumerate(validators)}
                created_at = STARTED_AT + timedelta(seconds=BLOCK_SECONDS * number)
                started = time.perf_counter()
                await ledger.record_block(number, created_at, moved, stakes)
                times_ms.append((time.perf_counter() - started) * MS)
            return median(times_ms)

        (ours,) = await interleaved(workspace.sizes.repeat, blocks)
    report.add(f"a block: {len(miners)} miners, {len(validators)} validators changed", "ms", ours, target=at_most(20))


async def manifest_sync(workspace: Workspace, report: Report) -> None:
    """Measure a sync in which every miner offers one executor less, in a ledger with partly reserved blocks."""
    prepared = workspace.copied(await workspace.filled())
    async with prepared.open() as ledger:
        newest = await ledger.current_block() or 1
        full = {
            hotkey: {executor_class: count + 1 for executor_class, count in counts.items()}
            for hotkey, counts in (await ledger.manifests()).items()
        }
        reduced = {
            hotkey: {executor_class: count - 1 for executor_class, count in counts.items()}
            for hotkey, counts in full.items()
        }

        async def syncs() -> float:
            nonlocal newest
            times_ms = []
            for _ in range(max(1, workspace.sizes.appends // 30)):
                await ledger.record_manifests(newest + 1, full)
                started = time.perf_counter()
                await ledger.record_manifests(newest + 2, reduced)
                times_ms.append((time.perf_counter() - started) * MS)
                newest += 2
            return median(times_ms)

        (ours,) = await interleaved(workspace.sizes.repeat, syncs)
    report.add(f"a manifest sync of {len(full)} miners, all with drops", "ms", ours, target=at_most(20))


async def importing(workspace: Workspace, report: Report) -> None:
    """Measure an import of the network's `FACTS.jsonl` into a new ledger, as `allowance import` does it."""
    lines = facts_lines(workspace.sizes)
    sizes = workspace.sizes
    with SqliteRows(workspace.new_file(), 200) as bare:

        async def imports() -> float:
            prepared = workspace.new_ledger()
            async with prepared.open() as ledger:
                started = time.perf_counter()
                await record(ledger, parsed(lines))
                return time.perf_counter() - started

        async def rows() -> float:
            return sizes.blocks / bare.rate(sizes.blocks, rows_per_commit=100)

        ours, limit = await interleaved(sizes.repeat, imports, rows)
    name = f"importing {sizes.blocks:,} blocks with {sizes.miners} miners"
    report.add(name, "s", ours, ("bare rows, 100 a commit", limit), at_most(1.5))


def newest_block(facts: Iterable[Fact]) -> BlockFact:
    """Return the last block of the facts."""
    return [fact for fact in facts if isinstance(fact, BlockFact)][-1]


def stored_bytes(prepared: Ledger) -> int:
    """Return the size of a ledger's file after a complete checkpoint."""
    with closing(sqlite3.connect(prepared.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return prepared.path.stat().st_size


def _block_bytes(prepared: Ledger) -> int:
    """Return the size of an unchanged block's row, with 8 bytes for each number."""
    with closing(sqlite3.connect(prepared.path)) as connection:
        (least,) = connection.execute(
            """SELECT min(length(stream) + length(payload) + length(hash) + 5 * 8)
               FROM allowance_events WHERE stream = 'chain'"""
        ).fetchone()
    return int(least)
