"""Figures: the measured samples, the samples that they are compared with, and the target."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Literal, TypeVar

T = TypeVar("T")
MS = 1000.0
"""Milliseconds in a second."""


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
    """A bound on the measured value, in the figure's unit, or on its ratio to the value that it is compared with."""

    of: Literal["value", "ratio"]
    bound: float
    most: bool
    """Whether the bound is a maximum; otherwise it is a minimum."""

    def met(self, reached: float) -> bool:
        """Whether a value reaches the target."""
        return reached <= self.bound if self.most else reached >= self.bound


def at_most(bound: float) -> Target:
    """Return a target: the value must be at most this."""
    return Target("value", bound, most=True)


def at_least(bound: float) -> Target:
    """Return a target: the value must be at least this."""
    return Target("value", bound, most=False)


def ratio_at_most(bound: float) -> Target:
    """Return a target: the value must be at most this many times the compared value."""
    return Target("ratio", bound, most=True)


def ratio_at_least(bound: float) -> Target:
    """Return a target: the value must be at least this many times the compared value."""
    return Target("ratio", bound, most=False)


@dataclass(frozen=True)
class Figure:
    """One row of the table; `beside` holds the samples that ours are compared with."""

    name: str
    unit: str
    ours: Samples
    beside: Samples | None = None
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The median ratio of ours to the compared samples, over pairs that were measured one right after the other."""
        if self.beside is None:
            return None
        return median(ours / other for ours, other in zip(self.ours.values, self.beside.values, strict=True))

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None if there is no target."""
        if self.target is None:
            return None
        reached = self.ours.median if self.target.of == "value" else self.ratio
        return reached is not None and self.target.met(reached)


@dataclass
class Report:
    """The figures of a run, and the cases that it had to skip."""

    figures: list[Figure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each case took."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the servers that were used."""

    def add(
        self,
        name: str,
        unit: str,
        ours: Sequence[float],
        beside: tuple[str, Sequence[float]] | None = None,
        target: Target | None = None,
        note: str = "",
    ) -> None:
        """Add a figure; `beside` is the name and the samples of another measurement in the same rounds."""
        other = None if beside is None else Samples(*beside)
        self.figures.append(Figure(name, unit, Samples("ours", ours), other, target, note))

    def skip(self, what: str, why: str) -> None:
        """Note that a case was not measured."""
        self.skipped.append(f"{what}: {why}")


async def interleaved(rounds: int, *measures: Callable[[], Awaitable[T]]) -> list[list[T]]:
    """Measure everything once in every round; return the samples of each measure.

    The measures are interleaved, so that other load on the machine slows all of them alike. An extra first round warms
    up and does not count.
    """
    values: list[list[T]] = [[] for _ in measures]
    for round_number in range(rounds + 1):
        for measure, samples in zip(measures, values, strict=True):
            value = await measure()
            if round_number:
                samples.append(value)
    return values


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]
