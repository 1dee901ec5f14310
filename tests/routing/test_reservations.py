"""Reserve, spend, release, expire: their results, their refusals, and that repeating a call changes nothing twice."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from routing import (
    Allowance,
    CannotReserveAllowanceException,
    IdempotencyConflict,
    ReservationAlreadyReleased,
    ReservationAlreadySpent,
    ReservationExpired,
    ReservationNotFound,
)
from tests.support.small import GPU, START, Clock, record_blocks, small_ledger

pytestmark = pytest.mark.compatibility


async def test_whole_blocks_are_reserved_earliest_first() -> None:
    """Ten blocks of 6 s grant 60 s: 13 s take three blocks, and the next reservation takes the fourth."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        assert (await ledger.reserve("5Anna", GPU, 13.0, 11)).blocks == [1, 2, 3]
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [4]
        with pytest.raises(CannotReserveAllowanceException) as refused:
            await ledger.reserve("5Anna", GPU, 36.5, 11)
        assert refused.value.available_allowance_seconds == 36.0
        assert refused.value.required_allowance_seconds == 36.5
        assert refused.value.miner == "5Anna"


async def test_an_unknown_account_has_no_allowance() -> None:
    """A reservation on an unknown miner is refused with 0 s available."""
    async with small_ledger() as ledger:
        with pytest.raises(CannotReserveAllowanceException) as refused:
            await ledger.reserve("5Nobody", GPU, 1.0, 11)
        assert refused.value.available_allowance_seconds == 0.0


async def test_a_release_frees_the_blocks_and_a_spend_does_not() -> None:
    """The next claim takes the released block, not the spent one."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        first = await ledger.reserve("5Anna", GPU, 6.0, 11)
        second = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.spend(first.reservation_id)).status == "spent"
        assert (await ledger.release(second.reservation_id)).status == "released"
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]


async def test_settling_twice_is_refused_with_the_time_of_the_first_settlement() -> None:
    """Each settlement has its own error; those of released and expired ones are also `ReservationNotFound`."""
    clock = Clock(START + timedelta(seconds=500))
    async with small_ledger(clock=clock) as ledger:
        spent = (await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id
        released = (await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id
        expired = (await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id
        await ledger.spend(spent)
        await ledger.release(released)
        clock.advance(107)
        await ledger.expire_due()
        for settle in (ledger.spend, ledger.release):
            with pytest.raises(ReservationAlreadySpent) as already:
                await settle(spent)
            assert already.value.settled_at == START + timedelta(seconds=500)
            with pytest.raises(ReservationAlreadyReleased) as gone:
                await settle(released)
            assert isinstance(gone.value, ReservationNotFound)
            with pytest.raises(ReservationExpired) as late:
                await settle(expired)
            assert late.value.settled_at == START + timedelta(seconds=607)


async def test_an_overdue_reservation_can_be_spent_until_its_expiry_is_recorded() -> None:
    """A job that ran a little late is still paid."""
    clock = Clock()
    async with small_ledger(clock=clock) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11)
        clock.advance(1_000)
        assert (await ledger.reservation(reserved.reservation_id)).status == "reserved"
        assert (await ledger.spend(reserved.reservation_id)).status == "spent"


async def test_a_claim_expires_exactly_the_overdue_reservations_whose_blocks_it_takes() -> None:
    """A reservation is due its amount plus the margin after it was made, to the nanosecond; others stay active."""
    clock = Clock()
    async with small_ledger(offers={"5Anna": 1}, clock=clock) as ledger:
        first = await ledger.reserve("5Anna", GPU, 6.0, 11)
        second = await ledger.reserve("5Anna", GPU, 6.0, 11)
        clock.now_ns += 106 * 10**9 - 1
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [3]
        clock.now_ns += 1
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [1]
        assert (await ledger.reservation(first.reservation_id)).status == "expired"
        assert (await ledger.reservation(second.reservation_id)).status == "reserved"


async def test_a_clock_that_jumps_back_changes_no_status() -> None:
    """After the jump the reservation is no longer overdue: its blocks are not free, and it can be released."""
    clock = Clock(START + timedelta(seconds=5_000))
    async with small_ledger(offers={"5Anna": 1}, clock=clock) as ledger:
        first = await ledger.reserve("5Anna", GPU, 60.0, 11)
        clock.advance(1_000)
        assert len(await ledger.find_miners(60.0, GPU, 11)) == 1
        clock.advance(-3_000)
        with pytest.raises(CannotReserveAllowanceException):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.release(first.reservation_id)).settled_at == START + timedelta(seconds=5_000)


async def test_a_key_identifies_one_request() -> None:
    """The same content returns the first outcome, whatever happened since; other content is refused."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        first = await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="r")
        spent = await ledger.spend(first.reservation_id, idempotency_key="s")
        assert await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="r") == first
        assert await ledger.spend(first.reservation_id, idempotency_key="s") == spent
        assert len((await ledger.history()).items) == 1
        for call in (
            lambda: ledger.reserve("5Anna", GPU, 7.0, 11, idempotency_key="r"),
            lambda: ledger.reserve("5Anna", GPU, 6.0, 10, idempotency_key="r"),
            lambda: ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="s"),
            lambda: ledger.release(first.reservation_id, idempotency_key="s"),
            lambda: ledger.spend(first.reservation_id, idempotency_key="r"),
        ):
            with pytest.raises(IdempotencyConflict):
                await call()
        with pytest.raises(ReservationAlreadySpent):
            await ledger.spend(first.reservation_id, idempotency_key="another")


async def test_a_reservation_keeps_invalidated_blocks_and_a_release_does_not_free_them() -> None:
    """A drop leaves a reservation its blocks; once released they are invalidated for everybody."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 12.0, 11)
        await ledger.record_manifests(11, {"5Anna": {GPU: 1}})
        assert (await ledger.reservation(reserved.reservation_id)).blocks == [1]
        await ledger.release(reserved.reservation_id)
        await record_blocks(ledger, 12, 13, ["5Anna"])
        (candidate,) = await ledger.find_miners(6.0, GPU, 13)
        assert (candidate.earliest_block, candidate.total_seconds) == (11, 12.0)


async def test_reservations_survive_reopening(tmp_path: Path) -> None:
    """A ledger opened again from its file has the same reservations, blocks and refusals."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="r")
        released = await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.release(released.reservation_id)
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        assert await ledger.reservation(reserved.reservation_id) == reserved
        assert await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="r") == reserved
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]
        with pytest.raises(ReservationAlreadyReleased):
            await ledger.spend(released.reservation_id)


async def test_ids_and_jobs_of_another_ledger_are_unknown(tmp_path: Path) -> None:
    """Two validators can share one database, and see nothing of each other."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url) as ledger, Allowance.open(url, validator_ss58="5Other") as other:
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="job")
        for call in (lambda: other.spend(reserved.reservation_id), lambda: other.reservation_for_job("job")):
            with pytest.raises(ReservationNotFound):
                await call()
        assert (await other.history()).items == []
        assert await other.current_block() is None
