"""Figures: what was measured, what it is held against, and the target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """One quantity, measured once in each round of a run."""

    name: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Target:
    """A bound on the measured value itself, in the figure's unit, or on its ratio to what stands beside it."""

    of: Literal["value", "ratio"]
    bound: float
    most: bool
    """Whether the bound is the most that is good, rather than the least."""

    def met(self, reached: float) -> bool:
        """Whether a value is on the right side of the bound."""
        return reached <= self.bound if self.most else reached >= self.bound


def at_most(bound: float) -> Target:
    """The value is to be no more than this."""
    return Target("value", bound, most=True)


def at_least(bound: float) -> Target:
    """The value is to be no less than this."""
    return Target("value", bound, most=False)


def ratio_at_most(bound: float) -> Target:
    """The value is to be no more than so many times what stands beside it."""
    return Target("ratio", bound, most=True)


def ratio_at_least(bound: float) -> Target:
    """The value is to be at least so many times what stands beside it."""
    return Target("ratio", bound, most=False)


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    ours: Samples
    beside: Samples | None = None
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours to what stands beside it: the median over pairs that were measured one right after the other."""
        if self.beside is None:
            return None
        return median(ours / other for ours, other in zip(self.ours.values, self.beside.values, strict=True))

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        reached = self.ours.median if self.target.of == "value" else self.ratio
        return reached is not None and self.target.met(reached)


@dataclass
class Report:
    """All that a run found out, and what it had to leave out."""

    figures: list[Figure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each part of the run took."""

    def add(
        self,
        name: str,
        unit: str,
        ours: Sequence[float],
        beside: tuple[str, Sequence[float]] | None = None,
        target: Target | None = None,
        note: str = "",
    ) -> None:
        """Adds a figure; `beside` names what was measured in the same rounds, and its values."""
        other = None if beside is None else Samples(*beside)
        self.figures.append(Figure(name, unit, Samples("ours", ours), other, target, note))

    def skip(self, what: str, why: str) -> None:
        """Says that something was not measured."""
        self.skipped.append(f"{what}: {why}")


async def interleaved(rounds: int, *measures: Callable[[], Awaitable[T]]) -> list[list[T]]:
    """Takes all measures once in every round, so that what slows the machine down slows all of them; by measure.

    A round before the first warms up and is not counted.
    """
    values: list[list[T]] = [[] for _ in measures]
    for round_number in range(rounds + 1):
        for measure, taken in zip(measures, values, strict=True):
            value = await measure()
            if round_number:
                taken.append(value)
    return values


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
