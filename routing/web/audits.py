"""Audits on demand, one at a time, in a process of their own: neither pages nor picks wait for them."""

from __future__ import annotations

import asyncio
import os
import sys
from subprocess import PIPE, Popen
from threading import Thread
from typing import TYPE_CHECKING

import msgspec

from ledger.errors import StorageUnavailable

if TYPE_CHECKING:
    from routing import Allowance, AuditReport

IN_MEMORY = "sqlite://"
"""The database that no other process can read; its audit runs here."""
BUCKETS = 120
"""Steps of the charts: as many as are still distinguishable on a narrow screen."""


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
    """The audit of one ledger that runs, and the last one that ended.

    A thread waits for the process; it is a daemon, so that a program can end without waiting for an audit. The process
    ends when nobody reads its progress any longer.
    """

    def __init__(self, ledger: Allowance) -> None:
        self.report: AuditReport | None = None
        self.failure: AuditFailure | None = None
        self.progress: AuditProgress | None = None
        """How far the running audit is; None if none runs."""
        self._ledger = ledger
        self._process: Popen[bytes] | None = None

    def start(self, until: int) -> None:
        """Begin an audit up to a position; if one runs, it goes on instead."""
        if self.progress is None:
            self.progress = AuditProgress(0, until)
            self.failure = None
            Thread(target=self._run, args=(until,), name="allowance-audit", daemon=True).start()

    def close(self) -> None:
        """End a running audit."""
        if self._process is not None:
            self._process.kill()

    def _run(self, until: int) -> None:
        try:
            if self._ledger.database_url == IN_MEMORY:
                audit = self._ledger.audit(until_position=until, usage_buckets=BUCKETS, progress=self._note)
                self.report = asyncio.run(audit)
            else:
                self._run_process(AuditOrder(self._ledger.database_url, self._ledger.validator_ss58, until, BUCKETS))
        except Exception as error:
            self.failure = AuditFailure(type(error).__name__, str(error))
        finally:
            self.progress = self._process = None

    def _note(self, done: int, total: int) -> None:
        self.progress = AuditProgress(done, total)

    def _run_process(self, order: AuditOrder) -> None:
        # The process imports the same code as this one, however this one found it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = (sys.executable, "-m", "routing.web.audit_process")
        with Popen(command, stdin=PIPE, stdout=PIPE, env=environment) as process:
            self._process = process
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(order))
            process.stdin.close()
            self._read(process)

    def _read(self, process: Popen[bytes]) -> None:
        from routing import AuditReport

        assert process.stdout is not None
        for line in process.stdout:
            match _lines.decode(line):
                case AuditProgress() as progress:
                    self.progress = progress
                case AuditFailure() as failure:
                    self.failure = failure
                    return
                case AuditEnd(report=report):
                    self.report = msgspec.json.decode(report, type=AuditReport)
                    return
        raise StorageUnavailable(f"the process of the audit ended with code {process.wait()}")


_lines = msgspec.json.Decoder(AuditProgress | AuditFailure | AuditEnd)
