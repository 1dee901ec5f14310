"""One thread with one event loop per process, on which every ledger of the process lives.

Callers come from any loop, from threads without one, and from forked workers. A forked child has no such thread;
it notices by its process id and starts its own. What a child must not inherit is let go of before the fork: SQLite
keeps a process's locks on a file in memory, and a child that inherits them writes without holding any.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from .cancellation import run_cancellable

R = TypeVar("R")

CLOSING_SECONDS = 10.0
"""How long an exiting process waits for appends under way."""
FORK_PAUSE_SECONDS = 40.0
"""How long a fork waits for what is under way; longer than a write waits for its turn."""

ForkPause = Callable[[], AbstractAsyncContextManager[Callable[[], None]]]
"""Entered, nothing is under way; it gives what then lets go of everything that a forked child must not inherit."""

log = logging.getLogger("allowance.ledger")


class Runtime:
    """A daemon thread that runs an event loop until the process ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._closers: set[Callable[[], Awaitable[None]]] = set()
        self._parks: set[ForkPause] = set()
        self._forking = threading.local()
        self._thread = threading.Thread(target=self._run, name="allowance-ledger", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine here, awaited from any event loop; cancelled, it ends between two transactions."""
        if asyncio.get_running_loop() is self.loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run_cancellable(work), self.loop))

    def run_blocking(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine here and waits for it; for code without an event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def add_closer(self, close: Callable[[], Awaitable[None]]) -> None:
        """Has something closed when the process ends."""
        self._closers.add(close)

    def remove_closer(self, close: Callable[[], Awaitable[None]]) -> None:
        """Takes `at_exit` back: it was closed before."""
        self._closers.discard(close)

    def add_fork_pause(self, park: ForkPause) -> None:
        """Has something parked while the process forks."""
        self._parks.add(park)

    def remove_fork_pause(self, park: ForkPause) -> None:
        """Takes `at_fork` back."""
        self._parks.discard(park)

    def park(self) -> None:
        """Before a fork: everything parks, lets go, and the loop stands still until `resume`."""
        if self.pid != os.getpid() or not self._parks:
            return
        if threading.current_thread() is self._thread:
            _inherited.append(self)
            return
        self._forking.paused_for_fork, self._forking.resumed = Future[None](), threading.Event()
        asyncio.run_coroutine_threadsafe(
            self._stand_still(self._forking.paused_for_fork, self._forking.resumed), self.loop
        )
        try:
            self._forking.paused_for_fork.result(FORK_PAUSE_SECONDS)
        except Exception:
            log.warning("forking while a ledger is in use: the child cannot use SQLite", exc_info=True)
            _inherited.append(self)

    def resume(self) -> None:
        """After a fork, in the parent."""
        resumed = getattr(self._forking, "resumed", None)
        if resumed is not None:
            resumed.set()
            self._forking.resumed = None
        _inherited.clear()

    async def _stand_still(self, paused_for_fork: Future[None], resumed: threading.Event) -> None:
        try:
            async with asyncio.timeout(FORK_PAUSE_SECONDS), AsyncExitStack() as stack:
                for let_go in [await stack.enter_async_context(park()) for park in tuple(self._parks)]:
                    let_go()
                paused_for_fork.set_result(None)
                resumed.wait()
        except Exception as error:
            if not paused_for_fork.done():
                paused_for_fork.set_exception(error)

    def close(self) -> None:
        """Closes what was left open; appends under way are finished or reported first."""
        if self.pid != os.getpid():
            return
        closing = asyncio.run_coroutine_threadsafe(self._close_all(), self.loop)
        try:
            closing.result(CLOSING_SECONDS)
        except TimeoutError:
            closing.cancel()

    async def _close_all(self) -> None:
        for close in tuple(self._closers):
            try:
                await close()
            except Exception:
                log.warning("a ledger could not be closed", exc_info=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


_current: Runtime | None = None
_starting = threading.Lock()
_inherited: list[Runtime] = []
"""In a forked child: the runtimes of its parents that could not be parked."""


def current_runtime() -> Runtime:
    """This process's runtime; started at the first call."""
    global _current  # noqa: PLW0603 - one per process is the point
    if _current is None or _current.pid != os.getpid():
        with _starting:
            if _current is None or _current.pid != os.getpid():
                _current = Runtime()
                atexit.register(_current.close)
    return _current


def refuse_on_loop() -> None:
    """Refuses a blocking call where it would stop a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "a blocking call on a running event loop would stop it: await the same call from `routing`"
        " instead of `routing.sync`, or make it in a thread, as asyncio.to_thread does"
    )


def inherits_connections() -> bool:
    """Whether this process is the fork of one whose connections were in use just then."""
    return any(runtime.pid != os.getpid() for runtime in _inherited)


def _pause_for_fork() -> None:
    if _current is not None:
        _current.park()


def _resume_after_fork() -> None:
    if _current is not None:
        _current.resume()


def _renew_lock() -> None:
    """A forked child must not inherit the lock as another thread held it."""
    global _starting  # noqa: PLW0603
    _starting = threading.Lock()


os.register_at_fork(before=_pause_for_fork, after_in_parent=_resume_after_fork, after_in_child=_renew_lock)
