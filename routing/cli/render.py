"""Plain text for terminals: tables, times, sizes and ranges. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

GAP = "  "
SIZE_STEP = 1000
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")
SHORT_ENOUGH = 16


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Aligns columns under their headers: numbers to the right, words to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [_is_numeric([row[column] for row in rows]) for column in range(len(headers))]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for line in [list(headers), *cells]:
        aligned = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        yield GAP.join(aligned).rstrip()


def labelled(pairs: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Writes names and values below each other, the values aligned."""
    known = [(name, _cell(value)) for name, value in pairs]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        yield f"{name.ljust(width)}{GAP}{value}".rstrip()


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
