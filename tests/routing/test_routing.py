"""Which miner runs a job, and what is said when none can."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from pydantic import TypeAdapter

from ledger.store.sqlite.store import SqliteStore
from projections.tie_break import permutation
from routing import (
    TRUSTED_MINER_FAKE_KEY,
    AllMinersBusy,
    Allowance,
    ChainFeedStale,
    JobAlreadySpent,
    JobRequestConflict,
    JobRoute,
    Miner,
    NotEnoughAllowanceException,
    Routing,
    Settings,
)
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger


async def test_a_route_says_where_what_it_holds_and_what_it_is_worth() -> None:
    """The claim takes the earliest blocks, whole: 12 s a block on two executors, so 13 s take two blocks."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("one", 13.0))
        assert route.miner == Miner("192.0.2.7", 4, 8000, "5Anna")
        assert route.allowance_blocks == [1, 2]
        assert route.allowance_job_value == 13.0
        reservation = await ledger.reservation(route.allowance_reservation_id or 0)
        assert (reservation.job_uuid, reservation.blocks, reservation.status) == ("one", [1, 2], "reserved")


async def test_a_route_survives_the_task_queues() -> None:
    """Routes round-trip through asdict, msgspec and pydantic."""
    route = JobRoute(Miner("::1", 6, 80, "5Anna"), [1, 2], 5, 6.5)
    assert JobRoute(**{**asdict(route), "miner": Miner(**asdict(route)["miner"])}) == route
    assert msgspec.json.decode(msgspec.json.encode(route), type=JobRoute) == route
    adapter = TypeAdapter(JobRoute)
    assert adapter.validate_json(adapter.dump_json(route)) == route


async def test_the_same_job_has_the_same_route_while_it_stands() -> None:
    """Asked again, also many times at once and also when overdue, a job gets its one reservation."""
    clock = Clock()
    async with small_ledger(clock=clock) as ledger:
        router = Routing(ledger)
        routes = await asyncio.gather(*(router.pick_miner_for_job_request(job("one")) for _ in range(20)))
        clock.advance(10_000)
        routes.append(await router.pick_miner_for_job_request(job("one")))
        assert all(route == routes[0] for route in routes)
        assert len((await ledger.history()).items) == 1


async def test_a_route_keeps_the_axon_it_was_given_with() -> None:
    """A miner that moves while its job runs does not move the job."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        router = Routing(ledger)
        first = await router.pick_miner_for_job_request(job("one"))
        await record_blocks(ledger, 12, 12, [])
        assert await router.pick_miner_for_job_request(job("one")) == first


async def test_another_request_under_the_same_uuid_is_refused() -> None:
    """Other class or amount: the error says in what they differ."""
    async with small_ledger() as ledger:
        router = Routing(ledger)
        await router.pick_miner_for_job_request(job("one", 6.0))
        with pytest.raises(JobRequestConflict) as refused:
            await router.pick_miner_for_job_request(job("one", 7.0))
        assert refused.value.differences == {"allowance_seconds": (6.0, 7.0)}
        with pytest.raises(JobRequestConflict):
            await router.pick_miner_for_job_request(job("one", 6.0, "other"))


async def test_a_released_job_may_be_routed_anew_and_a_spent_one_never() -> None:
    """A release or an expiry frees the uuid; a spend closes it for good, also after reopening."""
    clock = Clock()
    async with small_ledger(clock=clock) as ledger:
        router = Routing(ledger)
        first = await router.pick_miner_for_job_request(job("one"))
        await ledger.release(first.allowance_reservation_id or 0)
        second = await router.pick_miner_for_job_request(job("one"))
        clock.advance(1_000)
        assert [each.reservation_id for each in await ledger.expire_due()] == [second.allowance_reservation_id]
        third = await router.pick_miner_for_job_request(job("one"))
        await ledger.spend(third.allowance_reservation_id or 0)
        ids = [each.allowance_reservation_id or 0 for each in (first, second, third)]
        assert sorted(set(ids)) == ids
        with pytest.raises(JobAlreadySpent) as refused:
            await router.pick_miner_for_job_request(job("one"))
        assert refused.value.reservation_id == third.allowance_reservation_id


async def test_miners_at_capacity_are_passed_over_and_then_all_are_busy() -> None:
    """A miner takes as many jobs as it has executors; overdue ones do not count."""
    clock = Clock()
    async with small_ledger(offers={"5Anna": 1, "5Bert": 2}, clock=clock) as ledger:
        router = Routing(ledger)
        routes = [await router.pick_miner_for_job_request(job(f"job {n}", 1.0)) for n in range(3)]
        assert Counter(route.miner.hotkey_ss58 for route in routes) == {"5Anna": 1, "5Bert": 2}
        with pytest.raises(AllMinersBusy) as refused:
            await router.pick_miner_for_job_request(job("one more", 1.0))
        assert refused.value.busy == 2
        clock.advance(102)
        assert (await router.pick_miner_for_job_request(job("one more", 1.0))).allowance_blocks


async def test_who_had_a_candidate_and_lost_it_is_told_that_all_are_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pick whose only miner another process took in between fails as `AllMinersBusy`: it did have the allowance.

    Catches: `NotEnoughAllowanceException` for a race that was lost. SQLite is made to decide before the lock, as
    PostgreSQL does.
    """
    monkeypatch.setattr(SqliteStore, "optimistic", True)
    url = f"sqlite:///{tmp_path}/ledger.db"
    clock = Clock(START + timedelta(seconds=132))
    async with (
        small_ledger(url=url, offers={"5Anna": 1}, clock=clock) as ledger,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as other,
    ):
        await other.reserve("5Anna", GPU, 60.0, 11)
        with pytest.raises(AllMinersBusy) as busy:
            await Routing(ledger).pick_miner_for_job_request(job("one"))
        assert (busy.value.busy, busy.value.lost) == (0, 1)
        with pytest.raises(NotEnoughAllowanceException):
            await Routing(ledger).pick_miner_for_job_request(job("two"))


