"""One account: the allowance of one validator on one miner in one executor class.

Pure: no database, no clock; time is an argument. A block grants the account `unit × count`. The units are the same for
all accounts and come from an argument, the `BlockTable`; the account has the count as a step function of the block, the
invalidated blocks as one block number, and the taken blocks as a set of runs.

These words have one meaning each:

- window: the blocks from `window_start` on, the first block that the job may use (`LedgerState.window_start`)
- usable: in the window, granted, and not invalidated
- taken: in an active or spent reservation
- occupied: taken, except by overdue reservations, so no claim may use the block now
- free: usable and not occupied

An overdue reservation does not occupy its blocks, since a job that ended without a settlement must not lock allowance
up. Source: ComputeHorde's allowance module, where reservations expire by themselves.
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
"""Later than any recorded time."""


class ActiveReservation(msgspec.Struct, frozen=True, eq=False):
    """A reservation whose status is `reserved`, overdue or not.

    `position` is the log position of its event; `attempt` numbers the job's reservations, from 1.
    """

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
    """An account's allowance for a job: total and available in ns, and its earliest free block (0 if none is free)."""

    total_ns: int
    available_ns: int
    earliest_block: int


class Claim(NamedTuple):
    """The blocks that a reservation would take, and the overdue reservations that must expire in the same append."""

    blocks: list[Run]
    overdue: list[ActiveReservation]


