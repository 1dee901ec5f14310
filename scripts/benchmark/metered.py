"""Picks with metrics, against picks without; and a scrape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

from routing.metrics import disable, enable, exposition

from .figures import MS, Report, interleaved, ratio_at_least, ratio_at_most
from .jobs import pick_seconds
from .workspace import Workspace

MOST_COST = 1.05


async def with_metrics(workspace: Workspace, report: Report) -> None:
    """Measure one caller and many callers, with metrics and without them, and how long a scrape takes."""
    prepared, sizes = await workspace.long(), workspace.sizes
    async with prepared.open() as ledger:

        async def scrapes() -> float:
            began = time.perf_counter()
            await asyncio.to_thread(exposition, [ledger])
            return (time.perf_counter() - began) * MS

        async def alone() -> tuple[float, float]:
            return await _in_turn(lambda: pick_seconds(ledger, workspace.jobs(1), 1), sizes.picks)

        async def together() -> tuple[float, float]:
            jobs = sizes.callers * sizes.picks_per_caller
            return await _in_turn(
                lambda: pick_seconds(ledger, workspace.jobs(jobs), sizes.callers), 4 * sizes.settlings
            )

        picks, bursts, scraped = await interleaved(sizes.repeat, alone, together, scrapes)
    on, off = ([each * MS for each in seconds] for seconds in zip(*picks, strict=True))
    report.add("a pick with metrics: median", "ms", on, ("without metrics", off), ratio_at_most(MOST_COST))
    jobs = sizes.callers * sizes.picks_per_caller
    on, off = ([jobs / each for each in seconds] for seconds in zip(*bursts, strict=True))
    name = f"picks with metrics, {sizes.callers} callers"
    report.add(name, "1/s", on, ("without metrics", off), ratio_at_least(1 / MOST_COST))
    report.add("a scrape of the metrics", "ms", scraped)


async def _in_turn(measure: Callable[[], Awaitable[float]], times: int) -> tuple[float, float]:
    """Measure with metrics and without them in turn, so often; return both medians."""
    on, off = [], []
    for _ in range(times):
        enable()
        on.append(await measure())
        disable()
        off.append(await measure())
    return median(on), median(off)
