"""Reserve, spend, release, expire: what stands, what is refused, and that asking twice does nothing twice."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from routing import (
    CannotReserveAllowanceException,
    IdempotencyConflict,
    ReservationAlreadyReleased,
    ReservationAlreadySpent,
    ReservationExpired,
    ReservationNotFound,
)
from tests.support.small import GPU, START, Clock, record_blocks, small_ledger

pytestmark = pytest.mark.compatibility


async def test_blocks_are_taken_whole_from_the_earliest() -> None:
    """60 s in ten blocks of 6 s: 13 s take three, and the next reservation goes on behind them."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        assert (await ledger.reserve("5Anna", GPU, 13.0, 11)).blocks == [1, 2, 3]
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [4]
        with pytest.raises(CannotReserveAllowanceException) as refused:
            await ledger.reserve("5Anna", GPU, 36.5, 11)
        assert refused.value.available_allowance_seconds == 36.0
        assert refused.value.required_allowance_seconds == 36.5
        assert refused.value.miner == "5Anna"


async def test_an_unknown_account_has_nothing_to_reserve() -> None:
    """No such miner or class: nothing is available."""
    async with small_ledger() as ledger:
        with pytest.raises(CannotReserveAllowanceException) as refused:
            await ledger.reserve("5Nobody", GPU, 1.0, 11)
        assert refused.value.available_allowance_seconds == 0.0


async def test_a_release_gives_the_blocks_back_and_a_spend_does_not() -> None:
    """The next claim takes what was released, not what was spent."""
    async with small_ledger(offers={"5Anna": 1}) as ledger:
        first = await ledger.reserve("5Anna", GPU, 6.0, 11)
        second = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.spend(first.reservation_id)).status == "spent"
        assert (await ledger.release(second.reservation_id)).status == "released"
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]


async def test_settling_twice_is_refused_and_says_when() -> None:
    """Each end has its error, and those of what is gone are ReservationNotFound too."""
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


async def test_an_overdue_reservation_still_pays_until_the_log_says_it_expired() -> None:
    """A job that ran a little late is paid."""
    clock = Clock()
    async with small_ledger(clock=clock) as ledger:
        held = await ledger.reserve("5Anna", GPU, 6.0, 11)
        clock.advance(1_000)
        assert (await ledger.reservation(held.reservation_id)).status == "reserved"
        assert (await ledger.spend(held.reservation_id)).status == "spent"


async def test_a_claim_expires_exactly_the_overdue_reservations_whose_blocks_it_takes() -> None:
    """Due is amount and margin after it was made, to the nanosecond; the other overdue one is left standing."""
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
    """Recorded times never go back; what was overdue is held again, and stands as it stood."""
    clock = Clock(START + timedelta(seconds=5_000))
    async with small_ledger(offers={"5Anna": 1}, clock=clock) as ledger:
        first = await ledger.reserve("5Anna", GPU, 60.0, 11)
        clock.advance(1_000)
        assert len(await ledger.find_miners(60.0, GPU, 11)) == 1
        clock.advance(-3_000)
        with pytest.raises(CannotReserveAllowanceException):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.release(first.reservation_id)).settled_at == START + timedelta(seconds=5_000)


async def test_a_key_stands_for_one_request() -> None:
    """The same content answers with the first outcome, whatever came after; other content is refused."""
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


async def test_a_reservation_keeps_its_blocks_through_a_drop_and_does_not_give_them_back() -> None:
    """Invalidated blocks stay with whom they are held by; once released they are free to nobody."""
    async with small_ledger(offers={"5Anna": 2}) as ledger:
        held = await ledger.reserve("5Anna", GPU, 12.0, 11)
        await ledger.record_manifests(11, {"5Anna": {GPU: 1}})
        assert (await ledger.reservation(held.reservation_id)).blocks == [1]
        await ledger.release(held.reservation_id)
        await record_blocks(ledger, 12, 13, ["5Anna"])
        (candidate,) = await ledger.find_miners(6.0, GPU, 13)
        assert (candidate.earliest_block, candidate.total_seconds) == (11, 12.0)


async def test_what_was_reserved_is_there_after_reopening(tmp_path: Path) -> None:
    """The file is the truth: a new process sees the same reservations, blocks and refusals."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        held = await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="r")
        gone = await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.release(gone.reservation_id)
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        assert await ledger.reservation(held.reservation_id) == held
        assert await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="r") == held
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]
        with pytest.raises(ReservationAlreadyReleased):
            await ledger.spend(gone.reservation_id)


async def test_ids_of_another_ledger_are_unknown(tmp_path: Path) -> None:
    """Two validators share one database and nothing else."""
    from routing import Allowance

    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url) as ledger, Allowance.open(url, validator_ss58="5Other") as other:
        held = await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="job")
        for call in (lambda: other.spend(held.reservation_id), lambda: other.reservation_for_job("job")):
            with pytest.raises(ReservationNotFound):
                await call()
        assert (await other.history()).items == []
        assert await other.current_block() is None
