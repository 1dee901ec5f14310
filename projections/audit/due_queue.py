"""The active reservations that are overdue at a clock that the log names, and that may go back.

The audit repeats this rule on purpose and shares nothing with the ledger's own due queue, so that a mistake there
shows up as a finding here. Rule: an active reservation is overdue once its stored due time has passed by the clock that
decided; its blocks then count as free, but its status changes only by an event.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .state import AuditedReservation, AuditState

LEAST_COMPACTED = 1024
"""A heap shorter than this is never compacted: the rebuild would cost more than the entries it removes."""


class DueQueue:
    """The active reservations by due time, divided by a clock into overdue and not yet due."""

    def __init__(self, state: AuditState) -> None:
        self._active = state.active
        self._waiting: list[tuple[int, int]] = []
        """A heap of (due time, position). Entries of settled reservations stay in it until they reach the top."""
        self._overdue: dict[int, AuditedReservation] = {}
        """In the order of their due times."""
        self._now_ns = 0

    def push(self, reservation: AuditedReservation) -> None:
        """Queue a new reservation."""
        heappush(self._waiting, (reservation.due_ns, reservation.position))
        # Spent and released reservations leave their entries behind, so a long log would fill the memory with them.
        if len(self._waiting) > LEAST_COMPACTED + 2 * len(self._active):
            self._compact()

    def remove_overdue(self, reservation: AuditedReservation) -> None:
        """Remove a settled overdue reservation. The queue itself skips the others when they reach the top."""
        del self._overdue[reservation.position], reservation.account.overdue[reservation.position]
        # While it was overdue its blocks counted as free. If it was spent late, they are not free any more.
        reservation.account.mark_stale()

    def set_clock(self, now_ns: int) -> None:
        """Set the clock, and mark the accounts as stale whose reservations become overdue or stop being overdue."""
        if self._overdue and now_ns < self._now_ns:
            self._requeue_not_due(now_ns)
        self._now_ns = now_ns
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_ns:
            reservation = self._active.get(heappop(waiting)[1])
            if reservation is not None:
                self._add_overdue(reservation)

    def first_overdue(self) -> AuditedReservation | None:
        """Return the overdue reservation with the earliest due time; None if nothing is overdue at the clock."""
        return next(iter(self._overdue.values()), None)

    def first_due_ns(self) -> int | None:
        """Return the earliest due time of all active reservations; None if there is none."""
        for reservation in self._overdue.values():
            return reservation.due_ns
        while self._waiting and self._waiting[0][1] not in self._active:
            heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else None

    def _add_overdue(self, reservation: AuditedReservation) -> None:
        last = next(reversed(self._overdue.values()), None)
        self._overdue[reservation.position] = reservation.account.overdue[reservation.position] = reservation
        reservation.account.mark_stale()
        # An imported reservation may have been due before others that are overdue already.
        if last is not None and reservation.due_ns < last.due_ns:
            self._overdue = {each.position: each for each in sorted(self._overdue.values(), key=_due_order)}

    def _requeue_not_due(self, now_ns: int) -> None:
        # A clock that went back makes the latest due times "not yet due" again. They are the last of the dictionary.
        while self._overdue:
            position, reservation = self._overdue.popitem()
            if reservation.due_ns <= now_ns:
                self._overdue[position] = reservation
                return
            del reservation.account.overdue[position]
            heappush(self._waiting, (reservation.due_ns, position))
            reservation.account.mark_stale()

    def _compact(self) -> None:
        self._waiting = [entry for entry in self._waiting if entry[1] in self._active]
        heapify(self._waiting)


def _due_order(reservation: AuditedReservation) -> tuple[int, int]:
    return reservation.due_ns, reservation.position
