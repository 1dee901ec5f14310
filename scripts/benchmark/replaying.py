"""Reading the log again: rebuilding, auditing, opening a long one; and the memory of a process that has it open."""

from __future__ import annotations

import time

from ledger import store_for
from projections import Availability

from .chain import HOTKEY
from .figures import Report, at_least, at_most, interleaved, ratio_at_least
from .limits import read_and_decode
from .process import worker
from .world import World

REBUILT_SHARE = 10
"""A tenth of the long ledger's events is replayed in each round."""


async def rebuilding(world: World, report: Report) -> None:
    """The state in memory folded from the first event on, beside reading the same rows and doing nothing with them."""
    ledger = await world.long(world.sizes.events // REBUILT_SHARE, routed=True)

    async def rebuild() -> float:
        return await fold_rate(ledger.url)

    async def read() -> float:
        return read_and_decode(ledger.path)

    ours, limit = await interleaved(world.sizes.repeat, rebuild, read)
    report.add("rebuilding from nothing", "events/s", ours, ("reading and decoding", limit), ratio_at_least(0.25))


async def fold_rate(url: str) -> float:
    """Events a second that are read and folded from the beginning."""
    store = store_for(url, HOTKEY, read_only=True)
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
    ledger = await world.long(world.sizes.events // REBUILT_SHARE, routed=True)
    async with ledger.open() as book:
        events: int = (await book.head()).position

        async def audit() -> float:
            started = time.perf_counter()
            found = await book.audit()
            seconds = time.perf_counter() - started
            if found.findings:
                raise RuntimeError(f"the audit found {found.findings[0]}")
            return events / seconds

        (ours,) = await interleaved(world.sizes.repeat, audit)
    report.add("full audit", "events/s", ours, target=at_least(100_000))


async def opening(world: World, report: Report) -> None:
    """From `Allowance.open` in a new process to the first answer, the import of SQLAlchemy in it."""
    ledger = await world.long(world.sizes.events)
    whole, own, memory = [], [], []
    for _ in range(world.sizes.repeat):
        async with worker(ledger, world.classes) as process:
            opened = process.opened
        whole.append(opened["sqlalchemy_s"] + opened["opened_s"])
        own.append(opened["opened_s"])
        memory.append(opened["memory_mb"])
    name = f"opening a ledger of {world.sizes.events:,} events"
    report.add(name, "s", whole, target=at_most(0.3), note="SQLAlchemy's import included")
    report.add(f"{name}, SQLAlchemy loaded", "s", own)
    report.add("memory of a process with that ledger open", "MB", memory, target=at_most(150))


async def memory(world: World, report: Report) -> None:
    """How the most memory that a process has had grows while it picks."""
    sizes = world.sizes
    ledger = await world.long(sizes.events)
    at_once = sizes.callers * sizes.picks_per_caller
    async with worker(ledger, world.classes) as process:
        seen = []
        for picked in range(0, sizes.memory_picks + at_once, at_once):
            world.say(f"watching memory: {picked:,} of {sizes.memory_picks:,} picks")
            await process.pick(at_once, sizes.callers)
            seen.append((await process.release())["memory_mb"])
    settled = len(seen) // 5
    name = f"memory of that process after {sizes.memory_picks:,} picks"
    report.add(name, "MB", [seen[-1]], ("after a fifth of them", [seen[settled]]), at_most(150))
