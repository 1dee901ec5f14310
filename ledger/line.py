"""A line in which the writers of a SQLite file wait for their turn, whatever process they are in.

Three lock files make it. Whoever writes holds `lock`; who comes after holds `lock-soon`, and waits for the first; who
comes after that holds `lock-next`, and waits for the second. All others wait for the place of the next, where the
system wakes them in the order in which they came; so a writer that comes back at once cannot be served twice before
them. A process that is killed leaves the line.

The one who is next uses the time: it folds what the others have appended, so that less is left to do in its turn. A
writer gives `lock-soon` up when all that it still has to do is to commit, which is mostly to wait for the disk. To be
woken through a thread takes about as long: so the next one is woken then, and looks for itself when the turn is free.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

from .log import Meanwhile

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover - no line where there is no flock
    fcntl = None

LOOKING_SECONDS = 0.005
"""How long one looks for itself whether the turn is free; a commit mostly takes less."""
PAUSE_SECONDS = 0.00005
"""Between two looks; a loop's own timers are coarser by far."""


class _Files(NamedTuple):
    """The open lock files, by descriptor."""

    next: int
    soon: int
    turn: int


class _Waiting(NamedTuple):
    """One who waits: told when it is next, when its turn comes soon, and when it is its turn.

    `settled` answers the thread, which waits for that once it has told either of the last two: whether it is done with
    this one. It is not where the turn is to be waited for by the thread.
    """

    files: _Files
    loop: asyncio.AbstractEventLoop
    next: asyncio.Future[None]
    soon: asyncio.Future[None]
    turn: asyncio.Future[None]
    settled: SimpleQueue[bool]


class WritersLine:
    """One process's place in the line.

    Where nobody waits, the turn is taken at once; else a thread of its own waits for it, so that this process goes
    on answering reads meanwhile.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: _Files | None = None
        self._queue: SimpleQueue[_Waiting | None] | None = None
        self._waiting = 0
        """How many the thread still waits for, those who gave up among them."""
        os.register_at_fork(after_in_child=self._forget)

    async def acquire(self, meanwhile: Meanwhile) -> None:
        """Waits until this process alone may write; `meanwhile` is done while it is next."""
        if fcntl is None:
            return
        files = self._files = self._files or self._open()
        if self._waiting or not _taken_at_once(files):
            await self._wait(files, meanwhile)

    def nearly_done(self) -> None:
        """Has the next one get ready: the turn ends as soon as this one's commit is done."""
        if self._files is not None:
            fcntl.flock(self._files.soon, fcntl.LOCK_UN)

    def release(self) -> None:
        """Lets the next one write."""
        if self._files is not None:
            _give_back(self._files)

    def close(self) -> None:
        """Gives the files back, and ends the waiting thread; which closes them, since it may still wait for one."""
        files, queue = self._files, self._queue
        self._files = self._queue = None
        if queue is not None:
            queue.put(None)
        elif files is not None:
            _close(files)

    def _open(self) -> _Files:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        return _Files(*(os.open(f"{self._path}.{name}", flags, 0o600) for name in ("lock-next", "lock-soon", "lock")))

    async def _wait(self, files: _Files, meanwhile: Meanwhile) -> None:
        loop = asyncio.get_running_loop()
        one = _Waiting(files, loop, loop.create_future(), loop.create_future(), loop.create_future(), SimpleQueue())
        self._waiting += 1
        self._thread_queue(files).put(one)
        looking = True
        try:
            await one.next
            await meanwhile()
            await one.soon
            if not await _found_free(files):
                looking = False
                one.settled.put(False)
                await one.turn
        except BaseException:
            if _came(one.turn) or (looking and _came(one.soon)):
                _give_back(files)
                self._settle(one)
            else:
                one.soon.cancel()
                one.turn.cancel()  # the turn that comes all the same is given back
            raise
        self._settle(one)

    def _settle(self, one: _Waiting) -> None:
        """Nothing more is to be waited for on behalf of this one."""
        self._waiting -= 1
        one.settled.put(True)

    def _thread_queue(self, files: _Files) -> SimpleQueue[_Waiting | None]:
        if self._queue is None:
            self._queue = SimpleQueue()
            threading.Thread(
                target=self._wait_in_turn, args=(files, self._queue), name="allowance-line", daemon=True
            ).start()
        return self._queue

    def _wait_in_turn(self, files: _Files, queue: SimpleQueue[_Waiting | None]) -> None:
        while (one := queue.get()) is not None:
            error: OSError | None = None
            try:
                fcntl.flock(files.next, fcntl.LOCK_EX)
                _tell(one, _is_next, one)
                fcntl.flock(files.soon, fcntl.LOCK_EX)
                fcntl.flock(files.next, fcntl.LOCK_UN)
                if not _tell(one, self._comes_soon, one):
                    _give_back(files)
                    continue
                if one.settled.get():
                    continue
                fcntl.flock(files.turn, fcntl.LOCK_EX)
            except OSError as refused:
                error = refused
                with suppress(OSError):
                    fcntl.flock(files.next, fcntl.LOCK_UN)
            # A turn is the process's, whoever asked for it: nobody else may ask until this one is taken or given back.
            if _tell(one, self._has_turn, one, error):
                one.settled.get()
            else:
                _give_back(files)
        for file in files:
            # A child that was forked meanwhile shares the lock; closing alone would leave it to the child.
            fcntl.flock(file, fcntl.LOCK_UN)
        _close(files)

    def _comes_soon(self, one: _Waiting) -> None:
        if not one.soon.done():
            one.soon.set_result(None)
            return
        _give_back(one.files)
        self._settle(one)

    def _has_turn(self, one: _Waiting, error: OSError | None) -> None:
        _is_next(one)
        if error is None and not one.turn.done():
            one.turn.set_result(None)
            return
        # What the thread holds may be of files that are no longer the line's: it goes on after this.
        _give_back(one.files)
        if error is not None and not one.turn.done():
            failed = one.turn if one.soon.done() else one.soon
            failed.set_exception(error)
        self._settle(one)

    def _forget(self) -> None:
        """Closes the files; a forked child must not keep its parent's locks alive."""
        files, self._files, self._waiting = self._files, None, 0
        if files is not None:
            _close(files)


