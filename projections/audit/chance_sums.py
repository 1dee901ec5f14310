"""Chances: how many jobs each account should have won in the draws in which it was a candidate.

A draw decides among equals, or by weights, and skips busy candidates. Given the step of the tie-break, which says in
which order the equals are tried after the one at which a job starts, each of k starts is as likely as the others. So
a candidate's chance is 1/k, and 1/k more for each busy one that is tried directly before it. The sums of chances are
exact whatever the miners did before: if only chance decides, wins minus chances have mean 0 and this variance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from .chances import NO_CHANCES, Chances
from .ranking import Equals
from .state import AccountState
from .tie_break import step_of


class ChanceSums:
    """The chances of all accounts in many draws."""

    def __init__(self) -> None:
        self._certain: Counter[AccountState] = Counter()
        """Jobs for which the account was the only candidate of the best group."""
        self._sums: dict[AccountState, Chances] = {}

    def add_certain(self, account: AccountState) -> None:
        """Add a job that only one account could get."""
        self._certain[account] += 1

    def add_draw(self, equals: Equals, number: int, busy: Collection[int]) -> None:
        """Add a draw by a number of the tie-break among equals, some of them `busy`."""
        accounts = equals.accounts
        count = len(accounts)
        if equals.level is not None:
            equals.level.add_draw()
        else:
            for account in accounts:
                self._add(account, Chances.of_draw(count))
        if not busy:
            return
        step = step_of(count, number)
        starts: Counter[int] = Counter()
        for at in busy:
            self._add(accounts[at], -Chances.of_draw(count))
            following = (at + step) % count
            while following in busy:
                following = (following + step) % count
            starts[following] += 1
        for at, more in starts.items():
            self._add(accounts[at], Chances.of((1 + more) / count) - Chances.of_draw(count))

    def add_weighted(self, idle: Sequence[AccountState], weights: Sequence[int]) -> None:
        """Add a draw by weights among the candidates that are not busy."""
        total = sum(weights)
        for account, weight in zip(idle, weights, strict=True):
            self._add(account, Chances.of(weight / total) if len(idle) > 1 else Chances(0, 1.0, 0.0))

    def of(self, account: AccountState) -> Chances:
        """Return the sums of an account."""
        return self._sums.get(account, NO_CHANCES) + Chances(0, float(self._certain[account]), 0.0)

    def _add(self, account: AccountState, chances: Chances) -> None:
        self._sums[account] = self._sums.get(account, NO_CHANCES) + chances
