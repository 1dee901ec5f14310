"""A ledger that is held up, so that a test decides what comes into one batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from routing import Allowance
from routing.opened import Opened


@asynccontextmanager
async def stalled(book: Allowance) -> AsyncIterator[Opened]:
    """Until left, nothing is committed: a change without effect is under way, and what comes after it waits."""
    opened = book._opened
    assert opened is not None
    actor, runtime = opened.actor, opened.runtime
    await runtime.run(actor._state_lock.acquire())
    batches = actor.counters.batches
    first = asyncio.create_task(book.expire_due())
    while actor.counters.batches == batches:
        await runtime.run(asyncio.sleep(0))
        await asyncio.sleep(0)
    try:
        yield opened
    finally:
        runtime.loop.call_soon_threadsafe(actor._state_lock.release)
        await asyncio.gather(first, return_exceptions=True)


async def queued(opened: Opened, changes: int) -> None:
    """Waits until so many changes wait."""
    while len(opened.actor._changes._waiting) < changes:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
