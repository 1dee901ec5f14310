"""Sums of what blocks grant per executor, kept apart from the ledger's own, so that neither takes the other's word."""

from __future__ import annotations

from bisect import bisect_left

from ledger import END


class AuditPrefixSums(dict[int, int]):
    """By block, what all blocks below it grant together: `sums[block]` is there for every block.

    A dictionary, since most sums are asked for again and again: what was summed once costs one look-up. But for the
    sum of all blocks, before `END`, only sums are kept that a block beyond all others does not change.
    """

    __slots__ = ("_blocks", "_sums_ns")

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[int] = []
        """Those with a unit above 0, ascending."""
        self._sums_ns = [0]
        """Before each of them, and at the end."""
        self[END] = 0

    def add(self, block: int, unit_ns: int) -> None:
        """Adds a block that is not there; those after it are summed anew."""
        total_ns = self[END] + unit_ns
        if not self._blocks or block > self._blocks[-1]:
            self._blocks.append(block)
            self._sums_ns.append(total_ns)
            self[END] = total_ns
            return
        at = bisect_left(self._blocks, block)
        self._blocks.insert(at, block)
        self._sums_ns[at + 1 :] = [sum_ns + unit_ns for sum_ns in self._sums_ns[at:]]
        self.clear()
        self[END] = total_ns

    def __missing__(self, block: int) -> int:
        if not self._blocks or block > self._blocks[-1]:
            return self[END]
        self[block] = sum_ns = self._sums_ns[bisect_left(self._blocks, block)]
        return sum_ns
