"""Which reservations are overdue at a clock that the log names, and that may go back."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .books import Standing, World

LEAST_COMPACTED = 1024


class Dues:
    """Standing reservations by due time, told apart by a clock: those overdue at it, and those not yet."""

    def __init__(self, world: World) -> None:
        self._standing = world.standing
        self._waiting: list[tuple[int, int]] = []
        """(due time, position), a heap; what was settled meanwhile is passed over when it comes up."""
        self._overdue: dict[int, Standing] = {}
        """In the order in which they came due."""
        self._now_ns = 0

    def add(self, standing: Standing) -> None:
        """A reservation was made."""
        heappush(self._waiting, (standing.due_ns, standing.position))
        if len(self._waiting) > LEAST_COMPACTED + 2 * len(self._standing):
            self._compact()

    def remove(self, standing: Standing) -> None:
        """An overdue reservation was settled; one that is not overdue is passed over when it comes up."""
        del self._overdue[standing.position], standing.book.overdue[standing.position]
        standing.book.touch()  # It counted as free; spent, it does not.

    def move_to(self, now_ns: int) -> None:
        """Sets the clock; the accounts whose reservations it makes overdue, or no longer overdue, are touched."""
        if self._overdue and now_ns < self._now_ns:
            self._take_back(now_ns)
        self._now_ns = now_ns
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_ns:
            standing = self._standing.get(heappop(waiting)[1])
            if standing is not None:
                self._overdue[standing.position] = standing.book.overdue[standing.position] = standing
                standing.book.touch()

    def is_first(self, standing: Standing) -> bool:
        """Whether no reservation that stands is due before it. Sets the clock."""
        self.move_to(standing.due_ns)
        return next(iter(self._overdue.values()), None) is standing

    def first_ns(self) -> int | None:
        """When the first standing reservation is due."""
        for standing in self._overdue.values():
            return standing.due_ns
        while self._waiting and self._waiting[0][1] not in self._standing:
            heappop(self._waiting)
        return self._waiting[0][0] if self._waiting else None

    def _take_back(self, now_ns: int) -> None:
        while self._overdue:
            position, standing = self._overdue.popitem()
            if standing.due_ns <= now_ns:
                self._overdue[position] = standing
                return
            del standing.book.overdue[position]
            heappush(self._waiting, (standing.due_ns, position))
            standing.book.touch()

    def _compact(self) -> None:
        kept = ((due_ns, position) for due_ns, position in self._waiting if position in self._standing)
        self._waiting = list(kept)
        heapify(self._waiting)
