"""Picks with all that a router can know beside allowance, against picks without any of it; and its bytes in the log."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

from routing import Allowance
from routing.cli.demo.network import hotkeys

from .chain import SEED
from .constrained import log_bytes
from .figures import MS, Report, interleaved, ratio_at_least, ratio_at_most
from .jobs import pick_seconds
from .prepared import Ledger
from .workspace import Workspace

MOST_COST = 1.3
INCIDENTS = JOBS_ELSEWHERE = 500
MINIMUM_WEI = 10**18


async def in_use(workspace: Workspace, report: Report) -> None:
    """Measure one caller and many, with exclusions, collateral, jobs elsewhere, incidents, and draws by them."""
    prepared, sizes = await workspace.long(), workspace.sizes
    with_facts, without = workspace.copied(prepared), workspace.copied(prepared)
    async with AsyncExitStack() as stack:
        known = await stack.enter_async_context(with_facts.open())
        unknown = await stack.enter_async_context(without.open())
        per_incident, per_job = await _record_facts(known, with_facts, workspace)
        jobs = sizes.callers * sizes.picks_per_caller

        async def alone() -> tuple[float, float]:
            return await pick_seconds(known, workspace.jobs(sizes.picks), 1), await pick_seconds(
                unknown, workspace.jobs(sizes.picks), 1
            )

        async def together() -> tuple[float, float]:
            return (
                await pick_seconds(known, workspace.jobs(jobs), sizes.callers),
                await pick_seconds(unknown, workspace.jobs(jobs), sizes.callers),
            )

        picks, bursts = await interleaved(sizes.repeat, alone, together)
    on, off = ([each / sizes.picks * MS for each in seconds] for seconds in zip(*picks, strict=True))
    report.add("a pick with miner facts", "ms", on, ("without any", off), ratio_at_most(MOST_COST))
    on, off = ([jobs / each for each in seconds] for seconds in zip(*bursts, strict=True))
    name = f"picks with miner facts, {sizes.callers} callers"
    report.add(name, "1/s", on, ("without any", off), ratio_at_least(1 / MOST_COST))
    report.add("bytes of log per incident", "B", [per_incident])
    report.add("bytes of log per job elsewhere", "B", [per_job])


async def _record_facts(ledger: Allowance, prepared: Ledger, workspace: Workspace) -> tuple[float, float]:
    """Record facts of every kind; return the bytes of log per incident and per job elsewhere, indexes included."""
    miners, classes = hotkeys(SEED, "miner", workspace.sizes.miners), workspace.classes
    await ledger.change_settings(minimum_collateral_wei=MINIMUM_WEI, routing_order="reliability")
    await ledger.record_collateral(dict.fromkeys(miners, 2 * MINIMUM_WEI))
    for miner_ss58 in miners[::5]:
        await ledger.exclude_miner(miner_ss58, "of the benchmark")
    started_at = datetime.fromtimestamp(prepared.start_ns / 10**9, UTC) - timedelta(hours=1)
    before = log_bytes(prepared)
    for number in range(INCIDENTS):
        job = f"00000000-0000-4000-8000-{number:012}"
        await ledger.report_incident(miners[number % len(miners)], classes[number % len(classes)], "failed", job)
    between = log_bytes(prepared)
    for number in range(JOBS_ELSEWHERE):
        job, ttl = f"00000000-0000-4000-9000-{number:012}", 7200 if number % 2 else 60
        miner_ss58, executor_class = miners[number % len(miners)], classes[number % len(classes)]
        await ledger.record_job_elsewhere(miner_ss58, executor_class, job, started_at, ttl)
    after = log_bytes(prepared)
    return (between - before) / INCIDENTS, (after - between) / JOBS_ELSEWHERE
