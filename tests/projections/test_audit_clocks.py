"""The audit accepts both rules of due times: by the deciding clock, and, in older logs, by the recorded time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ledger.codec import reservation_id
from ledger.events import ExpiryRecorded, ReservationReleased
from tests.support.log_builder import ANNA, BERT, LogBuilder, audited, created_at_ns

SECOND_NS = 10**9


async def test_a_log_of_an_earlier_release_has_no_finding(tmp_path: Path) -> None:
    """Earlier releases counted due times from the recorded time, and named the clock in reservations only.

    Catches an audit that applies the newer rule to all logs: every ledger whose clock once jumped would have findings.
    """
    log = LogBuilder()
    log.wait(600)
    log.block(12)
    behind_ns = log.now_ns - 5 * SECOND_NS
    made = log.reserve(ANNA, 6, (1, 1), start=12, decided_at_ns=behind_ns)
    settled = log.reserve(BERT, 6, (1, 1), start=12, decided_at_ns=behind_ns)
    log.settle(settled, ReservationReleased)
    log.wait(200)
    log.block(13)
    # The claim names a clock that is behind the recorded time; the expiry that it caused names none.
    log.settle(made, ExpiryRecorded)
    log.reserve(ANNA, 6, (1, 1), start=12, decided_at_ns=log.now_ns - 1)
    assert (await audited(tmp_path, log.rows)).findings == []


async def test_a_log_whose_recorded_time_is_ahead_has_no_finding(tmp_path: Path) -> None:
    """Reservations are due, and expire by claims and in sweeps, by the clock that each event carries."""
    log = LogBuilder()
    log.wait(86_400)
    log.block(12)
    clock_ns = created_at_ns(12)
    due_ns = clock_ns + 106 * SECOND_NS
    ours: dict[str, Any] = {"start": 12, "due_by_clock": True}
    first = log.reserve(ANNA, 6, (1, 1), decided_at_ns=clock_ns, expires_at_ns=due_ns, **ours)
    second = log.reserve(BERT, 6, (1, 1), decided_at_ns=clock_ns, expires_at_ns=due_ns, **ours)
    log.append(
        first.stream,
        ExpiryRecorded(reservation_id(first.position, first.hash), decided_at_ns=due_ns),
        settles=first.position,
    )
    log.reserve(ANNA, 6, (1, 1), decided_at_ns=due_ns, expires_at_ns=due_ns + 106 * SECOND_NS, **ours)
    log.append(
        second.stream,
        ExpiryRecorded(reservation_id(second.position, second.hash), 1, decided_at_ns=due_ns + SECOND_NS),
        settles=second.position,
    )
    assert (await audited(tmp_path, log.rows)).findings == []
