"""One account: the allowance of one validator on one miner in one executor class.

Pure: sees no database and no clock. What a block grants is `units × count`; an account keeps the count as a
function of the block, what is invalidated as a floor, and what is taken as runs of blocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import msgspec

from ledger.events import Axon, Run, account_stream

from .block_table import BlockTable
from .blocks import END, BlockSet, StepFunction

NEVER_NS = 2**63
"""Later than any time."""


class ActiveReservation(msgspec.Struct, frozen=True, eq=False):
    """A reservation whose status is `reserved`."""

    reservation_id: int
    position: int
    account: Account
    amount_ns: int
    blocks: list[Run]
    job_start_block: int
    reserved_at_ns: int
    expires_at_ns: int
    job_uuid: str | None
    attempt: int | None
    axon: Axon | None


class AccountAllowance(NamedTuple):
    """An account's allowance for a job: sums in ns, and its earliest free block (0 where none is free)."""

    total_ns: int
    available_ns: int
    earliest_block: int


class Claim(NamedTuple):
    """What a reservation would take: its blocks, and the overdue reservations that end by it."""

    blocks: list[Run]
    expired: list[ActiveReservation]


class Account:
    """The state of one account; a fold of its stream and of the chain's facts."""

    __slots__ = (
        "active",
        "counts",
        "executor_class",
        "first_due_ns",
        "invalidated_below",
        "miner_ss58",
        "offered",
        "stream",
        "taken",
        "version",
    )

    def __init__(self, miner_ss58: str, executor_class: str) -> None:
        self.miner_ss58 = miner_ss58
        self.executor_class = executor_class
        self.stream = account_stream(miner_ss58, executor_class)
        self.version = 0
        self.offered = StepFunction()
        """Executors offered, uncapped, as a function of the sync's block."""
        self.counts = StepFunction()
        """Executors granted for, as a function of the block; says nothing where the block's unit is 0."""
        self.invalidated_below = 0
        """Blocks below it are invalidated."""
        self.taken = BlockSet()
        """Blocks in a reservation that is reserved or spent."""
        self.active: dict[int, ActiveReservation] = {}
        """Standing reservations by id; only `hold` and `let_go` change it."""
        self.first_due_ns = NEVER_NS
        """When the first of them is due."""

    def add_active(self, active: ActiveReservation) -> None:
        """Puts a reservation among the standing ones."""
        self.active[active.reservation_id] = active
        self.first_due_ns = min(self.first_due_ns, active.expires_at_ns)

    def remove_active(self, active: ActiveReservation) -> None:
        """Takes a reservation out from among the standing ones."""
        del self.active[active.reservation_id]
        if not self.active:
            self.first_due_ns = NEVER_NS
        elif active.expires_at_ns == self.first_due_ns:
            self.first_due_ns = min(each.expires_at_ns for each in self.active.values())

    def amount_ns(self, units: BlockTable, start: int, end: int) -> int:
        """What the account's granted blocks in `[start, end)` add up to."""
        sums_before_ns = units.sums_before_ns
        if self.counts.starts[-1] <= start:
            return self.counts.values[-1] * (sums_before_ns[end] - sums_before_ns[start]) if start < end else 0
        return sum(
            count * (sums_before_ns[step_end] - sums_before_ns[step_start])
            for step_start, step_end, count in self._counted(start, end)
        )

    def overdue(self, now_ns: int) -> list[ActiveReservation]:
        """The reservations whose due time has passed, oldest first."""
        if now_ns < self.first_due_ns:
            return []
        overdue = [active for active in self.active.values() if active.expires_at_ns <= now_ns]
        overdue.sort(key=_reservation_id)
        return overdue

    def occupied(self, now_ns: int) -> BlockSet:
        """The blocks that nobody else may have now: taken, and not by an overdue reservation."""
        if now_ns < self.first_due_ns:
            return self.taken
        overdue = self.overdue(now_ns)
        # Unpacked here once, instead of in every copy.
        self.taken.unpack_from(min((first for active in overdue for first, _ in active.blocks), default=END))
        occupied = self.taken.copy()
        for active in overdue:
            for first, last in active.blocks:
                occupied.remove(first, last)
        return occupied

    def measure(self, units: BlockTable, window_start: int, now_ns: int) -> AccountAllowance:
        """The account's allowance in the window that starts at a block."""
        start = max(window_start, self.invalidated_below)
        sums_before_ns = units.sums_before_ns
        available_ns = earliest = 0
        for free_start, free_end, count in self._free_steps(self.occupied(now_ns), start):
            before_ns = sums_before_ns[free_start]
            free_ns = sums_before_ns[free_end] - before_ns
            if free_ns:
                available_ns += count * free_ns
                earliest = earliest or units.reach(before_ns + 1) - 1
        return AccountAllowance(self.amount_ns(units, start, END), available_ns, earliest)

    def unspent_ns(self, units: BlockTable, window_start: int) -> int:
        """The usable blocks in no spent reservation, summed."""
        start = max(window_start, self.invalidated_below)
        unspent_ns = self.amount_ns(units, start, END)
        for taken_start, taken_end in self.taken.between(start, END):
            unspent_ns -= self.amount_ns(units, taken_start, taken_end)
        for active in self.active.values():
            for first, last in active.blocks:
                unspent_ns += self.amount_ns(units, max(first, start), last + 1)
        return unspent_ns

    def claim(self, units: BlockTable, window_start: int, amount_ns: int, now_ns: int) -> Claim | None:
        """The free blocks from the earliest on, whole, that add up to the amount; None where they do not."""
        blocks: list[Run] = []
        missing_ns = amount_ns
        sums_before_ns = units.sums_before_ns
        for free_start, free_end, count in self._free_steps(
            self.occupied(now_ns), max(window_start, self.invalidated_below)
        ):
            before_ns, end_ns = sums_before_ns[free_start], sums_before_ns[free_end]
            if before_ns == end_ns:
                continue
            needed_ns = before_ns + -(-missing_ns // count)
            enough = end_ns >= needed_ns
            taken_end = units.reach(needed_ns) if enough else min(free_end, units.last_finalized + 1)
            _extend(blocks, units.granted_runs(free_start, taken_end))
            if enough:
                return Claim(blocks, self._cut_into(blocks, now_ns))
            missing_ns -= count * (end_ns - before_ns)
        return None

    def _cut_into(self, blocks: list[Run], now_ns: int) -> list[ActiveReservation]:
        """The overdue reservations that hold any of these blocks."""
        if now_ns < self.first_due_ns:
            return []
        claimed = BlockSet([first for first, _ in blocks], [last + 1 for _, last in blocks])
        return [active for active in self.overdue(now_ns) if any(claimed.overlaps(*run) for run in active.blocks)]

    def _free_steps(self, occupied: BlockSet, start: int) -> list[tuple[int, int, int]]:
        """The unoccupied blocks from `start` on, as `(start, end, count)` with a count above 0, ascending."""
        if self.counts.starts[-1] > start:
            return [step for gap in occupied.gaps(start, END) for step in self._counted(*gap)]
        # Nearly always: one count holds for all of them.
        count = self.counts.values[-1]
        if not count:
            return []
        occupied.unpack_from(start)
        taken_starts, taken_ends = occupied.starts, occupied.ends
        steps: list[tuple[int, int, int]] = []
        for at in range(bisect_right(taken_ends, start), len(taken_ends)):
            if start < taken_starts[at]:
                steps.append((start, taken_starts[at], count))
            start = taken_ends[at]
        steps.append((start, END, count))
        return steps

    def _counted(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The blocks of `[start, end)` by their count, where that is above 0."""
        starts, values = self.counts.starts, self.counts.values
        at = bisect_right(starts, start) - 1
        while start < end:
            step_end = min(starts[at + 1], end) if at + 1 < len(starts) else end
            if values[at]:
                yield start, step_end, values[at]
            start = step_end
            at += 1


_reservation_id = attrgetter("reservation_id")


def _extend(blocks: list[Run], runs: list[Run]) -> None:
    """Appends ascending runs, joining the last to the next where they touch."""
    for first, last in runs:
        if blocks and blocks[-1][1] == first - 1:
            blocks[-1] = (blocks[-1][0], last)
        else:
            blocks.append((first, last))
