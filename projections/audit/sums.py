"""Sums of what blocks grant per executor, kept apart from the ledger's own, so that neither takes the other's word."""

from __future__ import annotations

from bisect import bisect_left


class Sums:
    """The blocks with a unit above 0, ascending, and the running sums of their units."""

    __slots__ = ("_blocks", "_sums_ns")

    def __init__(self) -> None:
        self._blocks: list[int] = []
        self._sums_ns = [0]

    def add(self, block: int, unit_ns: int) -> None:
        """Adds a block that is not there; those after it are summed anew."""
        at = bisect_left(self._blocks, block)
        self._blocks.insert(at, block)
        self._sums_ns[at + 1 :] = [sum_ns + unit_ns for sum_ns in self._sums_ns[at:]]

    def before_ns(self, block: int) -> int:
        """The sum of the units of all blocks below this one."""
        return self._sums_ns[bisect_left(self._blocks, block)]
