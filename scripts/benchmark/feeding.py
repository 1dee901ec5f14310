"""Recording of facts on SQLite: unchanged and completely changed blocks, syncs, and an import."""

from __future__ import annotations

import time
from datetime import timedelta
from statistics import median

from routing import Miner
from routing.cli.demo.network import STARTED_AT, hotkeys

from .chain import BLOCK_SECONDS, SEED, facts_lines, parsed
from .figures import MS, Report, at_most, interleaved, ratio_at_most
from .limits import SqliteRows, block_bytes
from .prepared import Ledger
from .workspace import Workspace

MANY_VALIDATORS = 64
FACTS_PER_COMMIT = 200
MOST_COMMIT_RATIO = 2.0


async def unchanged_block(workspace: Workspace, report: Report) -> None:
    """Measure a block like the one before it, from new objects."""
    for title, prepared in await workspace.both_logs():
        await _unchanged_block(workspace, report, title, prepared)


async def _unchanged_block(workspace: Workspace, report: Report, title: str, prepared: Ledger) -> None:
    feed = workspace.feed(prepared)
    async with prepared.open() as ledger:
        with SqliteRows(workspace.new_file(), await block_bytes(prepared.url)) as bare:

            async def blocks() -> float:
                return median([await feed.timed(ledger) for _ in range(workspace.sizes.appends)]) * MS

            async def commits() -> float:
                return median(bare.commits(workspace.sizes.appends)) * MS

            ours, limit = await interleaved(workspace.sizes.repeat, blocks, commits)
    name = f"recording an unchanged block, {title}"
    report.add(name, "ms", ours, ("one bare commit", limit), ratio_at_most(MOST_COMMIT_RATIO))


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
    prepared = workspace.copied(await workspace.long())
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
                facts = parsed(lines)
                for start in range(0, len(facts), FACTS_PER_COMMIT):
                    await ledger.record_facts(facts[start : start + FACTS_PER_COMMIT])
                return time.perf_counter() - started

        async def rows() -> float:
            return sizes.blocks / bare.rate(sizes.blocks, rows_per_commit=100)

        ours, limit = await interleaved(sizes.repeat, imports, rows)
    name = f"importing {sizes.blocks:,} blocks with {sizes.miners} miners"
    report.add(name, "s", ours, ("bare rows, 100 a commit", limit), at_most(1.5))
