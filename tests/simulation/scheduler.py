"""Event loops under virtual time: one thread runs those of all simulated processes, in an order that a seed chooses."""

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any


class Scheduler:
    """Runs one callback of one loop at a time; the time moves only when no loop has anything to do."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 0.0
        """Virtual seconds since the start."""
        self.callbacks = 0
        self._random = chance.random
        self._ready: list[SimulatedLoop] = []
        self._timers: list[tuple[float, int, SimulatedLoop, asyncio.TimerHandle]] = []
        self._timer_number = 0

    def loop(self) -> SimulatedLoop:
        """Return a new loop that this scheduler runs."""
        # What the library does not use of a loop stays abstract, and raises `NotImplementedError`.
        return SimulatedLoop(self)  # type: ignore[abstract]

    def run_until_done(self, task: asyncio.Task[Any], limit_seconds: float) -> bool:
        """Run all loops until the task is done; return False if nothing is left to run, or the time limit passes."""
        try:
            while not task.done():
                if self.now > limit_seconds or not (self._ready or self._advance()):
                    return False
                self._run_one()
        finally:
            events._set_running_loop(None)
        return True

    def is_ready(self, loop: SimulatedLoop) -> None:
        """Take a loop that has its first callback."""
        self._ready.append(loop)

    def discard(self, loop: SimulatedLoop) -> None:
        """Forget a loop that was killed."""
        if loop in self._ready:
            self._ready.remove(loop)

    def add_timer(self, when: float, loop: SimulatedLoop, handle: asyncio.TimerHandle) -> None:
        """Run the handle at a time; of equal times the first one added comes first."""
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._timer_number, loop, handle))

    def _run_one(self) -> None:
        ready = self._ready
        index = int(self._random() * len(ready)) if len(ready) > 1 else 0
        loop = ready[index]
        handle = loop.queue.popleft()
        if not loop.queue:
            ready[index] = ready[-1]
            ready.pop()
        if not handle._cancelled:
            self.callbacks += 1
            events._set_running_loop(loop)
            handle._run()

    def _advance(self) -> bool:
        """Move the time to the next timer and make it ready; return False if there is none."""
        while self._timers:
            when, _, loop, handle = heapq.heappop(self._timers)
            if not handle._cancelled and not loop.dead:
                self.now = max(self.now, when)
                loop.add(handle)
                return True
        return False


class SimulatedLoop(asyncio.AbstractEventLoop):
    """One event loop of one simulated process. Its own callbacks keep their order, as asyncio promises.

    The overridden methods ignore a rule of types: the superclass has variadic ones, which would say no more here.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.queue: deque[asyncio.Handle] = deque()
        self.dead = False
        # A killed process runs no `finally`, so its suspended coroutines must not be collected before the world ends.
        self.tasks: list[asyncio.Task[Any]] = []
        self._scheduler = scheduler

    def kill(self) -> None:
        """Run nothing of this loop any more."""
        self.dead = True
        self.queue.clear()
        self._scheduler.discard(self)

    def add(self, handle: asyncio.Handle) -> None:
        """Queue a callback."""
        if self.dead:
            return
        if not self.queue:
            self._scheduler.is_ready(self)
        self.queue.append(handle)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.add(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._scheduler.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._scheduler.add_timer(when, self, handle)
        return handle

    def time(self) -> float:
        return self._scheduler.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name or "simulated", context=context)
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Ignore complaints about tasks that were killed; an error that matters reaches a caller."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: cancelled timers are skipped when their time comes."""
