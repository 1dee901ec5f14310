"""A network of 250 miners with all miner facts in use: what was recorded live is what audit, explain and replay say."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from projections import in_order_of_trial
from routing import Allowance, BlockFact, ManifestsFact, Miner, Routing, Settings, verify
from tests.support.engines import statement
from tests.support.small import GPU, START, VALIDATOR, Clock, hash_of, job, miner

MINERS = [f"5Miner{number:03}" for number in range(250)]
WORST = MINERS[::9]
"""The miners that most incidents are about."""
JOBS, JOBS_A_BLOCK, INCIDENTS, EXCLUSIONS, JOBS_ELSEWHERE = 10_000, 25, 500, 50, 1_000
FIRST_BLOCKS = 40
TEN_TAO = 10**19
EVERY = 25
"""Each so many jobs the whole order is noted before the pick, to compare the explanation with it."""
SETTINGS = Settings(minimum_collateral_wei=TEN_TAO, reliability_soft_cutoff=-4.0)


class Network:
    """Records the history, and notes what it saw live."""

    def __init__(self, ledger: Allowance, clock: Clock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.draw = random.Random(20)
        self.routed: dict[str, str] = {}
        """The miner of each job."""
        self.seen: dict[str, list[str]] = {}
        """The candidates of some jobs, in the order in which they were tried."""
        self.incident = 0
        """The position of an incident."""
        self._running: list[int] = []
        self._block = FIRST_BLOCKS

    async def begin(self) -> None:
        """Record the first blocks, and collateral for all miners."""
        counts = {hotkey: {GPU: 1 + number % 4} for number, hotkey in enumerate(MINERS)}
        blocks = map(block, range(1, FIRST_BLOCKS + 1))
        await self.ledger.record_facts([ManifestsFact(1, counts), *blocks])
        await self.ledger.record_collateral(dict.fromkeys(MINERS, TEN_TAO))

    async def go_on(self, jobs: Iterable[int]) -> None:
        """Route jobs, each with the facts that come before it."""
        for number in jobs:
            if number % JOBS_A_BLOCK == 0:
                self._block += 1
                self.clock.now_ns = int(created_at(self._block).timestamp()) * 10**9
                await self.ledger.record_facts([block(self._block)])
            self.clock.advance(0.4)
            await self._facts(number)
            await self._job(number)

    async def _facts(self, number: int) -> None:
        ledger, draw = self.ledger, self.draw
        if number % (JOBS // INCIDENTS) == 0:
            self.incident = await ledger.report_incident(draw.choice(WORST), GPU, "failed", f"job-{number}")
        if number % (JOBS // EXCLUSIONS) == 0:
            until = draw.choice([None, now(self.clock) + timedelta(seconds=300)])
            await ledger.exclude_miner(draw.choice(MINERS), f"reason {number}", until=until)
            await ledger.record_collateral({draw.choice(MINERS): TEN_TAO - draw.choice([0, 1])})
        if number % (JOBS // JOBS_ELSEWHERE) == 0:
            at = now(self.clock)
            await ledger.record_job_elsewhere(
                draw.choice(MINERS), GPU, f"theirs-{number}", at, draw.choice([9.0, 200.0])
            )
            await ledger.end_job_elsewhere(f"theirs-{max(0, number - 100)}")

    async def _job(self, number: int) -> None:
        request = job(f"job-{number}", self.draw.choice([3.0, 12.0, 60.0]))
        if number % EVERY == 0:
            amount_ns = int(request.execution_time_limit * 10**9)
            self.seen[request.uuid] = await self.ledger._read_state(
                lambda state, now_ns: [
                    each.hotkey_ss58 for each in in_order_of_trial(state, GPU, amount_ns, request.uuid, now_ns)
                ]
            )
        route = await Routing(self.ledger).pick_miner_for_job_request(request)
        self.routed[request.uuid] = route.miner.hotkey_ss58
        self._running.append(route.allowance_reservation_id or 0)
        if len(self._running) > 60:
            await self.draw.choice([self.ledger.spend, self.ledger.release])(self._running.pop(0))


def created_at(number: int) -> datetime:
    return START + timedelta(seconds=12 * number)


def now(clock: Clock) -> datetime:
    return START + timedelta(microseconds=clock.now_ns // 1000 - int(START.timestamp()) * 10**6)


def block(number: int) -> BlockFact:
    registered: list[Miner] = [miner(hotkey) for hotkey in MINERS]
    return BlockFact(number, created_at(number), registered, {VALIDATOR: 1.0, "5Other": 1.0}, hash_of(number))


@pytest.mark.long
@pytest.mark.timeout(0)
async def test_what_was_recorded_live_is_what_audit_explain_and_replay_say(tmp_path: Path) -> None:
    """10,000 jobs, 500 incidents, 50 exclusions, 1,000 jobs elsewhere, collateral for all; half by each order.

    The audit is clean; the explanations have the orders noted live; a replay under the same policy routes every job to
    the same miner. One incident that was edited in the stored rows is found by the audit and by `verify`.
    """
    path, clock = tmp_path / "ledger.db", Clock()
    url = f"sqlite:///{path}"
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, settings=SETTINGS) as ledger:
        network = Network(ledger, clock)
        await network.begin()
        await network.go_on(range(JOBS // 2))
        await ledger.change_settings(routing_order="reliability")
        await network.go_on(range(JOBS // 2, JOBS))
        report = await ledger.audit()
        assert (report.findings, report.unproved_choices) == ([], 0)
        replayed = await ledger.under_policy({})
        assert (replayed.jobs, replayed.same_miner) == (JOBS, JOBS)
        for uuid, seen in network.seen.items():
            explanation = await ledger.explain(uuid)
            candidates = [each for each in explanation.candidates if each.verdict not in ("excluded", "collateral")]
            assert [each.hotkey_ss58 for each in candidates] == seen
            assert explanation.reservation.miner_ss58 == network.routed[uuid]
    statement(url, "DROP TRIGGER allowance_events_no_update")
    edited = """replace(payload, '"failed"', '"rejected"')"""
    statement(url, f"UPDATE allowance_events SET payload = {edited} WHERE position = {network.incident}")
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=True) as ledger:
        findings = (await ledger.audit()).findings
    assert [each.position for each in findings][:1] == [network.incident]
    (verified,) = await verify(url)
    assert [each.position for each in verified.findings][:1] == [network.incident]
