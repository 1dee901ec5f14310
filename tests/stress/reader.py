"""A process that reads the tail of the log again and again, and writes down each row in the order of reception."""

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
    """Requests the rows after the last one that it has; it never requests a row twice."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.position = 0
        self.stop = asyncio.Event()
        self._received = plan.received.open("ab", buffering=0)

    async def follow(self) -> None:
        """Follow the log until stopped, and then to its end; retry while the database is unavailable."""
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
            # Checked before the read, so that the last read begins after the stop and misses no row appended before it.
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
    """Run the process."""
    sys.stderr = plan.errors(name).open("a", buffering=1)
    asyncio.run(_follow(plan))
