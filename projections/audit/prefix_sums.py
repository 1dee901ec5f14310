"""Prefix sums of what blocks grant per executor.

The audit repeats these sums on purpose and shares nothing with the ledger's `PrefixSums`: a ledger that sums wrongly
decides wrongly, and an audit with the same sums would agree with it.
"""

from __future__ import annotations

from bisect import bisect_left

from ledger import END


class AuditPrefixSums(dict[int, int]):
    """What all blocks below a block grant together, in ns per executor; `sums[block]` exists for every block.

    It is a dictionary because the replay asks for the same few sums again and again, so a known sum costs one look-up.
    The sum before `END` changes with every block. All other cached sums stay valid when a block above all others is
    appended; a block below another one, or a block that is withdrawn, clears the cache.
    """

    __slots__ = ("_blocks", "_sums_ns")

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[int] = []
        """The blocks with a unit above 0, ascending."""
        self._sums_ns = [0]
        """The sum before each of them, and the sum of all."""
        self[END] = 0

    def add_block(self, block: int, unit_ns: int) -> None:
        """Add a block that is not included yet; its unit must be above 0."""
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

    def remove_block(self, block: int, unit_ns: int) -> None:
        """Remove a block that is included, with its unit."""
        at = bisect_left(self._blocks, block)
        total_ns = self[END] - unit_ns
        del self._blocks[at]
        self._sums_ns[at + 1 :] = [sum_ns - unit_ns for sum_ns in self._sums_ns[at + 2 :]]
        self.clear()
        self[END] = total_ns

    def __missing__(self, block: int) -> int:
        # Not cached above the last block: the next block to be appended would change the sum.
        if not self._blocks or block > self._blocks[-1]:
            return self[END]
        self[block] = sum_ns = self._sums_ns[bisect_left(self._blocks, block)]
        return sum_ns
