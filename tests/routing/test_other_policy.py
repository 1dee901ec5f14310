"""Another policy, the same history: the same settings give the same choices; others are compared with what happened."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from projections.inequality import gini_coefficient, jain_index
from routing import Allowance, ImportedReservation, InvalidInput, Routing
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger
from tests.support.stories import SETTINGS, Story, seed_shown, utc

SEEDS = range(1, 7)


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_same_policy_gives_the_same_choices(seed: int, tmp_path: Path) -> None:
    """Every job of a random history goes to the same miner again, and the same seconds are spent.

    Catches a settlement that does not reach the state, an expiry that frees too much, and a clock that is not the
    decision's.
    """
    clock = Clock()
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with seed_shown(seed):
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, settings=SETTINGS) as ledger:
            await Story(ledger, clock, seed).goes_on(400)
            report = await ledger.under_policy({})
            assert report.jobs > 20
            assert (report.same_miner, report.other_miner, report.refused) == (report.jobs, 0, 0)
            assert report.by_hand_refused == 0
            assert report.other == report.recorded
            assert report.position == (await ledger.head()).position


@pytest.mark.parametrize("order", ["allowance", "reliability"])
async def test_choices_that_were_kept_are_repeated_where_they_were_made(shared_url: str, order: str) -> None:
    """Two openings route at the same time, so claims land behind a head that has moved (`chosen_at`).

    The second one's clock is behind the log, so the incidents do not count for it yet. Catches a replay that chooses at
    the claim instead of at the position of the choice, and a ranking that does not notice which way the clock went.
    """
    clock = Clock()
    offers = {f"5Miner{number}": 9 for number in range(6)}
    async with small_ledger(url=shared_url, offers=offers, blocks=60) as first:
        await first.change_settings(routing_order=order)
        for number, hotkey in enumerate(offers):
            for incident in range(30 * number):
                await first.report_incident(hotkey, GPU, "failed", f"{hotkey}-{incident}")
        second = Allowance.open(shared_url, validator_ss58=VALIDATOR, clock_ns=clock)
        async with second:
            routers = Routing(first), Routing(second)
            jobs = [(routers[number % 2], job(f"job-{number}")) for number in range(40)]
            await asyncio.gather(*(router.pick_miner_for_job_request(each) for router, each in jobs))
            report = await first.under_policy({})
            assert (report.jobs, report.same_miner) == (40, 40)


async def test_another_order_moves_jobs(tmp_path: Path) -> None:
    """By reliability, most jobs leave a miner with many incidents that comes first by allowance."""
    offers = {"5Anna": 30, "5Bert": 30}
    async with small_ledger(offers=offers, blocks=60) as ledger:
        await ledger.exclude_miner("5Bert", "for the first jobs")
        router = Routing(ledger)
        for number in range(20):
            route = await router.pick_miner_for_job_request(job(f"job-{number}"))
            await ledger.spend(route.allowance_reservation_id or 0)
        assert (await ledger.under_policy({})).same_miner == 20
        # Without the exclusion there is a choice to make: half of the collateral, and a minimum that Anna misses.
        await ledger.readmit_miner("5Bert", "for the others")
        for number in range(200):
            await ledger.report_incident("5Anna", GPU, "failed", f"incident-{number}")
        for number in range(20, 60):
            route = await router.pick_miner_for_job_request(job(f"job-{number}"))
            await ledger.release(route.allowance_reservation_id or 0)
        report = await ledger.under_policy({"routing_order": "reliability"})
        assert report.jobs == report.same_miner + report.other_miner
        assert report.other_miner > 0
        assert report.recorded.spent_seconds == report.other.spent_seconds == {"5Anna": 120.0}


async def test_a_policy_may_refuse_jobs(tmp_path: Path) -> None:
    """Jobs for which nothing is left under the other settings are counted by the error; nothing is recorded."""
    async with small_ledger(blocks=30) as ledger:
        router = Routing(ledger)
        for number in range(6):
            route = await router.pick_miner_for_job_request(job(f"job-{number}", seconds=24.0))
            await ledger.spend(route.allowance_reservation_id or 0)
        by_hand = await ledger.reserve("5Anna", GPU, 12.0, 30)
        await ledger.spend(by_hand.reservation_id)
        head = await ledger.head()
        report = await ledger.under_policy({"allowance_multiplier": "1/50"})
        assert report.refused == report.refusals["NotEnoughAllowanceException"] > 0
        assert report.other.routed == report.jobs - report.refused
        assert (report.by_hand, report.by_hand_refused) == (1, 0)
        assert report.to_dict()["settings"] == {"allowance_multiplier": "1/50"}
        assert await ledger.head() == head
        with pytest.raises(InvalidInput):
            await ledger.under_policy({"no_such_setting": 1})


async def test_an_imported_reservation_keeps_its_due_time() -> None:
    """Another system says that Anna's only executor is in use for an hour, so the job goes to Bert, also in the replay.

    Catches a due time that is counted from the import: Anna would be free again after 101 s.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(offers={"5Anna": 1, "5Bert": 1}, clock=clock) as ledger:
        await ledger.spend((await ledger.reserve("5Bert", GPU, 18.0, 11)).reservation_id)
        now = utc(clock.now_ns)
        await ledger.import_reservation(
            ImportedReservation(
                miner_ss58="5Anna",
                executor_class=GPU,
                blocks=[(1, 1)],
                amount_seconds=1.0,
                reserved_at=now,
                expires_at=now + timedelta(hours=1),
            )
        )
        clock.advance(300)
        route = await Routing(ledger).pick_miner_for_job_request(job("job"))
        assert route.miner.hotkey_ss58 == "5Bert"
        report = await ledger.under_policy({})
        assert (report.jobs, report.same_miner, report.by_hand, report.by_hand_refused) == (1, 1, 2, 0)


async def test_a_view_of_the_past_compares_its_own_jobs() -> None:
    """Only what was recorded by then counts."""
    async with small_ledger(blocks=30) as ledger:
        await record_blocks(ledger, 31, 32, ["5Anna", "5Bert", "5Carl"])
        router = Routing(ledger)
        await router.pick_miner_for_job_request(job("job-1"))
        then = (await ledger.head()).position
        await router.pick_miner_for_job_request(job("job-2"))
        assert (await ledger.at(position=then).under_policy({})).jobs == 1


def test_measures_of_inequality() -> None:
    """By hand: all equal, one has everything, and 1, 2, 3: (1+2+3)²/(3·14) = 36/42, and 2·14/(3·6) - 4/3 = 2/9."""
    for values, jain, gini in (
        ([5.0] * 4, 1, 0),
        ([9.0, 0.0, 0.0], 1 / 3, 2 / 3),
        ([3.0, 1.0, 2.0], 36 / 42, 2 / 9),
        ([0.0], 1, 0),
    ):
        assert jain_index(values) == pytest.approx(jain)
        assert gini_coefficient(values) == pytest.approx(gini)
    assert (jain_index([]), gini_coefficient([])) == (1.0, 0.0)
