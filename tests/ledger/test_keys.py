"""Idempotency keys of facts and sweeps, on every engine; those of reservations stand beside their other tests."""

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
    """Anna's eleven blocks of 6 s for each of four executors."""
    async with small_ledger(url=database_url, offers={"5Anna": 4}, clock=clock) as opened:
        yield opened


async def test_a_keyed_block_is_recorded_once(ledger: Allowance) -> None:
    """The same block under the same key answers with its first position; another under it is refused, and not recorded.

    Catches a key that is written and never looked at, and one that is not written.
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
    """As for blocks: told by its content, kept apart by its key."""
    first = await ledger.record_manifests(11, {"5Anna": {GPU: 5}}, idempotency_key="k")
    assert await ledger.record_manifests(11, {"5Anna": {GPU: 5}}, idempotency_key="k") == first
    for block, count in ((11, 6), (12, 5)):
        with pytest.raises(IdempotencyConflict):
            await ledger.record_manifests(block, {"5Anna": {GPU: count}}, idempotency_key="k")
    assert (await ledger.head()).position == first


async def test_a_keyed_batch_of_facts_is_recorded_once(ledger: Allowance) -> None:
    """Its last new fact bears the key; any other batch under it is refused whole, also one of its parts."""
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


async def test_what_a_keyed_batch_was_refused_it_is_refused_again(ledger: Allowance) -> None:
    """Also where the fact has been recorded since: the first outcome was that this call did not record it.

    Catches an answer that is made from what is in the log now.
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


async def test_a_key_of_a_lost_outcome_tells_its_own_call_alone(ledger: Allowance) -> None:
    """Under the key that an unknown outcome carries, other facts are refused, and the same answered as they were."""
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


async def test_refused_facts_leave_nothing_under_a_key(ledger: Allowance) -> None:
    """After a refusal the key is free for the call that does it right."""
    far = a_block(200_000)
    with pytest.raises(ImplausibleFact):
        await ledger.record_facts([far], idempotency_key="k")
    with pytest.raises(ConflictingFact):
        await ledger.record_facts([a_block(11, late_s=1.0)], idempotency_key="k")
    positions = await ledger.record_facts([far], confirm=True, idempotency_key="k")
    assert await ledger.record_facts([far], idempotency_key="k") == positions


async def test_a_keyed_sweep_is_made_once(ledger: Allowance, clock: Clock) -> None:
    """The same key answers with the same reservations, although others have come due; no key of another call does.

    Catches a sweep that is made again, and an answer that lists more, or fewer, than the sweep ended.
    """
    due = [await ledger.reserve("5Anna", GPU, 24.0 + n, 11, job_uuid=f"job-{n}") for n in range(3)]
    kept = await ledger.reserve("5Anna", GPU, 24.0, 11, idempotency_key="reserve")
    clock.advance(LATER_S)
    await ledger.spend(kept.reservation_id, idempotency_key="spend")
    swept = await ledger.expire_due(idempotency_key="sweep")
    assert [each.reservation_id for each in swept] == [each.reservation_id for each in due]
    late = await ledger.reserve("5Anna", GPU, 24.0, 11)
    clock.advance(LATER_S)
    assert await ledger.expire_due(idempotency_key="sweep") == swept
    assert [each.status for each in swept] == ["expired"] * 3
    for key in ("reserve", "spend"):
        with pytest.raises(IdempotencyConflict):
            await ledger.expire_due(idempotency_key=key)
    with pytest.raises(IdempotencyConflict):
        await ledger.release(late.reservation_id, idempotency_key="sweep")
    assert [each.reservation_id for each in await ledger.expire_due()] == [late.reservation_id]


async def test_a_sweep_that_ended_nothing_leaves_nothing_under_its_key(ledger: Allowance, clock: Clock) -> None:
    """Where nothing was due, the key is free; the next sweep under it ends what is due then."""
    held = await ledger.reserve("5Anna", GPU, 6.0, 11)
    assert await ledger.expire_due(idempotency_key="sweep") == []
    clock.advance(LATER_S)
    assert [each.reservation_id for each in await ledger.expire_due(idempotency_key="sweep")] == [held.reservation_id]


async def test_the_log_tells_sweeps_from_expiries_that_claims_bring(ledger: Allowance, clock: Clock) -> None:
    """The last expiry of a sweep says how many there were; an expiry that a claim brought says nothing."""
    for _ in range(2):
        await ledger.reserve("5Anna", GPU, 24.0, 11)
    clock.advance(LATER_S)
    await ledger.reserve("5Anna", GPU, 24.0, 11)
    await ledger.expire_due()
    events = [decode(row.position, row.payload) for row in await events_of(ledger)]
    assert [event.swept for event in events if isinstance(event, ExpiryRecorded)] == [0, 1]
