"""A set of miners as a step function of the block, stored for each miner, since few miners change at a time."""

from __future__ import annotations

from bisect import bisect_right

from .blocks import END, StepFunction

_NOBODY: frozenset[str] = frozenset()


class MinerSets:
    """Which miners are in the set at a block; nobody at first.

    One set object for each block would take 16 kB for each change of one miner. A miner that comes and goes once takes
    two steps here.
    """

    __slots__ = ("_range", "_set", "steps")

    def __init__(self) -> None:
        self.steps: dict[str, StepFunction] = {}
        """Each miner's membership by block: 1 if it is in the set, else 0. An entry is never removed."""
        self._range = (0, END)
        """The blocks, end exclusive, for which `_set` is the set; most calls ask for the same few blocks."""
        self._set = _NOBODY

    def at(self, block: int) -> frozenset[str]:
        """Return the set at a block."""
        first, end = self._range
        if not first <= block < end:
            self._find(block)
        return self._set

    def assign(self, start: int, end: int, miners: frozenset[str]) -> None:
        """Set the set on `[start, end)`, on which it must be constant so far."""
        before = self.at(start)
        if miners is before:
            return
        if miners == before:
            # The same object from now on: comparing two takes as long as there are miners, and every block compares.
            self._set = miners
            return
        for miner_ss58 in miners ^ before:
            steps = self.steps.get(miner_ss58)
            if steps is None:
                steps = self.steps[miner_ss58] = StepFunction()
            steps.assign(start, end, int(miner_ss58 in miners))
        self._range, self._set = (start, end), miners

    def load(self, miner_ss58: str, steps: StepFunction) -> None:
        """Set a miner's steps, from a snapshot."""
        self.steps[miner_ss58] = steps
        # An empty range: the next call finds the set anew.
        self._range = (0, 0)

    def next_without(self, miner_ss58: str, block: int) -> int:
        """Return the first block from `block` on at which the miner is not in the set; `END` if there is none."""
        steps = self.steps.get(miner_ss58)
        if steps is None or not steps.at(block):
            return block
        after = bisect_right(steps.starts, block)
        return steps.starts[after] if after < len(steps.starts) else END

    def _find(self, block: int) -> None:
        first, end = 0, END
        miners: list[str] = []
        for miner_ss58, steps in self.steps.items():
            after = bisect_right(steps.starts, block)
            first = max(first, steps.starts[after - 1])
            if after < len(steps.starts):
                end = min(end, steps.starts[after])
            if steps.values[after - 1]:
                miners.append(miner_ss58)
        self._range, self._set = (first, end), frozenset(miners)