def _taken_at_once(files: _Files) -> bool:
    """Whether nobody is in the line, and the turn could be taken."""
    try:
        fcntl.flock(files.next, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        fcntl.flock(files.soon, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_taken(files):
            return True
        fcntl.flock(files.soon, fcntl.LOCK_UN)
    except BlockingIOError:
        pass
    finally:
        fcntl.flock(files.next, fcntl.LOCK_UN)
    return False


async def _found_free(files: _Files) -> bool:
    """Whether the turn could be taken after some looks; others on the loop get their turns in between."""
    until = time.perf_counter() + LOOKING_SECONDS
    while not _is_taken(files):
        if time.perf_counter() > until:
            return False
        time.sleep(PAUSE_SECONDS)  # noqa: ASYNC251 - shorter than the loop's shortest
        await asyncio.sleep(0)
    return True


def _is_taken(files: _Files) -> bool:
    """Whether the turn was free, and is taken now."""
    try:
        fcntl.flock(files.turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _give_back(files: _Files) -> None:
    for file in (files.soon, files.turn):
        fcntl.flock(file, fcntl.LOCK_UN)


def _close(files: _Files) -> None:
    for file in files:
        os.close(file)


def _came(told: asyncio.Future[None]) -> bool:
    return told.done() and not told.cancelled() and told.exception() is None


def _tell(one: _Waiting, what: Any, *arguments: Any) -> bool:
    """Whether the loop is still there, and with it whoever waits."""
    with suppress(RuntimeError):
        one.loop.call_soon_threadsafe(what, *arguments)
        return True
    return False


def _is_next(one: _Waiting) -> None:
    if not one.next.done():
        one.next.set_result(None)
