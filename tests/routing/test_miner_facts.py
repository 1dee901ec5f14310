"""Picks by a router that knows more than allowance: precedence and counts, and facts that land during a claim."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Barrier
from typing import Any, NamedTuple

import pytest

from routing import (
    AllMinersBusy,
    Allowance,
    ChainFeedStale,
    JobRoutingException,
    NotEnoughAllowanceException,
    NotEnoughCollateralException,
    Routing,
    Settings,
)
from routing.sync import Allowance as BlockingAllowance
from routing.sync import Routing as BlockingRouting
from tests.routing.test_lost_races import losing_a_race, picked
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

TEN_TAO = 10**19
CLOCK = START + timedelta(seconds=132)
ROUNDS = 15
BARRIER_SECONDS = 60.0
"""Only a thread that has failed makes the other one wait as long."""


async def refused(ledger: Allowance, seconds: float = 6.0) -> Any:
    """Return the error of a pick."""
    with pytest.raises((NotEnoughAllowanceException, JobRoutingException)) as caught:
        await Routing(ledger).pick_miner_for_job_request(job("refused", seconds))
    return caught.value


# Precedence


async def test_excluded_miners_are_counted_when_nobody_is_left() -> None:
    """All excluded: `AllMinersBusy`, and its counts say why; an excluded miner that is also busy counts as excluded."""
    async with small_ledger(offers={"5Anna": 1, "5Bert": 1}) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("first"))
        await ledger.exclude_miner(route.miner.hotkey_ss58, "slow")
        (other,) = {"5Anna", "5Bert"} - {route.miner.hotkey_ss58}
        await Routing(ledger).pick_miner_for_job_request(job("second"))
        error = await refused(ledger)
        assert (type(error), error.busy, error.lost, error.excluded) == (AllMinersBusy, 1, 0, 1)
        assert "1 are excluded" in str(error)
        await ledger.exclude_miner(other, "slow")
        error = await refused(ledger)
        assert (error.busy, error.lost, error.excluded) == (0, 0, 2)


async def test_too_little_collateral_is_named_only_if_it_leaves_nobody() -> None:
    """Miners below the minimum are counted after the excluded ones; one that is left, but busy, makes all busy.

    Catches the highest collateral of an excluded miner in the error, and the error while a busy miner has enough.
    """
    async with small_ledger(offers=dict.fromkeys(("5Anna", "5Bert", "5Carl"), 1)) as ledger:
        await ledger.change_settings(minimum_collateral_wei=TEN_TAO)
        await ledger.record_collateral({"5Anna": TEN_TAO, "5Carl": TEN_TAO - 1, "5Bert": TEN_TAO - 1})
        await ledger.exclude_miner("5Anna", "slow")
        error = await refused(ledger)
        assert isinstance(error, NotEnoughCollateralException)
        fields = error.minimum_collateral_wei, error.highest_collateral_wei, error.highest_collateral_ss58
        assert fields == (TEN_TAO, TEN_TAO - 1, "5Bert")
        await ledger.readmit_miner("5Anna", "fast again")
        route = await Routing(ledger).pick_miner_for_job_request(job("first"))
        assert route.miner.hotkey_ss58 == "5Anna"
        error = await refused(ledger)
        assert (type(error), error.busy, error.excluded) == (AllMinersBusy, 1, 0)


async def test_a_lack_of_allowance_and_a_stale_feed_come_first() -> None:
    """With all miners excluded and without collateral, the earlier refusals are raised; catches another order."""
    clock = Clock(CLOCK)
    async with small_ledger(clock=clock) as ledger:
        await ledger.change_settings(minimum_collateral_wei=1, newest_block_max_age_seconds=60.0)
        for hotkey in ("5Anna", "5Bert", "5Carl"):
            await ledger.exclude_miner(hotkey, "slow")
        assert isinstance(await refused(ledger, 3000.0), NotEnoughAllowanceException)
        assert isinstance(await refused(ledger), AllMinersBusy)
        clock.advance(61)
        assert isinstance(await refused(ledger), ChainFeedStale)


async def test_a_job_keeps_its_route_and_reservations_by_hand_do_not_ask() -> None:
    """An exclusion changes neither a route that exists, nor `reserve`, nor what `find_miners` returns."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("first"))
        await ledger.exclude_miner("5Anna", "slow")
        await ledger.change_settings(minimum_collateral_wei=1)
        assert await Routing(ledger).pick_miner_for_job_request(job("first")) == route
        assert [each.hotkey_ss58 for each in await ledger.find_miners(6.0, GPU, 11)] == ["5Anna"]
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).status == "reserved"


