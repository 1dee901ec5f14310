"""Cancellation that waits until a database is left in order.

A statement that aiosqlite has under way when its caller is cancelled goes on in the driver's thread, and what it has
locked stays locked until its cursor is collected; even a closed connection lives on until then. So a cancellation
reaches the work on a database between its transactions only.
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
        self.depth = 0
        self.asked = False

    def cancel(self) -> None:
        if self.asked and self.depth == 0 and self.task is not None:
            self.task.cancel()


_current: ContextVar[_CancellableTask | None] = ContextVar("allowance_work", default=None)


async def run_cancellable(coroutine: Coroutine[Any, Any, R]) -> R:
    """Runs a coroutine as a task of its own, and cancels it where it allows that; waits for its end in any case."""
    work = _CancellableTask()
    token = _current.set(work)
    work.task = asyncio.create_task(coroutine)
    _current.reset(token)
    while not work.task.done():
        try:
            await asyncio.wait([work.task])
        except asyncio.CancelledError:
            work.asked = True
            work.cancel()
    if work.asked:
        if not work.task.cancelled():
            work.task.exception()  # Nobody waits for it any more; unread, the loop would complain.
        raise asyncio.CancelledError
    result: R = work.task.result()
    return result


@contextmanager
def cancellation_shield() -> Iterator[None]:
    """Inside, the work that this task does is not cancelled; one that was asked for meanwhile follows at the end."""
    work = _current.get()
    if work is None or work.task is not asyncio.current_task():
        yield
        return
    work.depth += 1
    try:
        yield
    finally:
        work.depth -= 1
        work.cancel()
