"""Group commit: the results of commands that share a commit, and the errors that they do not share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ledger import CommitOutcomeUnknown, ExpireDue, Row, call_queue
from ledger.call_queue import CallQueue, PendingCall
from routing import (
    Allowance,
    CannotReserveAllowanceException,
    JobRoute,
    LedgerClosed,
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
"""The value of Anna's ten blocks together."""


@pytest.fixture
def clock() -> Clock:
    return Clock(START + timedelta(seconds=132))


@pytest.fixture
async def ledger(database_url: str, clock: Clock) -> AsyncIterator[Allowance]:
    """Anna's ten blocks of 6 s; she may run any number of jobs."""
    async with small_ledger(url=database_url, offers={"5Anna": 1}, clock=clock, settings=SETTINGS) as opened:
        yield opened


def fail_the_append(ledger: Allowance, monkeypatch: pytest.MonkeyPatch, *, readable: bool) -> None:
    """Make the next append fail with an unknown outcome, which the store can find out or not, by `readable`."""
    assert ledger._lifecycle.open_handle is not None
    store: Any = ledger._lifecycle.open_handle.store
    appending = "append" if store.optimistic else "_append"
    append, resolve = getattr(store, appending), store.resolve_commit
    commit: Any = getattr(store, "_commit", None)
    lost = asyncio.Event()

    async def append_nothing(*_: Any, **__: Any) -> None:
        lost.set()
        raise CommitOutcomeUnknown("the response was lost")

    def append_and_lose(*arguments: Any) -> None:
        append(*arguments)
        lost.set()

    def commit_unless_lost(connection: Any) -> None:
        if not lost.is_set():
            commit(connection)
            return
        store._roll_back(connection)
        raise CommitOutcomeUnknown("the response was lost")

    async def resolve_unless_lost(first: Row) -> bool:
        if not readable:
            raise StorageUnavailable("out of reach")
        resolved: bool = await resolve(first)
        return resolved

    if store.optimistic:
        monkeypatch.setattr(store, appending, append_nothing)
    else:
        monkeypatch.setattr(store, appending, append_and_lose)
        monkeypatch.setattr(store, "_commit", commit_unless_lost)
    monkeypatch.setattr(store, "resolve_commit", resolve_unless_lost)


async def test_commands_that_wait_together_are_committed_together(ledger: Allowance) -> None:
    """Ten commands queued behind another one make one batch, in the order of their arrival."""
    async with stalled(ledger) as opened:
        batches = opened.writer.counters.batches
        tasks = [asyncio.create_task(ledger.reserve("5Anna", GPU, 0.1, 11, job_uuid=f"job-{n}")) for n in range(10)]
        await queued(opened, 10)
    blocks = [(await each).blocks for each in tasks]
    assert blocks == [[n] for n in range(1, 11)]
    assert opened.writer.counters.batches == batches + 1


async def test_a_refused_command_of_a_batch_fails_alone(ledger: Allowance) -> None:
    """Of three reservations the second asks for too much: it is refused, and the other two succeed."""
    async with stalled(ledger) as opened:
        changes = [asyncio.create_task(ledger.reserve("5Anna", GPU, amount, 11)) for amount in (6.0, ALL_S, 6.0)]
        await queued(opened, 3)
    first, refused, last = await asyncio.gather(*changes, return_exceptions=True)
    assert isinstance(refused, CannotReserveAllowanceException)
    assert refused.available_allowance_seconds == ALL_S - 6.0
    assert [getattr(each, "blocks", each) for each in (first, last)] == [[1], [2]]