async def test_a_router_asks_the_log_and_not_its_memory(any_url: str) -> None:
    """What one process records counts at the next pick of another process, which has routed before."""
    async with (
        small_ledger(url=any_url) as ledger,
        Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=Clock(CLOCK)) as other,
    ):
        await Routing(other).pick_miner_for_job_request(job("first"))
        await ledger.exclude_miner("5Anna", "slow")
        await ledger.record_job_elsewhere("5Bert", GPU, "theirs-1", CLOCK, 60.0)
        await ledger.record_job_elsewhere("5Bert", GPU, "theirs-2", CLOCK, 60.0)
        for number in range(2):
            route = await Routing(other).pick_miner_for_job_request(job(f"job-{number}", 0.5))
            assert route.miner.hotkey_ss58 == "5Carl"


# Facts that land between the decision and the append


class Landing(NamedTuple):
    """What another process records about the chosen miner or the other one, and what that does to the claim."""

    by: Callable[[Allowance, str, str], Awaitable[Any]]
    conflicts: int
    moves: bool


async def exclude_chosen(ledger: Allowance, chosen: str, other: str) -> None:
    await ledger.exclude_miner(chosen, "slow")


async def exclude_other(ledger: Allowance, chosen: str, other: str) -> None:
    await ledger.exclude_miner(other, "slow")


async def lower_collateral(ledger: Allowance, chosen: str, other: str) -> None:
    await ledger.record_collateral({chosen: 0})


async def fill_chosen(ledger: Allowance, chosen: str, other: str) -> None:
    for number in range(2):
        await ledger.record_job_elsewhere(chosen, GPU, f"theirs-{number}", CLOCK, 60.0)


async def fill_other(ledger: Allowance, chosen: str, other: str) -> None:
    await fill_chosen(ledger, other, chosen)


async def report_incident(ledger: Allowance, chosen: str, other: str) -> None:
    await ledger.report_incident(chosen, GPU, "failed", "theirs")


LANDINGS = {
    "the chosen miner is excluded": Landing(exclude_chosen, 1, moves=True),
    "the other miner is excluded": Landing(exclude_other, 1, moves=False),
    "the chosen miner loses its collateral": Landing(lower_collateral, 1, moves=True),
    "the chosen miner runs jobs of others": Landing(fill_chosen, 1, moves=True),
    "the other miner runs jobs of others": Landing(fill_other, 0, moves=False),
    "an incident": Landing(report_incident, 0, moves=False),
}


@pytest.mark.parametrize("landing", LANDINGS.values(), ids=list(LANDINGS))
async def test_a_claim_is_decided_again_only_if_a_fact_that_it_was_decided_on_has_moved(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, landing: Landing
) -> None:
    """A miner that was excluded, lost its collateral or became busy meanwhile is left; other facts change nothing.

    Catches a claim that does not expect one of these streams: it lands on a miner that no longer qualifies. Catches one
    that expects too much, such as incidents, or the jobs elsewhere of all accounts: it has conflicts.
    """
    chosen = []

    async def by(process: Allowance, miner_ss58: str) -> None:
        chosen.append(miner_ss58)
        (other,) = {"5Anna", "5Bert"} - {miner_ss58}
        await landing.by(process, miner_ss58, other)

    async with losing_a_race(postgres_url, by, monkeypatch, Settings(minimum_collateral_wei=5)) as ledger:
        explanation, counters = await picked(ledger)
    assert (explanation.reservation.miner_ss58 != chosen[0]) is landing.moves
    assert (counters["conflicts"], counters["moved_picks"]) == (landing.conflicts, landing.moves)
    # A claim that is not decided again names the position of its choice, before the fact.
    assert (explanation.chosen_at is None) is bool(landing.conflicts)


