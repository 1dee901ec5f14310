"""The pages of a long ledger, served by a process of their own, and picks beside them."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from statistics import median
from urllib.parse import quote
from urllib.request import urlopen

from .chain import HOTKEY
from .figures import Report, at_most, interleaved, ratio_at_most
from .picking import one_callers_picks
from .prepared import ROOT, Ledger
from .workspace import Workspace

MOST_FIRST_PAGE_SECONDS = 0.3
MOST_FILTER_SECONDS = 0.1
MOST_DISTURBANCE = 1.2
FILTERED_MINERS = 20


async def pages(workspace: Workspace, report: Report) -> None:
    """Measure the first page of a new process, every other page, a filter, and picks beside a visitor."""
    events = workspace.sizes.events
    prepared = await workspace.long(events, routed=False)
    hotkeys, links = await _links(prepared, workspace.classes[0])
    (first,) = await interleaved(workspace.sizes.repeat, lambda: _first_page(prepared))
    title = f"ledger of {events:,} events"
    alone, with_start = zip(*first, strict=True)
    report.add(f"first page of a new process, {title}", "s", alone, target=at_most(MOST_FIRST_PAGE_SECONDS))
    report.add(f"from `allowance serve` to its first page, {title}", "s", with_start)
    async with _served(prepared) as url:

        async def filters() -> float:
            return median([await _seconds(f"{url}reservations?miner={each}&status=spent") for each in hotkeys])

        (ours,) = await interleaved(workspace.sizes.repeat, filters)
        report.add(f"a filter, {title}", "s", ours, target=at_most(MOST_FILTER_SECONDS))
        for name, link in links.items():
            measured = await interleaved(workspace.sizes.repeat, partial(_seconds, f"{url}{link}"))
            report.add(f"the page {name}, {title}", "s", measured[0])
    await _picks_beside(workspace, report, prepared, list(links.values()))


async def _picks_beside(workspace: Workspace, report: Report, prepared: Ledger, links: list[str]) -> None:
    """Measure the picks of one caller while a visitor looks at the pages, and without it."""
    visited: list[int] = []
    async with prepared.open() as ledger, _served(prepared) as url:
        picks = one_callers_picks(ledger, workspace)

        async def disturbed() -> list[float]:
            async with _visitor(url, links, visited):
                return await picks()

        ours, alone = await interleaved(workspace.sizes.repeat, disturbed, picks)
    report.add(
        "a pick while a visitor looks at the pages",
        "ms",
        [median(each) for each in ours],
        ("without it", [median(each) for each in alone]),
        ratio_at_most(MOST_DISTURBANCE),
        note=f"{sum(visited[1:]):,} pages and two live streams beside {len(ours) * workspace.sizes.picks:,} picks",
    )


async def _links(prepared: Ledger, executor_class: str) -> tuple[list[str], dict[str, str]]:
    """Return quoted hotkeys of some miners, and a link to each page."""
    async with prepared.open(read_only=True) as ledger:
        hotkeys = [quote(each.hotkey_ss58) for each in (await ledger.miners())[:FILTERED_MINERS]]
        newest = (await ledger.history(limit=1)).items[0]
        head = (await ledger.head()).position
    return hotkeys, {
        "overview": "",
        "miners": f"miners?executor_class={executor_class}&seconds=5",
        "miner": f"miner?hotkey={hotkeys[0]}",
        "reservations": "reservations",
        "reservation": f"reservation?id={newest.reservation_id}",
        "events": "events",
        "settings": "settings",
        "overview of the past": f"?position={head // 2}",
    }


async def _first_page(prepared: Ledger) -> tuple[float, float]:
    """Return how long the first page takes, without and with the start of the process."""
    started = time.perf_counter()
    async with _served(prepared) as url:
        page = await _seconds(url)
        return page, time.perf_counter() - started


async def _seconds(url: str) -> float:
    """Return how long a request takes, until its last byte."""
    return await asyncio.to_thread(_load, url)


def _load(url: str) -> float:
    started = time.perf_counter()
    with urlopen(url) as answer:
        answer.read()
    return time.perf_counter() - started


@asynccontextmanager
async def _served(prepared: Ledger) -> AsyncIterator[str]:
    """Serve a ledger in a process of its own; yield the URL of its pages."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "routing.cli", "serve", "--port", "0"),
        *("--database", prepared.url, "--validator", HOTKEY),
        cwd=ROOT,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        assert process.stdout is not None
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


@asynccontextmanager
async def _visitor(url: str, links: list[str], visited: list[int]) -> AsyncIterator[Process]:
    """Let a visitor look at the pages; append the number of its pages to `visited`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.benchmark.visitor", url, *links), cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        output, _ = await process.communicate(b"")
        visited.append(int(output))
