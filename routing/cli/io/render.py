"""Plain text for terminals: tables, times, sizes and ranges. Pure functions."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple

GAP = "  "
SIZE_STEP = 1000
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")
SHORT_ENOUGH = 16
LONG_NAME = 32
"""Words longer than this are hotkeys, uuids and the like, of which the ends are enough to know them by."""


class Layout(NamedTuple):
    """How a table is aligned, found from its first rows: a wider cell of a later row stands out.

    `columns` are those of a terminal into which it was shortened to fit, None where it is whole.
    """

    headers: Sequence[str]
    widths: Sequence[int]
    right: Sequence[bool]
    columns: int | None = None
    has_more: bool = False
    """Whether columns were left out."""

    @property
    def header(self) -> str:
        """The first line."""
        line = self._line(self.headers)
        return line if self.columns is None else _cut(f"{line}{GAP}…" if self.has_more else line, self.columns)

    def lines(self, rows: Iterable[Sequence[object]]) -> Iterator[str]:
        """Rows, a line each."""
        for row in rows:
            cells = [_cell(value) for value in row[: len(self.headers)]]
            yield self._line(cells) if self.columns is None else self._fitted(cells, self.columns)

    def _fitted(self, cells: Sequence[str], columns: int) -> str:
        """The line, of which words may be cut, numbers are left out."""
        cells = [_shortened(cell) for cell in cells]
        for shown in range(len(cells), 1, -1):
            line = self._line(cells[:shown])
            if columns_of(line) <= columns:
                return line
            if not self.right[shown - 1] and columns_of(self._line(cells[: shown - 1]) + GAP) < columns:
                return _cut(line, columns)
        return _cut(self._line(cells[:1]), columns)

    def _line(self, cells: Sequence[str]) -> str:
        padded = []
        for cell, width, to_right in zip(cells, self.widths, self.right, strict=False):
            space = " " * (width - columns_of(cell))
            padded.append(space + cell if to_right else cell + space)
        return GAP.join(padded).rstrip()


def layout(headers: Sequence[str], rows: Sequence[Sequence[object]], columns: int | None = None) -> Layout:
    """Aligns columns under their headers, numbers to the right, words to the left; to fit a terminal of so many.

    Hotkeys and uuids are shortened first, all of them. Where that does not do, the last columns are left out: words
    may be cut, numbers never.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [_is_numeric([row[column] for row in rows]) for column in range(len(headers))]
    whole = Layout(headers, _widths(headers, cells), right)
    if columns is None or max(map(columns_of, (whole.header, *whole.lines(rows)))) <= columns:
        return whole
    widths = _widths(headers, [[_shortened(cell) for cell in row] for row in cells])
    shown, is_cut = _fitting(widths, columns), False
    if shown < len(headers):
        shown = _fitting(widths, columns - len(GAP) - 1)
        is_cut = not (shown and right[shown])
    shown += is_cut
    has_more = shown < len(headers) and not is_cut
    return Layout(headers[:shown], widths[:shown], right[:shown], columns, has_more)


def _widths(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(columns_of, column)) for column in zip(headers, *cells, strict=True)]


def _fitting(widths: Sequence[int], columns: int) -> int:
    """How many of a table's columns are whole in so many of a terminal's."""
    return sum(end - len(GAP) <= columns for end in accumulate(width + len(GAP) for width in widths))


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: letters of East Asia take two, marks upon a letter none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of_one, text))


def _columns_of_one(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _shortened(cell: str) -> str:
    return short_hotkey(cell) if len(cell) > LONG_NAME and " " not in cell else cell


def _cut(line: str, columns: int) -> str:
    if columns_of(line) <= columns:
        return line
    left = columns - 1
    for place, character in enumerate(line):
        left -= _columns_of_one(character)
        if left < 0:
            return line[:place] + "…"
    return line


def labelled(pairs: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Writes names and values below each other, the values aligned."""
    known = [(name, _cell(value)) for name, value in pairs]
    width = max((columns_of(name) for name, _ in known), default=0)
    for name, value in known:
        yield f"{name}{' ' * (width - columns_of(name))}{GAP}{value}".rstrip()


def printable(text: str) -> str:
    """Replaces what could steer a terminal, such as control characters and line ends, by visible escapes."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def block_ranges(blocks: Iterable[int]) -> str:
    """Writes ascending block numbers with runs drawn together: `1000-1004, 1007`."""
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs(blocks))


def _runs(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for block in blocks:
        if first is None or last is None:
            first = last = block
        elif block == last + 1:
            last = block
        else:
            yield first, last
            first = last = block
    if first is not None and last is not None:
        yield first, last


def time_text(moment: datetime | None) -> str:
    """Writes an instant in UTC with milliseconds, `-` where there is none."""
    if moment is None:
        return "-"
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def seconds_text(seconds: float) -> str:
    """Writes executor-seconds with milliseconds: `1,234.567 s`."""
    return f"{seconds:,.3f} s"


def milliseconds_text(seconds: float) -> str:
    """Writes a short time in milliseconds with one decimal: `3.4 ms`."""
    return f"{seconds * 1000:,.1f} ms"


def percent_text(part: float, whole: float) -> str:
    """Writes a share with one decimal, `-` where the whole is nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def size_text(size: int) -> str:
    """Writes a number of bytes in the largest unit that leaves at least one: `1.4 MB`."""
    amount = float(size)
    for unit in SIZE_UNITS:
        if round(amount, 1) < SIZE_STEP or unit == SIZE_UNITS[-1]:
            break
        amount /= SIZE_STEP
    return f"{amount:.1f} {unit}" if size >= SIZE_STEP else f"{size} B"


def counted(count: int, thing: str) -> str:
    """Writes a number of things: `1 block`, `1,100 blocks`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def short_hotkey(hotkey: str) -> str:
    """Shortens a hotkey to what eyes can compare: `5Grwva…utQY`."""
    return hotkey if len(hotkey) <= SHORT_ENOUGH else f"{hotkey[:6]}…{hotkey[-4:]}"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, float):
        return f"{value:,.3f}"
    return printable(str(value))


def _is_numeric(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(value, int | float) or _is_amount(value) for value in values)


def _is_amount(value: object) -> bool:
    return isinstance(value, str) and value[:1].isdigit() and value.endswith((" s", " ms", " %", " B", "B"))
