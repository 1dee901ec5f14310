"""Chain facts on SQLite: blocks that change nothing, blocks that change everything, syncs, an import, bytes."""

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
from .world import Ledger, World

BLOCK_SECONDS = 12
MANY_VALIDATORS = 64
MOST_BLOCKS_MEASURED = 900
"""Fewer than bring a snapshot with them, which is no part of what a block costs."""


async def unchanged_block(world: World, report: Report) -> None:
    """A block like the one before it: what it costs to record, and what it leaves in the file."""
    prepared = world.copied(await world.filled())
    async with prepared.open() as ledger:
        newest = newest_block(world.facts())
        with SqliteRows(world.new_file(), _block_bytes(prepared)) as bare:
            feed = Feed(newest)

            async def blocks() -> float:
                return median([await feed.timed(ledger) for _ in range(world.sizes.appends)]) * MS

            async def commits() -> float:
                return median(bare.commits(world.sizes.appends)) * MS

            ours, limit = await interleaved(world.sizes.repeat, blocks, commits)
    report.add("recording an unchanged block", "ms", ours, ("one bare commit", limit), at_most(1))
    fresh = world.new_ledger()
    async with fresh.open() as ledger:
        feed = Feed(newest)
        grown = []
        await feed.timed(ledger)
        for _ in range(world.sizes.repeat):
            before = stored_bytes(fresh)
            count = max(20, min(world.sizes.appends, MOST_BLOCKS_MEASURED // world.sizes.repeat))
            for _ in range(count):
                await feed.timed(ledger)
            grown.append((stored_bytes(fresh) - before) / count)
    report.add("bytes stored for an unchanged block", "B", grown, target=at_most(300))


class Feed:
    """Goes on from a block with blocks like it."""

    def __init__(self, newest: BlockFact) -> None:
        self._miners = tuple(newest.miners)
        self._stakes = newest.stakes
        self._number = newest.number
        self._created_at: datetime = newest.created_at

    def next(self) -> BlockFact:
        """The next block; as from a real feed, none of its miners is the same object as before."""
        self._number += 1
        self._created_at += timedelta(seconds=BLOCK_SECONDS)
        miners = [replace(miner) for miner in self._miners]
        return BlockFact(self._number, self._created_at, miners, dict(self._stakes))

    async def timed(self, ledger: Allowance) -> float:
        """Records the next block; answers the seconds that it took."""
        block = self.next()
        started = time.perf_counter()
        await ledger.record_block(block.number, block.created_at, block.miners, block.stakes)
        return time.perf_counter() - started


async def changed_block(world: World, report: Report) -> None:
    """A block of which every miner has moved and every validator's stake has changed."""
    miners = hotkeys(SEED, "miner", world.sizes.miners)
    validators = hotkeys(SEED, "validator", MANY_VALIDATORS)
    prepared = world.new_ledger()
    async with prepared.open() as ledger:
        number = 0

        async def blocks() -> float:
            nonlocal number
            taken = []
            for _ in range(max(1, world.sizes.appends // 10)):
                number += 1
                moved = [Miner(f"192.0.2.{number % 250 + 1}", 4, 8000 + at, key) for at, key in enumerate(miners)]
                stakes = {key: 1000.0 + number + at for at, key in enumerate(validators)}
                created_at = STARTED_AT + timedelta(seconds=BLOCK_SECONDS * number)
                started = time.perf_counter()
                await ledger.record_block(number, created_at, moved, stakes)
                taken.append((time.perf_counter() - started) * MS)
            return median(taken)

        (ours,) = await interleaved(world.sizes.repeat, blocks)
    report.add(f"a block: {len(miners)} miners, {len(validators)} validators changed", "ms", ours, target=at_most(20))


async def manifest_sync(world: World, report: Report) -> None:
    """A sync that takes an executor from every miner, in a ledger whose blocks are partly reserved."""
    prepared = world.copied(await world.filled())
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
            taken = []
            for _ in range(max(1, world.sizes.appends // 30)):
                await ledger.record_manifests(newest + 1, full)
                started = time.perf_counter()
                await ledger.record_manifests(newest + 2, reduced)
                taken.append((time.perf_counter() - started) * MS)
                newest += 2
            return median(taken)

        (ours,) = await interleaved(world.sizes.repeat, syncs)
    report.add(f"a manifest sync of {len(full)} miners, all with drops", "ms", ours, target=at_most(20))


async def importing(world: World, report: Report) -> None:
    """The network's whole `FACTS.jsonl`, read and recorded as `allowance import` does, in a new ledger."""
    lines = facts_lines(world.sizes)
    sizes = world.sizes
    with SqliteRows(world.new_file(), 200) as bare:

        async def imports() -> float:
            prepared = world.new_ledger()
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
    """The last block of the facts."""
    return [fact for fact in facts if isinstance(fact, BlockFact)][-1]


def stored_bytes(prepared: Ledger) -> int:
    """The size of a ledger's file once everything is in it."""
    with closing(sqlite3.connect(prepared.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return prepared.path.stat().st_size


def _block_bytes(prepared: Ledger) -> int:
    """The bytes of an unchanged block's row, its numbers taken at 8 each."""
    with closing(sqlite3.connect(prepared.path)) as connection:
        (least,) = connection.execute(
            """SELECT min(length(stream) + length(payload) + length(hash) + 5 * 8)
               FROM allowance_events WHERE stream = 'chain'"""
        ).fetchone()
    return int(least)
