"""`reserve` at an expected version: who succeeds, what is checked first, and what a conflict says and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from ledger.events import account_stream
from routing import (
    Allowance,
    CannotReserveAllowanceException,
    IdempotencyConflict,
    InvalidInput,
    JobAlreadySpent,
    Routing,
    StreamVersionConflict,
)
from routing.sync import Allowance as BlockingAllowance
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

pytestmark = pytest.mark.compatibility


async def version_of(ledger: Allowance, miner_ss58: str = "5Anna") -> int:
    """Return the version of an account's stream, as `find_miners` reports it."""
    candidates = await ledger.find_miners(1.0, GPU, 11)
    return next(each.stream_version for each in candidates if each.hotkey_ss58 == miner_ss58)


async def conflict(reserving: Awaitable[Any]) -> tuple[str, int, int]:
    """Return the stream, the expected and the actual version of the conflict that a reservation raises."""
    with pytest.raises(StreamVersionConflict) as refused:
        await reserving
    assert refused.value.to_dict() == {
        "stream": refused.value.stream,
        "expected_version": refused.value.expected_version,
        "actual_version": refused.value.actual_version,
    }
    return refused.value.stream, refused.value.expected_version, refused.value.actual_version


async def test_a_reservation_at_the_version_of_its_candidate_succeeds(any_url: str) -> None:
    """The candidate's `stream_version` is what `reserve` expects, from the first reservation on.

    Catches a version that counts something else than the account's own events.
    """
    async with small_ledger(url=any_url) as ledger:
        assert await version_of(ledger) == 0
        for expected in range(4):
            reserved = await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=await version_of(ledger))
            assert await version_of(ledger) == 2 * expected + 1
            await ledger.release(reserved.reservation_id)


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger, reserved: ledger.reserve("5Anna", GPU, 6.0, 11),
        lambda ledger, reserved: ledger.spend(reserved.reservation_id),
        lambda ledger, reserved: ledger.release(reserved.reservation_id),
    ],
    ids=["reserve", "spend", "release"],
)
async def test_every_event_of_the_account_moves_its_version(
    url: str, change: Callable[[Allowance, Any], Awaitable[Any]]
) -> None:
    """After it the old version conflicts, and nothing is recorded; the new one succeeds.

    Catches a comparison that is left out, and one that records before it compares.
    """
    async with small_ledger(url=url) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11)
        await change(ledger, reserved)
        head = await ledger.head()
        reserving = ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=1)
        assert await conflict(reserving) == (account_stream("5Anna", GPU), 1, 2)
        assert await ledger.head() == head
        await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=2)


async def test_events_of_other_streams_do_not_disturb(url: str) -> None:
    """Claims on another account, facts and settings leave the account's version as it is."""
    async with small_ledger(url=url, offers={"5Anna": 2, "5Bert": 2}) as ledger:
        await ledger.reserve("5Bert", GPU, 6.0, 11)
        await ledger.record_manifests(12, {"5Anna": {GPU: 3}, "5Bert": {GPU: 2}})
        await ledger.change_settings(reservation_margin_seconds=50.0)
        await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0)


