"""Picks and searches on SQLite: one caller, many callers, a caller beside a reader, more miners, a longer log."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from random import Random
from statistics import median

from routing import Allowance, Routing

from .figures import MS, Report, at_most, interleaved, percentile, ratio_at_least, ratio_at_most
from .jobs import pick_at_once, release_all
from .limits import SqliteRows, reservation_bytes
from .prepared import Ledger
from .process import worker
from .workspace import Workspace

LONGER_LOG = 100
SMALL_AMOUNT_SECONDS = 5.0
ROWS_TOGETHER = 256
MOST_COMMIT_RATIO, MOST_COMMIT_RATIO_P99 = 1.8, 6.0
LEAST_ROW_RATIO = {"short log": 2.2}
LEAST_ROW_RATIO_OF_LONG_LOG = 1.6
LEAST_ROWS_TOGETHER_RATIO = 0.045
MOST_DISTURBANCE = 1.5


async def one_caller(workspace: Workspace, report: Report) -> None:
    """Measure one caller that picks again and again; each pick is durable when it returns."""
    for title, prepared in await workspace.both_logs():
        await _one_caller(workspace, report, title, prepared)


async def _one_caller(workspace: Workspace, report: Report, title: str, prepared: Ledger) -> None:
    async with prepared.open() as ledger:
        with SqliteRows(workspace.new_file(), await reservation_bytes(prepared.url)) as bare:

            async def commits() -> list[float]:
                return [seconds * MS for seconds in bare.commits(workspace.sizes.picks)]

            ours, limit = await interleaved(workspace.sizes.repeat, one_callers_picks(ledger, workspace), commits)
    one_commit = ("one bare commit", [median(each) for each in limit])
    medians, slowest = [median(each) for each in ours], [percentile(each, 0.99) for each in ours]
    report.add(f"a pick, {title}: median", "ms", medians, one_commit, ratio_at_most(MOST_COMMIT_RATIO))
    report.add(f"a pick, {title}: 99 %", "ms", slowest, one_commit, ratio_at_most(MOST_COMMIT_RATIO_P99))


def one_callers_picks(ledger: Allowance, workspace: Workspace) -> Callable[[], Awaitable[list[float]]]:
    """Return a measure: the time of each of many picks of one caller."""
    router = Routing(ledger)

    async def picks() -> list[float]:
        times_ms = []
        for job in workspace.jobs(workspace.sizes.picks):
            started = time.perf_counter()
            route = await router.pick_miner_for_job_request(job)
            times_ms.append((time.perf_counter() - started) * MS)
            await release_all(ledger, [route])
        return times_ms

    return picks


async def many_callers(workspace: Workspace, report: Report) -> None:
    """Measure many callers that pick at once, and share commits."""
    for title, prepared in await workspace.both_logs():
        await _many_callers(workspace, report, title, prepared)


async def _many_callers(workspace: Workspace, report: Report, title: str, prepared: Ledger) -> None:
    sizes = workspace.sizes
    async with prepared.open() as ledger:
        with SqliteRows(workspace.new_file(), await reservation_bytes(prepared.url)) as bare:

            async def picks() -> float:
                return await pick_rate(ledger, workspace)

            async def one_row() -> float:
                return bare.rate(sizes.bare_rows)

            async def rows_together() -> float:
                return bare.rate(10 * sizes.bare_rows, rows_per_commit=ROWS_TOGETHER)

            ours, limit, together = await interleaved(sizes.repeat, picks, one_row, rows_together)
    is_long = title not in LEAST_ROW_RATIO
    name = f"picks, {sizes.callers} callers, {title}"
    least = ratio_at_least(LEAST_ROW_RATIO.get(title, LEAST_ROW_RATIO_OF_LONG_LOG))
    report.add(name, "1/s", ours, ("bare rows, 1 a commit", limit), least)
    target = ratio_at_least(LEAST_ROWS_TOGETHER_RATIO) if is_long else None
    report.add(name, "1/s", ours, (f"bare rows, {ROWS_TOGETHER} a commit", together), target)


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


async def beside_a_reader(workspace: Workspace, report: Report) -> None:
    """Measure the slowest picks of one caller while another process pages through the history, and without it."""
    prepared = await workspace.long()
    async with prepared.open() as ledger, worker(prepared, workspace.classes) as reader:
        picks = one_callers_picks(ledger, workspace)

        async def disturbed() -> list[float]:
            await reader.start_paging()
            try:
                return await picks()
            finally:
                pages.append((await reader.stop_paging())["pages"])

        pages: list[float] = []
        ours, alone = await interleaved(workspace.sizes.repeat, disturbed, picks)
    slowest, beside = ([percentile(each, 0.99) for each in measured] for measured in (ours, alone))
    report.add(
        "a pick while another process pages through the history: 99 %",
        "ms",
        slowest,
        ("without it", beside),
        ratio_at_most(MOST_DISTURBANCE),
        note=f"{sum(pages[1:]):,.0f} pages read beside {len(slowest) * workspace.sizes.picks:,} picks",
    )


async def more_miners(workspace: Workspace, report: Report) -> None:
    """Measure `find_miners` after each claim, in a network of the usual size and in a larger one."""
    few, many = (await workspace.networks())[:2]
    fewer_miners, more = workspace.network_sizes[:2]
    ours, beside = await _searches(workspace, few, many)
    report.add("find_miners", "ms", ours, target=at_most(0.3))
    beside_few = (f"{fewer_miners} miners", ours)
    report.add(f"find_miners, {more:,} miners", "ms", beside, beside_few, ratio_at_most(more / fewer_miners))


async def longer_log(workspace: Workspace, report: Report) -> None:
    """Measure `find_miners` on a short and a long log with the same kind of end."""
    events = workspace.sizes.events
    short = await workspace.long(events // LONGER_LOG, routed=False)
    ours, beside = await _searches(workspace, short, await workspace.long(events, routed=False))
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
