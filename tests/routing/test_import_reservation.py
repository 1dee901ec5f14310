"""Reservations of another system are taken over as they were, and once; blocks that are not free are refused."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from ledger.events import AllowanceReserved
from routing import (
    Allowance,
    CannotImportReservation,
    IdempotencyConflict,
    ImportedReservation,
    InvalidInput,
    JobAlreadySpent,
    JobRequestConflict,
    Reservation,
    Rule,
)
from tests.support.small import GPU, START, VALIDATOR, Clock, record_blocks, small_ledger

MADE = START + timedelta(seconds=60)
DUE = START + timedelta(hours=1)


async def imported(
    ledger: Allowance, blocks: list[tuple[int, int]], amount_seconds: float | None = None, **named: Any
) -> Reservation:
    """Import a reservation on `5Anna`, whose blocks 1 to 10 grant 12 s each."""
    key = named.pop("idempotency_key", None)
    return await ledger.import_reservation(described(blocks, amount_seconds, **named), idempotency_key=key)


def described(blocks: list[tuple[int, int]], amount_seconds: float | None = None, **named: Any) -> ImportedReservation:
    fields: dict[str, Any] = {
        "miner_ss58": "5Anna",
        "executor_class": GPU,
        "reserved_at": MADE,
        "expires_at": DUE,
    } | named
    return ImportedReservation(blocks=blocks, amount_seconds=amount_seconds, **fields)


async def available(ledger: Allowance, hotkey: str = "5Anna") -> float:
    return {each.hotkey_ss58: each.available_seconds for each in await ledger.find_miners(0.001, GPU, 11)}[hotkey]


async def test_exactly_its_blocks_are_held_until_its_due_time(any_url: str) -> None:
    """Blocks 3, 4 and 7 are held, although 1 is free and earlier; the due time is the other system's."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=any_url, clock=clock) as ledger:
        reservation = await imported(ledger, [(7, 7), (3, 4)], 30.0, job_uuid="theirs")
        assert (reservation.blocks, reservation.allowance_seconds) == ([3, 4, 7], 30.0)
        assert (reservation.status, reservation.expires_at, reservation.job_uuid) == ("reserved", DUE, "theirs")
        assert await available(ledger) == 120.0 - 36.0
        assert (await ledger.reserve("5Anna", GPU, 48.0, 11)).blocks == [1, 2, 5, 6]
        clock.advance(3600)
        assert [each.reservation_id for each in await ledger.expire_due()] != []
        assert await available(ledger) == 120.0


async def test_the_event_says_that_it_was_imported_and_when_it_was_made() -> None:
    """`imported` and the other system's time are in the log; the reservation's own time is that of the import."""
    async with small_ledger() as ledger:
        reservation = await imported(ledger, [(3, 4)])
        assert reservation.reserved_at == START + timedelta(seconds=132)
        (event,) = [each.event async for each in ledger.events() if isinstance(each.event, AllowanceReserved)]
        made_ns = int(MADE.timestamp()) * 10**9
        assert (event.imported, event.reserved_at_ns, event.blocks) == (True, made_ns, [(3, 4)])


async def test_a_spent_one_is_spent_in_the_same_append() -> None:
    """No moment of the log has it reserved only; a crash between two appends would let it expire."""
    async with small_ledger() as ledger:
        before = (await ledger.head()).position
        reservation = await imported(ledger, [(3, 4)], status="spent")
        assert reservation.status == "spent"
        assert (await ledger.head()).position == before + 2
        assert await ledger.reservation(reservation.reservation_id) == reservation
        assert await available(ledger) == 96.0


