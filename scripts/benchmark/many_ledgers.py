"""One ledger and many, by the same processes: changes per second, and the connections that they keep.

This module is also the program of these processes, `python -m scripts.benchmark.many_ledgers`. It opens its ledgers and
reports; at the first line of input it picks and releases for a given time and reports again; at the second it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import asyncpg

from routing import AllMinersBusy, Allowance, NotEnoughAllowanceException, Routing
from routing.cli.demo.network import hotkeys

from .chain import SEED, Clock
from .contending import kill, next_report
from .figures import Report, interleaved
from .jobs import random_job
from .layout import lay_out
from .limits import CONNECTIONS, postgres_rows, reservation_bytes
from .prepared import ROOT, Ledger
from .server import database, version
from .workspace import Workspace

PROCESSES = 4
STORED = "4 ledgers, a process each"
"""The layout whose bytes are reported."""
_SERVER = """SELECT (SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'allowance-ledger'),
                    pg_total_relation_size('allowance_events'), pg_database_size(current_database()),
                    pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"""


class Place(NamedTuple):
    """Where a ledger is: a database, and the validator whose ledger it is."""

    url: str
    validator_ss58: str


class Server(NamedTuple):
    """The ledgers' connections to the server, and how many bytes it has."""

    connections: int
    log_bytes: int
    database_bytes: int
    wal_bytes: int


class Done(NamedTuple):
    """Changes per second; the server at the end, and for each change the bytes that it has grown by."""

    rate: float
    server: Server
    grown: list[float]


Processes = Sequence[Sequence[Place]]
"""For each process the ledgers that it opens."""


async def layouts(workspace: Workspace, report: Report) -> None:
    """Measure one ledger and many, in as many and in fewer processes, with the same number of callers in total."""
    count = workspace.sizes.ledgers
    workspace.show_progress(f"making {count} ledgers")
    sizes = replace(workspace.sizes, validators=count)
    url = await database(workspace.server_url(), "ledgers")
    validators = hotkeys(SEED, "validator", count)
    made = [await lay_out(url, sizes, sizes.miners, each) for each in validators]
    places = [Place(url, each) for each in validators]
    file = Ledger(f"sqlite:///{workspace.new_file()}", *made[0])
    await lay_out(file.url, sizes, sizes.miners, validators[0])
    files = [Place(workspace.copied(file).url, validators[0]) for _ in validators]
    report.versions["PostgreSQL"] = await version(url)
    await _measure(workspace, report, url, made[0][0], _named_layouts(places, files))


def _named_layouts(places: Sequence[Place], files: Sequence[Place]) -> dict[str, Processes]:
    four = places[:PROCESSES]
    count = len(places)
    each = count // PROCESSES
    shares = [places[first : first + each] for first in range(0, count, each)]
    return {
        "1 ledger, 4 processes": [[places[0]]] * PROCESSES,
        "4 ledgers, a process each": [[place] for place in four],
        "4 ledgers, 1 process": [four],
        f"{count} ledgers, 4 processes with {each} each": shares,
        f"{count} ledgers, a process each": [[place] for place in places],
        f"{count} ledgers on SQLite, a process each": [[place] for place in files],
    }


async def _measure(workspace: Workspace, report: Report, url: str, start_ns: int, named: dict[str, Processes]) -> None:
    def measure(name: str) -> Callable[[], Awaitable[Done]]:
        async def measured() -> Done:
            workspace.show_progress(f"measuring: {name}")
            return await _at_once(workspace, url, start_ns, named[name])

        return measured

    async with postgres_rows(workspace.server_url(), await reservation_bytes(url)) as bare:

        async def one_row() -> Done:
            return Done(await bare.rate(workspace.sizes.bare_rows), Server(0, 0, 0, 0), [])

        limit, *samples = await interleaved(workspace.sizes.repeat, one_row, *map(measure, named))
    beside = (f"bare rows, 1 a commit, {CONNECTIONS} connections", [each.rate for each in limit])
    for name, done in zip(named, samples, strict=True):
        most = max(each.server.connections for each in done)
        note = f"{most} connections" if most else ""
        report.add(f"changes, {name}", "1/s", [each.rate for each in done], beside, note=note)
    grown = zip(*(each.grown for each in samples[list(named).index(STORED)]), strict=True)
    for what, values in zip(("log", "log and history", "WAL"), grown, strict=True):
        report.add(f"bytes of {what} per change on PostgreSQL, {STORED}", "B", values)


async def _at_once(workspace: Workspace, url: str, start_ns: int, layout: Processes) -> Done:
    """Let all processes work at once, and measure the server of the URL before and afterwards."""
    seconds = workspace.sizes.ledgers_seconds
    callers = max(1, workspace.sizes.callers // sum(map(len, layout)))
    async with AsyncExitStack() as stack:
        processes = []
        for places in layout:
            arguments = json.dumps([places, start_ns, seconds, callers, workspace.classes])
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "scripts.benchmark.many_ledgers", arguments), cwd=ROOT, stdin=PIPE, stdout=PIPE
            )
            stack.callback(kill, process)
            processes.append(process)
        await asyncio.gather(*map(next_report, processes))
        before = await _server(url)
        _continue(processes)
        changes = sum(each["changes"] for each in await asyncio.gather(*map(next_report, processes)))
        after = await _server(url)
        _continue(processes)
        await asyncio.gather(*(process.wait() for process in processes))
    grown = [(now - then) / max(1, changes) for now, then in zip(after[1:], before[1:], strict=True)]
    return Done(changes / seconds, after, grown)


def _continue(processes: Sequence[asyncio.subprocess.Process]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")


async def _server(url: str) -> Server:
    connection = await asyncpg.connect(url)
    server = Server._make(await connection.fetchrow(_SERVER))
    await connection.close()
    return server


async def _work(places: list[tuple[str, str]], start_ns: int, seconds: float, callers: int, classes: list[str]) -> None:
    """Open the ledgers, wait for the signal, let callers pick and release on each, and report the changes."""
    ledgers = [Allowance.open(url, validator_ss58=each, clock_ns=Clock(start_ns)) for url, each in places]
    for ledger in ledgers:
        await ledger.find_miners(1.0, classes[0], await ledger.current_block() or 1)
    _report(ready=True)
    await asyncio.to_thread(sys.stdin.readline)
    deadline = time.perf_counter() + seconds
    changes = await asyncio.gather(*(_caller(each, classes, deadline) for each in ledgers for _ in range(callers)))
    _report(changes=sum(changes))
    await asyncio.to_thread(sys.stdin.readline)


async def _caller(ledger: Allowance, classes: list[str], deadline: float) -> int:
    """Pick and release until the deadline; return the changes that were made before it."""
    router, random, changes = Routing(ledger), Random(os.urandom(8)), 0
    while time.perf_counter() < deadline:
        try:
            route = await router.pick_miner_for_job_request(random_job(random, classes))
        except (AllMinersBusy, NotEnoughAllowanceException):
            continue
        changes += time.perf_counter() < deadline
        await ledger.release(route.allowance_reservation_id or 0)
        changes += time.perf_counter() < deadline
    return changes


def _report(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_work(*json.loads(sys.argv[1])))
    os._exit(0)