async def test_respecting_executor_counts_can_be_turned_off() -> None:
    """With the setting off a miner is claimed as long as its allowance lasts."""
    settings = Settings(respect_executor_count=False)
    async with small_ledger(offers={"5Anna": 1}, settings=settings) as ledger:
        for number in range(10):
            await Routing(ledger).pick_miner_for_job_request(job(f"job {number}", 1.0))
        with pytest.raises(NotEnoughAllowanceException):
            await Routing(ledger).pick_miner_for_job_request(job("one more", 1.0))


async def test_not_enough_says_who_comes_nearest() -> None:
    """Four fields, ties to the lower hotkey; zeros and empty names where there is nobody."""
    async with small_ledger(offers={"5Anna": 1, "5Bert": 1}) as ledger:
        held = await ledger.reserve("5Anna", GPU, 30.0, 11)
        with pytest.raises(NotEnoughAllowanceException) as refused:
            await ledger.find_miners(61.0, GPU, 11)
        assert refused.value.to_dict() == {
            "highest_available_allowance": 60.0,
            "highest_available_allowance_ss58": "5Bert",
            "highest_unspent_allowance": 60.0,
            "highest_unspent_allowance_ss58": "5Anna",
        }
        await ledger.spend(held.reservation_id)
        with pytest.raises(NotEnoughAllowanceException) as refused:
            await Routing(ledger).pick_miner_for_job_request(job("one", 61.0))
        assert refused.value.highest_unspent_allowance_ss58 == "5Bert"
        with pytest.raises(NotEnoughAllowanceException) as refused:
            await ledger.find_miners(1.0, "no such class", 11)
        assert list(refused.value.to_dict().values()) == [0.0, "", 0.0, ""]
    async with Allowance.open("sqlite://", validator_ss58="5Validator") as empty:
        with pytest.raises(NotEnoughAllowanceException):
            await Routing(empty).pick_miner_for_job_request(job("one"))


async def test_equals_are_drawn_by_the_job() -> None:
    """Miners that are equally good share the jobs, and one job always draws the same."""
    hotkeys = {f"5M{number:02}": 50 for number in range(10)}
    async with small_ledger(offers=hotkeys, blocks=3) as ledger:
        found = Counter[str]()
        for number in range(200):
            route = await Routing(ledger).pick_miner_for_job_request(job(f"job {number}", 1.0))
            found[route.miner.hotkey_ss58] += 1
            await ledger.release(route.allowance_reservation_id or 0)
            again = await Routing(ledger).pick_miner_for_job_request(job(f"job {number}", 1.0))
            assert again.miner == route.miner
            await ledger.release(again.allowance_reservation_id or 0)
        assert len(found) == 10
        assert max(found.values()) < 60


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 12, 250])
def test_the_draw_tries_everybody_once(count: int) -> None:
    """Whatever the seed, the order is a permutation."""
    for seed in (0, 1, 5, 2**64 + 12345, 2**127):
        assert sorted(permutation(count, seed)) == list(range(count))


async def test_a_stale_feed_is_not_routed_on() -> None:
    """With an age set, a newest block older than that refuses; exactly that old does not."""
    clock = Clock()
    settings = Settings(newest_block_max_age_seconds=60.0)
    async with small_ledger(blocks=11, clock=clock, settings=settings) as ledger:
        clock.advance(12 * 11 + 60)
        await Routing(ledger).pick_miner_for_job_request(job("in time"))
        clock.advance(0.001)
        with pytest.raises(ChainFeedStale) as refused:
            await Routing(ledger).pick_miner_for_job_request(job("too late"))
        assert refused.value.newest_block == 11


async def test_debug_goes_before_trusted_and_neither_leaves_a_trace() -> None:
    """Both need no database, check no amounts and reserve nothing."""
    debug = Miner("127.0.0.1", 4, 1, "5Debug")
    nowhere = Allowance.open("sqlite:////nowhere/at/all.db", validator_ss58="5Validator")
    request = job("one", -5.0, trusted=True)
    assert await Routing(nowhere, debug_miner=debug).pick_miner_for_job_request(request) == JobRoute(
        debug, [], None, None
    )
    route = await Routing(nowhere).pick_miner_for_job_request(request)
    assert route.miner.hotkey_ss58 == TRUSTED_MINER_FAKE_KEY
    assert (route.allowance_blocks, route.allowance_reservation_id, route.allowance_job_value) == (None, None, None)
