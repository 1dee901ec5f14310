"""A cancelled caller leaves SQLite in order and blocks nobody."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from ledger.cancellation import cancellation_shield, run_cancellable
from ledger.store.contract import do_nothing
from ledger.store.sqlite import connection as connecting
from ledger.store.sqlite import derived_sql
from ledger.store.sqlite.write_lock_queue import WriteLockQueue
from routing import Allowance, Routing
from tests.support.small import GPU, VALIDATOR, job, small_ledger
from tests.support.stories import project

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///{}/ledger.db"])
async def test_a_caller_cancelled_during_a_statement_leaves_no_lock(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a caller is cancelled while its statement runs, the next command succeeds at once.

    Catches a connection that is closed with an open cursor: its locks outlive it, while the loop that would free them
    waits for the lock.
    """
    for module in (connecting, derived_sql):
        monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.5)
    running, go_on = threading.Event(), threading.Event()

    def hold() -> int:
        running.set()
        go_on.wait()
        return 1

    async with small_ledger(url=url.format(tmp_path)) as ledger:
        opened = await ledger._lifecycle.handle()
        await project(ledger)

        async def statement() -> None:
            async with opened.store.derived_connection() as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.create_function("hold", 0, hold)
                await connection.exec_driver_sql("SELECT hold() FROM allowance_checkpoints")

        caller = asyncio.create_task(opened.runtime.run(statement()))
        await asyncio.to_thread(running.wait)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        route = await Routing(ledger).pick_miner_for_job_request(job("one"))
        assert route.allowance_blocks == [1]


async def test_a_waiter_cancelled_when_its_lock_arrives_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine cancelled between the arrival of the lock and its next step releases the lock.

    Catches a lock that nobody in this process knows of and that prevents every other process from writing.
    """
    path = str(tmp_path / "ledger.db")
    holder, waiter, other = WriteLockQueue(path), WriteLockQueue(path), WriteLockQueue(path)
    report_lock = WriteLockQueue._report_lock

    def report_and_cancel(queue: WriteLockQueue, *arguments: Any) -> None:
        report_lock(queue, *arguments)
        waiting.cancel()

    await holder.acquire(do_nothing)
    waiting = asyncio.create_task(waiter.acquire(do_nothing))
    await asyncio.sleep(0)
    monkeypatch.setattr(WriteLockQueue, "_report_lock", report_and_cancel)
    holder.release()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    monkeypatch.setattr(WriteLockQueue, "_report_lock", report_lock)
    await asyncio.wait_for(other.acquire(do_nothing), 20)
    for queue in (holder, waiter, other):
        queue.close()


async def test_a_cancellation_waits_for_the_end_of_the_shield() -> None:
    """A cancellation inside of a shielded part reaches the task at its end, before the next part begins."""
    inside, go_on = asyncio.Event(), asyncio.Event()
    done = []

    async def work() -> None:
        for part in range(2):
            with cancellation_shield():
                inside.set()
                await go_on.wait()
                done.append(part)
            await asyncio.sleep(0)

    task = asyncio.create_task(run_cancellable(work()))
    await inside.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [0]


async def test_a_cancellation_outside_of_a_shield_arrives_at_once() -> None:
    """A task outside of a shielded part is cancelled where it waits, and can clean up."""
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    task = asyncio.create_task(run_cancellable(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]


async def test_a_cancelled_close_finishes_the_batch_under_way(tmp_path: Path) -> None:
    """A caller whose batch is under way gets its result, although the close that waits for the batch is cancelled.

    The close then goes on to the end and closes the store.

    Catches a cancellation that reaches the task of the command queue: the callers of its batch would wait for ever.
    """
    async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db", offers={"5Anna": 1}) as ledger:
        opened = await ledger._lifecycle.handle()
        store: Any = opened.store
        await opened.runtime.run(store._process_lock.acquire())
        batches = opened.writer.counters.batches
        caller = asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11))
        while opened.writer.counters.batches == batches:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        closing = asyncio.create_task(ledger.close())
        while not opened.writer._closed:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        closing.cancel()
        for _ in range(10):  # Rounds of both loops, in which the cancellation arrives.
            await opened.runtime.run(asyncio.sleep(0))
        opened.runtime.loop.call_soon_threadsafe(store._process_lock.release)
        assert (await caller).blocks == [1]
        with pytest.raises(asyncio.CancelledError):
            await closing
        while store._connection is not None:  # noqa: ASYNC110 - the close goes on behind the cancelled caller
            await asyncio.sleep(0)


async def test_a_close_that_is_cancelled_while_it_seals_closes_the_store(tmp_path: Path) -> None:
    """The seal waits for the write lock when the close is cancelled; the close goes on to its end all the same.

    Catches a close that stops there: the connection and the fork hook would stay, since a second close does nothing.
    """
    async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db", offers={"5Anna": 1}) as ledger:
        opened = await ledger._lifecycle.handle()
        store: Any = opened.store
        opened._project_every_rows = 1
        await opened.runtime.run(store._process_lock.acquire())
        batches = opened.writer.counters.batches
        closing = asyncio.create_task(ledger.close())
        while opened.writer.counters.batches == batches:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        closing.cancel()
        for _ in range(10):  # Rounds of both loops, in which the cancellation arrives.
            await opened.runtime.run(asyncio.sleep(0))
        opened.runtime.loop.call_soon_threadsafe(store._process_lock.release)
        with pytest.raises(asyncio.CancelledError):
            await closing
        while store._connection is not None:  # noqa: ASYNC110 - the close goes on behind the cancelled caller
            await asyncio.sleep(0)
        assert store.paused_for_fork not in opened.runtime._fork_pauses


@pytest.mark.parametrize("rounds", range(2, 8))
async def test_a_close_that_is_cancelled_early_closes_the_store(tmp_path: Path, rounds: int) -> None:
    """The caller is cancelled at each step before the library's thread begins to close; nobody could do so later."""
    ledger = await Allowance.open(f"sqlite:///{tmp_path}/ledger.db", validator_ss58=VALIDATOR)
    opened = await ledger._lifecycle.handle()
    store: Any = opened.store
    goes_on = threading.Event()
    opened.runtime.loop.call_soon_threadsafe(goes_on.wait)
    closing = asyncio.create_task(ledger.close())
    for _ in range(rounds):
        await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    goes_on.set()
    for _ in range(1000):  # More rounds of the library's loop than the closing takes.
        await opened.runtime.run(asyncio.sleep(0))
    assert store._connection is None


async def test_a_close_whose_seal_fails_closes_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error: here one that no part of the library expects."""

    def fail(*_: object) -> None:
        raise MemoryError

    async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db", offers={"5Anna": 1}) as ledger:
        opened = await ledger._lifecycle.handle()
        store: Any = opened.store
        monkeypatch.setattr("routing.service.upkeep.sealed_if_due", fail)
        with pytest.raises(MemoryError):
            await ledger.close()
        assert store._connection is None
        assert store.paused_for_fork not in opened.runtime._fork_pauses
