"""Which reservations are overdue at a clock that the log names, and that may go back."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .state import AuditedReservation, AuditState

LEAST_COMPACTED = 1024


class DueQueue:
    """Standing reservations by due time, told apart by a clock: those overdue at it, and those not yet."""

    def __init__(self, state: AuditState) -> None:
        self._active = state.active
        self._waiting: list[tuple[int, int]] = []
        """(due time, position), a heap; what was settled meanwhile is passed over when it comes up."""
        self._overdue: dict[int, AuditedReservation] = {}
        """In the order in which they came due."""
        self._now_ns = 0

    def add(self, active: AuditedReservation) -> None:
        """A reservation was made."""
        heappush(self._waiting, (active.due_ns, active.position))
        if len(self._waiting) > LEAST_COMPACTED + 2 * len(self._active):
            self._compact()

    def remove(self, active: AuditedReservation) -> None:
        """An overdue reservation was settled; one that is not overdue is passed over when it comes up."""
        del self._overdue[active.position], active.account_state.overdue[active.position]
        active.account_state.touch()  # It counted as free; spent, it does not.

    def move_to(self, now_ns: int) -> None:
        """Sets the clock; the accounts whose reservations it makes overdue, or no longer overdue, are touched."""
        if self._overdue and now_ns < self._now_ns:
            self._take_back(now_ns)
        self._now_ns = now_ns
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_ns:
            active = self._active.get(heappop(waiting)[1])
            if active is not None:
                self._overdue[active.position] = active.account_state.overdue[active.position] = active
                active.account_state.touch()

    def is_first(self, active: AuditedReservation) -> bool:
        """Whether no reservation that stands is due before it. Sets the clock."""
        self.move_to(active.due_ns)
        return next(iter(self._overdue.values()), None) is active

    def first_ns(self) -> int | None:
        """When the first standing reservation is due."""
        for active in self._overdue.values():
            return active.due_ns
        while self._waiting and self._waiting[0][1] not in self._active:
            heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else None

    def _take_back(self, now_ns: int) -> None:
        while self._overdue:
            position, active = self._overdue.popitem()
            if active.due_ns <= now_ns:
                self._overdue[position] = active
                return
            del active.account_state.overdue[position]
            heappush(self._waiting, (active.due_ns, position))
            active.account_state.touch()

    def _compact(self) -> None:
        kept = ((due_ns, position) for due_ns, position in self._waiting if position in self._active)
        self._waiting = list(kept)
        heapify(self._waiting)
