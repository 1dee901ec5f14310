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
from typing import Any, NamedTuple

import asyncpg

from routing import AllMinersBusy, Allowance, NotEnoughAllowanceException, Routing
from routing.cli.demo.network import hotkeys

from .chain import HOTKEY, SEED, Clock, after, facts_lines, parsed
from .contending import kill, next_report
from .figures import Report, interleaved
from .jobs import random_job
from .prepared import ROOT
from .server import database, version
from .workspace import Workspace

LEDGERS = 16
FACTS_PER_COMMIT = 1000
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


async def layouts(workspace: Workspace, report: Report) -> None:
    """Measure the layouts in turn, each with the same number of callers in total; compare with one shared ledger."""
    report.versions["PostgreSQL"] = await version(workspace.server_url())
    url = await database(workspace.server_url(), "many_ledgers")
    made = [await _made(workspace, url, validator) for validator in hotkeys(SEED, "owner", LEDGERS)]
    files = [await _made(workspace, f"sqlite:///{workspace.new_file()}", HOTKEY) for _ in range(LEDGERS)]
    shared, *others = _layouts(made, files)
    connections: dict[str, int] = {}
    rates = await interleaved(
        workspace.sizes.repeat, *(_measure(workspace, url, each, connections) for each in (shared, *others))
    )
    for layout, rate in zip((shared, *others), rates, strict=True):
        beside = None if layout is shared else (shared.name, rates[0])
        used = connections[layout.name]
        report.add(f"changes, {layout.name}", "1/s", rate, beside, note=f"{used} connections" if used else "")


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


def _measure(
    workspace: Workspace, url: str, layout: Layout, connections: dict[str, int]
) -> Callable[[], Awaitable[float]]:
    async def rate() -> float:
        workspace.show_progress(layout.name)
        handles = sum(map(len, layout.ledgers_of_processes))
        order = {
            "callers": max(1, workspace.sizes.callers // 4 // handles),
            "seconds": workspace.sizes.contended_seconds / 4,
            "classes": workspace.classes,
        }
        async with AsyncExitStack() as stack:
            processes = [await _start(stack, order | {"ledgers": ledgers}) for ledgers in layout.ledgers_of_processes]
            await asyncio.gather(*map(next_report, processes))
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"\n")
            done = await asyncio.gather(*map(next_report, processes))
            connections[layout.name] = await _count_connections(url)
        return CHANGES_PER_PICK * sum(each["picks"] / each["seconds"] for each in done)

    return rate


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
    ends_at = started + order["seconds"]
    callers = (_pick_until(ends_at, ledger, order["classes"]) for ledger in ledgers for _ in range(order["callers"]))
    picks = sum(await asyncio.gather(*callers))
    _report(picks=picks, seconds=time.perf_counter() - started)
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
