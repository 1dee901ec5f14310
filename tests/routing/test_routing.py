"""Which miner runs a job, and which error a caller gets if none can."""

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

pytestmark = pytest.mark.compatibility


async def test_a_route_names_the_miner_the_reserved_blocks_and_their_amount() -> None:
    """The claim takes whole blocks, earliest first: two executors get 12 s per block, so 13 s take two blocks."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("one", 13.0))
        assert route.miner == Miner("192.0.2.7", 4, 8000, "5Anna")
        assert route.allowance_blocks == [1, 2]
        assert route.allowance_job_value == 13.0
        reservation = await ledger.reservation(route.allowance_reservation_id or 0)
        assert (reservation.job_uuid, reservation.blocks, reservation.status) == ("one", [1, 2], "reserved")


async def test_a_route_survives_serialization() -> None:
    """Routes round-trip through asdict, msgspec and pydantic, as callers send them through task queues."""
    route = JobRoute(Miner("::1", 6, 80, "5Anna"), [1, 2], 5, 6.5)
    assert JobRoute(**{**asdict(route), "miner": Miner(**asdict(route)["miner"])}) == route
    assert msgspec.json.decode(msgspec.json.encode(route), type=JobRoute) == route
    adapter = TypeAdapter(JobRoute)
    assert adapter.validate_json(adapter.dump_json(route)) == route


async def test_a_job_keeps_its_route_while_its_reservation_is_active() -> None:
    """Routing a job again, concurrently or when overdue, returns its one reservation."""
    clock = Clock()
    async with small_ledger(clock=clock) as ledger:
        router = Routing(ledger)
        routes = await asyncio.gather(*(router.pick_miner_for_job_request(job("one")) for _ in range(20)))
        clock.advance(10_000)
        routes.append(await router.pick_miner_for_job_request(job("one")))
        assert all(route == routes[0] for route in routes)
        assert len((await ledger.history()).items) == 1


async def test_a_route_keeps_the_address_that_the_miner_had() -> None:
    """A miner that leaves the metagraph while its job runs does not change the route."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        router = Routing(ledger)
        first = await router.pick_miner_for_job_request(job("one"))
        await record_blocks(ledger, 12, 12, [])
        assert await router.pick_miner_for_job_request(job("one")) == first


async def test_another_request_with_the_same_uuid_is_refused() -> None:
    """If the class or the amount differs, the error lists the differences."""
    async with small_ledger() as ledger:
        router = Routing(ledger)
        await router.pick_miner_for_job_request(job("one", 6.0))
        with pytest.raises(JobRequestConflict) as refused:
            await router.pick_miner_for_job_request(job("one", 7.0))
        assert refused.value.differences == {"allowance_seconds": (6.0, 7.0)}
        with pytest.raises(JobRequestConflict):
            await router.pick_miner_for_job_request(job("one", 6.0, "other"))


async def test_a_released_or_expired_job_can_be_routed_again_and_a_spent_one_cannot() -> None:
    """A release or an expiry frees the uuid; a spend closes it for good."""
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


async def test_busy_miners_are_skipped_until_all_are_busy() -> None:
    """A miner runs at most as many jobs as it has executors; overdue reservations do not count."""
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


async def test_a_pick_that_loses_its_only_candidate_raises_all_miners_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pick whose only candidate another process claims meanwhile fails with `AllMinersBusy`: it had the allowance.

    Catches `NotEnoughAllowanceException` for a lost race. The test makes SQLite decide before it locks the head, as
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


async def test_the_busyness_check_can_be_turned_off() -> None:
    """With `respect_executor_count=False` a miner is claimed until its allowance is used up."""
    settings = Settings(respect_executor_count=False)
    async with small_ledger(offers={"5Anna": 1}, settings=settings) as ledger:
        for number in range(10):
            await Routing(ledger).pick_miner_for_job_request(job(f"job {number}", 1.0))
        with pytest.raises(NotEnoughAllowanceException):
            await Routing(ledger).pick_miner_for_job_request(job("one more", 1.0))


