"""Sixteen processes that pick on one ledger at once, on both engines: how often and how long they block each other.

This module is also the program of these processes, `python -m scripts.benchmark.contending`. It reports when its
ledger is open, waits for a start signal, picks for a given time, and reports its counts.
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
from .figures import MS, Report, at_most, ratio_at_least, ratio_at_most
from .jobs import random_job
from .limits import SqliteRows, reservation_bytes
from .prepared import ROOT, Ledger
from .workspace import Workspace

PROCESSES = 16
MOST_MOVED = 0.07
MOST_CLAIMS_PER_PICK = 1.1
MOST_UNEVEN = 2.0
MOST_LOCK_WAIT_RATIO = 7.0
LEAST_RATIO_TO_SQLITE = 1.0
NS_PER_MS = 1e6
BARE_COMMITS = 300


async def both_engines(workspace: Workspace, report: Report) -> None:
    """Measure contention on SQLite and on PostgreSQL."""
    prepared = await workspace.long()
    with SqliteRows(workspace.new_file(), await reservation_bytes(prepared.url)) as bare:
        commits = bare.commits(BARE_COMMITS)
        on_sqlite = await _contend(workspace, report, "SQLite", prepared)
        commits += bare.commits(BARE_COMMITS)
    turns_ms = [PROCESSES * median(commits) * MS]
    name = f"{PROCESSES} processes on SQLite: wait for the write lock, p99, in the worst process"
    beside = (f"{PROCESSES} × one bare commit", turns_ms)
    report.add(name, "ms", [_worst_wait_ms(on_sqlite)], beside, ratio_at_most(MOST_LOCK_WAIT_RATIO))
    on_postgres = await _contend(workspace, report, "PostgreSQL", await workspace.long(on_postgres=True))
    name = f"{PROCESSES} processes on PostgreSQL: wait for the write lock, p99, in the worst process"
    report.add(name, "ms", [_worst_wait_ms(on_postgres)])
    sqlite, postgres = (f"{PROCESSES} processes on {engine}" for engine in ("SQLite", "PostgreSQL"))
    rate, postgres_rate = [_rate(on_sqlite, workspace)], [_rate(on_postgres, workspace)]
    report.add(f"{sqlite}: picks", "1/s", rate, note=_spread(on_sqlite))
    target = ratio_at_least(LEAST_RATIO_TO_SQLITE)
    report.add(f"{postgres}: picks", "1/s", postgres_rate, (sqlite, rate), target, note=_spread(on_postgres))


def _rate(done: Sequence[dict[str, Any]], workspace: Workspace) -> float:
    return sum(each["picks"] for each in done) / workspace.sizes.contended_seconds


def _spread(done: Sequence[dict[str, Any]]) -> str:
    picks = [each["picks"] for each in done]
    return f"{min(picks)} to {max(picks)} picks each"


def _worst_wait_ms(done: Sequence[dict[str, Any]]) -> float:
    return max(each["counters"]["lock_wait_p99_ns"] for each in done) / NS_PER_MS


async def _contend(workspace: Workspace, report: Report, engine: str, prepared: Ledger) -> list[dict[str, Any]]:
    done = await _at_once(prepared, workspace.classes, workspace.sizes.contended_seconds)
    picks = [each["picks"] for each in done]
    counters = [each["counters"] for each in done]
    total = sum(picks)
    moved = sum(each["moved_picks"] for each in counters) / total
    claims = sum(each["claims"] for each in counters) / total
    uneven = max(picks) / max(1, min(picks))
    name = f"{PROCESSES} processes on {engine}"
    report.add(f"{name}: picks that left their first miner", "", [moved], target=at_most(MOST_MOVED))
    report.add(f"{name}: claims per pick", "", [claims], target=at_most(MOST_CLAIMS_PER_PICK))
    report.add(f"{name}: most picks to least", "", [uneven], target=at_most(MOST_UNEVEN))
    for share in ("p50", "p99"):
        waits = [each[f"lock_wait_{share}_ns"] / NS_PER_MS for each in counters]
        title = f"{name}: wait for the write lock, {share}, median of the processes"
        report.add(title, "ms", [median(waits)])
    return done


async def _at_once(prepared: Ledger, classes: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Return the report of each process. All of them start when the last one has opened the ledger."""
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
            stack.callback(kill, process)
        await asyncio.gather(*map(next_report, processes))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
        return await asyncio.gather(*map(next_report, processes))


async def next_report(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return the next line that a process writes. Raises RuntimeError if it ended instead."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a picking process ended with exit code {await process.wait()}")
    report: dict[str, Any] = json.loads(line)
    return report


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process if it runs."""
    if process.returncode is None:
        process.kill()


def _report(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def _pick(url: str, start_ns: int, seconds: float, classes: list[str]) -> None:
    """Open the ledger, wait for the start signal, then pick for one job after the other and release each."""
    random = Random(os.urandom(8))
    ledger = Allowance.open(url, validator_ss58=HOTKEY, clock_ns=Clock(start_ns))
    router = Routing(ledger)
    await ledger.find_miners(1.0, classes[0], await ledger.current_block() or 1)
    _report(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    before = await ledger.counters()
    picks = refused = 0
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        try:
            route = await router.pick_miner_for_job_request(random_job(random, classes))
        except (AllMinersBusy, NotEnoughAllowanceException):
            refused += 1
            continue
        picks += 1
        await ledger.release(route.allowance_reservation_id or 0)
    after = await ledger.counters()
    _report(picks=picks, refused=refused, counters={name: after[name] - before.get(name, 0) for name in after})


if __name__ == "__main__":
    asyncio.run(_pick(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
    os._exit(0)
