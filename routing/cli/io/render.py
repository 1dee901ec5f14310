"""Plain text for terminals: tables and lists of fields. The functions are pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from routing.texts import block_ranges, printable, seconds_text, short_hotkey, time_text

if TYPE_CHECKING:
    from routing import Reservation

GAP = "  "
LONG_NAME_LENGTH = 32
"""A longer word is a hotkey, a uuid or the like: its two ends are enough to recognize it."""


class Layout(NamedTuple):
    """The alignment of a table, computed from its first rows; a later cell may be wider than its column.

    `columns` is the width of the terminal that the table was shortened to, or None if it is complete.
    """

    headers: Sequence[str]
    widths: Sequence[int]
    right: Sequence[bool]
    columns: int | None = None
    has_more: bool = False
    """Whether columns of the table were left out."""

    @property
    def header(self) -> str:
        """The header line; an ellipsis at its end stands for columns that were left out."""
        line = self._line(self.headers)
        return line if self.columns is None else _cut(f"{line}{GAP}…" if self.has_more else line, self.columns)

    def lines(self, rows: Iterable[Sequence[object]]) -> Iterator[str]:
        """Yield one line per row."""
        for row in rows:
            cells = [_cell(value) for value in row[: len(self.headers)]]
            yield self._line(cells) if self.columns is None else self._shortened_line(cells, self.columns)

    def _shortened_line(self, cells: Sequence[str], columns: int) -> str:
        """Return the row in at most `columns`: a word may be cut, a number is left out.

        A number without its last digits would be another number.
        """
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
    """Return the layout of a table: numbers aligned to the right, words to the left.

    With `columns`, the layout fits a terminal of that width: first all hotkeys and uuids are shortened; if that is
    not enough, the last columns are left out. Words may be cut, numbers never.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [_is_numeric([row[column] for row in rows]) for column in range(len(headers))]
    whole = Layout(headers, _widths(headers, cells), right)
    if columns is None or max(map(columns_of, (whole.header, *whole.lines(rows)))) <= columns:
        return whole
    widths = _widths(headers, [[_shortened(cell) for cell in row] for row in cells])
    shown, is_cut = _columns_that_fit(widths, columns), False
    if shown < len(headers):
        # The ellipsis in the header needs a gap and one column.
        shown = _columns_that_fit(widths, columns - len(GAP) - 1)
        is_cut = not (shown and right[shown])
    shown += is_cut
    has_more = shown < len(headers) and not is_cut
    return Layout(headers[:shown], widths[:shown], right[:shown], columns, has_more)


def _widths(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(columns_of, column)) for column in zip(headers, *cells, strict=True)]


def _columns_that_fit(widths: Sequence[int], columns: int) -> int:
    """Return how many columns of the table fit completely into this many columns of a terminal."""
    return sum(end - len(GAP) <= columns for end in accumulate(width + len(GAP) for width in widths))


def columns_of(text: str) -> int:
    """Return the width of a text in a terminal: East Asian letters are two columns wide, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of_character, text))


def _columns_of_character(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _shortened(cell: str) -> str:
    return short_hotkey(cell) if len(cell) > LONG_NAME_LENGTH and " " not in cell else cell


def _cut(line: str, columns: int) -> str:
    if columns_of(line) <= columns:
        return line
    left = columns - 1  # The ellipsis is one column wide.
    for index, character in enumerate(line):
        left -= _columns_of_character(character)
        if left < 0:
            return line[:index] + "…"
    return line


def labelled(pairs: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Yield one line per name and value, with the values aligned."""
    cells = [(name, _cell(value)) for name, value in pairs]
    width = max((columns_of(name) for name, _ in cells), default=0)
    for name, value in cells:
        yield f"{name}{' ' * (width - columns_of(name))}{GAP}{value}".rstrip()


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


def reservation_lines(reservation: Reservation) -> Iterator[str]:
    """Yield the text about a reservation, one line per field."""
    return labelled(
        [
            ("reservation", reservation.reservation_id),
            ("status", reservation.status),
            ("job", reservation.job_uuid),
            ("miner", reservation.miner_ss58),
            ("executor class", reservation.executor_class),
            ("validator", reservation.validator_ss58),
            ("amount", seconds_text(reservation.allowance_seconds)),
            ("blocks", f"{block_ranges(reservation.blocks)} ({len(reservation.blocks)} in all)"),
            ("job start block", reservation.job_start_block),
            ("reserved at", reservation.reserved_at),
            ("due at", reservation.expires_at),
            _settlement(reservation),
        ]
    )


def _settlement(reservation: Reservation) -> tuple[str, str]:
    if reservation.settled_at is None:
        return ("settled at", "not yet")
    return (f"{reservation.status} at", time_text(reservation.settled_at))
