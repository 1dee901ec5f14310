"""Values as texts for people: amounts, times, sizes, counts, block ranges. The functions are pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projections import MinerFairness

SIZE_STEP = 1000
SIZE_UNITS = ("B", "kB", "MB", "GB", "TB")
SHORT_NAME_LENGTH = 16
"""Names up to this length are never shortened."""


def printable(text: str) -> str:
    """Return the text with control characters and line ends replaced by visible escapes.

    Text from outside, such as a hotkey in an imported file, could otherwise send commands to the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def block_ranges(blocks: Iterable[int]) -> str:
    """Return ascending block numbers as ranges: `1000-1004, 1007`."""
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
    """Return an instant in UTC with milliseconds, or `-` for None."""
    if moment is None:
        return "-"
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def seconds_text(seconds: float) -> str:
    """Return executor-seconds with three decimals: `1,234.567 s`."""
    return f"{seconds:,.3f} s"


def milliseconds_text(seconds: float) -> str:
    """Return seconds as milliseconds with one decimal: `3.4 ms`."""
    return f"{seconds * 1000:,.1f} ms"


def percent_text(part: float, whole: float) -> str:
    """Return a share with one decimal, or `-` if the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def size_text(size: int) -> str:
    """Return a number of bytes in the largest unit that keeps it at least 1: `1.4 MB`."""
    amount = float(size)
    for unit in SIZE_UNITS:
        # Rounded as it is shown: 999,950 B would otherwise be shown as 1000.0 kB.
        if round(amount, 1) < SIZE_STEP or unit == SIZE_UNITS[-1]:
            break
        amount /= SIZE_STEP
    return f"{amount:.1f} {unit}" if size >= SIZE_STEP else f"{size} B"


def flags_text(fairness: MinerFairness) -> str:
    """Return what is flagged of a miner, with the numbers: `5Anna gpu: draws (77 wins, expected 20.3, +12.9 σ)`."""
    texts = {
        "draws": f"{fairness.wins:,} wins, expected {fairness.expected_wins:,.1f}, {fairness.deviations:+.1f} σ",
        "facts": (
            f"{fairness.wins:,} wins, expected {fairness.expected_without_facts:,.1f} without exclusions, collateral,"
            f" jobs elsewhere and incidents, {fairness.deviations_by_facts:+.1f} σ"
        ),
        "given up": f"{fairness.given_up:,} of {fairness.wins:,} wins, fewer than of the other miners",
        "by hand": f"{fairness.by_hand:,} reservations, more than its share of the allowance",
    }
    flags = "; ".join(f"{flag} ({texts[flag]})" for flag in fairness.flags)
    return f"{short_hotkey(fairness.miner_ss58)} {printable(fairness.executor_class)}: {flags}"


def counted(count: int, thing: str) -> str:
    """Return a count with its noun: `1 block`, `1,100 blocks`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def short_hotkey(hotkey: str) -> str:
    """Return the two ends of a hotkey: `5Grwva…utQY`."""
    return hotkey if len(hotkey) <= SHORT_NAME_LENGTH else f"{hotkey[:6]}…{hotkey[-4:]}"
