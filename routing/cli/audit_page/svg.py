"""Charts as inline SVG: stacked steps over block numbers. Colours come from the page's style sheet. Pure.

What is drawn is stretched to the width of the page; lettering and lines are not, so a chart reads the same on a phone.
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
"""What lies beyond is lettered with an exponent, so that it fits beside the axis."""
EDGE = 0.97
"""Beyond this share of the width, a block's number would be cut off."""


class Layer(NamedTuple):
    """One layer of a stack: its CSS class, and a value for each bucket."""

    name: str
    values: Sequence[float]


def chart(starts: Sequence[int], layers: Sequence[Layer], hints: Sequence[str], title: str, description: str) -> Markup:
    """A chart with axes: layers stacked from the bottom up; `starts` are the buckets' first blocks and the end.

    Each bucket says its hint when it is pointed at. The line on top of the stack is drawn for itself.
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
        element("text", "executor-seconds a block", class_="axis", x=0, y=12),
        *_height_axis(plot, heights),
        areas,
        *_block_axis(plot, starts),
        class_="chart",
        role="img",
        width="100%",
        height=TOP + HEIGHT + BOTTOM,
    )


def sparkline(starts: Sequence[int], layers: Sequence[Layer], top: float, title: str) -> Markup:
    """The same without axes, for a table's row; `top` is the value that would fill its height."""
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


def stack_height(layers: Sequence[Layer]) -> float:
    """How high the highest bucket's stack is."""
    return max((sum(values) for values in zip(*(layer.values for layer in layers), strict=True)), default=0.0)


def ticks(low: float, high: float, most: int, *, beyond: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, `most` steps or fewer; with `beyond`, the last is no lower than `high`."""
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
    for place, block in enumerate(blocks):
        share = plot.x(block) / WIDTH
        if share > EDGE:
            break
        x = f"{100 * share:.2f}%"
        yield element("line", class_="ground", x1=x, x2=x, y1=ground, y2=ground + 4)
        often = "tick block" if place % 2 == 0 else "tick block every-other"
        yield element("text", f"{block:,.0f}", class_=often, x=x, y=ground + 18)
    yield element("text", "block", class_="axis block", x="50%", y=ground + 36)


class _Plot:
    """Scales, and the layers as paths."""

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
        """Each layer that has anything in it: along its upper edge, and back along its lower one."""
        below = [0.0] * (len(self._starts) - 1)
        for layer in self._layers:
            above = [low + value for low, value in zip(below, layer.values, strict=True)]
            if any(layer.values):
                forth = "".join(f"V{height}H{end}" for _, end, height in self._steps(above))
                back = "".join(f"V{height}H{start}" for start, _, height in reversed(self._steps(below)))
                yield element("path", class_=layer.name, d=f"M0 {_n(self.y(0))}{forth}{back}Z")
            below = above

    def top_line(self) -> Markup:
        """The upper edge of the whole stack, as a line of its own."""
        sums = [sum(values) for values in zip(*(layer.values for layer in self._layers), strict=True)]
        steps = self._steps(sums)
        line = "".join(f"V{height}H{end}" for _, end, height in steps)
        return element("path", class_="granted", d=f"M0 {steps[0][2]}{line}")

    def targets(self, hints: Sequence[str]) -> Iterator[Markup]:
        """What is pointed at: the whole height of each bucket."""
        for (start, end), hint in zip(pairwise(self._starts), hints, strict=True):
            x, width = self.x(start), self.x(end) - self.x(start)
            yield element(
                "rect", element("title", hint), class_="target", x=_n(x), width=_n(width), height=self._height
            )

    def _steps(self, values: Sequence[float]) -> list[tuple[str, str, str]]:
        """From, to and height of each step; buckets of one height are one step."""
        steps: list[tuple[str, str, str]] = []
        for (start, end), value in zip(pairwise(self._edges), values, strict=True):
            height = _n(self.y(value))
            begins = steps.pop()[0] if steps and steps[-1][2] == height else start
            steps.append((begins, end, height))
        return steps


def _n(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _amount(value: float) -> str:
    if value and not SMALL <= value < LARGE:
        return f"{value:.3g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")
