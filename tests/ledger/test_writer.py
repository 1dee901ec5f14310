"""Group commit: what callers of one process, who share a commit, are told; and what they are spared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import CommitOutcomeUnknown, ExpireDue
from ledger import writer as writer_module
from ledger.writer import PendingCall
from routing import (
    Allowance,
    CannotReserveAllowanceException,
    JobRoute,
    LedgerOverloaded,
    NotEnoughAllowanceException,
    OutcomeUnknown,
    Routing,
    Settings,
    StorageUnavailable,
)
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger
from tests.support.stalling import queued, stalled
from tests.support.stories import events_of

SETTINGS = Settings(respect_executor_count=False)
ALL_S = 60.0
"""What Anna's ten blocks are worth together."""


@pytest.fixture
def clock() -> Clock:
    return Clock(START + timedelta(seconds=132))


@pytest.fixture
async def ledger(database_url: str, clock: Clock) -> AsyncIterator[Allowance]:
    """Anna's ten blocks of 6 s; she may run any number of jobs."""
    async with small_ledger(url=database_url, offers={"5Anna": 1}, clock=clock, settings=SETTINGS) as opened:
        yield opened


def fail_the_append(ledger: Allowance, monkeypatch: pytest.MonkeyPatch, *, readable: bool) -> None:
    """The next append is not done, and its answer does not say so; after it the log can be read, or not."""
    assert ledger._lifecycle.open_handle is not None
    store: Any = ledger._lifecycle.open_handle.store
    appending = "compare_and_append" if store.optimistic else "_append"
    append, read = getattr(store, appending), store.read
    commit: Any = getattr(store, "_commit", None)
    lost = asyncio.Event()

    async def append_nothing(*_: Any) -> bool:
        lost.set()
        raise CommitOutcomeUnknown("the answer was lost")

    def append_in_vain(*arguments: Any) -> None:
        append(*arguments)
        lost.set()

    def commit_unless_lost(connection: Any) -> None:
        if not lost.is_set():
            commit(connection)
            return
        connection.execute("ROLLBACK")
        raise CommitOutcomeUnknown("the answer was lost")

    async def read_unless_lost(after: int) -> Any:
        if lost.is_set() and not readable:
            raise StorageUnavailable("out of reach")
        return await read(after)

    if store.optimistic:
        monkeypatch.setattr(store, appending, append_nothing)
    else:
        monkeypatch.setattr(store, appending, append_in_vain)
        monkeypatch.setattr(store, "_commit", commit_unless_lost)
    monkeypatch.setattr(store, "read", read_unless_lost)


async def test_changes_that_wait_together_are_committed_together(ledger: Allowance) -> None:
    """Fifty changes queued behind one make one batch, in the order in which they came."""
    async with stalled(ledger) as opened:
        batches = opened.writer.counters.batches
        held = [asyncio.create_task(ledger.reserve("5Anna", GPU, 0.1, 11, job_uuid=f"job-{n}")) for n in range(10)]
        await queued(opened, 10)
    blocks = [(await each).blocks for each in held]
    assert blocks == [[n] for n in range(1, 11)]
    assert opened.writer.counters.batches == batches + 1


async def test_one_that_is_refused_in_a_batch_fails_alone(ledger: Allowance) -> None:
    """Between two that fit, one asks for too much: it is refused, and they are done."""
    async with stalled(ledger) as opened:
        changes = [asyncio.create_task(ledger.reserve("5Anna", GPU, amount, 11)) for amount in (6.0, ALL_S, 6.0)]
        await queued(opened, 3)
    first, refused, last = await asyncio.gather(*changes, return_exceptions=True)
    assert isinstance(refused, CannotReserveAllowanceException)
    assert refused.available_allowance_seconds == ALL_S - 6.0
    assert [getattr(each, "blocks", each) for each in (first, last)] == [[1], [2]]