async def test_a_collateral_that_no_setting_asks_for_disturbs_nobody(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a minimum the stream of the collateral is not expected."""

    async def by(process: Allowance, miner_ss58: str) -> None:
        await process.record_collateral({miner_ss58: 7})

    async with losing_a_race(postgres_url, by, monkeypatch) as ledger:
        _, counters = await picked(ledger)
    assert (counters["conflicts"], counters["moved_picks"]) == (0, 0)


async def test_a_draw_that_lands_behind_an_incident_is_that_of_its_choice(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incident of the drawn miner comes too late: the claim names the position and the clock of its choice.

    Catches an explanation or an audit that repeats the draw at the claim, or takes a named choice for a wrong one.
    """

    async def by(process: Allowance, miner_ss58: str) -> None:
        for number in range(200):
            await process.report_incident(miner_ss58, GPU, "failed", f"theirs-{number}")

    settings = Settings(routing_order="reliability")
    async with losing_a_race(postgres_url, by, monkeypatch, settings) as ledger:
        explanation, counters = await picked(ledger)
    assert explanation.candidates[0].verdict == "claimed"
    assert [each.incidents for each in explanation.candidates] == [0, 0]
    assert explanation.chosen_at == explanation.position
    assert (counters["conflicts"], counters["renumbered"], counters["moved_picks"]) == (0, 1, 0)


# Races


class Race(NamedTuple):
    """A fact after which Anna, the only miner, must not be chosen, and what makes her a candidate again."""

    fact: Callable[[BlockingAllowance, int], int]
    back: Callable[[BlockingAllowance, int], Any]


RACES = {
    "exclusion": Race(
        lambda ledger, number: ledger.exclude_miner("5Anna", f"reason {number}"),
        lambda ledger, number: ledger.readmit_miner("5Anna", f"reason {number}"),
    ),
    "collateral": Race(
        lambda ledger, number: ledger.record_collateral({"5Anna": 4}),
        lambda ledger, number: ledger.record_collateral({"5Anna": 5}),
    ),
    "job elsewhere": Race(
        lambda ledger, number: ledger.record_job_elsewhere("5Anna", GPU, f"theirs-{number}", CLOCK, 1000.0),
        lambda ledger, number: ledger.end_job_elsewhere(f"theirs-{number}"),
    ),
}


@pytest.mark.parametrize("race", RACES.values(), ids=list(RACES))
async def test_no_claim_follows_the_fact_that_forbids_it(any_url: str, race: Race) -> None:
    """A router and a process that records a fact, from a barrier: the claim is before the fact in the log, or refused.

    Catches a claim that does not expect the fact's stream: it then lands behind the fact.
    """
    settings = Settings(minimum_collateral_wei=5)
    async with small_ledger(url=any_url, offers={"5Anna": 1}, settings=settings) as ledger:
        await ledger.record_collateral({"5Anna": 5})
    barrier = Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        routed = pool.submit(route_again_and_again, any_url, barrier)
        recorded = pool.submit(record_again_and_again, any_url, barrier, race)
        claims, facts = routed.result(), recorded.result()
    assert all(claim is None or claim < fact for claim, fact in zip(claims, facts, strict=True))
    async with Allowance.open(any_url, validator_ss58=VALIDATOR) as ledger:
        assert (await ledger.audit()).findings == []


def opened(url: str) -> BlockingAllowance:
    """Open the ledger in this thread, as another process would."""
    return BlockingAllowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock(CLOCK))


def route_again_and_again(url: str, barrier: Barrier) -> list[int | None]:
    """Route a job in each round; return the positions of the claims, None where the pick was refused."""
    claims: list[int | None] = []
    with opened(url) as ledger:
        for number in range(ROUNDS):
            barrier.wait(BARRIER_SECONDS)
            claims.append(None)
            with suppress(AllMinersBusy, NotEnoughCollateralException):
                route = BlockingRouting(ledger).pick_miner_for_job_request(job(f"job-{number}"))
                claims[-1] = (route.allowance_reservation_id or 0) >> 20
                ledger.release(route.allowance_reservation_id or 0)
            barrier.wait(BARRIER_SECONDS)
    return claims


def record_again_and_again(url: str, barrier: Barrier, race: Race) -> list[int]:
    """Record the fact in each round, and undo it once the router is done; return the positions of the facts."""
    facts = []
    with opened(url) as ledger:
        for number in range(ROUNDS):
            barrier.wait(BARRIER_SECONDS)
            facts.append(race.fact(ledger, number))
            barrier.wait(BARRIER_SECONDS)
            race.back(ledger, number)
    return facts
