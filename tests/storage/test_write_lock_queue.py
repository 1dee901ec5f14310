"""The line in front of a SQLite file's write lock; each `WriteLockQueue` here stands for a process of its own."""

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
pytestmark = pytest.mark.skipif(not LOCKS.exists(), reason="who waits for a lock is seen in /proc/locks")

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
def lines(path: str) -> Iterator[Callable[[], WriteLockQueue]]:
    """Makes places in one line."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(WriteLockQueue(path)))


async def nothing() -> None:
    """What one does who only waits."""


def waiting(path: str) -> int:
    """How many wait for one of the line's two locks."""
    files = [Path(f"{path}.{name}") for name in ("lock", "lock-next")]
    inodes = {f":{file.stat().st_ino}" for file in files if file.exists()}
    return sum(any(inode in text for inode in inodes) for text in LOCKS.read_text().splitlines() if "->" in text)


async def waits(
    path: str, line: WriteLockQueue, meanwhile: Callable[[], Awaitable[object]] = nothing
) -> asyncio.Task[None]:
    """Has one more wait, and comes back when it does."""
    before = waiting(path)
    task = asyncio.create_task(line.acquire(meanwhile))
    while waiting(path) == before:  # noqa: ASYNC110 - the system tells nobody
        await asyncio.sleep(0)
    return task


