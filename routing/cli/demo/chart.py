"""A small chart for a terminal: a column per amount, with the part that is left filled and the used part shaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Column(NamedTuple):
    """One column: `left` is the free part of `granted`, both in executor-seconds."""

    granted: float
    left: float


class ChartCharacters(NamedTuple):
    """The characters that a chart consists of: two fillings, then the axes."""

    left: str
    used: str
    axis: str
    corner: str
    floor: str


UNICODE = ChartCharacters(left="█", used="░", axis="│", corner="└", floor="─")
ASCII = ChartCharacters(left="#", used=".", axis="|", corner="+", floor="-")


def draw(
    columns: Sequence[Column],
    *,
    first_label: str,
    last_label: str,
    rows: int = 6,
    characters: ChartCharacters = UNICODE,
) -> list[str]:
    """Return the lines of a chart, with the scale on the left and the labels of the outer columns below.

    An amount above 0 fills at least one character, so that a small amount does not look like none.
    """
    top = max((column.granted for column in columns), default=0.0)
    scale = _scale(top, rows)
    width = max(map(len, scale))
    lines = [
        f"{label.rjust(width)} {characters.axis}"
        + "".join(_character(column, row, rows, top, characters) for column in columns)
        for label, row in zip(scale, range(rows, 0, -1), strict=True)
    ]
    lines.append(" " * (width + 1) + characters.corner + characters.floor * len(columns))
    gap = max(1, len(columns) - len(first_label) - len(last_label))
    lines.append(" " * (width + 2) + first_label + " " * gap + last_label)
    return [line.rstrip() for line in lines]


def _scale(top: float, rows: int) -> list[str]:
    return [f"{top:.3g} s", *[""] * (rows - 1)]


def _character(column: Column, row: int, rows: int, top: float, characters: ChartCharacters) -> str:
    if row <= _height(column.left, rows, top):
        return characters.left
    if row <= _height(column.granted, rows, top):
        return characters.used
    return " "


def _height(amount: float, rows: int, top: float) -> int:
    if amount <= 0 or top <= 0:
        return 0
    return max(1, round(rows * amount / top))
