"""Picks and searches on SQLite: one caller, many callers, more miners, a longer log."""

from __future__ import annotations

import time
from random import Random
from statistics import median

from routing import Allowance, Routing

from .figures import Report, at_most, interleaved, percentile, ratio_at_least, ratio_at_most
from .jobs import pick_at_once, release_all
from .limits import SqliteRows, reservation_bytes
from .workspace import Ledger, Workspace

MS = 1000.0
MORE_MINERS = 10
LONGER_LOG = 100
SMALL_AMOUNT_SECONDS = 5.0


async def one_caller(workspace: Workspace, report: Report) -> None:
    """Measure one caller that picks again and again; each pick is durable when it returns."""
    prepared = await workspace.filled()
    async with prepared.open() as ledger:
        with SqliteRows(workspace.new_file(), reservation_bytes(prepared.path)) as bare:
            router = Routing(ledger)

            async def picks() -> list[float]:
                times_ms = []
                for job in workspace.jobs(workspace.sizes.picks):
                    started = time.perf_counter()
                    route = await router.pick_miner_for_job_request(job)
                    times_ms.append((time.perf_counter() - started) * MS)
                    await release_all(ledger, [route])
                return times_ms

            async def commits() -> list[float]:
                return [seconds * MS for seconds in bare.commits(workspace.sizes.picks)]

            ours, limit = await interleaved(workspace.sizes.repeat, picks, commits)
    one_commit = ("one bare commit", [median(each) for each in limit])
    report.add("a pick, one caller: median", "ms", [median(each) for each in ours], one_commit, ratio_at_most(3))
    report.add(
        "a pick, one caller: 99 %", "ms", [percentile(each, 0.99) for each in ours], one_commit, ratio_at_most(8)
    )


async def many_callers(workspace: Workspace, report: Report) -> None:
    """Measure many callers that pick at once, and share commits."""
    prepared = await workspace.filled()
    sizes = workspace.sizes
    async with prepared.open() as ledger:
        with SqliteRows(workspace.new_file(), reservation_bytes(prepared.path)) as bare:

            async def picks() -> float:
                return await pick_rate(ledger, workspace)

            async def one_row() -> float:
                return bare.rate(sizes.bare_rows)

            async def hundred_rows() -> float:
                return bare.rate(10 * sizes.bare_rows, rows_per_commit=100)

            ours, limit, limit_100 = await interleaved(sizes.repeat, picks, one_row, hundred_rows)
    name = f"picks, {sizes.callers} callers"
    report.add(name, "1/s", ours, ("bare rows, 1 a commit", limit), ratio_at_least(2))
    report.add(name, "1/s", ours, ("bare rows, 100 a commit", limit_100))


async def pick_rate(ledger: Allowance, workspace: Workspace, callers: int | None = None) -> float:
    """Return picks per second of many callers. Releases between the picks do not count in the time."""
    sizes = workspace.sizes
    callers = callers or sizes.callers
    router = Routing(ledger)
    picked, seconds = 0, 0.0
    for _ in range(sizes.settlings):
        jobs = workspace.jobs(callers * sizes.picks_per_caller)
        started = time.perf_counter()
        routes = await pick_at_once(router, jobs, callers)
        seconds += time.perf_counter() - started
        picked += len(routes)
        await release_all(ledger, routes)
    return picked / seconds


async def more_miners(workspace: Workspace, report: Report) -> None:
    """Measure `find_miners` after each claim, in a network of the usual size and in a larger one."""
    few, many = await workspace.filled(), await workspace.filled(MORE_MINERS * workspace.sizes.miners)
    ours, beside = await _searches(workspace, few, many)
    report.add("find_miners", "ms", ours, target=at_most(0.3))
    name = f"find_miners, {MORE_MINERS} times the miners"
    report.add(name, "ms", beside, (f"{workspace.sizes.miners} miners", ours), ratio_at_most(MORE_MINERS))


async def longer_log(workspace: Workspace, report: Report) -> None:
    """Measure `find_miners` on a short and a long log with the same kind of end."""
    events = workspace.sizes.events
    short, long = await workspace.long(events // LONGER_LOG), await workspace.long(events)
    ours, beside = await _searches(workspace, short, long)
    name = f"find_miners, {LONGER_LOG} times the log"
    report.add(name, "ms", beside, (f"{events // LONGER_LOG:,} events", ours), ratio_at_most(1.1))


async def _searches(workspace: Workspace, one: Ledger, other: Ledger) -> tuple[list[float], list[float]]:
    """Return the median times of a search in each of two ledgers."""
    async with one.open() as first, other.open() as second:

        async def in_first() -> float:
            return await _search(first, workspace)

        async def in_second() -> float:
            return await _search(second, workspace)

        a, b = await interleaved(workspace.sizes.repeat, in_first, in_second)
        return a, b


async def _search(ledger: Allowance, workspace: Workspace) -> float:
    random = Random("searches")
    newest = await ledger.current_block() or 1
    times_ms = []
    for _ in range(workspace.sizes.searches):
        executor_class = random.choice(workspace.classes)
        miners = await ledger.find_miners(SMALL_AMOUNT_SECONDS, executor_class, newest)
        reserved = await ledger.reserve(random.choice(miners).hotkey_ss58, executor_class, SMALL_AMOUNT_SECONDS, newest)
        seconds = random.uniform(0.1, SMALL_AMOUNT_SECONDS)
        started = time.perf_counter()
        await ledger.find_miners(seconds, executor_class, newest)
        times_ms.append((time.perf_counter() - started) * MS)
        await ledger.release(reserved.reservation_id)
    return median(times_ms)