async def test_of_two_callers_with_one_version_exactly_one_succeeds(any_url: str) -> None:
    """They run in one process, mostly in one batch, and in two; a third caller's account is not disturbed.

    Catches a command that compares with the state before its batch.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with (
        small_ledger(url=any_url, offers={"5Anna": 2, "5Bert": 2}, clock=clock) as ledger,
        Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=clock) as other,
    ):
        for expected in range(8):
            racers = [
                each.reserve("5Anna", GPU, 6.0, 11, expected_version=expected) for each in (ledger, ledger, other)
            ]
            third = ledger.reserve("5Bert", GPU, 6.0, 11, expected_version=expected)
            *results, undisturbed = await asyncio.gather(*racers, third, return_exceptions=True)
            assert not isinstance(undisturbed, BaseException)
            assert sorted(type(each).__name__ for each in results) == [
                "Reservation",
                "StreamVersionConflict",
                "StreamVersionConflict",
            ]


async def test_a_version_of_the_future_conflicts(url: str) -> None:
    """A caller that read another ledger, or a log that went back, expects a version that is not there yet."""
    async with small_ledger(url=url) as ledger:
        reserving = ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=7)
        assert await conflict(reserving) == (account_stream("5Anna", GPU), 7, 0)


async def test_an_account_that_does_not_exist_has_version_0(url: str) -> None:
    """Expecting 0 of it, the reservation fails for lack of allowance, and not by a conflict."""
    async with small_ledger(url=url) as ledger:
        with pytest.raises(CannotReserveAllowanceException):
            await ledger.reserve("5Nobody", GPU, 6.0, 11, expected_version=0)
        reserving = ledger.reserve("5Nobody", GPU, 6.0, 11, expected_version=1)
        assert await conflict(reserving) == (account_stream("5Nobody", GPU), 1, 0)


async def test_the_key_and_the_jobs_own_reservation_come_before_the_version(url: str) -> None:
    """A retry returns its reservation although the account has moved; its version is not part of the key's content.

    Catches an order of checks in which a retry of a reservation that succeeded is refused.
    """
    async with small_ledger(url=url) as ledger:
        first = await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0, idempotency_key="r")
        for version in (0, 1, 5, None):
            again = ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=version, idempotency_key="r")
            assert await again == first
        for other_s in (7.0, 4000.0):  # The second is above the longest job, which is checked later as well.
            with pytest.raises(IdempotencyConflict):
                await ledger.reserve("5Anna", GPU, other_s, 11, expected_version=0, idempotency_key="r")
        by_job = await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=1, job_uuid="job")
        assert await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0, job_uuid="job") == by_job
        await ledger.spend(by_job.reservation_id)
        with pytest.raises(JobAlreadySpent):
            await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0, job_uuid="job")


async def test_the_version_comes_before_the_allowance(url: str) -> None:
    """A caller that decided on a state that has passed must look again, whether or not there is enough now."""
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        await ledger.reserve("5Anna", GPU, 60.0, 11)
        assert (await conflict(ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0)))[1:] == (0, 1)
        with pytest.raises(CannotReserveAllowanceException):
            await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=1)


async def test_a_refused_key_stays_free(url: str) -> None:
    """After a conflict, the same key reserves at the version of now."""
    async with small_ledger(url=url) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        await conflict(ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0, idempotency_key="r"))
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=1, idempotency_key="r")
        assert await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0, idempotency_key="r") == reserved


@pytest.mark.parametrize("bad", [-1, 1.0, "1", True, 2**63, float("nan"), [0]])
async def test_a_malformed_version_is_refused_by_name(bad: Any) -> None:
    """It must be an integer of 0 or more; `True` would otherwise count as 1."""
    async with small_ledger() as ledger:
        with pytest.raises(InvalidInput) as refused:
            await ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=bad)
        assert refused.value.field == "expected_version"
        assert (await ledger.history()).items == []


async def test_a_routers_claim_moves_the_version_too(url: str) -> None:
    """A pick and a reservation by hand claim by the same call, so neither overlooks the other."""
    async with small_ledger(url=url, offers={"5Anna": 2}) as ledger:
        version = await version_of(ledger)
        await Routing(ledger).pick_miner_for_job_request(job("job"))
        reserving = ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=version)
        assert (await conflict(reserving))[1:] == (version, version + 1)


def test_blocking_calls_have_it_too() -> None:
    """`routing.sync` takes the same argument and raises the same error."""
    with BlockingAllowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
        with pytest.raises(StreamVersionConflict):
            ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=3)
        with pytest.raises(CannotReserveAllowanceException):
            ledger.reserve("5Anna", GPU, 6.0, 11, expected_version=0)
