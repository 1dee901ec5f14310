"""The blocks that a reservation should have claimed, computed again from the audit's own state.

The audit repeats this rule on purpose and shares no deciding code with the ledger's `Account.claim`; it shares only the
data structure `BlockSet`. Rule: a reservation claims whole free blocks of its account, the earliest first, until they
add up to at least the amount; blocks are free if they are granted, not invalidated, in the window and not taken.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from ledger import END, BlockSet
from ledger.events import AllowanceReserved, Run
from projections.audit.state import AccountState, AuditState

NOT_PLAIN = 0
"""Returned instead of a value for a claim that is not a plain one; the value of a right claim is above 0."""


class ClaimCheck:
    """Computes claims from an account's state just before them."""

    def __init__(self, state: AuditState) -> None:
        self._state = state

    def plain_value_ns(self, account: AccountState, event: AllowanceReserved, oldest: int) -> int:
        """Return the value of the blocks in ns if they are a plain and right claim, else `NOT_PLAIN`.

        A plain claim is one run without a gap or a change of count, in an account without overdue reservations. It is
        right if it begins at the first free block and reaches the amount only with its last block. Nearly all claims
        are plain, and this needs no list of expected blocks.
        """
        if len(event.blocks) != 1 or account.overdue:
            return NOT_PLAIN
        first, last = event.blocks[0]
        state, chain_account = self._state, account.chain_account
        invalidated_below, counts = chain_account.invalidated_below, chain_account.counts
        start, until = state.first_free(account.taken, invalidated_below if invalidated_below > oldest else oldest)
        if not start == first <= last < until or (first < last and not state.all_granted(first, last)):
            return NOT_PLAIN
        sums, steps = state.sums, counts.starts
        if first >= steps[-1]:
            count = counts.values[-1]
        else:
            step = bisect_right(steps, first)
            if steps[step] <= last:
                return NOT_PLAIN
            count = counts.values[step - 1]
        first_ns = sums[first]
        value_ns = count * (sums[last + 1] - first_ns)
        return value_ns if value_ns >= event.amount_ns > count * (sums[last] - first_ns) else NOT_PLAIN

    def expected_blocks(self, account: AccountState, amount_ns: int, oldest: int) -> list[Run] | None:
        """Return the runs of the earliest whole free blocks that add up to the amount; None if there are too few."""
        blocks: list[Run] = []
        missing_ns = amount_ns
        for start, end, count in self._state.free_runs(account, oldest):
            last = self._last_needed(start, end, -(-missing_ns // count))
            if blocks and blocks[-1][1] == start - 1:
                blocks[-1] = (blocks[-1][0], last)
            else:
                blocks.append((start, last))
            missing_ns -= count * (self._state.sums[last + 1] - self._state.sums[start])
            if missing_ns <= 0:
                return blocks
        return None

    def first_not_granted(self, account: AccountState, first: int, last: int) -> int | None:
        """Return the first block of the run that grants nothing to the account; None if all grant something."""
        granted, counts = self._state.granted, account.chain_account.counts
        block = first
        while block <= last:
            run = bisect_right(granted.starts, block) - 1
            step = bisect_right(counts.starts, block)
            if run < 0 or granted.ends[run] <= block or not counts.values[step - 1]:
                return block
            block = min(granted.ends[run], counts.starts[step] if step < len(counts.starts) else END)
        return None

    def first_skipped(self, account: AccountState, blocks: list[Run], oldest: int) -> int | None:
        """Return the first free block that is not in `blocks` but below their last one; None if there is none."""
        claimed = BlockSet([first for first, _ in blocks], [last + 1 for _, last in blocks])
        for start, end, _ in self._state.free_runs(account, oldest):
            for gap_start, _ in claimed.gaps(start, end):
                return gap_start if gap_start < blocks[-1][1] else None
        return None

    def _last_needed(self, start: int, end: int, units_ns: int) -> int:
        """Return the first block of `[start, end)` up to which the units add up to `units_ns`, else the last block."""
        sums = self._state.sums
        target_ns = sums[start] + units_ns
        return bisect_left(range(start, end - 1), target_ns, key=lambda block: sums[block + 1]) + start


def is_run(first: int, last: int) -> bool:
    """Return whether two numbers can be the first and the last block of a run."""
    return 0 < first <= last < END


def is_ascending(blocks: list[Run]) -> bool:
    """Return whether there is a run, and all runs are possible, ascend, and do not touch."""
    end = 0
    for first, last in blocks:
        if not is_run(first, last) or first <= end:
            return False
        end = last + 1
    return bool(blocks)
