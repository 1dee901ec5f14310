"""Processes that pick, as the one that started them sees them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .chain import HOTKEY
from .world import ROOT, Ledger

Answer = dict[str, float]


class Worker:
    """A process that has a ledger open. `opened` is what it said about the opening."""

    def __init__(self, process: Process, opened: Answer) -> None:
        self._process = process
        self.opened = opened

    async def pick(self, picks: int, callers: int) -> Answer:
        """Has so many jobs routed by so many callers at once."""
        return await self._query({"do": "pick", "picks": picks, "callers": callers})

    async def release(self) -> Answer:
        """Gives back what was picked since the last time."""
        return await self._query({"do": "release"})

    async def _query(self, command: dict[str, object]) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        return await answer_of(self._process)


@asynccontextmanager
async def worker(ledger: Ledger, classes: Sequence[str]) -> AsyncIterator[Worker]:
    """A process that opens the ledger; ended at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scripts.benchmark.worker", ledger.url, HOTKEY, str(ledger.start_ns), *classes),
        cwd=ROOT,
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        yield Worker(process, await answer_of(process))
    finally:
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


async def answer_of(process: Process) -> Answer:
    """The process's next answer."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a process that should pick ended with exit code {await process.wait()}")
    answer: Answer = json.loads(line)
    return answer
