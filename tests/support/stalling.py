"""A ledger that is held up, so that a test decides what comes into one batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from routing import Allowance
from routing.service.handle import LedgerHandle


@asynccontextmanager
async def stalled(ledger: Allowance) -> AsyncIterator[LedgerHandle]:
    """Until left, nothing is committed: a change without effect is under way, and what comes after it waits."""
    opened = ledger._lifecycle.open_handle
    assert opened is not None
    writer, runtime = opened.writer, opened.runtime
    await runtime.run(writer._state_lock.acquire())
    batches = writer.counters.batches
    first = asyncio.create_task(ledger.expire_due())
    while writer.counters.batches == batches:
        await runtime.run(asyncio.sleep(0))
        await asyncio.sleep(0)
    try:
        yield opened
    finally:
        runtime.loop.call_soon_threadsafe(writer._state_lock.release)
        await asyncio.gather(first, return_exceptions=True)


async def queued(opened: LedgerHandle, changes: int) -> None:
    """Waits until so many changes wait."""
    while len(opened.writer._commands._waiting) < changes:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)