async def test_importing_again_changes_nothing(any_url: str) -> None:
    """Also after the ledger was opened again, in one batch, and after a release here: it does not come back."""
    reserved: dict[str, Any] = {"job_uuid": "one"}
    spent: dict[str, Any] = {"job_uuid": "two", "status": "spent"}
    async with small_ledger(url=any_url) as ledger:
        firsts = [await imported(ledger, [(1, 2)], **reserved), await imported(ledger, [(3, 3)], **spent)]
        head = (await ledger.head()).position
        again = asyncio.gather(imported(ledger, [(1, 2)], **reserved), imported(ledger, [(3, 3)], **spent))
        assert list(await again) == firsts
        assert (await ledger.head()).position == head
        await ledger.release(firsts[0].reservation_id)
    async with Allowance.open(any_url, validator_ss58=VALIDATOR, clock_ns=Clock(DUE)) as ledger:
        assert (await imported(ledger, [(1, 2)], **reserved)).status == "released"
        assert (await imported(ledger, [(3, 3)], **spent)).status == "spent"
        assert (await ledger.head()).position == head + 1


async def test_a_reserved_one_is_spent_when_the_other_system_says_so_later() -> None:
    """A second import after the job has run spends it once; another due time is no other reservation."""
    async with small_ledger() as ledger:
        first = await imported(ledger, [(1, 2)])
        spent = await imported(ledger, [(1, 2)], status="spent", expires_at=MADE)
        assert (spent.reservation_id, spent.status) == (first.reservation_id, "spent")
        head = (await ledger.head()).position
        assert await imported(ledger, [(1, 2)], status="spent") == spent
        assert (await ledger.head()).position == head


async def test_blocks_that_are_taken_or_not_granted_are_refused_whole() -> None:
    """Both lists are named, and nothing is held; block 11 is not finalized, and 5Dora offers nothing."""
    async with small_ledger() as ledger:
        held = await ledger.reserve("5Anna", GPU, 12.0, 11)
        assert held.blocks == [1]
        with pytest.raises(CannotImportReservation) as refused:
            await imported(ledger, [(1, 3), (9, 12)])
        assert (refused.value.not_granted, refused.value.taken) == ([(11, 12)], [(1, 1)])
        assert str(refused.value).endswith("blocks not granted: 11–12; taken: 1")
        with pytest.raises(CannotImportReservation) as refused:
            await imported(ledger, [(9, 11)])
        assert (refused.value.not_granted, refused.value.taken) == ([(11, 11)], [])
        with pytest.raises(CannotImportReservation) as refused:
            await imported(ledger, [(1, 2)], miner_ss58="5Dora")
        assert (refused.value.not_granted, refused.value.taken) == ([(1, 2)], [])
        assert await available(ledger) == 108.0


