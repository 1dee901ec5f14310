"""Processes that pick on one ledger all at once, on both engines: how often they are in each other's way, and how long.

Also run as a process of its own that picks, `python -m scripts.benchmark.contending`: it says when the ledger is open,
picks from the word on for as long as it is told, and says what it did.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from statistics import median
from typing import Any

from routing import AllMinersBusy, Allowance, NotEnoughAllowanceException, Routing

from .chain import HOTKEY, Clock
from .figures import Report, at_most
from .jobs import draw_job
from .world import ROOT, Ledger, World

PROCESSES = 16
MOST_MOVED = 0.07
MOST_CLAIMS_PER_PICK = 1.1
MOST_UNEVEN = 2.0
MOST_LOCK_WAIT_MS = 50.0
NS_PER_MS = 1e6


async def both_engines(world: World, report: Report) -> None:
    """The same on SQLite and on PostgreSQL."""
    await _contend(world, report, "SQLite", await world.filled(), at_most(MOST_LOCK_WAIT_MS))
    await _contend(world, report, "PostgreSQL", await world.filled_on_postgres(), None)


async def _contend(world: World, report: Report, engine: str, prepared: Ledger, wait: Any) -> None:
    done = await _at_once(prepared, world.classes, world.sizes.contended_seconds)
    picks = [each["picks"] for each in done]
    counters = [each["counters"] for each in done]
    total = sum(picks)
    moved = sum(each["moved_picks"] for each in counters) / total
    claims = sum(each["claims"] for each in counters) / total
    uneven = max(picks) / max(1, min(picks))
    name = f"{PROCESSES} processes on {engine}"
    seconds = world.sizes.contended_seconds
    report.add(
        f"{name}: picks", "1/s", [total / seconds], note=f"{min(picks)} to {max(picks)} picks each in {seconds} s"
    )
    report.add(f"{name}: picks that left their first miner", "", [moved], target=at_most(MOST_MOVED))
    report.add(f"{name}: claims per pick", "", [claims], target=at_most(MOST_CLAIMS_PER_PICK))
    report.add(f"{name}: most picks to least", "", [uneven], target=at_most(MOST_UNEVEN))
    for share in ("p50", "p99"):
        waits = [each[f"lock_wait_{share}_ns"] / NS_PER_MS for each in counters]
        title = f"{name}: wait for the write lock, {share}, median of the processes"
        report.add(title, "ms", [median(waits)])
    worst = max(each["lock_wait_p99_ns"] for each in counters) / NS_PER_MS
    report.add(f"{name}: wait for the write lock, p99, in the worst process", "ms", [worst], target=wait)


async def _at_once(prepared: Ledger, classes: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """What each process says that it did; all of them begin when all have the ledger open."""
    async with AsyncExitStack() as stack:
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scripts.benchmark.contending", prepared.url, str(prepared.start_ns)),
                *(str(seconds), *classes),
                cwd=ROOT,
                stdin=PIPE,
                stdout=PIPE,
            )
            for _ in range(PROCESSES)
        ]
        for process in processes:
            stack.callback(_end, process)
        await asyncio.gather(*map(_line, processes))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
        return await asyncio.gather(*map(_line, processes))


async def _line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that should pick ended with exit code {await process.wait()}")
    said: dict[str, Any] = json.loads(line)
    return said


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def _pick(url: str, start_ns: int, seconds: float, classes: list[str]) -> None:
    """Opens the ledger, waits for the word, then routes one job after the other and gives back each."""
    random = Random(os.urandom(8))
    ledger = Allowance.open(url, validator_ss58=HOTKEY, clock_ns=Clock(start_ns))
    router = Routing(ledger)
    await ledger.find_miners(1.0, classes[0], await ledger.current_block() or 1)
    _say(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    before = await ledger.counters()
    picks = refused = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            route = await router.pick_miner_for_job_request(draw_job(random, classes))
        except (AllMinersBusy, NotEnoughAllowanceException):
            refused += 1
            continue
        picks += 1
        await ledger.release(route.allowance_reservation_id or 0)
    after = await ledger.counters()
    _say(picks=picks, refused=refused, counters={name: after[name] - before.get(name, 0) for name in after})


if __name__ == "__main__":
    asyncio.run(_pick(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
    os._exit(0)
