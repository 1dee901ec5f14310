"""The chances of an account in draws: how many, how many wins they should have given, and the variance of the wins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(slots=True)
class Chances:
    """In how many draws an account was a candidate and not busy, the wins they should have given, their variance."""

    draws: int
    wins: float
    variance: float

    @staticmethod
    @lru_cache(maxsize=1000)
    def of_draw(count: int) -> Chances:
        """Return the chances of one of `count` equals in a draw."""
        return Chances.of(1 / count)

    @staticmethod
    def of(chance: float) -> Chances:
        """Return the chances of an account that wins a draw with this chance."""
        return Chances(1, chance, chance * (1 - chance))

    def __add__(self, other: Chances) -> Chances:
        return Chances(self.draws + other.draws, self.wins + other.wins, self.variance + other.variance)

    def __sub__(self, other: Chances) -> Chances:
        return Chances(self.draws - other.draws, self.wins - other.wins, self.variance - other.variance)

    def __neg__(self) -> Chances:
        return NO_CHANCES - self


# Not frozen, because that makes creating one three times as slow; nothing changes one.
NO_CHANCES = Chances(0, 0.0, 0.0)