class Account:
    """The state of one account: a fold of its stream and of the chain facts."""

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
        """The miner's executors according to its manifests, uncapped, as a function of the sync's block."""
        self.counts = StepFunction()
        """The executors that each finalized block grants for; meaningless for blocks whose unit is 0."""
        self.invalidated_below = 0
        """Blocks below this one are invalidated. One number suffices: a drop invalidates all blocks below its own."""
        self.taken = BlockSet()
        """The blocks in an active or spent reservation."""
        self.active: dict[int, ActiveReservation] = {}
        """The active reservations by id; change it only by `add_active` and `remove_active`."""
        self.first_due_ns = NEVER_NS
        """The earliest due time of the active reservations; most calls need no more to know that none is overdue."""

    def add_active(self, active: ActiveReservation) -> None:
        """Insert an active reservation; its blocks are in `taken` already."""
        self.active[active.reservation_id] = active
        self.first_due_ns = min(self.first_due_ns, active.expires_at_ns)

    def remove_active(self, active: ActiveReservation) -> None:
        """Remove a reservation that was settled, but not its blocks from `taken`.

        After a spend they stay there for good; after a release or an expiry the caller removes them.
        """
        del self.active[active.reservation_id]
        if not self.active:
            self.first_due_ns = NEVER_NS
        elif active.expires_at_ns == self.first_due_ns:
            self.first_due_ns = min(each.expires_at_ns for each in self.active.values())

    def amount_ns(self, block_table: BlockTable, start: int, end: int) -> int:
        """Return the sum of what the blocks of `[start, end)` granted the account."""
        sums_before_ns = block_table.sums_before_ns
        # Mostly the count has not changed within the window, and one multiplication is enough.
        if self.counts.starts[-1] <= start:
            return self.counts.values[-1] * (sums_before_ns[end] - sums_before_ns[start]) if start < end else 0
        return sum(
            count * (sums_before_ns[range_end] - sums_before_ns[range_start])
            for range_start, range_end, count in self._ranges_with_count(start, end)
        )

    def overdue(self, now_ns: int) -> list[ActiveReservation]:
        """Return the active reservations whose due time has passed, by id."""
        if now_ns < self.first_due_ns:
            return []
        overdue = [active for active in self.active.values() if active.expires_at_ns <= now_ns]
        overdue.sort(key=_reservation_id)
        return overdue

    def occupied(self, now_ns: int) -> BlockSet:
        """Return the blocks that no claim may use now: the taken ones, except those of overdue reservations.

        Do not change the result: if nothing is overdue, it is the account's own set.
        """
        if now_ns < self.first_due_ns:
            return self.taken
        overdue = self.overdue(now_ns)
        # Unpacked in the original, so that not every copy has to repeat it. Only in a forged log can all overdue
        # reservations be without blocks; `END` then unpacks nothing.
        self.taken.unpack_from(min((first for active in overdue for first, _ in active.blocks), default=END))
        occupied = self.taken.copy()
        for active in overdue:
            for first, last in active.blocks:
                occupied.remove(first, last)
        return occupied

    def measure(self, block_table: BlockTable, window_start: int, now_ns: int) -> AccountAllowance:
        """Return the account's allowance in the window that begins at `window_start` and has no end.

        The job's start only sets where the window begins. A block above it counts too, because its allowance is as good
        as any other. Source: ComputeHorde's allowance module, which compares blocks only with the window's start.
        """
        start = max(window_start, self.invalidated_below)
        sums_before_ns = block_table.sums_before_ns
        available_ns = earliest = 0
        for free_start, free_end, count in self._free_ranges(self.occupied(now_ns), start):
            before_ns = sums_before_ns[free_start]
            free_ns = sums_before_ns[free_end] - before_ns
            if free_ns:
                available_ns += count * free_ns
                # The first block that grants anything: the sum exceeds `before_ns` only after it.
                earliest = earliest or block_table.end_reaching(before_ns + 1) - 1
        return AccountAllowance(self.amount_ns(block_table, start, END), available_ns, earliest)

    def unspent_ns(self, block_table: BlockTable, window_start: int) -> int:
        """Return the sum of the usable blocks that are in no spent reservation."""
        start = max(window_start, self.invalidated_below)
        unspent_ns = self.amount_ns(block_table, start, END)
        for taken_start, taken_end in self.taken.between(start, END):
            unspent_ns -= self.amount_ns(block_table, taken_start, taken_end)
        # Active reservations are in `taken` but not spent.
        for active in self.active.values():
            for first, last in active.blocks:
                unspent_ns += self.amount_ns(block_table, max(first, start), last + 1)
        return unspent_ns

    def claim(self, block_table: BlockTable, window_start: int, amount_ns: int, now_ns: int) -> Claim | None:
        """Return the claim of the earliest whole free blocks that sum to at least the amount; None if they do not.

        Earliest first, since the oldest blocks leave the window first. Source: ComputeHorde's allowance module. The
        claim also names the overdue reservations whose blocks it takes, so that their expiry is recorded before the
        blocks have a new owner; other overdue reservations stay as they are (this project's own rule).
        """
        blocks: list[Run] = []
        missing_ns = amount_ns
        sums_before_ns = block_table.sums_before_ns
        start = max(window_start, self.invalidated_below)
        for free_start, free_end, count in self._free_ranges(self.occupied(now_ns), start):
            before_ns, end_ns = sums_before_ns[free_start], sums_before_ns[free_end]
            if before_ns == end_ns:
                continue
            # Rounded up: each unit counts `count` times, and the blocks must be worth at least the amount.
            needed_ns = before_ns + -(-missing_ns // count)
            enough = end_ns >= needed_ns
            # The last free range has no end, so it is cut at the last block that can grant anything.
            claim_end = block_table.end_reaching(needed_ns) if enough else min(free_end, block_table.last_finalized + 1)
            _extend(blocks, block_table.granted_runs(free_start, claim_end))
            if enough:
                return Claim(blocks, self.overdue_in(blocks, now_ns))
            missing_ns -= count * (end_ns - before_ns)
        return None

    def not_granted(self, block_table: BlockTable, blocks: list[Run]) -> list[Run]:
        """Return the parts of the runs that grant the account nothing."""
        return [gap for first, last in blocks for gap in self._not_granted(block_table, first, last + 1)]

    def _not_granted(self, block_table: BlockTable, start: int, end: int) -> list[Run]:
        granted = BlockSet()
        for counted_start, counted_end, _ in self._ranges_with_count(start, end):
            for run in block_table.granted_runs(counted_start, counted_end):
                granted.add(*run)
        return [(gap_start, gap_end - 1) for gap_start, gap_end in granted.gaps(start, end)]

    def overdue_in(self, blocks: list[Run], now_ns: int) -> list[ActiveReservation]:
        """Return the overdue reservations that contain any of these blocks."""
        if now_ns < self.first_due_ns:
            return []
        claimed = BlockSet([first for first, _ in blocks], [last + 1 for _, last in blocks])
        return [active for active in self.overdue(now_ns) if any(claimed.overlaps(*run) for run in active.blocks)]

    def _free_ranges(self, occupied: BlockSet, start: int) -> list[tuple[int, int, int]]:
        """Return the unoccupied blocks from `start` on as ascending `(start, end, count)` with a count above 0."""
        if self.counts.starts[-1] > start:
            return [each for gap in occupied.gaps(start, END) for each in self._ranges_with_count(*gap)]
        # Mostly one count holds for the whole window. This loop is what ranking every account of a class costs, so
        # it repeats `BlockSet.gaps` without the generators.
        count = self.counts.values[-1]
        if not count:
            return []
        occupied.unpack_from(start)
        occupied_starts, occupied_ends = occupied.starts, occupied.ends
        ranges: list[tuple[int, int, int]] = []
        for index in range(bisect_right(occupied_ends, start), len(occupied_ends)):
            if start < occupied_starts[index]:
                ranges.append((start, occupied_starts[index], count))
            start = occupied_ends[index]
        ranges.append((start, END, count))
        return ranges

    def _ranges_with_count(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield `[start, end)` split where the count changes, as `(start, end, count)`, without counts of 0."""
        starts, values = self.counts.starts, self.counts.values
        index = bisect_right(starts, start) - 1
        while start < end:
            step_end = min(starts[index + 1], end) if index + 1 < len(starts) else end
            if values[index]:
                yield start, step_end, values[index]
            start = step_end
            index += 1


_reservation_id = attrgetter("reservation_id")


def _extend(blocks: list[Run], runs: list[Run]) -> None:
    """Append ascending runs and merge adjacent ones, since a claim stores each run of blocks once."""
    for first, last in runs:
        if blocks and blocks[-1][1] == first - 1:
            blocks[-1] = (blocks[-1][0], last)
        else:
            blocks.append((first, last))
