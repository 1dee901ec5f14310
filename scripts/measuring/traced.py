"""The program that `tracing` runs with the code of a checkout. It uses only public names, which stay the same.

It prints, for each call, how many modules of the project were entered, and how often a function was entered in another
module than the function that was entered before it. The call is traced several times, on warmed-up caches; the figures
are medians, because the calling thread and the library's own thread are interleaved differently each time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import FrameType, SimpleNamespace
from typing import Any

from routing import Allowance, Miner, Routing

PACKAGES = {"ledger", "projections", "routing"}
VALIDATOR = "5Validator"
EXECUTOR_CLASS = "always_on.gpu-24gb"
HOTKEYS = ("5Anna", "5Bert", "5Carl")
BLOCKS = 40
BLOCK_S = 12
START = datetime(2024, 1, 1, tzinfo=UTC)
WARM_UPS = 3
REPEATS = 9

Call = Callable[[], Awaitable[Any]]


class Trace:
    """Records the module of every function that any thread enters, while it is switched on."""

    def __init__(self) -> None:
        self.is_on = False
        self.modules: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self.is_on and event == "call":
            module = str(frame.f_globals.get("__name__", ""))
            if module.partition(".")[0] in PACKAGES:
                self.modules.append(module)

    async def counts(self, call: Call) -> tuple[int, int]:
        """Return how many modules a call entered, and how often it switched between them."""
        self.modules.clear()
        self.is_on = True
        await call()
        self.is_on = False
        return len(set(self.modules)), sum(one != other for one, other in pairwise(self.modules))


class SmallLedger:
    """An open ledger with some blocks, and the calls that are traced."""

    def __init__(self, ledger: Allowance) -> None:
        self._ledger = ledger
        self._block = 0
        self._jobs = 0

    async def fill(self) -> None:
        """Record a manifest and blocks, so that every miner has allowance."""
        await self._ledger.record_manifests(1, {hotkey: {EXECUTOR_CLASS: 4} for hotkey in HOTKEYS})
        for _ in range(BLOCKS):
            await self.block()

    async def block(self) -> None:
        """Record the next block."""
        self._block += 1
        miners = [Miner("192.0.2.7", 4, 8000, hotkey) for hotkey in HOTKEYS]
        created_at = START + timedelta(seconds=BLOCK_S * self._block)
        await self._ledger.record_block(self._block, created_at, miners, {VALIDATOR: 1.0, "5Other": 1.0})

    async def pick(self) -> None:
        """Pick a miner for a new job."""
        self._jobs += 1
        request = SimpleNamespace(
            uuid=f"job-{self._jobs}",
            executor_class=EXECUTOR_CLASS,
            download_time_limit=0,
            execution_time_limit=1.0,
            upload_time_limit=0,
            on_trusted_miner=False,
        )
        await Routing(self._ledger).pick_miner_for_job_request(request)

    async def history_page(self) -> None:
        """Read a page of the history."""
        await self._ledger.history(limit=10)


def clock_ns() -> int:
    """The time of the newest block."""
    return int((START + timedelta(seconds=BLOCK_S * BLOCKS)).timestamp()) * 10**9


async def main() -> None:
    trace = Trace()
    # Before the library starts its thread: a profile function applies to threads that start later.
    threading.setprofile(trace)
    sys.setprofile(trace)
    counts = {}
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'ledger.db'}"
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock_ns) as ledger:
            small = SmallLedger(ledger)
            await small.fill()
            for name, call in (("pick", small.pick), ("block", small.block), ("history page", small.history_page)):
                for _ in range(WARM_UPS):
                    await call()
                samples = [await trace.counts(call) for _ in range(REPEATS)]
                counts[name] = [median(values) for values in zip(*samples, strict=True)]
    sys.setprofile(None)
    print(json.dumps(counts))


if __name__ == "__main__":
    asyncio.run(main())
