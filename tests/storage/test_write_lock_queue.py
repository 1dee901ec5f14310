"""The queue for a SQLite file's write lock; each `WriteLockQueue` here acts as a process of its own."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

import ledger.store.sqlite.write_lock_queue as queue_module
from ledger import Store
from ledger.store.sqlite.write_lock_queue import WriteLockQueue, _try_acquire, _Waiter
from tests.support.logs import opened

LOCKS = Path("/proc/locks")
pytestmark = pytest.mark.skipif(not LOCKS.exists(), reason="the tests see in /proc/locks who waits for a lock")

HOLD = """
import asyncio, sys
from ledger.store.sqlite.write_lock_queue import WriteLockQueue

async def nothing(): pass

async def main():
    await WriteLockQueue(sys.argv[1]).acquire(nothing)
    print("holds", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


@pytest.fixture
def new_queue(path: str) -> Iterator[Callable[[], WriteLockQueue]]:
    """Create further queues for one file."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(WriteLockQueue(path)))


async def nothing() -> None:
    """Only wait."""


def waiting(path: str) -> int:
    """Return how many wait for one of the queue's two locks."""
    files = [Path(f"{path}.{name}") for name in ("lock", "lock-next")]
    inodes = {f":{file.stat().st_ino}" for file in files if file.exists()}
    return sum(any(inode in text for inode in inodes) for text in LOCKS.read_text().splitlines() if "->" in text)


async def waits(
    path: str, queue: WriteLockQueue, while_waiting: Callable[[], Awaitable[object]] = nothing
) -> asyncio.Task[None]:
    """Start a task that acquires the lock, and return when it waits."""
    before = waiting(path)
    task = asyncio.create_task(queue.acquire(while_waiting))
    while waiting(path) == before:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
    return task


async def test_a_free_lock_is_acquired_at_once(path: str, new_queue: Callable[[], WriteLockQueue]) -> None:
    """A lone writer neither waits nor starts a thread, and never calls `while_waiting`."""
    threads = threading.active_count()

    async def never() -> None:
        raise AssertionError("it did not have to wait")

    queue = new_queue()
    for _ in range(3):
        await queue.acquire(never)
        queue.release()
    assert threading.active_count() <= threads


async def test_waiters_get_the_lock_in_the_order_of_their_arrival(
    path: str, new_queue: Callable[[], WriteLockQueue]
) -> None:
    """Each of six waiters gets the lock in its order, after the one before has released it.

    Catches a queue without `.lock-next`: after a release the process that asks first would get the lock.
    """
    first, others = new_queue(), [new_queue() for _ in range(6)]
    await first.acquire(nothing)
    tasks = [await waits(path, queue) for queue in others]
    served: list[int] = []
    first.release()
    while len(served) < len(tasks):
        await asyncio.wait([task for n, task in enumerate(tasks) if n not in served], return_when="FIRST_COMPLETED")
        done = [n for n, task in enumerate(tasks) if task.done() and n not in served]
        assert len(done) == 1
        served += done
        others[done[0]].release()
    assert served == list(range(6))


async def test_a_writer_that_returns_early_does_not_overtake_the_next(
    path: str, new_queue: Callable[[], WriteLockQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread reports the lock before it releases `.lock-next`; a writer that is done by then must queue again.

    Catches a writer that acquires `.lock-next` at once, because its own thread still holds it for the process.
    """
    first, queue, other = new_queue(), new_queue(), new_queue()
    free = threading.Event()
    flock = fcntl.flock

    def free_later(file: int, operation: int) -> None:
        if queue._files is not None and file == queue._files.next and operation == fcntl.LOCK_UN:
            assert free.wait(20)
        flock(file, operation)

    await first.acquire(nothing)
    acquiring, behind = await waits(path, queue), await waits(path, other)
    monkeypatch.setattr(fcntl, "flock", free_later)
    first.release()
    await acquiring
    queue.release()
    again = asyncio.create_task(queue.acquire(nothing))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not again.done()  # Although nobody holds the lock.
    free.set()
    for served in asyncio.as_completed([behind, again]):
        await served
        for each in (queue, other):
            each.release()


async def test_only_the_next_waiter_calls_while_waiting(path: str, new_queue: Callable[[], WriteLockQueue]) -> None:
    """`while_waiting` is called once, when its waiter is next, before it has the lock."""
    first, second, third = new_queue(), new_queue(), new_queue()
    called: list[str] = []

    def call(name: str) -> Callable[[], Awaitable[object]]:
        async def while_waiting() -> None:
            called.append(name)

        return while_waiting

    await first.acquire(nothing)
    tasks = [await waits(path, second, call("second")), await waits(path, third, call("third"))]
    for _ in range(100):
        await asyncio.sleep(0)
    assert called == ["second"]
    assert not tasks[0].done()
    first.release()
    await tasks[0]
    while len(called) < 2:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
    assert not tasks[1].done()
    second.release()
    await tasks[1]
    assert called == ["second", "third"]


@pytest.mark.parametrize("rank", [0, 1, 2])
async def test_a_cancelled_waiter_leaves_the_queue(
    path: str, new_queue: Callable[[], WriteLockQueue], rank: int
) -> None:
    """After a waiter is cancelled, next or not, those behind it get the lock, and it can queue again."""
    first, others = new_queue(), [new_queue() for _ in range(3)]
    await first.acquire(nothing)
    tasks = [await waits(path, queue) for queue in others]
    tasks[rank].cancel()
    await asyncio.gather(tasks[rank], return_exceptions=True)

    async def acquire_again() -> None:
        await others[rank].acquire(nothing)
        assert first._files is not None
        assert not _try_acquire(first._files)  # It is held: the lock was not released for the cancelled waiter.
        others[rank].release()

    again = asyncio.create_task(acquire_again())
    first.release()
    for queue, task in zip(others, tasks, strict=True):
        if not task.cancelled():
            await task
            queue.release()
    await again
    await first.acquire(nothing)
    behind = await waits(path, others[rank])
    assert not behind.done()
    first.release()
    await behind


async def test_a_queue_closed_after_two_cancelled_waiters_holds_nothing(
    path: str, new_queue: Callable[[], WriteLockQueue]
) -> None:
    """The thread still waits for both waiters when the queue is closed; other processes get the lock afterwards.

    Catches a queue that unlocks its current files, of which it has none after closing, instead of the waiter's: the
    thread would wait on behalf of the second waiter while it holds the first one's lock, and block everybody.
    """
    first, leaving = new_queue(), WriteLockQueue(path)
    await first.acquire(nothing)
    tasks = [await waits(path, leaving)]
    for task in tasks:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if len(tasks) == 1:
            tasks.append(asyncio.create_task(leaving.acquire(nothing)))
            await asyncio.sleep(0)
    leaving.close()
    behind = await waits(path, new_queue())
    first.release()
    await asyncio.wait_for(behind, 20)


async def test_a_waiter_whose_while_waiting_fails_gives_the_lock_back(
    path: str, new_queue: Callable[[], WriteLockQueue]
) -> None:
    """`acquire` raises the error, and the waiters behind get the lock."""
    first, second, third = new_queue(), new_queue(), new_queue()

    async def fail() -> None:
        raise ValueError("no")

    await first.acquire(nothing)
    failing, behind = await waits(path, second, fail), await waits(path, third)
    with pytest.raises(ValueError, match="no"):
        await failing
    first.release()
    await behind


async def test_a_lock_handed_over_stays_in_the_process_for_a_moment(
    path: str, new_queue: Callable[[], WriteLockQueue]
) -> None:
    """Claimed at once, the process keeps the lock and the next process waits on; unclaimed, the next one gets it.

    Catches a lock that is never released, which would stop every other process, and one that is handed over twice.
    """
    queue, other = new_queue(), new_queue()

    async def never() -> None:
        raise AssertionError("it did not have to wait")

    await queue.acquire(nothing)
    behind = await waits(path, other)
    queue.hand_over()
    await queue.acquire(never)
    for _ in range(100):
        await asyncio.sleep(0)
    assert waiting(path) == 1
    queue.hand_over()
    await asyncio.wait_for(behind, 20)
    other.release()
    await queue.acquire(never)


@pytest.mark.parametrize("end", ["release_unclaimed", "release", "close"])
async def test_a_lock_handed_over_can_be_released_at_once(
    path: str, new_queue: Callable[[], WriteLockQueue], end: str
) -> None:
    """The next process gets the lock, and no writer of this process can claim it afterwards."""
    queue, other = new_queue(), new_queue()
    await queue.acquire(nothing)
    behind = await waits(path, other)
    queue.hand_over()
    getattr(queue, end)()
    again = asyncio.create_task(queue.acquire(nothing))
    await asyncio.wait_for(behind, 20)
    assert not again.done()
    other.release()
    await asyncio.wait_for(again, 20)


@pytest.mark.parametrize("appends", [["append"], []])
async def test_an_append_that_arrives_during_a_read_model_write_waits_once(path: str, appends: list[str]) -> None:
    """The append continues with the lock of its process; the next read model of its process waits behind all others.

    Catches a process that queues again for its append after it has written a read model, and so waits twice as long as
    others; and one that keeps the lock for anything that it has to write.
    """
    done: list[str] = []

    async def project(store: Store) -> None:
        for name in ("read model", "next read model"):
            async with store.write_derived():
                done.append(name)

    async def append(store: Store, name: str) -> None:
        async with store.transaction():
            done.append(name)

    async def queued(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task and return when it waits in the queue."""
        before = waiting(path)
        task = asyncio.create_task(work)
        while waiting(path) == before:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        return task

    url = f"sqlite:///{path}"
    async with opened(url) as first, opened(url) as mine, opened(url) as another:
        async with first.transaction():
            tasks = [await queued(project(mine))]
            tasks += [asyncio.create_task(append(mine, name)) for name in appends]
            tasks.append(await queued(append(another, "another's append")))
        await asyncio.gather(*tasks)
    assert done == ["read model", *appends, "another's append", "next read model"]


async def test_a_read_model_write_without_a_waiting_append_releases_the_lock(path: str) -> None:
    """The next process gets the lock at once. Catches a lock that is kept although no append waits for it."""
    async with opened(f"sqlite:///{path}") as store:
        async with store.write_derived():
            pass
        with closing(WriteLockQueue(path)) as other:
            other._files = other._open()
            assert _try_acquire(other._files)


async def test_a_lock_that_the_system_refuses_is_reported_and_blocks_nobody(
    path: str, new_queue: Callable[[], WriteLockQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`acquire` raises the error, and the waiter behind gets the lock: `.lock-next` was released."""
    first, refused, behind = new_queue(), new_queue(), new_queue()
    await first.acquire(nothing)
    refused._files = refused._open()
    its_lock = refused._files.lock

    class Refusing:
        LOCK_EX, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN

        @staticmethod
        def flock(file: int, operation: int) -> None:
            if (file, operation) == (its_lock, fcntl.LOCK_EX):
                raise OSError(errno.ENOLCK, "no locks available")
            fcntl.flock(file, operation)

    monkeypatch.setattr(queue_module, "fcntl", Refusing)
    with pytest.raises(OSError, match="no locks available"):
        await refused.acquire(nothing)
    task = await waits(path, behind)
    first.release()
    await asyncio.wait_for(task, 20)


async def test_a_lock_for_a_closed_loop_is_given_back(path: str, new_queue: Callable[[], WriteLockQueue]) -> None:
    """The waiter no longer exists, so the thread releases the lock."""
    first, left, behind = new_queue(), new_queue(), new_queue()
    await first.acquire(nothing)

    def wait_and_leave() -> None:
        loop = asyncio.new_event_loop()
        waiter = _Waiter(files, loop, loop.create_future(), loop.create_future(), threading.Event())
        loop.close()
        left._queue_of_thread(files).put(waiter)

    files = left._files = left._open()
    await asyncio.to_thread(wait_and_leave)
    while waiting(path) < 1:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
    task = await waits(path, behind)
    first.release()
    await asyncio.wait_for(task, 20)


async def test_killed_processes_leave_the_queue(path: str, new_queue: Callable[[], WriteLockQueue]) -> None:
    """After the writer and the next process are killed, the third process gets the lock."""

    def process() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, path]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    with process() as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "holds\n"
        with process() as following:
            while waiting(path) < 1:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0)
            task = await waits(path, new_queue())
            following.kill()
            writer.kill()
            await task


async def test_closing_ends_the_thread_and_closes_the_files(path: str) -> None:
    """A ledger that is opened and closed repeatedly leaves no thread and no open file."""
    for thread in threading.enumerate():
        if thread.name == "allowance-write-lock":
            thread.join()  # A thread of the test before.
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        first, second = WriteLockQueue(path), WriteLockQueue(path)
        await first.acquire(nothing)
        task = await waits(path, second)
        first.release()
        await task
        first.close()
        second.close()
    for thread in threading.enumerate():
        if thread.name == "allowance-write-lock":
            thread.join()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_lock_that_arrives_after_a_fork_does_not_stay_with_the_child(
    path: str, new_queue: Callable[[], WriteLockQueue]
) -> None:
    """A waiter was cancelled, its queue closed and its process forked before its lock arrived: the lock is released.

    Catches a file that is closed without unlocking: the child has the file open too, and would hold the lock as long as
    it lives.
    """
    first, leaving, behind = new_queue(), new_queue(), new_queue()
    await first.acquire(nothing)
    task = await waits(path, leaving)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    leaving.close()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        first.release()
        while any(thread.name == "allowance-write-lock" for thread in threading.enumerate()):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        behind._files = behind._open()
        assert _try_acquire(behind._files)
    finally:
        os.close(writing)
        os.waitpid(child, 0)
        os.close(reading)
