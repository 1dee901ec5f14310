"""The draws of one executor class, for any amount: who has the amount, and the sum tree of the weights.

Mostly few candidates lack an amount, and are left out of the tree's draws. If most of them do, the others are drawn as
the rule is defined, which goes through all of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence

from ledger import Account

from .draw_table import DrawTable
from .reliability import drawn


class Draws:
    """The accounts in order of hotkey, each with what is available and its weight. A candidate has both above 0."""

    def __init__(self, accounts: Sequence[Account], values: Iterable[tuple[int, int]]) -> None:
        """`values` has the available amount and the weight of each account, both 0 if it is no candidate."""
        self._accounts = accounts
        self._index_of = {account: index for index, account in enumerate(accounts)}
        self._values = list(values)
        self._by_available = sorted((each[0], index) for index, each in enumerate(self._values) if each[1])
        self._table = DrawTable([weight for _, weight in self._values])

    def change(self, account: Account, available: int, weight: int) -> bool:
        """Change one account; return False if it is a new candidate, for which the draws must be rebuilt."""
        index = self._index_of.get(account)
        if index is None:
            return not weight
        before, had_weight = self._values[index]
        if had_weight:
            del self._by_available[bisect_left(self._by_available, (before, index))]
        if weight:
            insort(self._by_available, (available, index))
        self._values[index] = available, weight
        self._table.set(index, weight)
        return True

    def drawn(self, amount: int, seed: bytes) -> Iterator[Account]:
        """Yield the accounts that have the amount, in the order in which they are drawn."""
        by_available = self._by_available
        lacking = bisect_left(by_available, (amount,))
        if 2 * lacking <= len(by_available):
            without = sorted(index for _, index in by_available[:lacking])
            yield from (self._accounts[index] for index in self._table.drawn(seed, without))
            return
        having = sorted(index for _, index in by_available[lacking:])
        weights = [self._values[index][1] for index in having]
        yield from (self._accounts[index] for index in drawn(having, weights, seed))
