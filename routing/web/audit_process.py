"""The process of an audit that a page started: an order on standard input, progress and the report as lines of JSON."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import msgspec

from .audits import AuditEnd, AuditFailure, AuditOrder, AuditProgress

PROGRESS_SECONDS = 0.2
NICENESS = 10
"""Picks of other processes come first."""


async def audit(order: AuditOrder) -> AuditEnd:
    """Audit as ordered, on a ledger that is opened for reading only."""
    from routing import Allowance

    shown_at = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= PROGRESS_SECONDS:
            shown_at = time.monotonic()
            _write(AuditProgress(done, total))

    async with Allowance.open(order.database_url, validator_ss58=order.validator_ss58, read_only=True) as ledger:
        report = await ledger.audit(until_position=order.until, usage_buckets=order.buckets, progress=show)
    return AuditEnd(msgspec.Raw(msgspec.json.encode(report, enc_hook=str)))


def _write(line: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Audit; an error is the last line."""
    os.nice(NICENESS)
    try:
        _write(asyncio.run(audit(msgspec.json.decode(sys.stdin.buffer.read(), type=AuditOrder))))
    except Exception as error:
        _write(AuditFailure(type(error).__name__, str(error)))


if __name__ == "__main__":
    main()
