"""Reading the log again: rebuilding, auditing, opening a long one; and the memory of a process that has it open."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from ledger import store_from_url
from projections import Availability
from routing import Allowance

from .chain import HOTKEY
from .figures import Report, at_least, at_most, interleaved, ratio_at_least, ratio_at_most
from .limits import read_and_decode
from .picking import MS
from .process import worker
from .world import World

SHORTER_LOG = 100
PAGE_ITEMS = 100
REBUILT_SHARE = 10
"""A tenth of the long ledger's events is replayed in each round."""


async def rebuilding(world: World, report: Report) -> None:
    """The state in memory folded from the first event on, beside reading the same rows and doing nothing with them."""
    prepared = await world.long(world.sizes.events // REBUILT_SHARE, routed=True)

    async def rebuild() -> float:
        return await fold_rate(prepared.url)

    async def read() -> float:
        return read_and_decode(prepared.path)

    ours, limit = await interleaved(world.sizes.repeat, rebuild, read)
    report.add("rebuilding from nothing", "events/s", ours, ("reading and decoding", limit), ratio_at_least(0.25))


async def fold_rate(url: str) -> float:
    """Events a second that are read and folded from the beginning."""
    store = store_from_url(url, HOTKEY, read_only=True)
    await store.open(None)
    started = time.perf_counter()
    state = Availability()
    while rows := await store.read(state.position):
        state.fold(rows)
    seconds = time.perf_counter() - started
    await store.close()
    return state.position / seconds


async def auditing(world: World, report: Report) -> None:
    """Every rule checked again from the log."""
    prepared = await world.long(world.sizes.events // REBUILT_SHARE, routed=True)
    async with prepared.open() as ledger:
        events: int = (await ledger.head()).position

        async def audit() -> float:
            started = time.perf_counter()
            found = await ledger.audit()
            seconds = time.perf_counter() - started
            if found.findings:
                raise RuntimeError(f"the audit found {found.findings[0]}")
            return events / seconds

        async def reading() -> float:
            return read_and_decode(prepared.path)

        ours, beside = await interleaved(max(1, world.sizes.repeat // 2), audit, reading)
    report.add("full audit", "events/s", ours, ("reading and decoding", beside), at_least(100_000))


async def opening(world: World, report: Report) -> None:
    """From `Allowance.open` in a new process to the first answer, with all that it imports on the way."""
    events = world.sizes.events
    long, short = await world.long(events), await world.long(events // SHORTER_LOG)
    memory: list[float] = []

    async def open_long() -> float:
        async with worker(long, world.classes) as process:
            memory.append(process.opened["memory_mb"])
            return process.opened["opened_s"]

    async def open_short() -> float:
        async with worker(short, world.classes) as process:
            return process.opened["opened_s"]

    await open_short()  # So that every module is compiled, as where the library is installed.
    ours, beside = await interleaved(world.sizes.repeat, open_long, open_short)
    name = f"opening a ledger of {events:,} events"
    report.add(name, "s", ours, target=at_most(0.3))
    report.add(name, "s", ours, (f"{events // SHORTER_LOG:,} events", beside), ratio_at_most(1.5))
    report.add("memory of a process with that ledger open", "MB", memory, target=at_most(150))


async def paging(world: World, report: Report) -> None:
    """A page of the history, newest first, oldest first and of one miner, in a long ledger and in a shorter one."""
    events = world.sizes.events
    async with (
        (await world.long(events)).open(read_only=True) as long,
        (await world.long(events // SHORTER_LOG)).open(read_only=True) as short,
    ):

        async def page_of_long() -> float:
            return await _page(long, world)

        async def page_of_short() -> float:
            return await _page(short, world)

        ours, beside = await interleaved(world.sizes.repeat, page_of_long, page_of_short)
    name = f"a page of the history, {events:,} events"
    report.add(name, "ms", ours, (f"{events // SHORTER_LOG:,} events", beside), ratio_at_most(1.5))


async def _page(ledger: Allowance, world: World) -> float:
    (newest,) = (await ledger.history(limit=1)).items
    kinds: tuple[dict[str, Any], ...] = ({}, {"newest_first": False}, {"miner_ss58": newest.miner_ss58})
    taken = []
    for _ in range(max(1, world.sizes.searches // 10)):
        started = time.perf_counter()
        for kind in kinds:
            await ledger.history(limit=PAGE_ITEMS, **kind)
        taken.append((time.perf_counter() - started) / len(kinds) * MS)
    return median(taken)


async def memory(world: World, report: Report) -> None:
    """How the most memory that a process has had grows while it picks."""
    sizes = world.sizes
    prepared = await world.long(sizes.events)
    at_once = sizes.callers * sizes.picks_per_caller
    async with worker(prepared, world.classes) as process:
        seen = []
        for picked in range(0, sizes.memory_picks + at_once, at_once):
            world.say(f"watching memory: {picked:,} of {sizes.memory_picks:,} picks")
            await process.pick(at_once, sizes.callers)
            seen.append((await process.release())["memory_mb"])
    settled = len(seen) // 5
    name = f"memory of that process after {sizes.memory_picks:,} picks"
    report.add(name, "MB", [seen[-1]], ("after a fifth of them", [seen[settled]]), at_most(150))
