"""A fair queue for the write lock of a SQLite file, across processes.

SQLite itself waits by polling, which starves some processes for seconds. Two lock files make a queue instead:

- `.lock` is held by the writer.
- `.lock-next` is held by the process that is next; it waits for `.lock`.

All other processes wait for `.lock-next`. The operating system wakes the waiters of one lock in the order in which they
asked. With `.lock` alone, a writer that comes back at once would often get the lock before those who wait; here it must
queue behind them. If a process is killed, the operating system releases its locks, and the queue goes on.

The process that is next uses the time: it folds what the others append, so that less is left to do under the lock.

Correctness does not depend on this queue: SQLite's own lock protects the file. Without `flock` there is no queue.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from ledger.store.contract import WhileWaiting

from .lock_files import close_in_children, fcntl, open_lock_file


class _Files(NamedTuple):
    """The descriptors of the open lock files."""

    next: int
    lock: int


class _Waiter(NamedTuple):
    """A coroutine that waits: its loop resolves `is_next`, then `has_lock`.

    The thread reports the lock and then waits for `done`: the coroutine has accepted the lock or given it back.
    """

    files: _Files
    loop: asyncio.AbstractEventLoop
    is_next: asyncio.Future[None]
    has_lock: asyncio.Future[None]
    done: threading.Event


class WriteLockQueue:
    """One process's access to the queue.

    A free lock is acquired at once. Otherwise a thread waits for it, since `flock` blocks and the loop must go on
    running queries. The process uses one thread for all its waiters.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: _Files | None = None
        self._thread_queue: SimpleQueue[_Waiter | None] | None = None
        # Waiters that the thread has not finished, including cancelled ones.
        self._waiting = 0
        # The thread has reported the lock but still holds `.lock-next`, so others may be waiting behind it.
        self._holds_next = False
        # The lock is still held after a writer has finished, for another writer of this process to continue with.
        self._handing_over = False
        close_in_children(self)

    async def acquire(self, while_waiting: WhileWaiting) -> None:
        """Wait until only this process may write; call `while_waiting` once if it has to wait and is next."""
        if fcntl is None:
            return
        if self._handing_over:
            self._handing_over = False
            return
        files = self._files = self._files or self._open()
        # A lock of `flock` belongs to the open file, which all waiters of this process share. If the thread holds
        # `.lock-next`, to acquire it here would succeed and overtake other processes. So go through the thread then.
        if self._waiting or self._holds_next or not _try_acquire(files):
            await self._wait(files, while_waiting)

    def release(self) -> None:
        """Let the next process write."""
        self._handing_over = False
        if self._files is not None:
            _unlock(self._files)

    def hand_over(self) -> None:
        """Keep the lock for a waiting writer of this process; release it after two rounds of the loop if unclaimed.

        The event loop resumes such a writer in the first round.
        """
        loop = asyncio.get_running_loop()
        self._handing_over = self._files is not None
        loop.call_soon(loop.call_soon, self.release_unclaimed)

    def release_unclaimed(self) -> None:
        """Release the lock after `hand_over`, unless a writer has claimed it."""
        if self._handing_over:
            self.release()

    def close(self) -> None:
        """Close the files and end the thread.

        If there is a thread, it closes the files when it ends: it may still be waiting for a lock on one of them.
        """
        files, thread_queue = self._files, self._thread_queue
        self._files = self._thread_queue = None
        self._handing_over = False
        if thread_queue is not None:
            thread_queue.put(None)
        elif files is not None:
            _close(files)

    def _open(self) -> _Files:
        return _Files(*(open_lock_file(f"{self._path}.{name}") for name in ("lock-next", "lock")))

    async def _wait(self, files: _Files, while_waiting: WhileWaiting) -> None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(files, loop, loop.create_future(), loop.create_future(), threading.Event())
        self._waiting += 1
        self._queue_of_thread(files).put(waiter)
        try:
            await waiter.is_next
            await while_waiting()
            await waiter.has_lock
        except BaseException:
            if waiter.has_lock.done() and not waiter.has_lock.cancelled() and waiter.has_lock.exception() is None:
                # Cancelled between the arrival of the lock and this coroutine's next step: nobody else knows of it.
                _unlock(files)
                self._finish(waiter)
            else:
                # The thread cannot stop waiting in `flock`. `_report_lock` gives the lock back when it arrives.
                waiter.has_lock.cancel()
            raise
        self._finish(waiter)

    def _finish(self, waiter: _Waiter) -> None:
        self._waiting -= 1
        waiter.done.set()

    def _queue_of_thread(self, files: _Files) -> SimpleQueue[_Waiter | None]:
        if self._thread_queue is None:
            self._thread_queue = SimpleQueue()
            threading.Thread(
                target=self._serve_waiters, args=(files, self._thread_queue), name="allowance-write-lock", daemon=True
            ).start()
        return self._thread_queue

    def _serve_waiters(self, files: _Files, thread_queue: SimpleQueue[_Waiter | None]) -> None:
        """Wait for the lock on behalf of one waiter after the other; runs in the thread."""
        while (waiter := thread_queue.get()) is not None:
            error: OSError | None = None
            try:
                fcntl.flock(files.next, fcntl.LOCK_EX)
                _call_in_loop(waiter, _mark_next, waiter)
                fcntl.flock(files.lock, fcntl.LOCK_EX)
            except OSError as refused:
                error = refused
            # The waiter hears of the lock before `.lock-next` is released. The release wakes another process, which
            # then competes for the processor; meanwhile everybody would wait for the writer to start.
            self._holds_next = True
            reported = _call_in_loop(waiter, self._report_lock, waiter, error)
            with suppress(OSError):
                fcntl.flock(files.next, fcntl.LOCK_UN)
            self._holds_next = False
            # The lock belongs to the open file and so to the whole process. Were the thread to ask for it again now,
            # on behalf of the next waiter, it would get it at once, and two writers would believe that they hold it.
            if reported:
                waiter.done.wait()
            else:
                _unlock(files)
        for file in files:
            # A child that was forked in the meantime shares the open file. To close it here would leave the lock with
            # the child for as long as it lives, so unlock first.
            fcntl.flock(file, fcntl.LOCK_UN)
        _close(files)

    def _report_lock(self, waiter: _Waiter, error: OSError | None) -> None:
        _mark_next(waiter)
        if error is None and not waiter.has_lock.done():
            waiter.has_lock.set_result(None)
            return
        # Nobody wants this lock any more. It belongs to the waiter's files, which may not be `self._files`: the queue
        # may have been closed since. Unlock before `_finish`, after which the thread goes on with the next waiter.
        _unlock(waiter.files)
        if error is not None and not waiter.has_lock.done():
            waiter.has_lock.set_exception(error)
        self._finish(waiter)

    def close_in_child(self) -> None:
        files, self._files, self._waiting, self._handing_over = self._files, None, 0, False
        if files is not None:
            _close(files)


def _try_acquire(files: _Files) -> bool:
    """Acquire the lock if nobody holds it or waits for it; return True if that succeeded."""
    try:
        fcntl.flock(files.next, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        fcntl.flock(files.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        fcntl.flock(files.next, fcntl.LOCK_UN)
    return True


def _unlock(files: _Files) -> None:
    fcntl.flock(files.lock, fcntl.LOCK_UN)


def _close(files: _Files) -> None:
    for file in files:
        os.close(file)


def _call_in_loop(waiter: _Waiter, function: Any, *arguments: Any) -> bool:
    """Call a function in the waiter's loop; return False if the loop is closed, and the waiter with it gone."""
    with suppress(RuntimeError):
        waiter.loop.call_soon_threadsafe(function, *arguments)
        return True
    return False


def _mark_next(waiter: _Waiter) -> None:
    if not waiter.is_next.done():
        waiter.is_next.set_result(None)
