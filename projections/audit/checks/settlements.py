"""Settlements: each spend, release or expiry must settle an active reservation, and expiries must have a reason.

Rules: a reservation is settled once; only an overdue one expires. An expiry is recorded for one of two reasons: the
claim directly after it takes the reservation's blocks, or an `expire_due` settled all overdue reservations, in order of
their due times; its last event records how many.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger import Row
from ledger.events import AllowanceReserved, ExpiryRecorded, ReservationSpent, Settlement
from ledger.values import seconds
from projections.audit.due_queue import DueQueue
from projections.audit.state import AuditedReservation, AuditState
from projections.rules import Findings, Rule

from .jobs import JobCheck


class _PendingExpiry(NamedTuple):
    """An expiry whose reason the next events must show."""

    position: int
    recorded_at_ns: int
    reservation: AuditedReservation
    was_first_due: bool
    """Whether no other active reservation was due before it, as `expire_due` requires."""
    clock_ns: int
    """The latest time that the deciding clock must have reached.

    That is the recorded clock, or the recorded time if it advanced. Otherwise an earlier release, which recorded no
    clock here, may have decided by a clock that was behind; only the due time is sure.
    """
    decided_at_ns: int | None
    """The clock that decided it, if it is recorded."""


class SettlementCheck:
    """Checks and applies settlements; keeps expiries pending until the next events show their reason."""

    def __init__(self, state: AuditState, due_queue: DueQueue, jobs: JobCheck, findings: Findings) -> None:
        self._active, self._changed_accounts = state.active, state.changed_accounts
        self._due_queue = due_queue
        self._jobs = jobs
        self._findings = findings
        self.pending_expiries: list[_PendingExpiry] = []

    def settle(self, row: Row, event: Settlement, now_ns: int, previous_ns: int) -> None:
        """Check a settlement and apply it, given the deciding clock and the recorded time of the row before it.

        A settlement that does not match an active reservation is reported and not applied.
        """
        reservation = self._active.get(row.settles or 0)
        if (
            reservation is None
            or reservation.reservation_id != event.reservation_id
            or reservation.account.stream != row.stream
        ):
            self._report_unmatched(row, event, reservation)
            return
        if type(event) is ExpiryRecorded:
            self._check_overdue(row.position, reservation, now_ns)
            # At its own due time it is overdue, and so is every reservation that was due before it, but none after it.
            self._due_queue.set_clock(reservation.due_ns)
            was_first_due = self._due_queue.first_overdue() is reservation
            decided_at_ns = None if event.decided_at_ns is None else now_ns
            is_sure = decided_at_ns is not None or row.recorded_at_ns > previous_ns
            clock_ns = now_ns if is_sure else reservation.due_ns
            self.pending_expiries.append(
                _PendingExpiry(row.position, row.recorded_at_ns, reservation, was_first_due, clock_ns, decided_at_ns)
            )
        self._apply(row.position, reservation, spent=type(event) is ReservationSpent)
        if type(event) is ExpiryRecorded and event.swept:
            self._check_expire_due(event.swept)

    def check_pending_expiries(
        self, row: Row | None = None, event: AllowanceReserved | None = None, now_ns: int = 0
    ) -> None:
        """Report the pending expiries, except those whose reason is the claim in `row`, decided at `now_ns`."""
        expiries, self.pending_expiries = self.pending_expiries, []
        for expiry in expiries:
            if row is None or event is None or not _is_reason(expiry, row, event, now_ns):
                message = "the expiry has no reason: no `expire_due` includes it, and no claim takes its blocks"
                self._report_expiry(expiry, message)

    def _check_expire_due(self, recorded_count: int) -> None:
        """Check the pending expiries as those of one `expire_due`, whose last event records this count."""
        expiries, self.pending_expiries = self.pending_expiries, []
        last = expiries[-1]
        if len(expiries) != recorded_count:
            message = f"the `expire_due` recorded {recorded_count} expiries, but the log has {len(expiries)}"
            self._report_expiry(last, message)
        for expiry in expiries:
            if not expiry.was_first_due:
                self._report_expiry(expiry, "another reservation was due earlier and did not expire before it")
        left_ns = self._due_queue.first_due_ns()
        clock_ns = max(expiry.clock_ns for expiry in expiries)
        # If the last one was out of order, the reservation left behind is reported already.
        if last.was_first_due and left_ns is not None and left_ns <= clock_ns:
            message = "another reservation was due as well and did not expire"
            self._report_expiry(last, message, left_due_ns=left_ns, clock_ns=clock_ns)

    def _apply(self, position: int, reservation: AuditedReservation, *, spent: bool) -> None:
        account = reservation.account
        del account.active[reservation.position], self._active[reservation.position]
        if reservation.position in account.overdue:
            self._due_queue.remove_overdue(reservation)
        account.last_position = position
        self._changed_accounts.add(account)
        account.held_ns -= reservation.value_ns
        if spent:
            account.spent_ns += reservation.value_ns
        else:
            for first, last in reservation.own_blocks:
                account.taken.remove(first, last)
            account.mark_stale()
        self._jobs.record_settlement(reservation.row.job_uuid, spent=spent)

    def _report_unmatched(self, row: Row, event: Settlement, reservation: AuditedReservation | None) -> None:
        details = {"reservation_id": event.reservation_id, "settles": row.settles}
        if reservation is None:
            message = f"position {row.settles} is not that of an active reservation"
        elif reservation.reservation_id != event.reservation_id:
            message = f"the row settles the reservation at position {row.settles}, but the event names another id"
        else:
            message = "the settlement is in the stream of another account than its reservation"
        self._findings.add(row.position, Rule.SETTLES_STANDING, message, **details)

    def _check_overdue(self, position: int, reservation: AuditedReservation, now_ns: int) -> None:
        early_ns = reservation.due_ns - now_ns
        if early_ns > 0:
            details = {"expires_at_ns": reservation.due_ns, "decided_at_ns": now_ns}
            message = f"the reservation expired {seconds(early_ns)} s before it was due"
            self._findings.add(position, Rule.EXPIRES_OVERDUE, message, **details)

    def _report_expiry(self, expiry: _PendingExpiry, message: str, **more: int) -> None:
        reservation = expiry.reservation
        details = {"reservation_id": reservation.reservation_id, "expires_at_ns": reservation.due_ns, **more}
        self._findings.add(expiry.position, Rule.EXPIRES_WHAT_IS_TAKEN, message, **details)


def _is_reason(expiry: _PendingExpiry, row: Row, event: AllowanceReserved, now_ns: int) -> bool:
    """Return whether the claim expired the overdue reservation in order to take some of its blocks."""
    reservation = expiry.reservation
    return (
        reservation.account.stream == row.stream
        and reservation.due_ns <= now_ns
        and expiry.decided_at_ns in (None, now_ns)
        and expiry.recorded_at_ns == row.recorded_at_ns
        and any(first <= end and start <= last for first, last in event.blocks for start, end in reservation.own_blocks)
    )
