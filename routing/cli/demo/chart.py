"""A small chart for a terminal: columns of amounts, what is left of them filled, what is gone shaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """One column: `left` of `granted`, in the same unit."""

    granted: float
    left: float


class ChartCharacters(NamedTuple):
    """The characters that a chart is drawn with."""

    left: str
    gone: str
    axis: str
    corner: str
    floor: str


UNICODE = ChartCharacters(left="█", gone="░", axis="│", corner="└", floor="─")
ASCII = ChartCharacters(left="#", gone=".", axis="|", corner="+", floor="-")


def draw(
    columns: Sequence[Column], *, first_label: str, last_label: str, rows: int = 6, signs: ChartCharacters = UNICODE
) -> list[str]:
    """Draws the columns, the scale at the left, the labels of the first and the last column below.

    A column shows at least one character of whatever it has, so that little is not taken for nothing.
    """
    top = max((column.granted for column in columns), default=0.0)
    scale = _scale(top, rows)
    width = max(map(len, scale))
    lines = [
        f"{label.rjust(width)} {signs.axis}" + "".join(_sign(column, row, rows, top, signs) for column in columns)
        for label, row in zip(scale, range(rows, 0, -1), strict=True)
    ]
    lines.append(" " * (width + 1) + signs.corner + signs.floor * len(columns))
    gap = max(1, len(columns) - len(first_label) - len(last_label))
    lines.append(" " * (width + 2) + first_label + " " * gap + last_label)
    return [line.rstrip() for line in lines]


def _scale(top: float, rows: int) -> list[str]:
    return [f"{top:.3g} s", *[""] * (rows - 1)]


def _sign(column: Column, row: int, rows: int, top: float, signs: ChartCharacters) -> str:
    if row <= _height(column.left, rows, top):
        return signs.left
    if row <= _height(column.granted, rows, top):
        return signs.gone
    return " "


def _height(amount: float, rows: int, top: float) -> int:
    if amount <= 0 or top <= 0:
        return 0
    return max(1, round(rows * amount / top))
