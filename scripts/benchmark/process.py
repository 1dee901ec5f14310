"""Worker processes that pick, and the protocol to control them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .chain import HOTKEY
from .prepared import ROOT, Ledger

Reply = dict[str, float]


class Worker:
    """A process with an open ledger. `opened` is its first reply: times and memory of the opening."""

    def __init__(self, process: Process, opened: Reply) -> None:
        self._process = process
        self.opened = opened

    async def pick(self, picks: int, callers: int) -> Reply:
        """Pick for this many jobs, by this many callers at once."""
        return await self._request({"do": "pick", "picks": picks, "callers": callers})

    async def release(self) -> Reply:
        """Release everything picked since the last release."""
        return await self._request({"do": "release"})

    async def project(self) -> Reply:
        """Bring the history up to date."""
        return await self._request({"do": "project"})

    async def start_paging(self) -> Reply:
        """Page through the history, again and again, until `stop_paging`."""
        return await self._request({"do": "start paging"})

    async def stop_paging(self) -> Reply:
        """Stop paging; the reply has the number of pages."""
        return await self._request({"do": "stop paging"})

    async def _request(self, command: dict[str, object]) -> Reply:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        return await reply_of(self._process)


@asynccontextmanager
async def worker(ledger: Ledger, classes: Sequence[str]) -> AsyncIterator[Worker]:
    """Start a process that opens the ledger; stop it at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.benchmark.worker", ledger.url, HOTKEY, str(ledger.start_ns), *classes),
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield Worker(process, await reply_of(process))
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def reply_of(process: Process) -> Reply:
    """Return the next reply of a process."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker process ended with exit code {await process.wait()}")
    reply: Reply = json.loads(line)
    return reply
