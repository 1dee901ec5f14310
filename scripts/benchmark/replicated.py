"""Picks on PostgreSQL whose commits wait for 0, 1 or 2 standbys, compared with bare rows that wait for the same."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from routing import Allowance, Routing

from .figures import Report, interleaved
from .jobs import release_all
from .layout import lay_out
from .limits import CONNECTIONS, PostgresRows, postgres_rows, reservation_bytes
from .picking import pick_rate
from .prepared import Ledger
from .server import database, require_standbys, running, standby_of, version
from .workspace import Workspace

STANDBYS = ("north", "south")
Measure = Callable[[], Awaitable[float]]


async def standbys(workspace: Workspace, report: Report) -> None:
    """Measure with each number of synchronous standbys. Both standbys stream all the time, from a server of their own.

    What differs between the figures is therefore only for how many of them a commit waits.
    """
    with ExitStack() as servers:
        workspace.show_progress("starting a primary and two standbys")
        primary = servers.enter_context(running(workspace.directory / "primary"))
        server_url = primary.get_uri()
        url = await database(server_url, "replicated")
        ledger = Ledger(url, *await lay_out(url, workspace.sizes, workspace.sizes.miners))
        for name in STANDBYS:
            servers.enter_context(standby_of(primary, name, workspace.directory / name))
        report.versions["PostgreSQL"] = await version(server_url)
        await _measure(workspace, report, server_url, ledger)


async def _measure(workspace: Workspace, report: Report, server_url: str, prepared: Ledger) -> None:
    row_bytes = await reservation_bytes(prepared.url)
    async with (
        prepared.open() as ledger,
        postgres_rows(prepared.url, row_bytes, 1) as one_bare,
        postgres_rows(prepared.url, row_bytes) as bare,
    ):
        measures = []
        for count in range(len(STANDBYS) + 1):
            measures += _measures(workspace, ledger, one_bare, bare)
            measures[-4] = _after(server_url, STANDBYS[:count], measures[-4])
        samples = await interleaved(workspace.sizes.repeat, *measures)
    callers = workspace.sizes.callers
    for count in range(len(STANDBYS) + 1):
        many, one, one_row, rows = samples[4 * count : 4 * count + 4]
        where = f"{count} synchronous standby{'s' if count != 1 else ''}"
        beside = (f"bare rows, 1 a commit, {where}", one_row)
        report.add(f"picks, one caller, {where}", "1/s", one, beside)
        report.add(f"picks, {callers} callers, {where}", "1/s", many, beside)
        beside = (f"bare rows, 1 a commit, {CONNECTIONS} connections, {where}", rows)
        report.add(f"picks, {callers} callers, {where}", "1/s", many, beside)


def _measures(workspace: Workspace, ledger: Allowance, one_bare: PostgresRows, bare: PostgresRows) -> list[Measure]:
    sizes = workspace.sizes

    async def many() -> float:
        return await pick_rate(ledger, workspace)

    async def one() -> float:
        router, seconds = Routing(ledger), 0.0
        for job in workspace.jobs(sizes.picks):
            started = time.perf_counter()
            route = await router.pick_miner_for_job_request(job)
            seconds += time.perf_counter() - started
            await release_all(ledger, [route])
        return sizes.picks / seconds

    async def one_row() -> float:
        return await one_bare.rate(sizes.bare_rows)

    async def rows() -> float:
        return await bare.rate(sizes.bare_rows)

    return [many, one, one_row, rows]


def _after(server_url: str, names: tuple[str, ...], measure: Measure) -> Measure:
    """Return a measure that lets commits wait for these standbys first, and from then on."""

    async def measured() -> float:
        await require_standbys(server_url, names)
        return await measure()

    return measured