async def test_not_enough_allowance_names_the_miners_that_come_closest() -> None:
    """The error has four fields; the lower hotkey wins a tie; 0.0 and an empty name mean no miner."""
    async with small_ledger(offers={"5Anna": 1, "5Bert": 1}) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 30.0, 11)
        with pytest.raises(NotEnoughAllowanceException) as refused:
            await ledger.find_miners(61.0, GPU, 11)
        assert refused.value.to_dict() == {
            "highest_available_allowance": 60.0,
            "highest_available_allowance_ss58": "5Bert",
            "highest_unspent_allowance": 60.0,
            "highest_unspent_allowance_ss58": "5Anna",
        }
        await ledger.spend(reserved.reservation_id)
        with pytest.raises(NotEnoughAllowanceException) as refused:
            await Routing(ledger).pick_miner_for_job_request(job("one", 61.0))
        assert refused.value.highest_unspent_allowance_ss58 == "5Bert"
        with pytest.raises(NotEnoughAllowanceException) as refused:
            await ledger.find_miners(1.0, "no such class", 11)
        assert list(refused.value.to_dict().values()) == [0.0, "", 0.0, ""]
    async with Allowance.open("sqlite://", validator_ss58="5Validator") as empty:
        with pytest.raises(NotEnoughAllowanceException):
            await Routing(empty).pick_miner_for_job_request(job("one"))


async def test_not_enough_allowance_names_the_amount_and_the_class() -> None:
    """The message says what was asked for, and if nobody has ever offered the class; the fields stay the four."""
    async with small_ledger() as ledger:
        router = Routing(ledger)
        with pytest.raises(NotEnoughAllowanceException, match=f"no miner has 3000.0 s of {GPU}: most") as refused:
            await router.pick_miner_for_job_request(job("much", seconds=3000.0))
        assert len(refused.value.to_dict()) == 4
        with pytest.raises(
            NotEnoughAllowanceException, match=r"6\.0 s of gpu, a class that no manifest sync has named"
        ):
            await router.pick_miner_for_job_request(job("unknown", executor_class="gpu"))


async def test_the_job_uuid_breaks_ties_between_equal_miners() -> None:
    """Equally ranked miners share the jobs, and the same job always gets the same miner."""
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
def test_the_tie_break_tries_every_miner_once(count: int) -> None:
    """For every seed the order is a permutation."""
    for seed in (0, 1, 5, 2**64 + 12345, 2**127):
        assert sorted(permutation(count, seed)) == list(range(count))


async def test_a_stale_chain_feed_is_refused() -> None:
    """A newest block older than the configured age is refused; one exactly that old is accepted."""
    clock = Clock()
    settings = Settings(newest_block_max_age_seconds=60.0)
    async with small_ledger(blocks=11, clock=clock, settings=settings) as ledger:
        clock.advance(12 * 11 + 60)
        await Routing(ledger).pick_miner_for_job_request(job("in time"))
        clock.advance(0.001)
        with pytest.raises(ChainFeedStale) as refused:
            await Routing(ledger).pick_miner_for_job_request(job("too late"))
        assert refused.value.newest_block == 11


async def test_a_debug_route_precedes_a_trusted_one_and_neither_uses_the_ledger() -> None:
    """Neither needs a database, checks the amount, or reserves anything."""
    debug = Miner("127.0.0.1", 4, 1, "5Debug")
    nowhere = Allowance.open("sqlite:////nowhere/at/all.db", validator_ss58="5Validator")
    request = job("one", -5.0, trusted=True)
    assert await Routing(nowhere, debug_miner=debug).pick_miner_for_job_request(request) == JobRoute(
        debug, [], None, None
    )
    route = await Routing(nowhere).pick_miner_for_job_request(request)
    assert route.miner.hotkey_ss58 == TRUSTED_MINER_FAKE_KEY
    assert (route.allowance_blocks, route.allowance_reservation_id, route.allowance_job_value) == (None, None, None)
