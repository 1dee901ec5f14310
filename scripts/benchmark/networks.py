"""What grows with the number of miners: blocks, the first picks after them, opening, an import."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from statistics import median

from ledger import store_from_url
from projections import Availability
from routing import Allowance, Routing

from .chain import HOTKEY, Feed
from .figures import MS, Report, Target, interleaved, ratio_at_most
from .jobs import job_of_class, release_all
from .prepared import Ledger
from .process import worker
from .workspace import Workspace

FACTS_PER_CALL = 200
IMPORTED_CALLS = 2

Measure = Callable[[], Awaitable[float]]


async def after_a_block(workspace: Workspace, report: Report) -> None:
    """Measure unchanged blocks, and the first pick of each class after them."""
    async with AsyncExitStack() as stack:
        measures = []
        for prepared in await workspace.networks():
            ledger = await stack.enter_async_context(prepared.open())
            measures.append(_block_and_picks(ledger, workspace.feed(prepared), workspace))
        measured = await interleaved(workspace.sizes.repeat, *measures)
    picks = [[pick for _, pick in each] for each in measured]
    blocks = [[block for block, _ in each] for each in measured]
    _compare(workspace, report, "first pick of a class after a block", "ms", picks, ratio_at_most(1.5))
    _compare(workspace, report, "recording an unchanged block", "ms", blocks, ratio_at_most(6))


def _block_and_picks(
    ledger: Allowance, feed: Feed, workspace: Workspace
) -> Callable[[], Awaitable[tuple[float, float]]]:
    """Return a measure: the median times of an unchanged block, and of the first picks after it."""
    router = Routing(ledger)

    async def measure() -> tuple[float, float]:
        blocks_ms, picks_ms = [], []
        for _ in range(workspace.sizes.network_blocks):
            blocks_ms.append(await feed.timed(ledger) * MS)
            for executor_class in workspace.classes:
                job = job_of_class(workspace.random, executor_class)
                started = time.perf_counter()
                route = await router.pick_miner_for_job_request(job)
                picks_ms.append((time.perf_counter() - started) * MS)
                await release_all(ledger, [route])
        return median(blocks_ms), median(picks_ms)

    return measure


async def opening(workspace: Workspace, report: Report) -> None:
    """Measure opening in a new process by number of miners, after a clean close."""

    def measure(prepared: Ledger) -> Measure:
        async def opened() -> float:
            async with worker(prepared, workspace.classes) as process:
                return process.opened["opened_s"]

        return opened

    measured = await interleaved(workspace.sizes.repeat, *map(measure, await workspace.networks()))
    _compare(workspace, report, "opening", "s", measured, None)


async def importing(workspace: Workspace, report: Report) -> None:
    """Measure an import of blocks in which nothing changes, and the fold of such blocks when a ledger is reopened."""
    imported, reopened = [], []
    for prepared in await workspace.networks():
        copy = workspace.copied(prepared)
        imported.append(_import(copy, Feed(prepared.newest), workspace))
        reopened.append(_reopening(prepared))
    rounds = workspace.sizes.repeat
    measured = await interleaved(rounds, *imported)
    _compare(workspace, report, "importing a block where nothing changes", "ms", measured, ratio_at_most(3))
    measured = await interleaved(rounds, *reopened)
    _compare(workspace, report, "reopening, a block where nothing changes", "ms", measured, ratio_at_most(3))


def _import(prepared: Ledger, feed: Feed, workspace: Workspace) -> Measure:
    """Return a measure: the time to record a block, hundreds of them in each call, as `allowance import` does."""

    async def measure() -> float:
        async with prepared.open() as ledger:
            facts = [[feed.next_of_file() for _ in range(FACTS_PER_CALL)] for _ in range(IMPORTED_CALLS)]
            await ledger.record_facts([feed.next_of_file()])
            started = time.perf_counter()
            for each in facts:
                await ledger.record_facts(each)
            return (time.perf_counter() - started) / (IMPORTED_CALLS * FACTS_PER_CALL) * MS

    return measure


def _reopening(prepared: Ledger) -> Measure:
    """Return a measure: the time to read and fold a block that is like the one before it."""

    async def measure() -> float:
        store = store_from_url(prepared.url, HOTKEY, read_only=True)
        await store.open(None)
        state = Availability()
        # The settings, the sync, and the block that names all miners.
        rows = await store.read(0)
        state.fold(rows[:3])
        blocks = [row for row in rows if row.stream == rows[2].stream][1:]
        started = time.perf_counter()
        await store.read(rows[2].position)
        state.fold(blocks)
        seconds = time.perf_counter() - started
        await store.close()
        return seconds / len(blocks) * MS

    return measure


def _compare(
    workspace: Workspace,
    report: Report,
    name: str,
    unit: str,
    measured: Sequence[Sequence[float]],
    target: Target | None,
) -> None:
    """Add a figure for each network; those of larger ones are compared with the smallest, the largest by the target."""
    fewest, *more = workspace.network_sizes
    report.add(f"{name}, {fewest:,} miners", unit, measured[0])
    for miners, ours in zip(more, measured[1:], strict=True):
        beside = (f"{fewest:,} miners", measured[0])
        report.add(f"{name}, {miners:,} miners", unit, ours, beside, target if miners == more[-1] else None)
