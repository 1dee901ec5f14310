"""One run: the stress test on a cluster that fails over, with the outages that its callers saw."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from ledger import current_runtime
from routing import Allowance
from tests.stress import Plan, PostgresDatabase, Report, run_stress_test
from tests.stress import network as facts
from tests.stress.diary import Call, calls
from tests.support.servers import connected

from .failovers import KINDS, Failover, fail_over, lose_a_tail
from .nodes import Cluster

# How long callers work before the first fail-over and after each, so that an outage ends before the next begins.
CALM_SECONDS = 2.0
PROCESSES, CALLERS = 4, 4
REPLAY_SECONDS = 30.0
POLL_SECONDS = 0.05
LOOKING = ("look", "list")
"""The operations that change nothing; an outage is the time without a change."""


@dataclass
class Outcome:
    """What a run did, and what its callers saw."""

    report: Report
    failovers: list[Failover]
    made: list[Call]
    """The calls as the workers wrote them down, before the harness resolved any."""
    audited: list[str] = field(default_factory=list)
    """The findings of the product's own audit and verification."""

    @property
    def acknowledged(self) -> list[Call]:
        """The calls that returned a change, by time."""
        done = [call for call in self.made if call.outcome and call.outcome.result]
        return sorted((call for call in done if call.request.operation not in LOOKING), key=_at_ns)

    @property
    def unknown(self) -> int:
        """The calls whose outcome the ledger did not know, without those that their workers cancelled."""
        return sum(call.unknown and not (call.outcome and call.outcome.cancelled) for call in self.made)

    def outages_seconds(self) -> dict[str, list[float]]:
        """Return by kind, for each fail-over, the longest time without an acknowledged change."""
        times = [_at_ns(call) for call in self.acknowledged]
        by_kind: dict[str, list[float]] = defaultdict(list)
        for failover in self.failovers:
            by_kind[failover.kind].append(_longest_gap_ns(times, failover) / 1e9)
        return by_kind

    def __str__(self) -> str:
        outages = (
            f"  {kind}: {len(seconds)} times, outage {statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s"
            for kind, seconds in sorted(self.outages_seconds().items())
        )
        counts = f"{len(self.acknowledged)} acknowledged changes, {self.unknown} unknown outcomes"
        return "\n".join([str(self.report), *outages, f"  {counts}", *self.audited])


class ClusterDatabase(PostgresDatabase):
    """A database on a cluster; to disturb it is to do all fail-overs, one after the other."""

    def __init__(self, url: str, disturb: Callable[[random.Random], None]) -> None:
        super().__init__(url)
        self._disturb = disturb

    def disturb(self, rng: random.Random) -> None:
        """Do all fail-overs."""
        self._disturb(rng)


def run_with_failovers(cluster: Cluster, directory: Path, kinds: list[str], seed: int) -> Outcome:
    """Let callers work while the cluster fails over in these ways."""
    failovers: list[Failover] = []

    def disturb(rng: random.Random) -> None:
        for number, kind in enumerate(kinds, 1):
            sys.stderr.write(f"{number} of {len(kinds)}: {kind}\n")
            failovers.append(fail_over(cluster, kind))
            time.sleep(CALM_SECONDS)

    return _run(cluster, directory, seed, disturb, failovers)


def run_with_a_lost_tail(cluster: Cluster, directory: Path, seed: int) -> Outcome:
    """Let callers work while an asynchronous cluster loses what every process acknowledged last."""
    failovers: list[Failover] = []

    def disturb(rng: random.Random) -> None:
        cut_ns = time.monotonic_ns()

        def is_acknowledged() -> bool:
            workers = {call.worker for call in _changes(directory / "diaries") if _at_ns(call) > cut_ns + 10**9}
            return len(workers) == PROCESSES

        failovers.append(lose_a_tail(cluster, is_acknowledged))
        time.sleep(2 * CALM_SECONDS)

    return _run(cluster, directory, seed, disturb, failovers)


def some_kinds(count: int, rng: random.Random) -> list[str]:
    """Return so many kinds of fail-over in random order, each about as often as any other."""
    kinds = [kind for _ in range(-(-count // len(KINDS))) for kind in rng.sample(list(KINDS), len(KINDS))]
    return kinds[:count]


def _run(
    cluster: Cluster,
    directory: Path,
    seed: int,
    disturb: Callable[[random.Random], None],
    failovers: list[Failover],
) -> Outcome:
    # The reader of the stress test must not follow a standby, or a leader that was replaced.
    url = cluster.url(_new_database(cluster), target_session_attrs="read-write")
    plan = Plan(
        url=url,
        directory=str(directory),
        seed=seed,
        # One disturbance begins before the run ends, and the run ends after it, however long it takes.
        seconds=1.5 * CALM_SECONDS,
        processes=PROCESSES,
        callers=CALLERS,
        miners=10,
        kills_per_second=0.0,
        disturbances_per_second=1 / CALM_SECONDS,
    )
    report = run_stress_test(plan, ClusterDatabase(url, disturb))
    outcome = Outcome(report, failovers, list(calls(plan.diaries)))
    outcome.audited = current_runtime().run_blocking(_audited(url))
    return outcome


async def _audited(url: str) -> list[str]:
    """Return what the product's audit and verification find."""
    async with Allowance.open(url, validator_ss58=facts.ME) as ledger:
        audit, verified = await ledger.audit(), await ledger.verify()
    return [*(f"audit: {finding}" for finding in audit.findings), *(f"verify: {each}" for each in verified.findings)]


def _new_database(cluster: Cluster) -> str:
    """Create a database, and wait until every node has it: the driver gives up at a standby that does not know it."""
    name = f"ledger_{time.monotonic_ns()}"
    asyncio.run(_execute(cluster.url(target_session_attrs="read-write"), f"CREATE DATABASE {name}"))
    for node in cluster.nodes:
        asyncio.run(_wait_for_database(node.url(name)))
    return name


async def _execute(url: str, statement: str) -> None:
    async with connected(url) as connection:
        await connection.execute(statement)


async def _wait_for_database(url: str) -> None:
    async with asyncio.timeout(REPLAY_SECONDS):
        while True:
            with suppress(asyncpg.InvalidCatalogNameError):
                async with connected(url):
                    return
            await asyncio.sleep(POLL_SECONDS)


def _changes(diaries: Path) -> Iterator[Call]:
    for call in calls(diaries):
        if call.outcome and call.outcome.result and call.request.operation not in LOOKING:
            yield call


def _at_ns(call: Call) -> int:
    return call.outcome.at_ns if call.outcome else 0


def _longest_gap_ns(times: list[int], failover: Failover) -> int:
    """Return the longest time between two acknowledgements that are not both before or both after the fail-over."""
    pairs = itertools.pairwise(times)
    gaps = [after - before for before, after in pairs if after > failover.began_ns and before < failover.ended_ns]
    return max(gaps, default=failover.ended_ns - failover.began_ns)
