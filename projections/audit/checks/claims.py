"""What a reservation should have taken, worked out anew, and which rules it broke where it took something else."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from ledger import END, BlockSet
from ledger.events import AllowanceReserved, Run
from projections.audit.state import AccountState, AuditState

NO_WORTH = 0


class ClaimCheck:
    """Holds reservations against the account as it was just before each."""

    def __init__(self, state: AuditState) -> None:
        self._state = state

    def worth_as_due(self, account_state: AccountState, event: AllowanceReserved, oldest: int) -> int:
        """What the blocks are worth, if plainly exactly those that were to be taken; 0 where that is not plain.

        Plain is one run without a gap, a change of count, or an overdue reservation in its way: then it is right if
        it begins at the first free block, and its last block is what makes it enough.
        """
        if len(event.blocks) != 1 or account_state.overdue:
            return NO_WORTH
        first, last = event.blocks[0]
        state, account = self._state, account_state.account
        invalidated_below, counts = account.invalidated_below, account.counts
        start, until = state.first_free(
            account_state.taken, invalidated_below if invalidated_below > oldest else oldest
        )
        if not start == first <= last < until or (first < last and not state.covers(first, last)):
            return NO_WORTH
        sums, steps = state.sums, counts.starts
        if first >= steps[-1]:
            count = counts.values[-1]
        else:
            step = bisect_right(steps, first)
            if steps[step] <= last:
                return NO_WORTH
            count = counts.values[step - 1]
        first_ns = sums[first]
        worth_ns = count * (sums[last + 1] - first_ns)
        return worth_ns if worth_ns >= event.amount_ns > count * (sums[last] - first_ns) else NO_WORTH

    def due_blocks(self, account_state: AccountState, amount_ns: int, oldest: int) -> list[Run] | None:
        """The free blocks from the earliest on, whole, that add up to the amount; None where they do not."""
        blocks: list[Run] = []
        missing_ns = amount_ns
        for start, end, count in self._state.free(account_state, oldest):
            last = self._last_needed(start, end, -(-missing_ns // count))
            if blocks and blocks[-1][1] == start - 1:
                blocks[-1] = (blocks[-1][0], last)
            else:
                blocks.append((start, last))
            missing_ns -= count * (self._state.sums[last + 1] - self._state.sums[start])
            if missing_ns <= 0:
                return blocks
        return None

    def first_without(self, account_state: AccountState, first: int, last: int) -> int | None:
        """The first block of the run that grants the account nothing."""
        granted, counts = self._state.granted, account_state.account.counts
        block = first
        while block <= last:
            run = bisect_right(granted.starts, block) - 1
            step = bisect_right(counts.starts, block)
            if run < 0 or granted.ends[run] <= block or not counts.values[step - 1]:
                return block
            block = min(granted.ends[run], counts.starts[step] if step < len(counts.starts) else END)
        return None

    def skipped(self, account_state: AccountState, blocks: list[Run], oldest: int) -> int | None:
        """The first free block that lies before the last of these and is none of them."""
        taken = BlockSet([first for first, _ in blocks], [last + 1 for _, last in blocks])
        for start, end, _ in self._state.free(account_state, oldest):
            for gap_start, _ in taken.gaps(start, end):
                return gap_start if gap_start < blocks[-1][1] else None
        return None

    def _last_needed(self, start: int, end: int, units_ns: int) -> int:
        """The first block of `[start, end)` up to which the units reach so much, else the last block there is."""
        sums = self._state.sums
        target_ns = sums[start] + units_ns
        return bisect_left(range(start, end - 1), target_ns, key=lambda block: sums[block + 1]) + start


def is_run(first: int, last: int) -> bool:
    """Whether these can be the first and the last of some blocks."""
    return 0 < first <= last < END


def ascend(blocks: list[Run]) -> bool:
    """Whether runs ascend and do not touch."""
    end = 0
    for first, last in blocks:
        if not is_run(first, last) or first <= end:
            return False
        end = last + 1
    return bool(blocks)