async def test_a_full_queue_refuses_and_forgets(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its capacity the queue takes nothing: a typed error says how many wait, and nothing of it is done later.

    Catches a queue without a bound, and one that refuses but keeps.
    """
    monkeypatch.setattr(writer_module, "QUEUE_CAPACITY", 5)
    async with stalled(ledger) as opened:
        waiting = [asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid=f"job-{n}")) for n in range(5)]
        await queued(opened, 5)
        refused = asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="one too many"))
        while not refused.done() and len(opened.writer._commands._waiting) == 5:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    (error,) = await asyncio.gather(refused, return_exceptions=True)
    assert isinstance(error, LedgerOverloaded)
    assert error.waiting == 5
    assert [(await each).blocks for each in waiting] == [[1], [2], [3], [4], [5]]
    assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [6]
    assert all(row.job_uuid != "one too many" for row in await events_of(ledger))


async def test_two_calls_with_one_key_in_one_batch_are_done_once(ledger: Allowance) -> None:
    """Both are answered with the one outcome. Catches two of a key that are decided on the same stored past."""
    async with stalled(ledger) as opened:
        twice = [asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="once")) for _ in range(2)]
        await queued(opened, 2)
    first, second = await asyncio.gather(*twice)
    assert first == second
    assert [row.key for row in await events_of(ledger)].count("once") == 1


async def test_questions_are_answered_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many changes keep coming. Catches a loop that a busy inbox never gives to anybody else."""
    async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await _asked_between_batches(ledger, monkeypatch)


async def _asked_between_batches(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks after the first of forty batches; each of them queues the next."""
    assert ledger._lifecycle.open_handle is not None
    writer, loop, left = ledger._lifecycle.open_handle.writer, asyncio.get_running_loop(), 40
    answered = loop.create_future()
    deliver = writer_module.resolve_futures

    def deliver_and_ask_for_more(tickets: list[PendingCall]) -> None:
        nonlocal left
        deliver(tickets)
        if not left or not any(isinstance(ticket.work, ExpireDue) for ticket in tickets):
            return
        if left == 40:
            writer._queries.put(PendingCall(lambda state, _: left, loop, answered))
        left -= 1
        writer._commands._waiting.extend(PendingCall(each.work, loop, loop.create_future()) for each in tickets)

    monkeypatch.setattr(writer_module, "resolve_futures", deliver_and_ask_for_more)
    await ledger.expire_due()
    assert await answered > 0
    while left:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


async def _decided(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits until the next batch has been decided."""
    assert ledger._lifecycle.open_handle is not None
    writer, loop, decided = ledger._lifecycle.open_handle.writer, asyncio.get_running_loop(), asyncio.Event()
    decide = writer._decide

    def decide_and_tell(*arguments: Any) -> None:
        decide(*arguments)
        loop.call_soon_threadsafe(decided.set)

    monkeypatch.setattr(writer, "_decide", decide_and_tell)
    await decided.wait()


async def test_a_cancelled_caller_neither_loses_nor_repeats(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled while it waits, nothing is done; cancelled once it is being done, it stands and is found by its job.

    Catches a batch that does what nobody waits for any more, and one that takes back what is decided.
    """
    router = Routing(ledger)
    async with stalled(ledger) as opened:
        early = asyncio.create_task(router.pick_miner_for_job_request(job("early")))
        await queued(opened, 1)
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
    await ledger.expire_due()  # whatever was queued has been worked off
    assert all(row.job_uuid != "early" for row in await events_of(ledger))

    late = asyncio.create_task(router.pick_miner_for_job_request(job("late")))
    with monkeypatch.context() as watched:
        await _decided(ledger, watched)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
    held = await router.pick_miner_for_job_request(job("late"))
    assert held.allowance_reservation_id == (await ledger.reservation_for_job("late")).reservation_id
    assert [row.job_uuid for row in await events_of(ledger) if row.job_uuid] == ["late"]


@pytest.mark.parametrize("readable", [True, False])
async def test_nobody_is_refused_on_what_then_failed_to_commit(
    ledger: Allowance, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """One takes all there is, the next in its batch finds nothing left, and the commit fails: both may try again.

    Catches a refusal that is spoken although what it was decided on never came to be, and a state that keeps it.
    """
    router = Routing(ledger)
    with monkeypatch.context() as failing:
        async with stalled(ledger) as opened:
            whole = asyncio.create_task(router.pick_miner_for_job_request(job("whole", ALL_S)))
            rest = asyncio.create_task(router.pick_miner_for_job_request(job("rest")))
            await queued(opened, 2)
            fail_the_append(ledger, failing, readable=readable)
        first, second = await asyncio.gather(whole, rest, return_exceptions=True)
    assert isinstance(first, StorageUnavailable if readable else OutcomeUnknown)
    assert isinstance(second, StorageUnavailable)
    assert isinstance(await router.pick_miner_for_job_request(job("rest")), JobRoute)
    with pytest.raises(NotEnoughAllowanceException):
        await router.pick_miner_for_job_request(job("whole", ALL_S))


async def test_a_commit_whose_place_another_one_took_has_failed(
    shared_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the answer was lost, a row at the position is no proof; it is another process's, as its hash tells.

    Catches a commit taken for done because something stands where it would.
    """
    other = Allowance.open(shared_url, validator_ss58=VALIDATOR, clock_ns=clock)
    async with small_ledger(url=shared_url, clock=clock, settings=SETTINGS) as ledger, other:
        await other.miners()
        with monkeypatch.context() as failing:
            fail_the_append(ledger, failing, readable=True)
            assert ledger._lifecycle.open_handle is not None
            store: Any = ledger._lifecycle.open_handle.store
            read = store.read

            async def read_after_the_other(after: int) -> Any:
                await other.reserve("5Bert", GPU, 6.0, 11)
                return await read(after)

            failing.setattr(store, "read", read_after_the_other)
            with pytest.raises(StorageUnavailable, match="nothing was done"):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [1]


async def test_a_job_whose_outcome_is_unknown_is_told_by_its_uuid(
    ledger: Allowance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pick takes no other key: the error names the job's, and routing it again tells.

    Who appended nothing in the same batch hears that nothing was done, and is given no key.
    """
    router = Routing(ledger)
    await router.pick_miner_for_job_request(job("standing"))
    with monkeypatch.context() as failing:
        async with stalled(ledger) as opened:
            standing = asyncio.create_task(router.pick_miner_for_job_request(job("standing")))
            new = asyncio.create_task(router.pick_miner_for_job_request(job("new")))
            await queued(opened, 2)
            fail_the_append(ledger, failing, readable=False)
        answered, unknown = await asyncio.gather(standing, new, return_exceptions=True)
    assert isinstance(answered, StorageUnavailable)
    assert isinstance(unknown, OutcomeUnknown)
    assert unknown.idempotency_key == "new"
    assert (await router.pick_miner_for_job_request(job(unknown.idempotency_key))).allowance_blocks == [2]


async def test_a_repeated_sweep_beside_a_claim_is_told_its_first_outcome(ledger: Allowance, clock: Clock) -> None:
    """A sweep that finds nothing due has no row that its key could clash with; it is looked up all the same.

    Catches, where appends are decided before the lock, a look-up that is left out since others of the batch append.
    """
    held = await ledger.reserve("5Anna", GPU, 6.0, 11)
    clock.advance(1000)
    swept = await ledger.expire_due(idempotency_key="sweep")
    async with stalled(ledger) as opened:
        again = asyncio.create_task(ledger.expire_due(idempotency_key="sweep"))
        beside = asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11))
        await queued(opened, 2)
    assert [each.reservation_id for each in swept] == [held.reservation_id]
    assert await again == swept
    assert (await beside).blocks == [1]
