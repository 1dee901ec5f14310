"""The order of a ranking in a form that the next block does not change.

Among accounts with the same earliest free block, the order is by the share left, `available / total`. If an account
has one executor count in the whole window, its share is `left / window`: what is left of one executor's allowance
from that block on, divided by what the whole window grants an executor. So the order is that of what is *taken*
beyond the earliest block, and neither a new block nor one that leaves the window before the earliest block changes
that. What is available, and the share, are computed when they are asked for.

Amounts here are in billionths of a ns (`_e9`), so that every share in billionths is exactly `left_e9 // window_ns`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ledger import END, Account

from .measured import SHARE_UNIT, Unfit

AT_WINDOW_START = 0
"""The level of all accounts whose earliest free block is the window's first granted one, whichever that is."""

FEW = 16
"""Inserting a sixteenth of a level's entries one by one is faster than sorting it again (measured)."""


class RankEntry(NamedTuple):
    """An account in a level. Entries sort as tuples; hotkeys are unique, so the fields after them decide nothing.

    What is available is `left_e9 × executors + rest_e9`, where `left_e9` is what all blocks from the level's on grant
    an executor, minus `taken_e9`. An account with several executor counts in the window has the `taken_e9` that gives
    the share that it was measured with, a rest, and `total_ns`; the total of all others is `window × executors`.
    """

    taken_e9: int
    minus_executors: int
    minus_rest_e9: int
    hotkey_ss58: str
    account: Account
    busy: bool
    """The result of `is_busy` when the account was measured."""
    start: int
    """The account's earliest free block when it was measured."""
    until: int
    """The end of the free blocks from there on: the account must be measured again when the window starts there."""
    total_ns: int
    unfit: Unfit | None = None
    """Why the miner was no candidate when the account was measured."""
    weight: int = 0
    """The weight in draws, if the order is by reliability."""

    def available_e9(self, left_e9: int) -> int:
        return -self.minus_executors * left_e9 - self.minus_rest_e9


Group = tuple[list[RankEntry], int, int]
"""Entries, the index of the first of those that are equal in rank, and how many of these have the amount.

Equals are in order of what is available, descending, then hotkey; so those with the amount come first.
"""


class RankLevels:
    """The entries of one class by earliest free block, each level in order."""

    __slots__ = ("_by_start", "_starts", "end_ns", "first", "sums_before_ns", "window_ns")

    def __init__(self) -> None:
        self._by_start: dict[int, list[RankEntry]] = {AT_WINDOW_START: []}
        self._starts = [AT_WINDOW_START]
        """The levels' earliest free blocks, ascending. Only the level at the window's start may be empty."""
        self.first = END
        """The first granted block of the window; `END` if it has none, and then there must be no entries."""
        self.end_ns = self.window_ns = 0
        """What all blocks, and what those of the window, grant an executor."""
        self.sums_before_ns: Mapping[int, int] = {}

    def __bool__(self) -> bool:
        return len(self._starts) > 1 or bool(self._by_start[AT_WINDOW_START])

    def set_window(self, first: int, sums_before_ns: Mapping[int, int]) -> None:
        """Set the window's first granted block; entries whose earliest block it has reached move to its start."""
        self.first, self.sums_before_ns = first, sums_before_ns
        self.end_ns = sums_before_ns[END]
        self.window_ns = self.end_ns - sums_before_ns[first]
        passed = bisect_right(self._starts, first)
        for start in self._starts[1:passed]:
            self._move_to_window_start(self._by_start.pop(start))
        del self._starts[1:passed]

    def free_e9(self, start: int) -> int:
        """Return what all blocks from an earliest free block on grant an executor."""
        return (self.end_ns - self.sums_before_ns[max(start, self.first)]) * SHARE_UNIT

    def extend(self, entries: list[RankEntry]) -> None:
        """Insert many entries; faster than one by one."""
        for entry in entries:
            self._level(entry).append(entry)
        for level in self._by_start.values():
            level.sort()

    def insert(self, entry: RankEntry) -> None:
        insort(self._level(entry), entry)

    def remove(self, entry: RankEntry) -> None:
        """Remove an entry, which must be there."""
        level = self._level(entry)
        del level[bisect_left(level, entry)]
        if not level and entry.start > self.first:
            del self._by_start[entry.start], self._starts[bisect_left(self._starts, entry.start)]

    def groups(self, amount_ns: int) -> Iterator[Group]:
        """Yield the groups of equals, best first, each with the number of its entries that have the amount."""
        amount_e9 = amount_ns * SHARE_UNIT
        for start in self._starts:
            level = self._by_start[start]
            if not level:
                continue
            free_e9 = self.free_e9(start)
            if level[0].taken_e9 != level[-1].taken_e9:
                yield from self._groups_of(level, free_e9, amount_e9)
                continue
            # Mostly nobody in a level has taken anything beyond its block. Then all are equal.
            yield level, 0, _enough(level, 0, len(level), free_e9 - level[0].taken_e9, amount_e9)

    def _groups_of(self, level: list[RankEntry], free_e9: int, amount_e9: int) -> Iterator[Group]:
        at, end = 0, len(level)
        while at < end:
            taken_e9 = level[at].taken_e9
            left_e9 = free_e9 - taken_e9
            group_end = bisect_left(level, (taken_e9 + 1,), at + 1)
            # Shares are floored, so a little more taken may give the same share. That is rare.
            if group_end < end and (free_e9 - level[group_end].taken_e9) // self.window_ns == left_e9 // self.window_ns:
                equals, at = self._equals(level, at, free_e9)
                yield equals, 0, sum(each.available_e9(free_e9 - each.taken_e9) >= amount_e9 for each in equals)
                continue
            yield level, at, _enough(level, at, group_end, left_e9, amount_e9) - at
            at = group_end

    def _equals(self, level: list[RankEntry], at: int, free_e9: int) -> tuple[list[RankEntry], int]:
        """Return the entries from an index on that have equal shares, in order, and the index after them."""
        share = (free_e9 - level[at].taken_e9) // self.window_ns
        # The share is the same as long as at least `share × window` is left.
        end = bisect_left(level, (free_e9 - share * self.window_ns + 1,), at)

        def order(entry: RankEntry) -> tuple[int, str]:
            return -entry.available_e9(free_e9 - entry.taken_e9), entry.hotkey_ss58

        return sorted(level[at:end], key=order), end

    def _move_to_window_start(self, level: list[RankEntry]) -> None:
        at_start = self._by_start[AT_WINDOW_START]
        if len(level) * FEW < len(at_start):
            for entry in level:
                insort(at_start, entry)
        elif at_start:
            at_start += level
            at_start.sort()
        else:
            self._by_start[AT_WINDOW_START] = level

    def _level(self, entry: RankEntry) -> list[RankEntry]:
        start = entry.start if entry.start > self.first else AT_WINDOW_START
        level = self._by_start.get(start)
        if level is None:
            level = self._by_start[start] = []
            insort(self._starts, start)
        return level


def _enough(level: list[RankEntry], start: int, end: int, left_e9: int, amount_e9: int) -> int:
    """Return the end of the entries with at least the amount, among those that have taken the same."""
    last = level[end - 1]
    if last.available_e9(left_e9) >= amount_e9:
        return end
    if end - start == 1:
        return start
    executors, rest_e9 = divmod(amount_e9, left_e9) if left_e9 else (0, amount_e9)
    return bisect_left(level, (last.taken_e9, -executors, 1 - rest_e9), start, end)
