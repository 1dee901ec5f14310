"""Picks on PostgreSQL, from several processes at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from .figures import Report, interleaved, ratio_at_least
from .limits import CONNECTIONS, postgres_rows, reservation_bytes
from .picking import pick_rate
from .prepared import Ledger
from .process import worker
from .server import version
from .workspace import Workspace

LEAST_ROW_RATIO = 4.0
LEAST_RATIO_OF_PROCESSES = 1.0


async def one_process(workspace: Workspace, report: Report) -> None:
    """Measure many callers of one process, compared with one connection that commits bare rows one by one."""
    report.versions["PostgreSQL"] = await version(workspace.server_url())
    for title, prepared in await workspace.both_logs(on_postgres=True):
        await _one_process(workspace, report, title, prepared)


async def _one_process(workspace: Workspace, report: Report, title: str, prepared: Ledger) -> None:
    row_bytes = await reservation_bytes(prepared.url)
    async with prepared.open() as ledger, postgres_rows(workspace.server_url(), row_bytes, connections=1) as bare:

        async def picks() -> float:
            return await pick_rate(ledger, workspace)

        async def one_row() -> float:
            return await bare.rate(workspace.sizes.bare_rows)

        ours, limit = await interleaved(workspace.sizes.repeat, picks, one_row)
    name = f"picks on PostgreSQL, {workspace.sizes.callers} callers, {title}"
    report.add(name, "1/s", ours, ("bare rows, 1 a commit", limit), ratio_at_least(LEAST_ROW_RATIO))


async def processes(workspace: Workspace, report: Report) -> None:
    """Measure several processes on one ledger, with the usual number of callers in total."""
    sizes = workspace.sizes
    prepared = await workspace.long(on_postgres=True)
    row_bytes = await reservation_bytes(prepared.url)
    callers = sizes.callers // sizes.processes
    picks = callers * sizes.picks_per_caller
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(postgres_rows(workspace.server_url(), row_bytes))
        workers = [await stack.enter_async_context(worker(prepared, workspace.classes)) for _ in range(sizes.processes)]

        async def together() -> float:
            seconds = 0.0
            for _ in range(sizes.settlings):
                started = time.perf_counter()
                await asyncio.gather(*(each.pick(picks, callers) for each in workers))
                seconds += time.perf_counter() - started
                await asyncio.gather(*(each.release() for each in workers))
            return sizes.settlings * sizes.processes * picks / seconds

        async def one_row() -> float:
            return await bare.rate(sizes.bare_rows)

        ours, limit = await interleaved(sizes.repeat, together, one_row)
    report.add(
        f"picks, {sizes.processes} processes on PostgreSQL",
        "1/s",
        ours,
        (f"bare rows, 1 a commit, {CONNECTIONS} connections", limit),
        ratio_at_least(LEAST_RATIO_OF_PROCESSES),
        note=f"{callers} callers in each",
    )
