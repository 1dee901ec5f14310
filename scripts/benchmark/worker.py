"""A process that opens a ledger and picks on command: `python -m scripts.benchmark.worker`.

It writes a JSON line when the ledger is open, and one after each command: the time that it needed, and the peak memory
of the process. It exits without closing anything, as a killed process does, so that closing does not change the
ledger.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

BYTES_PER_UNIT = 1 if sys.platform == "darwin" else 1024
PAGE_ITEMS = 100
STATUS = Path("/proc/self/status")


def reply(**fields: Any) -> None:
    """Write a reply for the process that started this one."""
    fields["memory_mb"] = _peak_memory_mb()
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _peak_memory_mb() -> float:
    """Return the peak memory of this process. On Linux, getrusage would also count the parent's memory at the fork."""
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_UNIT / 1e6


async def work(url: str, validator_ss58: str, start_ns: int, classes: list[str]) -> None:
    """Open the ledger, and execute commands until the input ends."""
    started = time.perf_counter()
    from routing import Allowance, JobRoute, Routing

    imported = time.perf_counter()
    ahead_ns = start_ns - time.monotonic_ns()
    ledger = Allowance.open(url, validator_ss58=validator_ss58, clock_ns=lambda: time.monotonic_ns() + ahead_ns)
    newest = await ledger.current_block()
    await ledger.find_miners(1.0, classes[0], newest or 1)
    opened = time.perf_counter()
    reply(routing_s=imported - started, opened_s=opened - imported)

    from random import Random

    from .jobs import pick_at_once, random_job, release_all

    router = Routing(ledger)
    random = Random(os.urandom(8))
    routes: list[JobRoute] = []
    pages = [0]
    paging: asyncio.Task[None] | None = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        began = time.perf_counter()
        if command["do"] == "pick":
            jobs = [random_job(random, classes) for _ in range(command["picks"])]
            began = time.perf_counter()
            routes += await pick_at_once(router, jobs, command["callers"])
        elif command["do"] == "project":
            await ledger.history(limit=1)
        elif command["do"] == "start paging":
            pages[0] = 0
            await ledger.history(limit=PAGE_ITEMS)  # Imports what a page needs, so that paging begins at once.
            paging = asyncio.create_task(_page(ledger, pages))
        elif command["do"] == "stop paging":
            assert paging is not None
            paging.cancel()
            await asyncio.wait([paging])
        else:
            await release_all(ledger, routes)
            routes.clear()
        reply(seconds=time.perf_counter() - began, pages=pages[0])


async def _page(ledger: Any, pages: list[int]) -> None:
    """Page through the history, newest first, again and again; count the pages."""
    while True:
        after: str | None = None
        while True:
            page = await ledger.history(limit=PAGE_ITEMS, after=after)
            pages[0] += 1
            after = page.next
            if after is None:
                break


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
    os._exit(0)
