"""One thread with one event loop per process; every ledger of the process runs on it.

Callers come from any loop, from threads without a loop, and from forked workers. Connections belong to the loop that
opened them, so they need a loop that outlives the callers' loops. A forked child has no runtime thread, since a fork
copies only the thread that calls it; the child notices by its process id and starts its own.

Ledgers close whatever a child must not inherit before the fork. SQLite keeps a process's locks on a file in memory: a
child that inherits this memory believes that it holds locks, and writes without holding any.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeVar

from .cancellation import run_cancellable

R = TypeVar("R")

# How long an exiting process waits for appends under way. Shorter than the stores' timeouts (30 to 40 s), so that a
# database that does not respond cannot hold up the exit of a program for that long.
CLOSING_SECONDS = 10.0
# How long a fork waits for the work under way. Longer than `BUSY_TIMEOUT_SECONDS` (30 s), the longest wait of a SQLite
# write: a write that is only slow then ends before the fork gives up.
FORK_PAUSE_SECONDS = 40.0

# A context manager: once entered, nothing is under way. It yields a function that closes everything that a forked child
# must not inherit.
ForkPause = Callable[[], AbstractAsyncContextManager[Callable[[], None]]]

log = logging.getLogger("allowance.ledger")


class Runtime:
    """A daemon thread that runs an event loop until the process ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Start the thread; a `loop` that is given gets none, since its owner runs it, as a simulation does."""
        if loop is None:
            _refuse_green_threads()
        self.pid = os.getpid()
        self.loop = loop or asyncio.new_event_loop()
        self._closers: set[Callable[[], Awaitable[None]]] = set()
        self._fork_pauses: set[ForkPause] = set()
        # Several threads may fork at the same time; each keeps its own pause here.
        self._forking = threading.local()
        # A daemon thread: a program that never closes its ledgers can still exit.
        self._thread = threading.Thread(target=self._run, name="allowance-ledger", daemon=True)
        if loop is None:
            self._thread.start()

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the runtime's loop and await it from any loop.

        If the caller is cancelled, the coroutine is cancelled outside of its transactions.
        """
        if running_loop() is self.loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run_cancellable(work), self.loop))

    def run_blocking(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the runtime's loop and block until it ends; for code without an event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def add_closer(self, close: Callable[[], Awaitable[None]]) -> None:
        """Call this function when the process ends."""
        self._closers.add(close)

    def remove_closer(self, close: Callable[[], Awaitable[None]]) -> None:
        """Undo `add_closer`, for a ledger that is already closed."""
        self._closers.discard(close)

    def add_fork_pause(self, pause: ForkPause) -> None:
        """Enter this context manager before each fork, and leave it after the fork."""
        self._fork_pauses.add(pause)

    def remove_fork_pause(self, pause: ForkPause) -> None:
        """Undo `add_fork_pause`."""
        self._fork_pauses.discard(pause)

    def pause_for_fork(self) -> None:
        """Before a fork: wait for the work under way, close connections and stop the loop until `resume`."""
        if self.pid != os.getpid() or not self._fork_pauses:
            return
        if threading.current_thread() is self._thread:
            # The loop itself forks. To wait for work that only this loop can finish would never end.
            _inherited.append(self)
            return
        self._forking.paused, self._forking.resumed = Future[None](), threading.Event()
        asyncio.run_coroutine_threadsafe(self._pause_loop(self._forking.paused, self._forking.resumed), self.loop)
        try:
            self._forking.paused.result(FORK_PAUSE_SECONDS)
        except Exception:
            # A fork cannot be refused. The child finds the runtime in this list and refuses to open SQLite files.
            log.warning("forking while a ledger is in use: the child cannot use SQLite", exc_info=True)
            _inherited.append(self)

    def resume(self) -> None:
        """After a fork, in the parent: let the loop go on."""
        resumed = getattr(self._forking, "resumed", None)
        if resumed is not None:
            resumed.set()
            self._forking.resumed = None
        _inherited.clear()

    async def _pause_loop(self, paused: Future[None], resumed: threading.Event) -> None:
        try:
            async with asyncio.timeout(FORK_PAUSE_SECONDS), AsyncExitStack() as stack:
                # All pauses are entered before the first connection is closed: a pause that times out then leaves the
                # other ledgers as they were. The set is copied, since ledgers may open and close in between.
                pauses = tuple(self._fork_pauses)
                for close_connections in [await stack.enter_async_context(pause()) for pause in pauses]:
                    close_connections()
                paused.set_result(None)
                # Blocks the whole loop on purpose: no callback may open a connection before the fork is over.
                resumed.wait()
        except Exception as error:
            if not paused.done():
                paused.set_exception(error)

    def close(self) -> None:
        """When the process ends: close the ledgers that are still open, for at most `CLOSING_SECONDS`.

        Appends under way are finished or reported to their callers first.
        """
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
# In a forked child: the runtimes of its ancestors that could not pause before the fork.
_inherited: list[Runtime] = []


def current_runtime() -> Runtime:
    """Return this process's runtime; the first call starts it."""
    global _current  # noqa: PLW0603 - one per process is the point
    if _current is None or _current.pid != os.getpid():
        with _starting:
            # Checked again under the lock: another thread may have started it in between.
            if _current is None or _current.pid != os.getpid():
                _current = Runtime()
                atexit.register(_current.close)
    return _current


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the caller's asyncio event loop. Raise `RuntimeError` that says what to do instead if there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError as cause:
        raise RuntimeError(
            "awaiting a ledger needs a running asyncio event loop: under trio, or without a loop, make the same call"
            " from `routing.sync`; under trio in a thread, as trio.to_thread.run_sync does"
        ) from cause


def refuse_on_loop() -> None:
    """Raise `RuntimeError` if the calling thread runs an event loop, which a blocking call would stop."""
    if _runs_trio():
        raise RuntimeError(
            "a blocking call in a trio task would stop trio's event loop: make it in a thread, as"
            " trio.to_thread.run_sync does"
        )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        "a blocking call on a running event loop would stop it: await the same call from `routing`"
        " instead of `routing.sync`, or make it in a thread, as asyncio.to_thread does"
    )


def _runs_trio() -> bool:
    trio = sys.modules.get("trio")
    if trio is None:
        return False
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return False
    return True


def _refuse_green_threads() -> None:
    """Raise `RuntimeError` if gevent has replaced what the runtime needs: a real thread, and a selector to wait in."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and any(map(monkey.is_module_patched, ("threading", "select"))):
        raise RuntimeError(
            "gevent has replaced the threads or selectors of this process, and a ledger needs real ones: patch with"
            " gevent.monkey.patch_all(thread=False, select=False) and make each call in gevent.get_hub().threadpool,"
            " or choose workers without gevent, such as gunicorn's gthread and Celery's prefork"
        )


def inherits_connections() -> bool:
    """Whether this process was forked while its parent's connections were in use."""
    return any(runtime.pid != os.getpid() for runtime in _inherited)


def _pause_for_fork() -> None:
    if _current is not None:
        _current.pause_for_fork()


def _resume_after_fork() -> None:
    if _current is not None:
        _current.resume()


def _renew_lock() -> None:
    """Replace the lock in a forked child: another thread of the parent may have held it, and cannot release it here."""
    global _starting  # noqa: PLW0603 - the hook of a fork has nowhere else to put the new lock
    _starting = threading.Lock()


os.register_at_fork(before=_pause_for_fork, after_in_parent=_resume_after_fork, after_in_child=_renew_lock)
