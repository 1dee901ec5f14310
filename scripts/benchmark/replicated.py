"""Picks on PostgreSQL whose commits wait for synchronous standbys, and the bytes that a claim costs there.

Two standbys stream during all measurements; only the number for which a commit waits differs. All servers flush.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import asyncpg

from ledger import store_from_url
from projections.snapshots import SnapshotStore, sealed_if_due
from routing import Allowance, Routing

from .chain import HOTKEY
from .figures import MS, Report, interleaved
from .jobs import pick_at_once, release_all
from .limits import CONNECTIONS, PostgresRows, postgres_rows, reservation_bytes
from .picking import pick_rate
from .prepared import Ledger
from .server import version
from .standbys import standbys, wait_for
from .workspace import Workspace

STANDBYS = 2
ROWS = 500
_TOTAL = "SELECT sum(pg_total_relation_size(each)) FROM unnest(ARRAY[{}]::regclass[]) AS each"
_SIZES = {
    "log with indexes": _TOTAL.format("'allowance_events', 'allowance_streams', 'allowance_ledgers'"),
    "log without indexes": "SELECT pg_relation_size('allowance_events')",
    "history with indexes": _TOTAL.format("'allowance_reservations', 'allowance_reserved_blocks'"),
    "WAL of the server": "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn",
}
"""What is measured, and how. The last one counts the log, the history, and what the server adds to both."""


async def picks_by_standbys(workspace: Workspace, report: Report) -> None:
    """Measure picks and bare rows while commits wait for 0, 1 and 2 standbys."""
    url = workspace.server_url()
    report.versions["PostgreSQL"] = await version(url)
    prepared = await workspace.short(on_postgres=True)
    row_bytes = await reservation_bytes(prepared.url)
    with standbys(url, workspace.directory, STANDBYS) as names:
        try:
            async with (
                prepared.open() as ledger,
                postgres_rows(url, row_bytes, connections=1) as bare,
                postgres_rows(url, row_bytes) as many_bare,
            ):
                await _compare(workspace, report, names, ledger, (bare, many_bare))
        finally:
            await wait_for(url, [])


async def _compare(
    workspace: Workspace, report: Report, names: list[str], ledger: Allowance, bare: tuple[PostgresRows, PostgresRows]
) -> None:
    def measure(waits_for: list[str]) -> Callable[[], Awaitable[tuple[float, ...]]]:
        async def rates() -> tuple[float, ...]:
            await wait_for(workspace.server_url(), waits_for)
            together, alone = await pick_rate(ledger, workspace), await _rate_of_one_caller(ledger, workspace)
            rows = [await each.rate(min(ROWS, workspace.sizes.bare_rows)) for each in bare]
            return together, alone, *rows

        return rates

    counts = range(len(names) + 1)
    rounds = await interleaved(workspace.sizes.repeat, *(measure(names[:count]) for count in counts))
    for count, samples in zip(counts, rounds, strict=True):
        together, alone, rows, many_rows = zip(*samples, strict=True)
        where, beside = f"synchronous standbys: {count}", ("bare rows, 1 a commit", rows)
        name = f"picks on PostgreSQL, {where}, {workspace.sizes.callers} callers"
        report.add(name, "1/s", together, beside)
        # Connections share the flushes of their commits, as callers do.
        report.add(name, "1/s", together, (f"bare rows, 1 a commit, {CONNECTIONS} connections", many_rows))
        report.add(f"picks on PostgreSQL, {where}, one caller", "1/s", alone, beside)


async def _rate_of_one_caller(ledger: Allowance, workspace: Workspace) -> float:
    """Return picks per second of one caller. The releases do not count in the time."""
    router, seconds = Routing(ledger), 0.0
    jobs = workspace.jobs(workspace.sizes.picks // 2)
    for job in jobs:
        started = time.perf_counter()
        route = await router.pick_miner_for_job_request(job)
        seconds += time.perf_counter() - started
        await release_all(ledger, [route])
    return len(jobs) / seconds


async def stored(workspace: Workspace, report: Report) -> None:
    """Measure what a change costs in bytes: the log, the history and the server's WAL; and what a snapshot costs."""
    sizes = workspace.sizes
    report.versions["PostgreSQL"] = await version(workspace.server_url())
    prepared = await workspace.short(on_postgres=True)
    at_once = sizes.callers * sizes.picks_per_caller  # More would find all miners busy.
    async with prepared.open() as ledger:
        before = await _sizes(ledger, prepared.url)
        for first in range(0, sizes.claims, at_once):
            jobs = workspace.jobs(min(at_once, sizes.claims - first))
            await release_all(ledger, await pick_at_once(Routing(ledger), jobs, sizes.callers))
        after = await _sizes(ledger, prepared.url)
    for name, first, last in zip(_SIZES, before, after, strict=True):
        report.add(f"bytes on PostgreSQL per change, {name}", "B", [(last - first) / (2 * sizes.claims)])
    await _snapshot(workspace, report, prepared)


async def _sizes(ledger: Allowance, url: str) -> list[int]:
    await ledger.history(limit=1)  # Projects what is missing in the history.
    connection = await asyncpg.connect(url)
    sizes = [int(await connection.fetchval(query)) for query in _SIZES.values()]
    await connection.close()
    return sizes


async def _snapshot(workspace: Workspace, report: Report, prepared: Ledger) -> None:
    store = store_from_url(prepared.url, HOTKEY, read_only=True)
    await store.open(None)
    state = await SnapshotStore(store).load()
    await store.close()

    payloads: list[bytes] = []

    async def sealed() -> float:
        started = time.perf_counter()
        made = sealed_if_due(state, 0)
        seconds = time.perf_counter() - started
        assert made is not None
        payloads.append(made.snapshot.payload)
        return seconds * MS

    (times_ms,) = await interleaved(workspace.sizes.repeat, sealed)
    report.add("a snapshot with its digest", "ms", times_ms)
    report.add("bytes of a snapshot", "B", [len(payloads[0])])
