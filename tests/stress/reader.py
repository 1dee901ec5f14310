"""A process that reads the log's tail over and over and keeps what it received, in the order it received it."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress

import msgspec

from ledger import Store, store_from_url
from ledger.errors import AllowanceException

from . import network
from .plan import Plan

PAUSE_S = 0.0005


class Reader:
    """Asks for what comes after the last row it has; it never asks twice for one that it has."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.position = 0
        self.stop = asyncio.Event()
        self._received = plan.received.open("ab", buffering=0)

    async def follow(self) -> None:
        """Follows the log until stopped and at its end; a database that is away is waited for."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop.set)
        while True:
            store = store_from_url(self.plan.url, network.ME, read_only=True)
            with suppress(AllowanceException):
                await store.open(None)
                await self._read_on(store)
                return
            with suppress(AllowanceException):
                await store.close()
            await asyncio.sleep(0.05)

    async def _read_on(self, store: Store) -> None:
        while True:
            stopping = self.stop.is_set()
            rows = await store.read(self.position)
            for row in rows:
                self._received.write(msgspec.json.encode(row) + b"\n")
                self.position = row.position
            if stopping and not rows:
                await store.close()
                return
            await asyncio.sleep(0 if rows else PAUSE_S)


async def _follow(plan: Plan) -> None:
    await Reader(plan).follow()


def main(plan: Plan, name: str) -> None:
    """What the process does."""
    sys.stderr = plan.errors(name).open("a", buffering=1)
    asyncio.run(_follow(plan))
