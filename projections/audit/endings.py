"""Settlements: what ends a reservation, and whether it was right that it ended so."""

from __future__ import annotations

from typing import NamedTuple

from ledger import AllowanceReserved, ReservationExpiredEvent, ReservationSpent, Row, Settlement, seconds

from ..rules import Findings, Rule
from .books import Standing, World
from .dues import Dues
from .jobs import Jobs


class _Expiry(NamedTuple):
    """An expiry that is still to be explained: by the end of a sweep, or by the claim that brought it."""

    position: int
    recorded_at_ns: int
    standing: Standing
    in_turn: bool
    """Whether no reservation that stood was due before it, as where all that are overdue expire."""
    clock_ns: int
    """The clock that ended it, as far as the log tells: the recorded time, where that moved; else only its due time."""


class Endings:
    """Takes settlements; keeps the expiries since the last other event, until that explains them."""

    def __init__(self, world: World, dues: Dues, jobs: Jobs, findings: Findings) -> None:
        self._standing, self._moved = world.standing, world.moved
        self._dues = dues
        self._jobs = jobs
        self._findings = findings
        self.expiries: list[_Expiry] = []

    def settle(self, row: Row, event: Settlement, after_ns: int) -> None:
        """Ends a standing reservation, if there is the one that row and event name; the row before is of `after_ns`."""
        standing = self._standing.get(row.settles or 0)
        if standing is None or standing.reservation_id != event.reservation_id or standing.book.stream != row.stream:
            self._refuse(row, event, standing)
            return
        if type(event) is ReservationExpiredEvent:
            self._check_overdue(row, standing)
            in_turn = self._dues.is_first(standing)
            clock_ns = row.recorded_at_ns if row.recorded_at_ns > after_ns else standing.due_ns
            self.expiries.append(_Expiry(row.position, row.recorded_at_ns, standing, in_turn, clock_ns))
        self._end(row.position, standing, spent=type(event) is ReservationSpent)
        if type(event) is ReservationExpiredEvent and event.swept:
            self._sweep(event.swept)

    def _end(self, position: int, standing: Standing, *, spent: bool) -> None:
        """Ends a reservation, by an event at a position."""
        book = standing.book
        del book.standing[standing.position], self._standing[standing.position]
        if standing.position in book.overdue:
            self._dues.remove(standing)
        self._account(position, standing, spent=spent)
        self._jobs.settled(standing.row.job_uuid, spent=spent)

    def explain(self, row: Row | None = None, event: AllowanceReserved | None = None, now_ns: int = 0) -> None:
        """Holds the expiries so far, of which no sweep told, against what follows: a claim with its clock, or else."""
        expiries, self.expiries = self.expiries, []
        for expiry in expiries:
            if row is None or event is None or not _is_brought(expiry, row, event, now_ns):
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
        left_ns = self._dues.first_ns()
        clock_ns = max(expiry.clock_ns for expiry in expiries)
        if last.in_turn and left_ns is not None and left_ns <= clock_ns:
            self._blame(last, "another was due as well, and did not expire", left_due_ns=left_ns, clock_ns=clock_ns)

    def _account(self, position: int, standing: Standing, *, spent: bool) -> None:
        book = standing.book
        book.last_position = position
        self._moved.add(book)
        book.held_ns -= standing.worth_ns
        if spent:
            book.spent_ns += standing.worth_ns
        else:
            for first, last in standing.owned:
                book.taken.remove(first, last)
            book.touch()

    def _refuse(self, row: Row, event: Settlement, standing: Standing | None) -> None:
        details = {"reservation_id": event.reservation_id, "settles": row.settles}
        if standing is None:
            message = f"no reservation that was made at position {row.settles} stands"
        elif standing.reservation_id != event.reservation_id:
            message = f"the row settles position {row.settles}, the event another reservation"
        else:
            message = "the reservation is another account's"
        self._findings.add(row.position, Rule.SETTLES_STANDING, message, **details)

    def _check_overdue(self, row: Row, standing: Standing) -> None:
        early_ns = standing.due_ns - row.recorded_at_ns
        if early_ns > 0:
            details = {"expires_at_ns": standing.due_ns, "recorded_at_ns": row.recorded_at_ns}
            message = f"it expired {seconds(early_ns)} s before it was due"
            self._findings.add(row.position, Rule.EXPIRES_OVERDUE, message, **details)

    def _blame(self, expiry: _Expiry, message: str, **more: int) -> None:
        details = {"reservation_id": expiry.standing.reservation_id, "expires_at_ns": expiry.standing.due_ns, **more}
        self._findings.add(expiry.position, Rule.EXPIRES_WHAT_IS_TAKEN, message, **details)


def _is_brought(expiry: _Expiry, row: Row, event: AllowanceReserved, now_ns: int) -> bool:
    """Whether a claim ended the reservation because it takes its blocks."""
    standing = expiry.standing
    claimed = event.blocks
    return (
        standing.book.stream == row.stream
        and standing.due_ns <= now_ns
        and expiry.recorded_at_ns == row.recorded_at_ns
        and any(first <= end and start <= last for first, last in claimed for start, end in standing.owned)
    )
