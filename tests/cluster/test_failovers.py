"""Processes go on through fail-overs of three Patroni nodes, and nothing that they were told is untrue.

`python -m tests.cluster` runs longer, and by kind of fail-over.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from routing import Allowance
from tests.stress import network as facts

from .failovers import KINDS
from .nodes import Cluster, running_cluster
from .run import PROCESSES, Outcome, run_with_a_lost_tail, run_with_failovers, some_kinds

FAILOVERS = 20


def seed() -> int:
    """Return `STRESS_SEED` from the environment, or another seed each time."""
    return int(os.environ.get("STRESS_SEED", random.SystemRandom().randrange(10**9)))


def failed_over(cluster: Cluster, directory: Path, kinds: list[str]) -> Outcome:
    """Run the fail-overs; print the outcome, so that a failure shows it with its seed."""
    outcome = run_with_failovers(cluster, directory, kinds, seed())
    print(outcome)  # noqa: T201 - pytest shows it with a failure
    return outcome


async def first_position(url: str) -> int:
    """Make a ledger through a URL, and return the position after its first change."""
    async with Allowance.open(url, validator_ss58=facts.ME, settings=facts.SETTINGS) as ledger:
        await ledger.record_manifests(1, {"5Anna": {facts.CLASS: 1}})
        return (await ledger.head()).position


@pytest.mark.slow
def test_a_killed_server_costs_no_acknowledged_change(tmp_path: Path) -> None:
    """Four processes with four callers each: all that was acknowledged is stored once, and every outcome is resolved.

    PostgreSQL of the leader is killed, which its Patroni notices in seconds; if both are killed, it takes `ttl`. Before
    that, a writer finds the leader behind a standby that is named first, without `target_session_attrs`. Catches
    whatever the judge of the stress test finds, and a ledger that does not recover by itself.
    """
    with running_cluster() as cluster:
        standby = cluster.standbys()[0]
        assert asyncio.run(first_position(cluster.url(first=standby))) > 0
        outcome = failed_over(cluster, tmp_path, ["postgres-killed"])

    assert not outcome.report.findings
    assert not outcome.audited
    (killed,) = outcome.failovers
    assert any(call.outcome and call.outcome.at_ns > killed.ended_ns for call in outcome.acknowledged)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", [16, 18])
def test_many_fail_overs_cost_no_acknowledged_change(version: int, tmp_path: Path) -> None:
    """The same through twenty fail-overs of every kind, one after the other, on one log.

    With an old leader that goes on beside the new one, it also catches work that only the old one acknowledged.
    """
    with running_cluster(version) as cluster:
        kinds = some_kinds(FAILOVERS, random.Random(seed()))
        outcome = failed_over(cluster, tmp_path, kinds)

    assert set(kinds) == set(KINDS)
    assert not outcome.report.findings
    assert not outcome.audited
    assert all(call.outcome is not None for call in outcome.made)


@pytest.mark.long
def test_asynchronous_standbys_lose_work_and_every_process_refuses(tmp_path: Path) -> None:
    """A leader that was cut off is killed. The judge misses what it acknowledged, so it is no judge that finds nothing.

    Each process that had acknowledged some of it refuses with `LogWentBack` until its ledger is opened again. Catches a
    process that goes on with the shorter log, at once or after some refusals.
    """
    with running_cluster(synchronous=False) as cluster:
        outcome = run_with_a_lost_tail(cluster, tmp_path, seed())
    print(outcome)  # noqa: T201 - pytest shows it with a failure

    assert "acknowledged but absent" in outcome.report.kinds
    assert not outcome.audited
    (lost,) = outcome.failovers
    after = [call for call in outcome.made if call.outcome and call.outcome.at_ns > lost.ended_ns]
    assert {call.outcome.refused for call in after if call.outcome} <= {"LogWentBack", "StorageUnavailable", None}
    refusing = {call.worker for call in after if call.outcome and call.outcome.refused == "LogWentBack"}
    assert len(refusing) == PROCESSES
    assert not any(call.outcome and call.outcome.result for call in after)
