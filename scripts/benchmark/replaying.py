"""Replays of the log: rebuilding, auditing, opening a long one; and the memory of a process with an open ledger."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from ledger import store_from_url
from projections import Availability
from routing import Allowance

from .chain import HOTKEY
from .figures import MS, Report, at_most, interleaved, ratio_at_least, ratio_at_most
from .limits import read_and_decode
from .prepared import Ledger
from .process import worker
from .workspace import Workspace

SHORTER_LOG = 100
PAGE_ITEMS = 100
MOST_EXPLAIN_SECONDS = 0.2


async def rebuilding(workspace: Workspace, report: Report) -> None:
    """Measure a fold from the first event, compared with reading the same rows without using them."""
    prepared = await workspace.long()

    async def rebuild() -> float:
        return await fold_rate(prepared.url)

    async def read() -> float:
        return read_and_decode(prepared.path)

    ours, limit = await interleaved(workspace.sizes.repeat, rebuild, read)
    report.add("rebuilding from nothing", "events/s", ours, ("reading and decoding", limit), ratio_at_least(0.3))


async def fold_rate(url: str) -> float:
    """Return events per second of reading and folding the whole log."""
    store = store_from_url(url, HOTKEY, read_only=True)
    await store.open(None)
    started = time.perf_counter()
    state = Availability()
    while rows := await store.read(state.position):
        state.fold(rows)
    seconds = time.perf_counter() - started
    await store.close()
    return state.position / seconds


async def auditing(workspace: Workspace, report: Report) -> None:
    """Measure a full audit, which checks every rule again from the log."""
    prepared = await workspace.long()
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

        ours, beside = await interleaved(workspace.sizes.repeat, audit, reading)
    report.add("full audit", "events/s", ours, ("reading and decoding", beside), ratio_at_least(0.1))


async def explaining(workspace: Workspace, report: Report) -> None:
    """Measure explanations of routes all over the log."""
    prepared, sizes = await workspace.long(), workspace.sizes
    jobs = await _routed_jobs(prepared, sizes.explained)
    async with prepared.open(read_only=True) as ledger:

        async def explain() -> float:
            times_s = []
            for job_uuid in jobs:
                started = time.perf_counter()
                await ledger.explain(job_uuid)
                times_s.append(time.perf_counter() - started)
            worst_s.append(max(times_s))
            return median(times_s)

        worst_s: list[float] = []
        (ours,) = await interleaved(sizes.repeat, explain)
    report.add(f"explain, log of {sizes.log:,}", "s", ours, target=at_most(MOST_EXPLAIN_SECONDS))
    report.add(f"explain, log of {sizes.log:,}: the slowest of {len(jobs)} jobs", "s", worst_s[1:])


async def _routed_jobs(prepared: Ledger, count: int) -> list[str]:
    """Return the jobs of reservations spread evenly over a log."""
    store = store_from_url(prepared.url, HOTKEY, read_only=True)
    head = await store.open(None)
    jobs = []
    for number in range(count):
        rows = await store.read(head.position * (number + 1) // (count + 1))
        jobs.append(next(row.job_uuid for row in rows if row.job_uuid is not None))
    await store.close()
    return jobs


async def opening(workspace: Workspace, report: Report) -> None:
    """Measure a new process from `Allowance.open` to the first result, including all imports on the way."""
    events = workspace.sizes.events
    long, short = await workspace.long(events, routed=False), await workspace.long(events // SHORTER_LOG, routed=False)
    memory: list[float] = []

    async def open_long() -> float:
        async with worker(long, workspace.classes) as process:
            memory.append(process.opened["memory_mb"])
            return process.opened["opened_s"]

    async def open_short() -> float:
        async with worker(short, workspace.classes) as process:
            return process.opened["opened_s"]

    await open_short()  # Compiles the modules, as an installation does.
    ours, beside = await interleaved(workspace.sizes.repeat, open_long, open_short)
    name = f"opening a ledger of {events:,} events"
    report.add(name, "s", ours, target=at_most(0.3))
    report.add(name, "s", ours, (f"{events // SHORTER_LOG:,} events", beside), ratio_at_most(1.5))
    report.add("memory of a process with that ledger open", "MB", memory, target=at_most(150))


async def paging(workspace: Workspace, report: Report) -> None:
    """Measure pages of the history, newest first, oldest first and of one miner, in a long and a short ledger."""
    events = workspace.sizes.events
    async with (
        (await workspace.long(events, routed=False)).open(read_only=True) as long,
        (await workspace.long(events // SHORTER_LOG, routed=False)).open(read_only=True) as short,
    ):

        async def page_of_long() -> float:
            return await _page(long, workspace)

        async def page_of_short() -> float:
            return await _page(short, workspace)

        ours, beside = await interleaved(workspace.sizes.repeat, page_of_long, page_of_short)
    name = f"a page of the history, {events:,} events"
    report.add(name, "ms", ours, (f"{events // SHORTER_LOG:,} events", beside), ratio_at_most(1.5))


async def _page(ledger: Allowance, workspace: Workspace) -> float:
    (newest,) = (await ledger.history(limit=1)).items
    kinds: tuple[dict[str, Any], ...] = ({}, {"newest_first": False}, {"miner_ss58": newest.miner_ss58})
    times_ms = []
    for _ in range(max(1, workspace.sizes.searches // 10)):
        started = time.perf_counter()
        for kind in kinds:
            await ledger.history(limit=PAGE_ITEMS, **kind)
        times_ms.append((time.perf_counter() - started) / len(kinds) * MS)
    return median(times_ms)


async def memory(workspace: Workspace, report: Report) -> None:
    """Measure how the peak memory of a process grows while it picks."""
    sizes = workspace.sizes
    prepared = await workspace.long(sizes.events, routed=False)
    at_once = sizes.callers * sizes.picks_per_caller
    async with worker(prepared, workspace.classes) as process:
        peaks_mb = []
        for picked in range(0, sizes.memory_picks + at_once, at_once):
            workspace.show_progress(f"watching memory: {picked:,} of {sizes.memory_picks:,} picks")
            await process.pick(at_once, sizes.callers)
            peaks_mb.append((await process.release())["memory_mb"])
    early = len(peaks_mb) // 5
    name = f"memory of that process after {sizes.memory_picks:,} picks"
    report.add(name, "MB", [peaks_mb[-1]], ("after a fifth of them", [peaks_mb[early]]), at_most(150))
