"""Changes per second of several ledgers in one database, by how processes share them, and connections that they need.

This module is also the program of these processes, `python -m scripts.benchmark.many_ledgers`. It opens its ledgers,
waits for a start signal, picks and releases for a given time, and reports its count.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from random import Random
from statistics import median
from typing import Any, NamedTuple

import asyncpg

from routing import AllMinersBusy, Allowance, NotEnoughAllowanceException, Routing
from routing.cli.demo.network import hotkeys

from .chain import HOTKEY, SEED, Clock, after, facts_lines, parsed
from .contending import kill, next_report
from .figures import MS, Report, interleaved
from .jobs import random_job
from .prepared import ROOT
from .server import database, processor_seconds, version
from .workspace import Workspace

LEDGERS = 16
FACTS_PER_COMMIT = 1000
SHARE = 4
"""There are eight layouts; each has a part of the usual callers and of the time for contention."""
CHANGES_PER_PICK = 2
"""The reservation and its release."""
_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'allowance-ledger'"


class Named(NamedTuple):
    """A ledger that was made."""

    url: str
    validator_ss58: str
    start_ns: int


class Layout(NamedTuple):
    """Which ledgers each process opens."""

    name: str
    ledgers_of_processes: list[list[Named]]


class Round(NamedTuple):
    """One measurement of a layout; processor times are per change."""

    changes_per_second: float
    processes_ms: float
    server_ms: float
    connections: float


async def layouts(workspace: Workspace, report: Report) -> None:
    """Measure the layouts in turn, each with the same number of callers in total; compare with one shared ledger."""
    url = await database(workspace.server_url(), "many_ledgers")
    report.versions["PostgreSQL"] = await version(url)
    made = [await _made(workspace, url, validator) for validator in hotkeys(SEED, "owner", LEDGERS)]
    files = [await _made(workspace, f"sqlite:///{workspace.new_file()}", HOTKEY) for _ in range(LEDGERS)]
    measured = list(_layouts(made, files))
    rounds = await interleaved(workspace.sizes.repeat, *(_measure(workspace, url, each) for each in measured))
    shared_rates = [each.changes_per_second for each in rounds[0]]
    for layout, samples in zip(measured, rounds, strict=True):
        rates, processes_ms, server_ms, connections = zip(*samples, strict=True)
        note = f"{max(connections):.0f} connections; processor time per change: {median(processes_ms):.2g} ms"
        note += f" in the processes and {median(server_ms):.2g} ms in the server"
        beside = None if layout is measured[0] else (measured[0].name, shared_rates)
        report.add(f"changes, {layout.name}", "1/s", rates, beside, note=note)


def _layouts(made: list[Named], files: list[Named]) -> Iterator[Layout]:
    four = made[:4]
    yield Layout("1 ledger on PostgreSQL shared by 4 processes", [[made[0]]] * 4)
    yield Layout("1 ledger on PostgreSQL, 1 process", [[made[0]]])
    yield Layout("4 ledgers on PostgreSQL in 1 process", [four])
    yield Layout("4 ledgers on PostgreSQL, a process each", [[each] for each in four])
    yield Layout("16 ledgers on PostgreSQL, each in all of 4 processes", [made] * 4)
    yield Layout("16 ledgers on PostgreSQL, 4 in each of 4 processes", [made[first::4] for first in range(4)])
    yield Layout("16 ledgers on PostgreSQL, a process each", [[each] for each in made])
    yield Layout("16 ledgers in files of SQLite, a process each", [[each] for each in files])


async def _made(workspace: Workspace, url: str, validator_ss58: str) -> Named:
    """Make a ledger of a validator that has the network's first stake."""
    workspace.show_progress("making many ledgers")
    facts = parsed(facts_lines(workspace.sizes).replace(HOTKEY.encode(), validator_ss58.encode()))
    start_ns = after(facts)
    async with Allowance.open(url, validator_ss58=validator_ss58, clock_ns=Clock(start_ns)) as ledger:
        for first in range(0, len(facts), FACTS_PER_COMMIT):
            await ledger.record_facts(facts[first : first + FACTS_PER_COMMIT])
    return Named(url, validator_ss58, start_ns)


def _measure(workspace: Workspace, url: str, layout: Layout) -> Callable[[], Awaitable[Round]]:
    async def measured() -> Round:
        workspace.show_progress(layout.name)
        async with AsyncExitStack() as stack:
            processes = [
                await _start(stack, _order(workspace, layout) | {"ledgers": ledgers})
                for ledgers in layout.ledgers_of_processes
            ]
            await asyncio.gather(*map(next_report, processes))
            server_before = await processor_seconds(url)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"\n")
            done = await asyncio.gather(*map(next_report, processes))
            server_ms = (await processor_seconds(url) - server_before) * MS
            connections = await _count_connections(url)
        changes = CHANGES_PER_PICK * sum(each["picks"] for each in done)
        rate = CHANGES_PER_PICK * sum(each["picks"] / each["seconds"] for each in done)
        processes_ms = MS * sum(each["processor_seconds"] for each in done)
        return Round(rate, processes_ms / changes, server_ms / changes, connections)

    return measured


def _order(workspace: Workspace, layout: Layout) -> dict[str, Any]:
    """Return the order for every process of a layout."""
    sizes, handles = workspace.sizes, sum(map(len, layout.ledgers_of_processes))
    return {
        "callers": max(1, sizes.callers // SHARE // handles),
        "seconds": sizes.contended_seconds / SHARE,
        "classes": workspace.classes,
    }


async def _start(stack: AsyncExitStack, order: dict[str, Any]) -> asyncio.subprocess.Process:
    program = (sys.executable, "-m", "scripts.benchmark.many_ledgers", json.dumps(order))
    process = await asyncio.create_subprocess_exec(*program, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    stack.push_async_callback(process.wait)
    stack.callback(kill, process)
    return process


async def _count_connections(url: str) -> int:
    connection = await asyncpg.connect(url)
    count: int = await connection.fetchval(_CONNECTIONS)
    await connection.close()
    return count


async def _work(order: dict[str, Any]) -> None:
    """Open the ledgers, wait for the start signal, then let callers of each ledger pick and release."""
    ledgers = [
        Allowance.open(url, validator_ss58=validator_ss58, clock_ns=Clock(start_ns))
        for url, validator_ss58, start_ns in order["ledgers"]
    ]
    for ledger in ledgers:
        await ledger.find_miners(1.0, order["classes"][0], await ledger.current_block() or 1)
    _report(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    started = time.perf_counter()
    used = time.process_time()
    ends_at = started + order["seconds"]
    callers = (_pick_until(ends_at, ledger, order["classes"]) for ledger in ledgers for _ in range(order["callers"]))
    picks = sum(await asyncio.gather(*callers))
    _report(picks=picks, seconds=time.perf_counter() - started, processor_seconds=time.process_time() - used)
    await asyncio.to_thread(sys.stdin.readline)


async def _pick_until(ends_at: float, ledger: Allowance, classes: list[str]) -> int:
    random, router, picks = Random(os.urandom(8)), Routing(ledger), 0
    while time.perf_counter() < ends_at:
        try:
            route = await router.pick_miner_for_job_request(random_job(random, classes))
        except (AllMinersBusy, NotEnoughAllowanceException):
            continue
        picks += 1
        await ledger.release(route.allowance_reservation_id or 0)
    return picks


def _report(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_work(json.loads(sys.argv[1])))
    os._exit(0)
