"""Plain text for terminals: tables and lists of fields. The functions are pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from routing.texts import block_ranges, printable, seconds_text, short_hotkey, time_text

if TYPE_CHECKING:
    from routing import Reservation

GAP = "  "
LONG_NAME_LENGTH = 32
"""A longer word is a hotkey, a uuid or the like: its two ends are enough to recognize it."""
LEAST_CUT_WORD = 8
"""A column of words is left out rather than cut to fewer columns of the terminal."""


class Layout(NamedTuple):
    """The alignment of a table, computed from its first rows; a later cell may be wider than its column.

    `columns` is the width of the terminal that the table was shortened to, or None if it is complete. `kept` are the
    columns that are shown then, and `whole` is the one of them whose long names are not shortened, None if all are.
    """

    headers: Sequence[str]
    widths: Sequence[int]
    right: Sequence[bool]
    kept: Sequence[int]
    columns: int | None = None
    whole: int | None = None

    @property
    def header(self) -> str:
        """The header line; an ellipsis at its end stands for columns that were left out."""
        line = self._line([self.headers[column] for column in self.kept])
        if self.columns is None:
            return line
        return _cut(f"{line}{GAP}…" if len(self.kept) < len(self.headers) else line, self.columns)

    def lines(self, rows: Iterable[Sequence[object]]) -> Iterator[str]:
        """Yield one line per row."""
        for row in rows:
            cells = [_cell(row[column]) for column in self.kept]
            yield self._line(cells) if self.columns is None else self._shortened_line(cells, self.columns)

    def _shortened_line(self, cells: Sequence[str], columns: int) -> str:
        """Return the row in at most `columns`: a word may be cut, a number is left out.

        A number without its last digits would be another number.
        """
        cells = [
            cell if column == self.whole else _shortened(cell) for column, cell in zip(self.kept, cells, strict=True)
        ]
        for shown in range(len(cells), 1, -1):
            line = self._line(cells[:shown])
            if columns_of(line) <= columns:
                return line
            if not self.right[self.kept[shown - 1]] and columns_of(self._line(cells[: shown - 1]) + GAP) < columns:
                return _cut(line, columns)
        return _cut(self._line(cells[:1]), columns)

    def _line(self, cells: Sequence[str]) -> str:
        padded = []
        for cell, column in zip(cells, self.kept, strict=False):
            space = " " * (self.widths[column] - columns_of(cell))
            padded.append(space + cell if self.right[column] else cell + space)
        return GAP.join(padded).rstrip()


def layout(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    columns: int | None = None,
    most_important: Sequence[str] = (),
) -> Layout:
    """Return the layout of a table: numbers aligned to the right, words to the left.

    With `columns`, the layout fits a terminal of that width. First hotkeys and uuids are shortened, except in the most
    important column; then the least important columns are left out; then the last words are cut, but numbers never.
    `most_important` are headers, the most important first; all others are less important, the last one least.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [_is_numeric([row[column] for row in rows]) for column in range(len(headers))]
    every = range(len(headers))
    complete = Layout(headers, _widths(headers, cells), right, every)
    if columns is None or max(map(columns_of, (complete.header, *complete.lines(rows)))) <= columns:
        return complete
    order = sorted(every, key=lambda column: _rank(headers[column], most_important))
    whole = order[0] if most_important else None
    shortened = [[cell if at == whole else _shortened(cell) for at, cell in enumerate(row)] for row in cells]
    widths = _widths(headers, shortened)
    return Layout(headers, widths, right, _kept(order, widths, right, columns), columns, whole)


def _rank(header: str, most_important: Sequence[str]) -> int:
    return most_important.index(header) if header in most_important else len(most_important)


def _widths(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(columns_of, column)) for column in zip(headers, *cells, strict=True)]


def _kept(order: Sequence[int], widths: Sequence[int], right: Sequence[bool], columns: int) -> list[int]:
    """Return the columns that fit, by their place. `order` begins with the most important one, which is always kept."""
    count, used = len(order), _used(order, widths)
    while count > 1 and used > columns - (len(GAP) + 1 if count < len(order) else 0):
        # The ellipsis in the header needs a gap and one column.
        count -= 1
        used = _used(order[:count], widths)
    kept = sorted(order[:count])
    following = order[count] if count < len(order) else 0
    if following > kept[-1] and not right[following] and used + len(GAP) + LEAST_CUT_WORD <= columns:
        kept.append(following)  # At the end of the line a word may be cut.
    return kept


def _used(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[column] + len(GAP) for column in shown) - len(GAP)


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
    return bool(values) and all(isinstance(value, int | float | datetime) or _is_amount(value) for value in values)


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
