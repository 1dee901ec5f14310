"""The part of the reference model about the order by reliability: exact fractions, a series, and a loop."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import cache

LOWEST, HIGHEST = Fraction(1, 10**6), 1 - Fraction(1, 10**6)
FAR = 20
"""At an exponent as far from 0 as this the probability is beyond `LOWEST` or `HIGHEST`."""
TERMS = 150


@cache
def weight(incidents: int, executors: int, cutoff: float, separation: float) -> int:
    """Return the weight of a miner in billionths."""
    score = Fraction(-incidents, max(1, executors))
    center = exact(cutoff) / 2
    steepness = exact(separation) / -center
    exponent = -steepness * (score - center)
    return round(min(max(_share(exponent), LOWEST), HIGHEST) * 10**9)


def exact(value: float) -> Fraction:
    """Return the shortest decimal that denotes a float, in whole billionths as settings have it."""
    return Fraction(round(Fraction(Decimal(repr(value))) * 10**9), 10**9)


def _share(exponent: Fraction) -> Fraction:
    """Return 1 / (1 + e^exponent)."""
    if abs(exponent) >= FAR:
        return Fraction(0) if exponent > 0 else Fraction(1)
    power = sum((abs(exponent) ** term / math.factorial(term) for term in range(TERMS)), Fraction(0))
    return 1 / (1 + (power if exponent > 0 else 1 / power))


def draw(weights: Sequence[tuple[str, int]], seed: bytes) -> list[str]:
    """Return the hotkeys in the order in which they are drawn."""
    left, order = sorted(weights), []
    for turn in range(len(left)):
        drawn = int(hashlib.blake2b(seed + turn.to_bytes(4, "big"), digest_size=32).hexdigest(), 16)
        drawn %= sum(each for _, each in left)
        running = 0
        for entry in left:
            running += entry[1]
            if running > drawn:
                order.append(entry[0])
                left.remove(entry)
                break
    return order
