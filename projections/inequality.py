"""How unequally something is spread over miners, by two usual measures; pure."""

from __future__ import annotations

from collections.abc import Collection


def jain_index(values: Collection[float]) -> float:
    """Return Jain's index: 1 if all values are equal, 1/n if one has everything; 1 without any value above 0."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def gini_coefficient(values: Collection[float]) -> float:
    """Return the Gini coefficient: 0 if all values are equal, near 1 if one has everything; 0 without any above 0."""
    total, count = sum(values), len(values)
    if not total:
        return 0.0
    weighted = sum(rank * value for rank, value in enumerate(sorted(values), start=1))
    return 2 * weighted / (count * total) - (count + 1) / count
