"""A process that reads the log's tail over and over and keeps what it received, in the order it received it."""

from __future__ import annotations

import asyncio
import signal
import sys

import msgspec

from ledger import AllowanceException, Store, store_for

from . import network
from .plan import Plan

PAUSE_S = 0.0005


async def follow(plan: Plan, stop: asyncio.Event) -> None:
    """Writes each row once, as a line of JSON; after `stop`, reads to the end once more."""
    position = 0
    with plan.received.open("ab") as received:
        while True:
            last = stop.is_set()
            try:
                store = await _opened(plan)
                position = await _read_on(store, position, received.write, stop)
                await store.close()
            except AllowanceException:
                await asyncio.sleep(PAUSE_S)
                continue
            if last:
                return


async def _opened(plan: Plan) -> Store:
    store = store_for(plan.url, network.ME, read_only=True)
    await store.open(None)
    return store


async def _read_on(store: Store, position: int, keep: object, stop: asyncio.Event) -> int:
    raise NotImplementedError


async def _main(plan: Plan) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await follow(plan, stop)


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=Plan)))
