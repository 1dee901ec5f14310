"""Idempotency keys of facts and of `expire_due`, on every engine (reservations: routing/test_reservations.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from ledger import FactValidator, RecordFacts
from ledger.codec import decode
from ledger.events import ExpiryRecorded
from routing import Allowance, BlockFact, ConflictingFact, IdempotencyConflict, ImplausibleFact, ManifestsFact
from tests.support.small import GPU, START, VALIDATOR, Clock, miner, small_ledger
from tests.support.stories import events_of

STAKES = {VALIDATOR: 1.0, "5Other": 1.0}
LATER_S = 1000


def a_block(number: int, late_s: float = 0.0) -> BlockFact:
    return BlockFact(number, START + timedelta(seconds=12 * number + late_s), [miner("5Anna")], STAKES)


@pytest.fixture
def clock() -> Clock:
    return Clock(START + timedelta(seconds=132))


@pytest.fixture
async def ledger(database_url: str, clock: Clock) -> AsyncIterator[Allowance]:
    """A ledger with one miner, Anna: four executors, and blocks of 6 s per executor."""
    async with small_ledger(url=database_url, offers={"5Anna": 4}, clock=clock) as opened:
        yield opened


async def test_a_keyed_block_is_recorded_once(ledger: Allowance) -> None:
    """The same block with the same key returns its first position; another block with the key is not recorded.

    Catches: a key that is stored but never looked up, and one that is not stored.
    """
    block = a_block(12)
    content = (block.number, block.created_at, block.miners, block.stakes)
    first = await ledger.record_block(*content, idempotency_key="k")
    assert await ledger.record_block(*content, idempotency_key="k") == first
    assert await ledger.record_block(*content) == first
    head = await ledger.head()
    other = a_block(13)
    with pytest.raises(IdempotencyConflict) as refused:
        await ledger.record_block(other.number, other.created_at, other.miners, other.stakes, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await ledger.record_manifests(12, {"5Anna": {GPU: 4}}, idempotency_key="k")
    assert refused.value.first_position == first
    assert await ledger.head() == head
    assert await ledger.record_block(other.number, other.created_at, other.miners, other.stakes) == first + 1


async def test_a_keyed_sync_is_recorded_once(ledger: Allowance) -> None:
    """The same sync with the same key returns its first position; another sync with the key is not recorded."""
    first = await ledger.record_manifests(11, {"5Anna": {GPU: 5}}, idempotency_key="k")
    assert await ledger.record_manifests(11, {"5Anna": {GPU: 5}}, idempotency_key="k") == first
    for block, count in ((11, 6), (12, 5)):
        with pytest.raises(IdempotencyConflict):
            await ledger.record_manifests(block, {"5Anna": {GPU: count}}, idempotency_key="k")
    assert (await ledger.head()).position == first


async def test_a_keyed_batch_of_facts_is_recorded_once(ledger: Allowance) -> None:
    """Its last new fact carries the key; any other batch with the key is refused as a whole, also a part of it."""
    batch: list[BlockFact | ManifestsFact] = [a_block(11), a_block(12), ManifestsFact(12, {"5Anna": {GPU: 4}})]
    positions = await ledger.record_facts(batch, idempotency_key="k")
    assert [row.position for row in await events_of(ledger) if row.key == "k"] == [positions[2]]
    assert await ledger.record_facts(batch, idempotency_key="k") == positions
    with pytest.raises(IdempotencyConflict):
        await ledger.record_facts([a_block(12), a_block(13)], idempotency_key="k")
    for other in ([a_block(12, late_s=1.0)], batch[1:], batch[:2], [*batch, a_block(13)]):
        with pytest.raises(IdempotencyConflict):
            await ledger.record_facts(other, idempotency_key="k")
    assert (await ledger.head()).position == positions[-1]


async def test_a_retried_batch_is_refused_the_same_fact_again(ledger: Allowance) -> None:
    """Even if the fact was recorded since: the first outcome was that this call did not record it.

    Catches: a result that is computed from the current log instead of the first outcome.
    """
    far = a_block(200_000)
    for _ in range(2):
        with pytest.raises(ImplausibleFact) as refused:
            await ledger.record_facts([a_block(12), far], idempotency_key="k")
        assert refused.value.fact_index == 1
    await ledger.record_facts([far], confirm=True)
    with pytest.raises(ImplausibleFact) as refused:
        await ledger.record_facts([a_block(12), far], idempotency_key="k")
    assert refused.value.fact_index == 1
    with pytest.raises(IdempotencyConflict):
        await ledger.record_facts([a_block(12), far], confirm=True, idempotency_key="k")


async def test_the_key_of_an_unknown_outcome_belongs_to_its_call_alone(ledger: Allowance) -> None:
    """With that key the same facts return their positions, and any other call is refused."""
    batch = [a_block(12), a_block(13)]
    positions = await ledger.record_facts(batch)
    contents, _ = FactValidator().contents(batch)
    key = RecordFacts(contents, confirm=False).retry_key((await events_of(ledger))[-1])
    assert await ledger.record_facts(batch, idempotency_key=key) == positions
    for other in ([a_block(13)], [a_block(12), a_block(14)]):
        with pytest.raises(IdempotencyConflict):
            await ledger.record_facts(other, idempotency_key=key)
    with pytest.raises(IdempotencyConflict):
        await ledger.expire_due(idempotency_key=key)


async def test_a_key_stays_free_if_all_facts_are_refused(ledger: Allowance) -> None:
    """After the refusal, the corrected call can use the same key."""
    far = a_block(200_000)
    with pytest.raises(ImplausibleFact):
        await ledger.record_facts([far], idempotency_key="k")
    with pytest.raises(ConflictingFact):
        await ledger.record_facts([a_block(11, late_s=1.0)], idempotency_key="k")
    positions = await ledger.record_facts([far], confirm=True, idempotency_key="k")
    assert await ledger.record_facts([far], idempotency_key="k") == positions


async def test_a_keyed_expire_due_happens_once(ledger: Allowance, clock: Clock) -> None:
    """A retry returns the same reservations, although others are overdue by then; the key of another call is refused.

    Catches: a second round of expiries, and a result with more or fewer reservations than the first call expired.
    """
    due = [await ledger.reserve("5Anna", GPU, 24.0 + n, 11, job_uuid=f"job-{n}") for n in range(3)]
    spent = await ledger.reserve("5Anna", GPU, 24.0, 11, idempotency_key="reserve")
    clock.advance(LATER_S)
    await ledger.spend(spent.reservation_id, idempotency_key="spend")
    expired = await ledger.expire_due(idempotency_key="expire")
    assert [each.reservation_id for each in expired] == [each.reservation_id for each in due]
    late = await ledger.reserve("5Anna", GPU, 24.0, 11)
    clock.advance(LATER_S)
    assert await ledger.expire_due(idempotency_key="expire") == expired
    assert [each.status for each in expired] == ["expired"] * 3
    for key in ("reserve", "spend"):
        with pytest.raises(IdempotencyConflict):
            await ledger.expire_due(idempotency_key=key)
    with pytest.raises(IdempotencyConflict):
        await ledger.release(late.reservation_id, idempotency_key="expire")
    assert [each.reservation_id for each in await ledger.expire_due()] == [late.reservation_id]


async def test_a_key_stays_free_if_nothing_is_overdue(ledger: Allowance, clock: Clock) -> None:
    """A later `expire_due` with the same key expires what is overdue by then."""
    reserved = await ledger.reserve("5Anna", GPU, 6.0, 11)
    assert await ledger.expire_due(idempotency_key="expire") == []
    clock.advance(LATER_S)
    expired = await ledger.expire_due(idempotency_key="expire")
    assert [each.reservation_id for each in expired] == [reserved.reservation_id]


async def test_only_the_last_expiry_of_expire_due_has_a_count(ledger: Allowance, clock: Clock) -> None:
    """It counts the expiries of the call; an expiry that a claim appended has 0."""
    for _ in range(2):
        await ledger.reserve("5Anna", GPU, 24.0, 11)
    clock.advance(LATER_S)
    await ledger.reserve("5Anna", GPU, 24.0, 11)
    await ledger.expire_due()
    events = [decode(row.position, row.payload) for row in await events_of(ledger)]
    assert [event.swept for event in events if isinstance(event, ExpiryRecorded)] == [0, 1]
