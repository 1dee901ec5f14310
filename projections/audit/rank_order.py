"""The order of candidates with the same first free block: larger shares first, equal shares as one group.

The audit repeats this rule on purpose and shares no code with the ledger's ranking. Rule: candidates are ordered by
their earliest free block, then by `floor(available * 10^9 / total)` descending, then by available descending, then by
hotkey. The tie-break decides among candidates that are equal in the first two, so these form a group.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from .state import AccountState, RankKey

SHARE_UNIT = 10**9
"""Shares are compared in billionths of the total."""

IrregularKey = tuple[int, int, str, AccountState]
"""Sort key of an irregular account: minus its share, minus its available ns, its hotkey, the account."""
Group = tuple[list[RankKey] | list[IrregularKey] | list[tuple[int, str, AccountState]], int, int]
"""A list of keys that end with their account, the index at which a group of equals starts, and its usable size.

Within a group the keys are in order of what is available, so the first ones are those with the amount.
"""


def equal_groups(
    regular: list[RankKey], irregular: list[IrregularKey], free_ns: int, window_ns: int, amount_ns: int
) -> Iterable[Group]:
    """Return the groups of equals among accounts with the same first free block, best first.

    `free_ns` is what all blocks from that block on grant per executor, `window_ns` what those of the whole window
    grant. Both key lists are sorted, and at least one of them is not empty.
    """
    if irregular or regular[0][0] != regular[-1][0]:
        return _merged_groups(regular, irregular, free_ns, window_ns, amount_ns)
    # Mostly nobody has a later block taken. Then all have the same share, and the group is the whole list.
    later_ns = regular[0][0]
    executors = -(-amount_ns // (free_ns - later_ns))
    size = len(regular) if executors <= -regular[-1][1] else bisect_left(regular, (later_ns, 1 - executors))
    return ((regular, 0, size),)


def _merged_groups(
    regular: list[RankKey], irregular: list[IrregularKey], free_ns: int, window_ns: int, amount_ns: int
) -> Iterator[Group]:
    """Merge both lists by share, descending."""
    at, irregular_at, end, irregular_end = 0, 0, len(regular), len(irregular)
    while at < end:
        later_ns = regular[at][0]
        left_ns = free_ns - later_ns
        next_at = end if regular[-1][0] == later_ns else bisect_left(regular, (later_ns + 1,), at)
        # Regular accounts with the same `later_ns` always have equal shares. Whether others have the same share, too,
        # is computed only if it is possible: the exact shares cost two divisions for each account.
        if irregular_at < irregular_end or (next_at < end and _may_be_equal(regular[next_at][0] - later_ns, window_ns)):
            share = _share(left_ns, window_ns)
            while irregular_at < irregular_end and -irregular[irregular_at][0] > share:
                yield _irregular_group(irregular, irregular_at, amount_ns)
                irregular_at = _irregular_end(irregular, irregular_at)
            equal_end = next_at
            while equal_end < end and _share(free_ns - regular[equal_end][0], window_ns) == share:
                equal_end += 1
            equal_irregular = bisect_right(irregular, -share, irregular_at, key=_minus_share)
            if equal_end > next_at or equal_irregular > irregular_at:
                equals = [(key[1] * (free_ns - key[0]), key[2], key[3]) for key in regular[at:equal_end]]
                equals += [key[1:] for key in irregular[irregular_at:equal_irregular]]
                equals.sort()
                yield equals, 0, bisect_left(equals, (1 - amount_ns,))
                at, irregular_at = equal_end, equal_irregular
                continue
        executors = -(-amount_ns // left_ns)
        yield regular, at, bisect_left(regular, (later_ns, 1 - executors), at, next_at) - at
        at = next_at
    while irregular_at < irregular_end:
        yield _irregular_group(irregular, irregular_at, amount_ns)
        irregular_at = _irregular_end(irregular, irregular_at)


def _irregular_group(irregular: list[IrregularKey], at: int, amount_ns: int) -> Group:
    end = _irregular_end(irregular, at)
    return irregular, at, bisect_left(irregular, (irregular[at][0], 1 - amount_ns), at, end) - at


def _irregular_end(irregular: list[IrregularKey], at: int) -> int:
    return bisect_right(irregular, irregular[at][0], at, key=_minus_share)


def _may_be_equal(difference_ns: int, window_ns: int) -> bool:
    return difference_ns * SHARE_UNIT <= window_ns


def _share(left_ns: int, window_ns: int) -> int:
    return left_ns * SHARE_UNIT // window_ns


def _minus_share(key: IrregularKey) -> int:
    return key[0]
