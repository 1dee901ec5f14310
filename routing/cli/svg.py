"""Charts as inline SVG: stacked step areas over block numbers. Colours come from the page's style sheet. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 960, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 28
SPARK_WIDTH, SPARK_HEIGHT = 150, 22
NICE_STEPS = (1, 2, 5, 10)
MOST_TICKS_X, MOST_TICKS_Y = 8, 5
LARGE = 10_000


class Area(NamedTuple):
    """One layer of a stack: its CSS class, and a value for each bucket."""

    name: str
    values: Sequence[float]


def chart(starts: Sequence[int], layers: Sequence[Area], title: str, description: str) -> str:
    """A chart with axes: layers stacked from the bottom up; `starts` are the buckets' first blocks and the end."""
    plot = _Plot(starts, layers, (LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>",
        *(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_n(plot.y(value))}" y2="{_n(plot.y(value))}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{_n(plot.y(value) + 4)}" text-anchor="end">{_amount(value)}</text>'
            for value in ticks(0, plot.top, MOST_TICKS_Y)
        ),
        *plot.paths(),
        *(
            f'<text class="tick" x="{_n(plot.x(block))}" y="{HEIGHT - 8}" text-anchor="middle">{block:,.0f}</text>'
            for block in ticks(starts[0], starts[-1], MOST_TICKS_X)
        ),
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
        "</svg>",
    ]
    return "".join(parts)


def sparkline(starts: Sequence[int], layers: Sequence[Area], label: str) -> str:
    """The same without axes, for a table's row."""
    plot = _Plot(starts, layers, (0, 0, SPARK_WIDTH, SPARK_HEIGHT))
    return (
        f'<svg class="spark" viewBox="0 0 {SPARK_WIDTH} {SPARK_HEIGHT}" role="img" aria-label="{escape(label)}">'
        + "".join(plot.paths())
        + "</svg>"
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many round numbers between two, evenly apart."""
    if high <= low:
        return []
    least_step = (high - low) / most
    power = 10.0 ** floor(log10(least_step))
    step = next((nice * power for nice in NICE_STEPS if nice * power >= least_step), 10 * power)
    first = ceil(low / step)
    return [number * step for number in range(first, floor(high / step) + 1)]


class _Plot:
    """Scales, and the layers as paths."""

    def __init__(self, starts: Sequence[int], layers: Sequence[Area], frame: tuple[int, int, int, int]) -> None:
        self._starts = starts
        self._layers = layers
        self._left, self._top, self._width, self._height = frame
        sums = [sum(values) for values in zip(*(layer.values for layer in layers), strict=True)]
        self.top = max(sums, default=0.0) or 1.0

    def x(self, block: float) -> float:
        first, last = self._starts[0], self._starts[-1]
        return self._left + self._width * (block - first) / (last - first)

    def y(self, value: float) -> float:
        return self._top + self._height * (1 - value / self.top)

    def paths(self) -> Iterator[str]:
        """Each layer that has anything in it: along its upper edge, and back along its lower one."""
        below = [0.0] * (len(self._starts) - 1)
        for layer in self._layers:
            above = [low + value for low, value in zip(below, layer.values, strict=True)]
            if any(layer.values):
                forth = "".join(f"V{height}H{end}" for _, end, height in self._steps(above))
                back = "".join(f"V{height}H{start}" for start, _, height in reversed(self._steps(below)))
                yield f'<path class="{layer.name}" d="M{_n(self._left)} {_n(self.y(0))}{forth}{back}Z"/>'
            below = above

    def _steps(self, values: Sequence[float]) -> list[tuple[str, str, str]]:
        """From, to and height of each step; buckets of one height are one step."""
        steps: list[tuple[str, str, str]] = []
        for (start, end), value in zip(pairwise(self._starts), values, strict=True):
            height = _n(self.y(value))
            begins = steps.pop()[0] if steps and steps[-1][2] == height else _n(self.x(start))
            steps.append((begins, _n(self.x(end)), height))
        return steps


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= LARGE or value == int(value) else f"{value:,.2f}".rstrip("0").rstrip(".")