async def test_a_free_line_is_passed_at_once(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """A lone writer waits for nobody, has no thread, and does nothing meanwhile."""
    threads = threading.active_count()

    async def never() -> None:
        raise AssertionError("it did not have to wait")

    line = lines()
    for _ in range(3):
        await line.acquire(never)
        line.release()
    assert threading.active_count() <= threads


async def test_one_after_the_other_in_the_order_in_which_they_came(
    path: str, lines: Callable[[], WriteLockQueue]
) -> None:
    """Six wait; each is served in its turn, and only when the one before is done.

    Catches a line without the place of the next, where the system lets whoever asks first after a release go first.
    """
    first, others = lines(), [lines() for _ in range(6)]
    await first.acquire(nothing)
    tasks = [await waits(path, line) for line in others]
    served: list[int] = []
    first.release()
    while len(served) < len(tasks):
        await asyncio.wait([task for n, task in enumerate(tasks) if n not in served], return_when="FIRST_COMPLETED")
        done = [n for n, task in enumerate(tasks) if task.done() and n not in served]
        assert len(done) == 1
        served += done
        others[done[0]].release()
    assert served == list(range(6))


async def test_who_comes_back_while_its_thread_lets_the_next_in_takes_no_turn_at_once(
    path: str, lines: Callable[[], WriteLockQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn is told before the place of the next is free; who has done its turn by then does not take one at once.

    Catches a writer whose own thread's lock keeps it from seeing that others wait.
    """
    first, line, other = lines(), lines(), lines()
    free = threading.Event()
    flock = fcntl.flock

    def free_later(file: int, operation: int) -> None:
        if line._files is not None and file == line._files.next and operation == fcntl.LOCK_UN:
            assert free.wait(20)
        flock(file, operation)

    await first.acquire(nothing)
    turn, behind = await waits(path, line), await waits(path, other)
    monkeypatch.setattr(fcntl, "flock", free_later)
    first.release()
    await turn
    line.release()
    again = asyncio.create_task(line.acquire(nothing))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not again.done()  # though nobody has the turn
    free.set()
    for served in asyncio.as_completed([behind, again]):
        await served
        for each in (line, other):
            each.release()


async def test_the_next_uses_the_time_and_no_other_does(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """What is to be done meanwhile is done once, by the next alone, before its turn."""
    first, second, third = lines(), lines(), lines()
    told: list[str] = []

    def tell(name: str) -> Callable[[], Awaitable[object]]:
        async def meanwhile() -> None:
            told.append(name)

        return meanwhile

    await first.acquire(nothing)
    turns = [await waits(path, second, tell("second")), await waits(path, third, tell("third"))]
    for _ in range(100):
        await asyncio.sleep(0)
    assert told == ["second"]
    assert not turns[0].done()
    first.release()
    await turns[0]
    while len(told) < 2:  # noqa: ASYNC110 - the system tells nobody
        await asyncio.sleep(0)
    assert not turns[1].done()
    second.release()
    await turns[1]
    assert told == ["second", "third"]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_who_gives_up_leaves_the_line(path: str, lines: Callable[[], WriteLockQueue], place: int) -> None:
    """Cancelled while it waits, next or not: the one behind it is served, and it can come again itself."""
    first, others = lines(), [lines() for _ in range(3)]
    await first.acquire(nothing)
    turns = [await waits(path, line) for line in others]
    turns[place].cancel()
    await asyncio.gather(turns[place], return_exceptions=True)

    async def served_again() -> None:
        await others[place].acquire(nothing)
        assert first._files is not None
        assert not _try_acquire(first._files)  # it is held, and was not let go for the one that gave up
        others[place].release()

    again = asyncio.create_task(served_again())
    first.release()
    for line, turn in zip(others, turns, strict=True):
        if not turn.cancelled():
            await turn
            line.release()
    await again
    await first.acquire(nothing)
    behind = await waits(path, others[place])
    assert not behind.done()
    first.release()
    await behind


async def test_who_gives_up_twice_and_closes_keeps_nothing(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """Its thread still waits for both when the line is closed; whoever is behind is served all the same.

    Catches a turn that nobody wants any more and that is given back to the files the line has now, which are none:
    the thread would wait for its second with the first one's turn in its hand, and everybody else for that.
    """
    first, leaving = lines(), WriteLockQueue(path)
    await first.acquire(nothing)
    turns = [await waits(path, leaving)]
    for turn in turns:
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
        if len(turns) == 1:
            turns.append(asyncio.create_task(leaving.acquire(nothing)))
            await asyncio.sleep(0)
    leaving.close()
    behind = await waits(path, lines())
    first.release()
    await asyncio.wait_for(behind, 20)


async def test_a_turn_is_given_back_where_what_is_done_meanwhile_fails(
    path: str, lines: Callable[[], WriteLockQueue]
) -> None:
    """The error comes out, and nobody behind is kept waiting."""
    first, second, third = lines(), lines(), lines()

    async def fail() -> None:
        raise ValueError("no")

    await first.acquire(nothing)
    failing, behind = await waits(path, second, fail), await waits(path, third)
    with pytest.raises(ValueError, match="no"):
        await failing
    first.release()
    await behind


async def test_an_offered_turn_is_the_processs_own_for_a_moment(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """Taken at once, nothing is done meanwhile, and the one behind waits on; left, it is the next one's.

    Catches an offer that nobody withdraws, which would stop every other process, and one that lasts for two turns.
    """
    line, other = lines(), lines()

    async def never() -> None:
        raise AssertionError("it did not have to wait")

    await line.acquire(nothing)
    behind = await waits(path, other)
    line.hand_over()
    await line.acquire(never)
    for _ in range(100):
        await asyncio.sleep(0)
    assert waiting(path) == 1
    line.hand_over()
    await asyncio.wait_for(behind, 20)
    other.release()
    await line.acquire(never)


@pytest.mark.parametrize("end", ["release_unclaimed", "release", "close"])
async def test_an_offered_turn_can_be_given_back_at_once(
    path: str, lines: Callable[[], WriteLockQueue], end: str
) -> None:
    """Whoever is behind is served, and what was offered is not had by anyone afterwards."""
    line, other = lines(), lines()
    await line.acquire(nothing)
    behind = await waits(path, other)
    line.hand_over()
    getattr(line, end)()
    again = asyncio.create_task(line.acquire(nothing))
    await asyncio.wait_for(behind, 20)
    assert not again.done()
    other.release()
    await asyncio.wait_for(again, 20)


@pytest.mark.parametrize("changes", [["change"], []])
async def test_a_change_asked_for_while_a_read_model_is_written_waits_once(path: str, changes: list[str]) -> None:
    """It goes on with the turn that its process has; the next read model of its process waits behind all others.

    Catches a process that, once it has written a read model, takes its change to the end of the line, where it waits
    twice as long as all others; and one that keeps the turn for whatever it has to write.
    """
    done: list[str] = []

    async def project(store: Store) -> None:
        for name in ("read model", "next read model"):
            async with store.write_read_models():
                done.append(name)

    async def change(store: Store, name: str) -> None:
        async with store.transaction():
            done.append(name)

    async def comes(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Comes back when it waits in the line."""
        before = waiting(path)
        task = asyncio.create_task(work)
        while waiting(path) == before:  # noqa: ASYNC110 - the system tells nobody
            await asyncio.sleep(0)
        return task

    url = f"sqlite:///{path}"
    async with opened(url) as first, opened(url) as mine, opened(url) as another:
        async with first.transaction():
            tasks = [await comes(project(mine))]
            tasks += [asyncio.create_task(change(mine, name)) for name in changes]
            tasks.append(await comes(change(another, "another's change")))
        await asyncio.gather(*tasks)
    assert done == ["read model", *changes, "another's change", "next read model"]


async def test_a_read_model_written_while_no_change_waits_keeps_no_turn(path: str) -> None:
    """The next process goes on at once. Catches a turn that is kept for nobody while this process does other things."""
    async with opened(f"sqlite:///{path}") as store:
        async with store.write_read_models():
            pass
        with closing(WriteLockQueue(path)) as other:
            other._files = other._open()
            assert _try_acquire(other._files)


async def test_a_lock_that_the_system_refuses_is_told_and_stops_nobody_else(
    path: str, lines: Callable[[], WriteLockQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes out, and whoever is behind is served: the place of the next was not kept."""
    first, refused, behind = lines(), lines(), lines()
    await first.acquire(nothing)
    refused._files = refused._open()
    its_turn = refused._files.lock

    class Refusing:
        LOCK_EX, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_NB, fcntl.LOCK_UN

        @staticmethod
        def flock(file: int, what: int) -> None:
            if (file, what) == (its_turn, fcntl.LOCK_EX):
                raise OSError(errno.ENOLCK, "no locks available")
            fcntl.flock(file, what)

    monkeypatch.setattr(queue_module, "fcntl", Refusing)
    with pytest.raises(OSError, match="no locks available"):
        await refused.acquire(nothing)
    turn = await waits(path, behind)
    first.release()
    await asyncio.wait_for(turn, 20)


async def test_a_turn_whose_loop_is_gone_is_given_back(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """Nobody is there who could take it, and its thread does not keep it."""
    first, left, behind = lines(), lines(), lines()
    await first.acquire(nothing)

    def wait_and_leave() -> None:
        loop = asyncio.new_event_loop()
        one = _Waiter(files, loop, loop.create_future(), loop.create_future(), threading.Event())
        loop.close()
        left._queue_of_thread(files).put(one)

    files = left._files = left._open()
    await asyncio.to_thread(wait_and_leave)
    while waiting(path) < 1:  # noqa: ASYNC110 - the system tells nobody
        await asyncio.sleep(0)
    turn = await waits(path, behind)
    first.release()
    await asyncio.wait_for(turn, 20)


async def test_killed_processes_leave_the_line(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """One that writes and one that is next are killed: the third is served."""

    def process() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, path]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    with process() as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "holds\n"
        with process() as following:
            while waiting(path) < 1:  # noqa: ASYNC110 - the system tells nobody
                await asyncio.sleep(0)
            turn = await waits(path, lines())
            following.kill()
            writer.kill()
            await turn


async def test_closing_ends_the_thread_and_gives_the_files_back(path: str) -> None:
    """A ledger that is opened and closed again and again leaves neither behind."""
    for thread in threading.enumerate():
        if thread.name == "allowance-write-lock":
            thread.join()  # of the test before
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        first, second = WriteLockQueue(path), WriteLockQueue(path)
        await first.acquire(nothing)
        turn = await waits(path, second)
        first.release()
        await turn
        first.close()
        second.close()
    for thread in threading.enumerate():
        if thread.name == "allowance-write-lock":
            thread.join()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_forked_child_keeps_no_turn_that_came_too_late(path: str, lines: Callable[[], WriteLockQueue]) -> None:
    """One gave up and closed, and its process forked, before its turn came: the turn is given back all the same.

    Catches a lock that is only closed: the child has the file open too, and would hold the lock as long as it lives.
    """
    first, leaving, behind = lines(), lines(), lines()
    await first.acquire(nothing)
    turn = await waits(path, leaving)
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    leaving.close()
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(telling)
        os.read(told, 1)
        os._exit(0)
    try:
        first.release()
        while any(thread.name == "allowance-write-lock" for thread in threading.enumerate()):  # noqa: ASYNC110 - its end tells nobody
            await asyncio.sleep(0)
        behind._files = behind._open()
        assert _try_acquire(behind._files)
    finally:
        os.close(telling)
        os.waitpid(child, 0)
        os.close(told)