async def test_a_full_queue_refuses_commands_for_good(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue refuses a command with an error that says how many wait, and never executes it later.

    Catches a queue without a bound, and one that refuses a command but queues it.
    """
    monkeypatch.setattr(call_queue, "QUEUE_CAPACITY", 5)
    async with stalled(ledger) as opened:
        waiting = [asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid=f"job-{n}")) for n in range(5)]
        await queued(opened, 5)
        refused = asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="one too many"))
        while not refused.done() and len(opened.writer._commands._waiting) == 5:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
    (error,) = await asyncio.gather(refused, return_exceptions=True)
    assert isinstance(error, LedgerOverloaded)
    assert error.waiting == 5
    assert [(await each).blocks for each in waiting] == [[1], [2], [3], [4], [5]]
    assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [6]
    assert all(row.job_uuid != "one too many" for row in await events_of(ledger))


async def test_every_call_after_the_loop_is_closed_is_refused() -> None:
    """Catches a queue that trusts a wake-up that failed: the second call would wait for ever."""
    closed_loop = asyncio.new_event_loop()
    closed_loop.close()
    runtime: Any = SimpleNamespace(loop=closed_loop)
    queue = CallQueue(runtime, lambda waiting: None)
    loop = asyncio.get_running_loop()
    for _ in range(2):
        with pytest.raises(LedgerClosed):
            queue.put(PendingCall(None, loop, loop.create_future()))


async def test_two_calls_with_one_key_at_the_same_time_are_executed_once(ledger: Allowance) -> None:
    """Both return the same result. Catches a batch with two commands of one key, of which neither finds the other."""
    async with stalled(ledger) as opened:
        twice = [asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="once")) for _ in range(2)]
        await queued(opened, 2)
    first, second = await asyncio.gather(*twice)
    assert first == second
    assert [row.key for row in await events_of(ledger)].count("once") == 1


async def test_queries_run_between_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query runs although more commands keep arriving. Catches a command queue that never yields the loop."""
    async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await _query_between_batches(ledger, monkeypatch)


async def _query_between_batches(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query after the first of forty batches, each of which queues the next."""
    assert ledger._lifecycle.open_handle is not None
    writer, loop, left = ledger._lifecycle.open_handle.writer, asyncio.get_running_loop(), 40
    left_at_query = loop.create_future()
    resolve_futures = call_queue.resolve_futures

    def resolve_and_queue_more(calls: list[PendingCall]) -> None:
        nonlocal left
        resolve_futures(calls)
        if not left or not any(isinstance(call.work, ExpireDue) for call in calls):
            return
        if left == 40:
            writer._queries.put(PendingCall(lambda state, _: left, loop, left_at_query))
        left -= 1
        writer._commands._waiting.extend(PendingCall(each.work, loop, loop.create_future()) for each in calls)

    monkeypatch.setattr(call_queue, "resolve_futures", resolve_and_queue_more)
    await ledger.expire_due()
    assert await left_at_query > 0
    while left:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


async def _decided(ledger: Allowance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the next batch is decided."""
    assert ledger._lifecycle.open_handle is not None
    writer, loop, decided = ledger._lifecycle.open_handle.writer, asyncio.get_running_loop(), asyncio.Event()
    decide = writer._decider.decide

    def decide_and_report(*arguments: Any) -> None:
        decide(*arguments)
        loop.call_soon_threadsafe(decided.set)

    monkeypatch.setattr(writer._decider, "decide", decide_and_report)
    await decided.wait()


async def test_a_cancelled_caller_neither_loses_nor_repeats_a_pick(
    ledger: Allowance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pick cancelled in the queue does nothing; one cancelled after its decision is committed, and found by its job.

    Catches a batch that executes a command that nobody waits for, and one that drops a command after its decision.
    """
    router = Routing(ledger)
    async with stalled(ledger) as opened:
        early = asyncio.create_task(router.pick_miner_for_job_request(job("early")))
        await queued(opened, 1)
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
    await ledger.expire_due()  # Everything that was queued is now finished.
    assert all(row.job_uuid != "early" for row in await events_of(ledger))

    late = asyncio.create_task(router.pick_miner_for_job_request(job("late")))
    with monkeypatch.context() as watched:
        await _decided(ledger, watched)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
    route = await router.pick_miner_for_job_request(job("late"))
    assert route.allowance_reservation_id == (await ledger.reservation_for_job("late")).reservation_id
    assert [row.job_uuid for row in await events_of(ledger) if row.job_uuid] == ["late"]


@pytest.mark.parametrize("readable", [True, False])
async def test_a_refusal_fails_with_the_commit_that_it_depends_on(
    ledger: Allowance, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """The first pick reserves everything, so the second is refused; then the commit fails: both may be retried.

    Catches a refusal that is returned although the reservation that caused it was never committed, and a state that
    still contains that reservation.
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


async def test_another_processs_row_at_the_position_means_that_the_commit_failed(
    shared_url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost response, a row at the position proves nothing: its hash shows that another process appended it.

    Catches a commit that is reported as done because there is any row at its position.
    """
    other = Allowance.open(shared_url, validator_ss58=VALIDATOR, clock_ns=clock)
    async with small_ledger(url=shared_url, clock=clock, settings=SETTINGS) as ledger, other:
        await other.miners()
        with monkeypatch.context() as failing:
            fail_the_append(ledger, failing, readable=True)
            assert ledger._lifecycle.open_handle is not None
            store: Any = ledger._lifecycle.open_handle.store
            resolve = store.resolve_commit

            async def resolve_after_the_other(first: Row) -> Any:
                await other.reserve("5Bert", GPU, 6.0, 11)
                return await resolve(first)

            failing.setattr(store, "resolve_commit", resolve_after_the_other)
            with pytest.raises(StorageUnavailable, match="nothing was done"):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [1]


async def test_an_unknown_outcome_of_a_pick_is_resolved_by_the_jobs_uuid(
    ledger: Allowance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pick has no other key: the error carries the job's uuid, and a second pick of that job returns the outcome.

    So does a repeat in the same batch, which appended nothing: it may repeat a call that is not confirmed either.
    """
    router = Routing(ledger)
    await router.pick_miner_for_job_request(job("routed"))
    with monkeypatch.context() as failing:
        async with stalled(ledger) as opened:
            routed = asyncio.create_task(router.pick_miner_for_job_request(job("routed")))
            new = asyncio.create_task(router.pick_miner_for_job_request(job("new")))
            await queued(opened, 2)
            fail_the_append(ledger, failing, readable=False)
        without_row, unknown = await asyncio.gather(routed, new, return_exceptions=True)
    assert isinstance(without_row, OutcomeUnknown)
    assert without_row.idempotency_key == "routed"
    assert isinstance(unknown, OutcomeUnknown)
    assert unknown.idempotency_key == "new"
    assert (await router.pick_miner_for_job_request(job(unknown.idempotency_key))).allowance_blocks == [2]


async def test_a_retried_expire_due_beside_a_reservation_returns_its_first_result(
    ledger: Allowance, clock: Clock
) -> None:
    """A retry that finds nothing overdue appends no row that its key could conflict with, so the key is looked up.

    Catches an optimistic commit that skips the look-up because another command of the batch appends a row.
    """
    reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
    clock.advance(1000)
    expired = await ledger.expire_due(idempotency_key="expire")
    async with stalled(ledger) as opened:
        retry = asyncio.create_task(ledger.expire_due(idempotency_key="expire"))
        beside = asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11))
        await queued(opened, 2)
    assert [each.reservation_id for each in expired] == [reservation.reservation_id]
    assert await retry == expired
    assert (await beside).blocks == [1]
