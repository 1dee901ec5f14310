"""The candidates of a class, in a form from which draws without replacement cost little.

A sum tree over the accounts in order of hotkey: a claim changes one weight, and a draw searches one sum, both in as
many steps as the number of accounts has binary digits. `reliability.drawn` is the definition, and goes through all.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from hashlib import blake2b

DRAW_BYTES = 32


class DrawTable:
    """Weights by index. An account with the weight 0 is never drawn."""

    __slots__ = ("_sums", "_weights", "total")

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = list(weights)
        self.total = sum(weights)
        # A Fenwick tree: entry i has the sum of the (i & -i) weights that end at index i - 1.
        self._sums = [0, *weights]
        for at in range(1, len(self._sums)):
            parent = at + (at & -at)
            if parent < len(self._sums):
                self._sums[parent] += self._sums[at]

    def set(self, index: int, weight: int) -> None:
        """Change one weight."""
        difference = weight - self._weights[index]
        if not difference:
            return
        self._weights[index] = weight
        self.total += difference
        at, sums = index + 1, self._sums
        while at < len(sums):
            sums[at] += difference
            at += at & -at

    def drawn(self, seed: bytes, without: Sequence[int] = ()) -> Iterator[int]:
        """Yield the indexes in the order in which they are drawn, as if those in `without` (ascending) had no weight.

        The weights must not change meanwhile.
        """
        taken, draw = list(without), 0
        left = self.total - sum(self._weights[index] for index in without)
        while left:
            digest = blake2b(seed + draw.to_bytes(4, "big"), digest_size=DRAW_BYTES).digest()
            index = self._find(self._with_taken(int.from_bytes(digest, "big") % left, taken))
            yield index
            left -= self._weights[index]
            insort(taken, index)
            draw += 1

    def _with_taken(self, place: int, taken: list[int]) -> int:
        """Return the place among all weights of a place among those that were not taken."""
        for index in taken:
            if place < self._sum_before(index):
                break
            place += self._weights[index]
        return place

    def _sum_before(self, index: int) -> int:
        total, at = 0, index
        while at:
            total += self._sums[at]
            at -= at & -at
        return total

    def _find(self, place: int) -> int:
        """Return the first index at which the running sum exceeds a place below the total."""
        at, sums = 0, self._sums
        step = 1 << (len(sums) - 1).bit_length()
        while step:
            if at + step < len(sums) and sums[at + step] <= place:
                at += step
                place -= sums[at]
            step >>= 1
        return at
