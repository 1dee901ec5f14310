"""A line in which the writers of a SQLite file wait for their turn, whatever process they are in.

Two lock files make it: whoever writes holds the one, whoever is next holds the other and waits for the first. All
others wait for the place of the next, where the system wakes them in the order in which they came; so a writer that
comes back at once is hardly ever served twice before them. A process that is killed leaves the line.

The one who is next uses the time: it folds what the others have appended, so that less is left to do in its turn.
"""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from ledger.store.contract import WhileWaiting

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover - no line where there is no flock
    fcntl = None


class _Files(NamedTuple):
    """The open lock files, by descriptor."""

    next: int
    turn: int


class _Waiter(NamedTuple):
    """One who waits: told when it is next, and when it is its turn.

    The thread, once it has told of the turn, goes on when that is `settled`: taken, or given back.
    """

    files: _Files
    loop: asyncio.AbstractEventLoop
    next: asyncio.Future[None]
    turn: asyncio.Future[None]
    settled: threading.Event


class WriteLockQueue:
    """One process's place in the line.

    Where nobody waits, the turn is taken at once; else a thread of its own waits for it, so that this process goes
    on answering reads meanwhile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: _Files | None = None
        self._queue: SimpleQueue[_Waiter | None] | None = None
        self._waiting = 0
        """How many the thread still waits for, those who gave up among them."""
        self._holds_next = False
        """Whether the thread, which has told of a turn, still has the place of the next: others wait behind it."""
        self._offered = False
        """Whether the turn is still this process's, for a writer of it to go on with."""
        os.register_at_fork(after_in_child=self._forget)

    async def acquire(self, meanwhile: WhileWaiting) -> None:
        """Waits until this process alone may write; `meanwhile` is done while it is next."""
        if fcntl is None:
            return
        if self._offered:
            self._offered = False
            return
        files = self._files = self._files or self._open()
        if self._waiting or self._holds_next or not _acquired_at_once(files):
            await self._wait(files, meanwhile)

    def release(self) -> None:
        """Lets the next one write."""
        self._offered = False
        if self._files is not None:
            _unlock(self._files)

    def offer(self) -> None:
        """Keeps the turn for two rounds of the loop, for a writer of this process that waits; then releases it.

        Such a writer is woken in the first of them.
        """
        loop = asyncio.get_running_loop()
        self._offered = self._files is not None
        loop.call_soon(loop.call_soon, self.withdraw)

    def withdraw(self) -> None:
        """Releases what was offered, if nobody took it."""
        if self._offered:
            self.release()

    def close(self) -> None:
        """Gives the files back, and ends the waiting thread; which closes them, since it may still wait for one."""
        files, queue = self._files, self._queue
        self._files = self._queue = None
        self._offered = False
        if queue is not None:
            queue.put(None)
        elif files is not None:
            _close(files)

    def _open(self) -> _Files:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return _Files(*(os.open(f"{self._path}.{name}", flags, 0o600) for name in ("lock-next", "lock")))

    async def _wait(self, files: _Files, meanwhile: WhileWaiting) -> None:
        loop = asyncio.get_running_loop()
        one = _Waiter(files, loop, loop.create_future(), loop.create_future(), threading.Event())
        self._waiting += 1
        self._thread_queue(files).put(one)
        try:
            await one.next
            await meanwhile()
            await one.turn
        except BaseException:
            if one.turn.done() and not one.turn.cancelled() and one.turn.exception() is None:
                _unlock(files)
                self._settle(one)
            else:
                one.turn.cancel()  # the turn that comes all the same is given back
            raise
        self._settle(one)

    def _settle(self, one: _Waiter) -> None:
        """Nothing more is to be waited for on behalf of this one."""
        self._waiting -= 1
        one.settled.set()

    def _thread_queue(self, files: _Files) -> SimpleQueue[_Waiter | None]:
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(
                target=self._wait_in_turn, args=(files, self._queue), name="allowance-line", daemon=True
            ).start()
        return self._queue

    def _wait_in_turn(self, files: _Files, queue: SimpleQueue[_Waiter | None]) -> None:
        while (one := queue.get()) is not None:
            error: OSError | None = None
            try:
                fcntl.flock(files.next, fcntl.LOCK_EX)
                _notify(one, _mark_next, one)
                fcntl.flock(files.turn, fcntl.LOCK_EX)
            except OSError as refused:
                error = refused
            # Told first: who is let into the place of the next takes a processor, and the turn is waited for by all.
            self._holds_next = True
            told = _notify(one, self._has_turn, one, error)
            with suppress(OSError):
                fcntl.flock(files.next, fcntl.LOCK_UN)
            self._holds_next = False
            # A turn is the process's, whoever asked for it: nobody else may ask until this one is taken or given back.
            if told:
                one.settled.wait()
            else:
                _unlock(files)
        for file in files:
            # A child that was forked meanwhile shares the lock; closing alone would leave it to the child.
            fcntl.flock(file, fcntl.LOCK_UN)
        _close(files)

    def _has_turn(self, one: _Waiter, error: OSError | None) -> None:
        _mark_next(one)
        if error is None and not one.turn.done():
            one.turn.set_result(None)
            return
        # What the thread holds may be of files that are no longer the line's: it goes on after this.
        _unlock(one.files)
        if error is not None and not one.turn.done():
            one.turn.set_exception(error)
        self._settle(one)

    def _forget(self) -> None:
        """Closes the files; a forked child must not keep its parent's locks alive."""
        files, self._files, self._waiting, self._offered = self._files, None, 0, False
        if files is not None:
            _close(files)


def _acquired_at_once(files: _Files) -> bool:
    """Whether nobody is in the line, and the turn could be taken."""
    try:
        fcntl.flock(files.next, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        fcntl.flock(files.turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        fcntl.flock(files.next, fcntl.LOCK_UN)
    return True


def _unlock(files: _Files) -> None:
    fcntl.flock(files.turn, fcntl.LOCK_UN)


def _close(files: _Files) -> None:
    for file in files:
        os.close(file)


def _notify(one: _Waiter, what: Any, *arguments: Any) -> bool:
    """Whether the loop is still there, and with it whoever waits."""
    with suppress(RuntimeError):
        one.loop.call_soon_threadsafe(what, *arguments)
        return True
    return False


def _mark_next(one: _Waiter) -> None:
    if not one.next.done():
        one.next.set_result(None)
