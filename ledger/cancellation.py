"""Cancellation that waits until the database is in order.

If a caller is cancelled while aiosqlite runs its statement, the statement continues in the driver's thread. Its locks
stay until its cursor is garbage-collected; even a closed connection lives on until then. So a coroutine that works on a
database is cancelled only outside of its transactions, which `cancellation_shield` marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

R = TypeVar("R")


class _CancellableTask:
    """A task whose cancellation waits while it is inside `cancellation_shield`."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self.shields = 0
        self.is_requested = False

    def cancel_if_unshielded(self) -> None:
        if self.is_requested and self.shields == 0 and self.task is not None:
            self.task.cancel()


_current: ContextVar[_CancellableTask | None] = ContextVar("allowance_work", default=None)


async def run_cancellable(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine as a task of its own and wait for its end, also after a cancellation.

    A cancellation of the caller reaches the task at once, or at the end of its `cancellation_shield`.
    """
    work = _CancellableTask()
    # The new task copies the context, so it sees `work`; the caller itself must not, hence the reset.
    token = _current.set(work)
    work.task = asyncio.create_task(coroutine)
    _current.reset(token)
    while not work.task.done():
        try:
            # `wait` does not pass a cancellation on to the task, unlike a plain `await`.
            await asyncio.wait([work.task])
        except asyncio.CancelledError:
            work.is_requested = True
            work.cancel_if_unshielded()
    if work.is_requested:
        if not work.task.cancelled():
            work.task.exception()  # An exception that nobody reads would make asyncio log a complaint.
        raise asyncio.CancelledError
    result: R = work.task.result()
    return result


@contextmanager
def cancellation_shield() -> Iterator[None]:
    """Postpone a cancellation of this task to the end of the block.

    It has no effect in a task that `run_cancellable` did not start, or in a child of such a task.
    """
    work = _current.get()
    # A child task inherits the context variable, but `run_cancellable` never cancels it.
    if work is None or work.task is not asyncio.current_task():
        yield
        return
    work.shields += 1
    try:
        yield
    finally:
        work.shields -= 1
        work.cancel_if_unshielded()
