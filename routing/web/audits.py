"""Audits on demand, one at a time, in a process of their own: neither pages nor picks wait for them."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from ledger.errors import StorageUnavailable

if TYPE_CHECKING:
    from routing import Allowance, AuditReport

IN_MEMORY = "sqlite://"
"""The database that no other process can read; its audit runs here."""
BUCKETS = 120
"""Steps of the charts: as many as are still distinguishable on a narrow screen."""
MOST_LINE_BYTES = 2**28
"""The longest report; one with 10,000 findings and 10,000 accounts has about 100 MB."""


class AuditOrder(msgspec.Struct):
    """What the process is to audit. It arrives on standard input, since the URL may hold a password."""

    database_url: str
    validator_ss58: str
    until: int
    buckets: int


class AuditProgress(msgspec.Struct, tag=True):
    """A line of the process: so many of all events are checked."""

    done: int
    total: int


class AuditFailure(msgspec.Struct, tag=True):
    """The last line of a process that could not audit, with the error's class and message."""

    error: str
    message: str


class AuditEnd(msgspec.Struct, tag=True):
    """The last line of a process that audited: its report."""

    report: msgspec.Raw


class Audits:
    """The audit of one ledger that runs, and the last one that ended."""

    def __init__(self, ledger: Allowance) -> None:
        self.report: AuditReport | None = None
        self.failure: AuditFailure | None = None
        self.progress: AuditProgress | None = None
        """How far the running audit is; None if none runs."""
        self._ledger = ledger
        self._running: asyncio.Task[None] | None = None

    def start(self, until: int) -> None:
        """Begin an audit up to a position; a running one goes on instead."""
        if self.progress is None:
            self.progress = AuditProgress(0, until)
            self.failure = None
            self._running = asyncio.create_task(self._run(until))

    async def close(self) -> None:
        """End a running audit."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def _run(self, until: int) -> None:
        try:
            if self._ledger.database_url == IN_MEMORY:
                self.report = await self._ledger.audit(until_position=until, usage_buckets=BUCKETS, progress=self._note)
            else:
                await self._run_process(until)
        except Exception as error:
            self.failure = AuditFailure(type(error).__name__, str(error))
        finally:
            self.progress = None

    def _note(self, done: int, total: int) -> None:
        self.progress = AuditProgress(done, total)

    async def _run_process(self, until: int) -> None:
        order = AuditOrder(self._ledger.database_url, self._ledger.validator_ss58, until, BUCKETS)
        # The process imports the same code as this one, however this one found it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "routing.web.audit_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=MOST_LINE_BYTES,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(order))
            process.stdin.close()
            await self._read(process)
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        from routing import AuditReport

        assert process.stdout is not None
        async for line in process.stdout:
            match _lines.decode(line):
                case AuditProgress() as progress:
                    self.progress = progress
                case AuditFailure() as failure:
                    self.failure = failure
                    return
                case AuditEnd(report=report):
                    # A report of thousands of accounts takes a while, and this loop serves all pages.
                    self.report = await asyncio.to_thread(msgspec.json.decode, report, type=AuditReport)
                    return
        raise StorageUnavailable(f"the process of the audit ended with code {await process.wait()}")


_lines = msgspec.json.Decoder(AuditProgress | AuditFailure | AuditEnd)
