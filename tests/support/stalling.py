"""Stall a ledger's writer, so that a test decides which commands share a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from routing import Allowance
from routing.service.handle import LedgerHandle


@asynccontextmanager
async def stalled(ledger: Allowance) -> AsyncIterator[LedgerHandle]:
    """Stall the writer until left: a command without effect is under way, and all later commands wait for it."""
    opened = ledger._lifecycle.open_handle
    assert opened is not None
    writer, runtime = opened.writer, opened.runtime
    # No public call can stall the writer; the lock on the state is where a batch waits.
    await runtime.run(writer._live.lock.acquire())
    batches = writer.counters.batches
    first = asyncio.create_task(ledger.expire_due())
    while writer.counters.batches == batches:
        await runtime.run(asyncio.sleep(0))
        await asyncio.sleep(0)
    try:
        yield opened
    finally:
        runtime.loop.call_soon_threadsafe(writer._live.lock.release)
        await asyncio.gather(first, return_exceptions=True)


async def queued(opened: LedgerHandle, commands: int) -> None:
    """Wait until this many commands are queued."""
    while len(opened.writer._commands._waiting) < commands:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)
