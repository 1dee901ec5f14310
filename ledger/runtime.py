"""One thread with one event loop per process, on which every ledger of the process lives.

Callers come from any loop, from threads without one, and from forked workers. A forked child has no such thread;
it notices by its process id and starts its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")

CLOSING_SECONDS = 10.0
"""How long an exiting process waits for appends under way."""


class Runtime:
    """A daemon thread that runs an event loop until the process ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._closers: set[Callable[[], Awaitable[None]]] = set()
        self._thread = threading.Thread(target=self._run, name="allowance-ledger", daemon=True)
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine here, awaited from any event loop."""
        if asyncio.get_running_loop() is self.loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    def run_blocking(self, work: Coroutine[Any, Any, R]) -> R:
        """Runs a coroutine here and waits for it; for code without an event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def at_exit(self, close: Callable[[], Awaitable[None]]) -> None:
        """Has something closed when the process ends."""
        self._closers.add(close)

    def not_at_exit(self, close: Callable[[], Awaitable[None]]) -> None:
        """Takes `at_exit` back: it was closed before."""
        self._closers.discard(close)

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
            await close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


_current: Runtime | None = None
_starting = threading.Lock()


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


def _forget_lock() -> None:
    """A forked child must not inherit the lock as another thread held it."""
    global _starting  # noqa: PLW0603
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)