async def test_an_overdue_reservation_takes_no_block() -> None:
    """Its expiry is recorded before the blocks have a new owner, as in every claim."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(clock=clock) as ledger:
        overdue = await ledger.reserve("5Anna", GPU, 24.0, 11)
        clock.advance(1000)
        await imported(ledger, [(2, 3)])
        assert (await ledger.reservation(overdue.reservation_id)).status == "expired"
        assert await available(ledger) == 96.0


async def test_invalidated_and_old_blocks_are_held_as_they_were() -> None:
    """The other system held them before the drop; a spent block must not come back if the sync is withdrawn."""
    async with small_ledger() as ledger:
        await ledger.record_manifests(6, {"5Anna": {GPU: 1}, "5Bert": {GPU: 2}, "5Carl": {GPU: 2}})
        assert (await imported(ledger, [(1, 2)], status="spent")).blocks == [1, 2]
        await record_blocks(ledger, 12, 13, ["5Anna", "5Bert", "5Carl"])
        await ledger.withdraw_manifests(6, "a mistake")
        assert await available(ledger) == 10 * 12.0 + 2 * 6.0 - 24.0


async def test_the_amount_is_at_most_what_the_blocks_grant() -> None:
    """A float sum may exceed it by its rounding; more is refused. Without an amount, it is what they grant."""
    async with small_ledger() as ledger:
        assert (await imported(ledger, [(1, 1)], 12.0000009)).allowance_seconds == 12.0
        assert (await imported(ledger, [(2, 2)])).allowance_seconds == 12.0
        for amount_seconds in (12.001, 0.0):
            with pytest.raises(InvalidInput) as refused:
                await imported(ledger, [(3, 3)], amount_seconds)
            assert refused.value.field == "amount_seconds"


async def test_a_job_has_one_active_reservation_and_is_spent_once() -> None:
    """Another reservation of the same job is refused while it is reserved, and after it was spent."""
    async with small_ledger() as ledger:
        await imported(ledger, [(1, 1)], job_uuid="job")
        with pytest.raises(JobRequestConflict):
            await imported(ledger, [(2, 2)], job_uuid="job")
        await imported(ledger, [(1, 1)], job_uuid="job", status="spent")
        with pytest.raises(JobAlreadySpent):
            await imported(ledger, [(2, 2)], job_uuid="job")


async def test_a_key_belongs_to_one_reservation() -> None:
    """The same key with other blocks is refused."""
    async with small_ledger() as ledger:
        first = await imported(ledger, [(1, 1)], idempotency_key="booking 7")
        assert await imported(ledger, [(1, 1)], idempotency_key="booking 7") == first
        with pytest.raises(IdempotencyConflict):
            await imported(ledger, [(2, 2)], idempotency_key="booking 7")


async def test_a_known_reservation_after_a_new_one_is_a_repeat(any_url: str) -> None:
    """Catches: many imports decided without the stored rows, to which the blocks of a known one look taken."""
    async with small_ledger(url=any_url) as ledger:
        for known in (described([(5, 5)]), described([(6, 6)], status="spent")):
            first = await ledger.import_reservations([known])
            block = first[0][0].blocks[0]
            reservations, refusal = await ledger.import_reservations([described([(block + 3, block + 3)]), known])
            assert (reservations[1:], refusal) == (first[0], None)


@pytest.mark.parametrize(
    "blocks", ["12", 12, [], [(2, 1)], [(0, 1)], [(1, 2), (2, 3)], [(1,)], [(1, 2.0)], [(1, 2**40)]], ids=repr
)
async def test_malformed_blocks_are_refused(blocks: Any) -> None:
    """Overlaps, reversed runs, wrong types and absurd lengths."""
    async with small_ledger() as ledger:
        with pytest.raises(InvalidInput) as refused:
            await imported(ledger, blocks)
        assert refused.value.field == "blocks"


async def test_many_are_imported_up_to_the_first_refused_one(any_url: str) -> None:
    """The same one twice in a call counts once; what comes after a refused one is not imported."""
    async with small_ledger(url=any_url) as ledger:
        one, two = described([(1, 2)], status="spent"), described([(3, 3)])
        reservations, refusal = await ledger.import_reservations(
            [one, one, two, described([(2, 4)]), described([(9, 9)])]
        )
        assert [(each.blocks, each.status) for each in reservations] == [
            ([1, 2], "spent"),
            ([1, 2], "spent"),
            ([3], "reserved"),
        ]
        assert isinstance(refusal, CannotImportReservation)
        assert refusal.taken == [(2, 3)]
        assert await available(ledger) == 84.0
        head = (await ledger.head()).position
        assert await ledger.import_reservations([one, two]) == ([reservations[0], reservations[2]], None)
        assert (await ledger.head()).position == head


async def test_imported_reservations_that_are_overdue_expire_by_due_time() -> None:
    """Imported in another order than they are due. The audit agrees; catches: its queue in order of the imports."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(clock=clock) as ledger:
        late = await imported(ledger, [(1, 1)], expires_at=START + timedelta(seconds=40))
        early = await imported(ledger, [(2, 2)], expires_at=START + timedelta(seconds=20))
        await imported(ledger, [(3, 3)], expires_at=START + timedelta(seconds=30))
        clock.advance(1)
        expired = await ledger.expire_due()
        assert [each.blocks for each in expired] == [[2], [3], [1]]
        assert (expired[0].reservation_id, expired[-1].reservation_id) == (early.reservation_id, late.reservation_id)
        rules = {finding.rule for finding in (await ledger.audit()).findings}
        assert Rule.EXPIRES_WHAT_IS_TAKEN not in rules
