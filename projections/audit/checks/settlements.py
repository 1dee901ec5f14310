"""Settlements: what ends a reservation, and whether it was right that it ended so."""

from __future__ import annotations

from typing import NamedTuple

from ledger import Row
from ledger.events import AllowanceReserved, ExpiryRecorded, ReservationSpent, Settlement
from ledger.values import seconds
from projections.audit.due_queue import DueQueue
from projections.audit.state import AuditedReservation, AuditState
from projections.rules import Findings, Rule

from .jobs import JobCheck


class _Expiry(NamedTuple):
    """An expiry that is still to be explained: by the end of a sweep, or by the claim that brought it."""

    position: int
    recorded_at_ns: int
    active: AuditedReservation
    in_turn: bool
    """Whether no reservation that stood was due before it, as where all that are overdue expire."""
    clock_ns: int
    """The clock that ended it, as far as the log tells: the recorded time, where that moved; else only its due time."""


class SettlementCheck:
    """Takes settlements; keeps the expiries since the last other event, until that explains them."""

    def __init__(self, state: AuditState, due_queue: DueQueue, jobs: JobCheck, findings: Findings) -> None:
        self._active, self._moved = state.active, state.moved
        self._due_queue = due_queue
        self._jobs = jobs
        self._findings = findings
        self.expiries: list[_Expiry] = []

    def settle(self, row: Row, event: Settlement, after_ns: int) -> None:
        """Ends a standing reservation, if there is the one that row and event name; the row before is of `after_ns`."""
        active = self._active.get(row.settles or 0)
        if active is None or active.reservation_id != event.reservation_id or active.account_state.stream != row.stream:
            self._refuse(row, event, active)
            return
        if type(event) is ExpiryRecorded:
            self._check_overdue(row, active)
            in_turn = self._due_queue.is_first(active)
            clock_ns = row.recorded_at_ns if row.recorded_at_ns > after_ns else active.due_ns
            self.expiries.append(_Expiry(row.position, row.recorded_at_ns, active, in_turn, clock_ns))
        self._end(row.position, active, spent=type(event) is ReservationSpent)
        if type(event) is ExpiryRecorded and event.swept:
            self._sweep(event.swept)

    def _end(self, position: int, active: AuditedReservation, *, spent: bool) -> None:
        """Ends a reservation, by an event at a position."""
        account_state = active.account_state
        del account_state.active[active.position], self._active[active.position]
        if active.position in account_state.overdue:
            self._due_queue.remove(active)
        self._account(position, active, spent=spent)
        self._jobs.settled(active.row.job_uuid, spent=spent)

    def explain(self, row: Row | None = None, event: AllowanceReserved | None = None, now_ns: int = 0) -> None:
        """Holds the expiries so far, of which no sweep told, against what follows: a claim with its clock, or else."""
        expiries, self.expiries = self.expiries, []
        for expiry in expiries:
            if row is None or event is None or not _is_claims_own(expiry, row, event, now_ns):
                self._blame(expiry, "no sweep tells of it, and nothing took its blocks")

    def _sweep(self, swept: int) -> None:
        """A sweep has ended: it ended all that was overdue, by due time, and tells how many."""
        expiries, self.expiries = self.expiries, []
        last = expiries[-1]
        if len(expiries) != swept:
            self._blame(last, f"the sweep tells of {swept} expiries, and stands after {len(expiries)}")
        for expiry in expiries:
            if not expiry.in_turn:
                self._blame(expiry, "others were due before it and did not expire")
        left_ns = self._due_queue.first_ns()
        clock_ns = max(expiry.clock_ns for expiry in expiries)
        if last.in_turn and left_ns is not None and left_ns <= clock_ns:
            self._blame(last, "another was due as well, and did not expire", left_due_ns=left_ns, clock_ns=clock_ns)

    def _account(self, position: int, active: AuditedReservation, *, spent: bool) -> None:
        account_state = active.account_state
        account_state.last_position = position
        self._moved.add(account_state)
        account_state.held_ns -= active.worth_ns
        if spent:
            account_state.spent_ns += active.worth_ns
        else:
            for first, last in active.owned:
                account_state.taken.remove(first, last)
            account_state.touch()

    def _refuse(self, row: Row, event: Settlement, active: AuditedReservation | None) -> None:
        details = {"reservation_id": event.reservation_id, "settles": row.settles}
        if active is None:
            message = f"no reservation that was made at position {row.settles} stands"
        elif active.reservation_id != event.reservation_id:
            message = f"the row settles position {row.settles}, the event another reservation"
        else:
            message = "the reservation is another account's"
        self._findings.add(row.position, Rule.SETTLES_STANDING, message, **details)

    def _check_overdue(self, row: Row, active: AuditedReservation) -> None:
        early_ns = active.due_ns - row.recorded_at_ns
        if early_ns > 0:
            details = {"expires_at_ns": active.due_ns, "recorded_at_ns": row.recorded_at_ns}
            message = f"it expired {seconds(early_ns)} s before it was due"
            self._findings.add(row.position, Rule.EXPIRES_OVERDUE, message, **details)

    def _blame(self, expiry: _Expiry, message: str, **more: int) -> None:
        details = {"reservation_id": expiry.active.reservation_id, "expires_at_ns": expiry.active.due_ns, **more}
        self._findings.add(expiry.position, Rule.EXPIRES_WHAT_IS_TAKEN, message, **details)


def _is_claims_own(expiry: _Expiry, row: Row, event: AllowanceReserved, now_ns: int) -> bool:
    """Whether a claim ended the reservation because it takes its blocks."""
    active = expiry.active
    claimed = event.blocks
    return (
        active.account_state.stream == row.stream
        and active.due_ns <= now_ns
        and expiry.recorded_at_ns == row.recorded_at_ns
        and any(first <= end and start <= last for first, last in claimed for start, end in active.owned)
    )
