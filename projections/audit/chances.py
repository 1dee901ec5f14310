"""Chances: how many jobs each account should have won in the draws in which it was a candidate.

A draw decides among equals, or by weights, and skips busy candidates. Given the step of the tie-break, which says in
which order the equals are tried after the one at which a job starts, each of k starts is as likely as the others. So
a candidate's chance is 1/k, and 1/k more for each busy one that is tried directly before it. The sums of chances are
exact whatever the miners did before: if only chance decides, wins minus chances have mean 0 and this variance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import NamedTuple

from .state import AccountState


class Chances(NamedTuple):
    """In how many draws an account was a candidate and not busy, the wins they should have given, their variance."""

    draws: int
    wins: float
    variance: float


class ChanceSums:
    """The chances of all accounts in many draws."""

    def __init__(self) -> None:
        self._certain: Counter[AccountState] = Counter()
        """Jobs for which the account was the only candidate of the best group."""
        self._among: defaultdict[int, Counter[AccountState]] = defaultdict(Counter)
        """By the number of equals, in how many draws the account was one of them: counting them is fast."""
        self._more: dict[AccountState, list[float]] = {}
        """Corrections: draws, wins and variance."""

    def add_certain(self, account: AccountState) -> None:
        """Add a job that only one account could get."""
        self._certain[account] += 1

    def add_draw(self, equals: Sequence[AccountState], step: int, busy: Collection[int]) -> None:
        """Add a draw among equals, some of them `busy`, whose order of trial goes on in steps."""
        count = len(equals)
        self._among[count].update(equals)
        if not busy:
            return
        starts: Counter[int] = Counter()
        for at in busy:
            self._correct(equals[at], -1, 1 / count, 0.0)
            following = (at + step) % count
            while following in busy:
                following = (following + step) % count
            starts[following] += 1
        for at, more in starts.items():
            self._correct(equals[at], 0, 1 / count, (1 + more) / count)

    def add_weighted(self, idle: Sequence[AccountState], weights: Sequence[int]) -> None:
        """Add a draw by weights among the candidates that are not busy."""
        if len(idle) == 1:
            self.add_certain(idle[0])
            return
        total = sum(weights)
        for account, weight in zip(idle, weights, strict=True):
            self._correct(account, 1, 0.0, weight / total)

    def of(self, account: AccountState) -> Chances:
        """Return the sums of an account."""
        draws, wins, variance = self._more.get(account, (0, 0.0, 0.0))
        for count, counted in self._among.items():
            if account in counted:
                draws += counted[account]
                wins += counted[account] / count
                variance += counted[account] * (count - 1) / count**2
        return Chances(int(draws), wins + self._certain[account], max(variance, 0.0))

    def _correct(self, account: AccountState, draws: int, chance: float, right_chance: float) -> None:
        """Replace a chance that was counted by the right one."""
        sums = self._more.setdefault(account, [0, 0.0, 0.0])
        sums[0] += draws
        sums[1] += right_chance - chance
        sums[2] += right_chance * (1 - right_chance) - chance * (1 - chance)
