"""Picks and searches on SQLite: one caller, many callers, more miners, a longer log."""

from __future__ import annotations

import time
from random import Random
from statistics import median

from routing import Allowance, Routing

from .figures import Report, at_most, interleaved, percentile, ratio_at_least, ratio_at_most
from .jobs import pick_at_once, release_all
from .limits import SqliteRows, reservation_bytes
from .world import Ledger, World

MS = 1000.0
MORE_MINERS = 10
LONGER_LOG = 100
LITTLE_SECONDS = 5.0


async def one_caller(world: World, report: Report) -> None:
    """A caller that picks again and again; each pick is durable when it is answered."""
    prepared = await world.filled()
    async with prepared.open() as ledger:
        with SqliteRows(world.new_file(), reservation_bytes(prepared.path)) as bare:
            router = Routing(ledger)

            async def picks() -> list[float]:
                taken = []
                for job in world.jobs(world.sizes.picks):
                    started = time.perf_counter()
                    route = await router.pick_miner_for_job_request(job)
                    taken.append((time.perf_counter() - started) * MS)
                    await release_all(ledger, [route])
                return taken

            async def commits() -> list[float]:
                return [seconds * MS for seconds in bare.commits(world.sizes.picks)]

            ours, limit = await interleaved(world.sizes.repeat, picks, commits)
    one_commit = ("one bare commit", [median(taken) for taken in limit])
    report.add("a pick, one caller: median", "ms", [median(each) for each in ours], one_commit, ratio_at_most(3))
    report.add(
        "a pick, one caller: 99 %", "ms", [percentile(each, 0.99) for each in ours], one_commit, ratio_at_most(8)
    )


async def many_callers(world: World, report: Report) -> None:
    """Callers that all pick at once, and share commits."""
    prepared = await world.filled()
    sizes = world.sizes
    async with prepared.open() as ledger:
        with SqliteRows(world.new_file(), reservation_bytes(prepared.path)) as bare:

            async def picks() -> float:
                return await pick_rate(ledger, world)

            async def one_row() -> float:
                return bare.rate(sizes.bare_rows)

            async def hundred_rows() -> float:
                return bare.rate(10 * sizes.bare_rows, rows_per_commit=100)

            ours, limit, limit_100 = await interleaved(sizes.repeat, picks, one_row, hundred_rows)
    name = f"picks, {sizes.callers} callers"
    report.add(name, "1/s", ours, ("bare rows, 1 a commit", limit), ratio_at_least(2))
    report.add(name, "1/s", ours, ("bare rows, 100 a commit", limit_100))


async def pick_rate(ledger: Allowance, world: World, callers: int | None = None) -> float:
    """Picks a second by many callers; what they reserved is given back now and then, while no time is taken."""
    sizes = world.sizes
    callers = callers or sizes.callers
    router = Routing(ledger)
    picked, seconds = 0, 0.0
    for _ in range(sizes.settlings):
        jobs = world.jobs(callers * sizes.picks_per_caller)
        started = time.perf_counter()
        routes = await pick_at_once(router, jobs, callers)
        seconds += time.perf_counter() - started
        picked += len(routes)
        await release_all(ledger, routes)
    return picked / seconds


async def more_miners(world: World, report: Report) -> None:
    """`find_miners` with a claim between any two, in a network of the usual size and in a larger one."""
    few, many = await world.filled(), await world.filled(MORE_MINERS * world.sizes.miners)
    ours, beside = await _searches(world, few, many)
    report.add("find_miners", "ms", ours, target=at_most(0.3))
    name = f"find_miners, {MORE_MINERS} times the miners"
    report.add(name, "ms", beside, (f"{world.sizes.miners} miners", ours), ratio_at_most(MORE_MINERS))


async def longer_log(world: World, report: Report) -> None:
    """`find_miners` on logs that end alike."""
    events = world.sizes.events
    short, long = await world.long(events // LONGER_LOG), await world.long(events)
    ours, beside = await _searches(world, short, long)
    name = f"find_miners, {LONGER_LOG} times the log"
    report.add(name, "ms", beside, (f"{events // LONGER_LOG:,} events", ours), ratio_at_most(1.1))


async def _searches(world: World, one: Ledger, other: Ledger) -> tuple[list[float], list[float]]:
    """Median times of a search in two ledgers."""
    async with one.open() as first, other.open() as second:

        async def in_first() -> float:
            return await _search(first, world)

        async def in_second() -> float:
            return await _search(second, world)

        a, b = await interleaved(world.sizes.repeat, in_first, in_second)
        return a, b


async def _search(ledger: Allowance, world: World) -> float:
    random = Random("searches")
    newest = await ledger.current_block() or 1
    taken = []
    for _ in range(world.sizes.searches):
        executor_class = random.choice(world.classes)
        miners = await ledger.find_miners(LITTLE_SECONDS, executor_class, newest)
        reserved = await ledger.reserve(random.choice(miners).hotkey_ss58, executor_class, LITTLE_SECONDS, newest)
        seconds = random.uniform(0.1, LITTLE_SECONDS)
        started = time.perf_counter()
        await ledger.find_miners(seconds, executor_class, newest)
        taken.append((time.perf_counter() - started) * MS)
        await ledger.release(reserved.reservation_id)
    return median(taken)
