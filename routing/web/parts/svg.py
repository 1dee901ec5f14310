"""Charts as inline SVG: stacked steps over block numbers. Colours come from the page's style sheet. Pure functions.

Areas are stretched to the width of the page. Texts and lines are not, so a chart is as readable on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil, floor, log10
from typing import NamedTuple

from .markup import Markup, element

WIDTH, HEIGHT = 1000, 200
TOP, BOTTOM = 24, 44
SPARK_WIDTH, SPARK_HEIGHT = 160, 34
NICE_STEPS = (1, 2, 5, 10)
MOST_TICKS_X, MOST_TICKS_Y = 8, 5
SMALL, LARGE = 0.001, 10_000_000
"""Amounts outside of these limits are written with an exponent, to fit beside the axis."""
EDGE = 0.97
"""Share of the width beyond which a block number would be cut off at the right border."""


class Layer(NamedTuple):
    """One layer of a stack: its CSS class, and one value for each bucket."""

    name: str
    values: Sequence[float]


def chart(starts: Sequence[int], layers: Sequence[Layer], hints: Sequence[str], title: str, description: str) -> Markup:
    """Return a chart with axes, its layers stacked from the bottom up.

    `starts` are the first blocks of the buckets, and the end of the last one. `hints` has a tooltip for each bucket.
    Values are executor-seconds per block.
    """
    heights = ticks(0, stack_height(layers), MOST_TICKS_Y, beyond=True)
    plot = _Plot(starts, layers, WIDTH, HEIGHT, heights[-1])
    areas = element(
        "svg",
        *plot.areas(),
        plot.top_line(),
        *plot.targets(hints),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        y=TOP,
        width="100%",
        height=HEIGHT,
    )
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        element("text", "executor-seconds per block", class_="axis", x=0, y=12),
        *_height_axis(plot, heights),
        areas,
        *_block_axis(plot, starts),
        class_="chart",
        role="img",
        width="100%",
        height=TOP + HEIGHT + BOTTOM,
    )


def sparkline(starts: Sequence[int], layers: Sequence[Layer], top: float, title: str) -> Markup:
    """Return a small chart without axes for a table row; `top` is the value that fills its height."""
    plot = _Plot(starts, layers, SPARK_WIDTH, SPARK_HEIGHT, top or 1.0)
    return element(
        "svg",
        element("title", title),
        *plot.areas(),
        class_="spark",
        role="img",
        viewBox=f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}",
        width=SPARK_WIDTH,
        height=SPARK_HEIGHT,
    )


def bar(parts: Sequence[tuple[str, float]], title: str) -> Markup:
    """Return one horizontal bar of full width; `parts` are CSS classes and amounts, from the left to the right."""
    whole = sum(amount for _, amount in parts) or 1.0
    rectangles, x = [], 0.0
    for name, amount in parts:
        width = 100 * amount / whole
        rectangles.append(element("rect", class_=name, x=f"{x:.2f}%", width=f"{width:.2f}%", height="100%"))
        x += width
    return element("svg", element("title", title), *rectangles, class_="bar", role="img")


def stack_height(layers: Sequence[Layer]) -> float:
    """Return the sum of all layers in the highest bucket; 0.0 if there is none."""
    return max((sum(values) for values in zip(*(layer.values for layer in layers), strict=True)), default=0.0)


def ticks(low: float, high: float, most: int, *, beyond: bool = False) -> list[float]:
    """Return round numbers from `low` to `high` in at most `most` steps; with `beyond`, the last is at least `high`."""
    if high <= low:
        return [low, low + 1] if beyond else []
    least_step = (high - low) / most
    power = 10.0 ** floor(log10(least_step))
    step = next((nice * power for nice in NICE_STEPS if nice * power >= least_step), 10 * power)
    first, last = ceil(low / step), ceil(high / step) if beyond else floor(high / step)
    return [number * step for number in range(first, last + 1)]


def _height_axis(plot: _Plot, heights: Sequence[float]) -> Iterator[Markup]:
    for value in heights:
        y = _n(TOP + plot.y(value))
        yield element("line", class_="grid", x1=0, x2="100%", y1=y, y2=y)
        yield element("text", _amount(value), class_="tick height", x=-8, y=_n(TOP + plot.y(value) + 4))


def _block_axis(plot: _Plot, starts: Sequence[int]) -> Iterator[Markup]:
    ground = TOP + HEIGHT
    yield element("line", class_="ground", x1=0, x2="100%", y1=ground, y2=ground)
    blocks = [block for block in ticks(starts[0], starts[-1], MOST_TICKS_X) if block == int(block)]
    for index, block in enumerate(blocks):
        share = plot.x(block) / WIDTH
        if share > EDGE:
            break
        x = f"{100 * share:.2f}%"
        yield element("line", class_="ground", x1=x, x2=x, y1=ground, y2=ground + 4)
        css_class = "tick block" if index % 2 == 0 else "tick block every-other"
        yield element("text", f"{block:,.0f}", class_=css_class, x=x, y=ground + 18)
    yield element("text", "block", class_="axis block", x="50%", y=ground + 36)


class _Plot:
    """The scales of a chart, and its layers as SVG paths."""

    def __init__(self, starts: Sequence[int], layers: Sequence[Layer], width: int, height: int, top: float) -> None:
        self._starts = starts
        self._layers = layers
        self._width, self._height, self._top = width, height, top
        self._edges = [_n(self.x(start)) for start in starts]

    def x(self, block: float) -> float:
        first, last = self._starts[0], self._starts[-1]
        return self._width * (block - first) / (last - first)

    def y(self, value: float) -> float:
        return self._height * (1 - value / self._top)

    def areas(self) -> Iterator[Markup]:
        """Yield a path for each layer that is not empty: along its upper edge, then back along its lower one."""
        below = [0.0] * (len(self._starts) - 1)
        for layer in self._layers:
            above = [low + value for low, value in zip(below, layer.values, strict=True)]
            if any(layer.values):
                upper = "".join(f"V{height}H{end}" for _, end, height in self._steps(above))
                lower = "".join(f"V{height}H{start}" for start, _, height in reversed(self._steps(below)))
                yield element("path", class_=layer.name, d=f"M0 {_n(self.y(0))}{upper}{lower}Z")
            below = above

    def top_line(self) -> Markup:
        """Return the upper edge of the whole stack as a line."""
        sums = [sum(values) for values in zip(*(layer.values for layer in self._layers), strict=True)]
        steps = self._steps(sums)
        line = "".join(f"V{height}H{end}" for _, end, height in steps)
        return element("path", class_="granted", d=f"M0 {steps[0][2]}{line}")

    def targets(self, hints: Sequence[str]) -> Iterator[Markup]:
        """Yield an invisible rectangle of full height for each bucket, which shows the tooltip."""
        for (start, end), hint in zip(pairwise(self._starts), hints, strict=True):
            x, width = self.x(start), self.x(end) - self.x(start)
            yield element(
                "rect", element("title", hint), class_="target", x=_n(x), width=_n(width), height=self._height
            )

    def _steps(self, values: Sequence[float]) -> list[tuple[str, str, str]]:
        """Return start, end and height of each step as coordinates; adjacent buckets of equal height are one step."""
        steps: list[tuple[str, str, str]] = []
        for (start, end), value in zip(pairwise(self._edges), values, strict=True):
            height = _n(self.y(value))
            step_start = steps.pop()[0] if steps and steps[-1][2] == height else start
            steps.append((step_start, end, height))
        return steps


def _n(value: float) -> str:
    """Return a coordinate rounded to a tenth of a pixel, which keeps large pages small."""
    return f"{value:.1f}".removesuffix(".0")


def _amount(value: float) -> str:
    if value and not SMALL <= value < LARGE:
        return f"{value:.3g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")
