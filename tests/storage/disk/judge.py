"""The judge of a disk: opens the ledger, asks again for every unknown outcome, and compares it with the calls.

The rows are read with plain SQL and folded by the stress test's replay, which shares no code with the product; the
product's own `verify` and `audit` must agree.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from routing import AllowanceException
from tests.stress import Finding
from tests.stress.diary import Call
from tests.stress.judge import judge_calls
from tests.stress.replay import Replay, Stored

from .life import Caller, Clock, database_of, plan_of

_ROWS = """SELECT log.position, log.stream, log.version, log.recorded_at_ns, log.key, log.job_uuid, log.attempt,
           log.settles, events.payload, events.hash
           FROM allowance_log AS log JOIN allowance_events AS events ON events.position = log.position
           ORDER BY log.position"""
_NOT_ASKED_AGAIN = ("open", "close", "list", "find", "rebuild", "look")


def judge(directory: Path, script: str, calls: Sequence[Call], now_ns: int) -> list[Finding]:
    """Return everything that is wrong with the ledger that a life left in a directory."""
    clock = Clock()
    clock.now_ns = now_ns + 10**9
    found, asked = asyncio.run(_judge_opened(Caller(plan_of(directory, script), clock), calls))
    return found if asked is None else found + _judge_rows(database_of(directory, script), asked)


async def _judge_opened(caller: Caller, calls: Sequence[Call]) -> tuple[list[Finding], list[Call] | None]:
    try:
        await caller.open()
    except AllowanceException as error:
        if not any(call.outcome and call.outcome.result for call in calls):
            # Nothing was promised. A cut may then leave a WAL without its database, which is refused.
            return [], None
        return [Finding("cannot be opened", repr(error))], None
    except Exception as error:
        return [Finding("untyped error", repr(error))], None
    assert caller.ledger is not None
    try:
        asked = [await _ask_again(caller, number, call) for number, call in enumerate(calls)]
        report = await caller.ledger.verify()
        found = [Finding("verify", repr(each)) for each in report.findings]
        audit = await caller.ledger.audit()
        found += [Finding("audit", repr(each)) for each in audit.findings]
        await caller.ledger.history(limit=100)
        return found, asked
    except AllowanceException as error:
        return [Finding("refuses", repr(error))], None
    except Exception as error:
        return [Finding("untyped error", repr(error))], None
    finally:
        await caller.ledger.close()


async def _ask_again(caller: Caller, number: int, call: Call) -> Call:
    """Ask again for an unknown outcome, with the same key; it tells for certain."""
    if not call.unknown or call.request.operation in _NOT_ASKED_AGAIN:
        return call
    return call._replace(outcome=await caller.attempt(number, call.request), retried=True)


def _judge_rows(database: Path, calls: list[Call]) -> list[Finding]:
    connection = sqlite3.connect(database)
    try:
        rows = [Stored(*row) for row in connection.execute(_ROWS)]
    finally:
        connection.close()
    replay = Replay(rows)
    known = [call for call in calls if not (call.unknown and call.request.operation in _NOT_ASKED_AGAIN)]
    found = [*replay.findings, *judge_calls(replay, known)]
    opened = any(call.request.operation == "open" and call.outcome and call.outcome.result for call in calls)
    if opened and not rows:
        found.append(Finding("acknowledged but absent", "the ledger was opened, and has no event"))
    return found
