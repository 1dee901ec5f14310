"""Progress of long commands: one line on standard error, rewritten in place, only if that is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Self

REDRAW_SECONDS = 0.1
BAR_COLUMNS = 20


class Progress:
    """A progress line: `with Progress("import", "lines") as progress: progress.show(12)`."""

    def __init__(self, label: str, unit: str, *, total: int | None = None) -> None:
        self._label = label
        self._unit = unit
        self._total = total
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._started_at = time.monotonic()
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown and self._drawn_at:
            self._write("\r\x1b[K")

    def show(self, done: int, rate: str = "", *, total: int | None = None) -> None:
        """Redraw the line, at most ten times a second: drawing more often would slow the work down."""
        self._total = self._total if total is None else total
        now = time.monotonic()
        if not self._is_shown or now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        line = progress_line(self._label, done, self._total, self._unit, rate)
        # The terminal would wrap a longer line, and `\r` returns to the start of its last row only.
        self._write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])

    def rate(self, done: int, unit: str) -> str:
        """Return the rate since the start as text: `350 blocks/s`."""
        return rate_text(done, time.monotonic() - self._started_at, unit)

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            # The terminal was closed; the work continues without progress.
            self._is_shown = False


def progress_line(label: str, done: int, total: int | None, unit: str, rate: str) -> str:
    """Return a progress line: `import: 1,200 lines, 350 blocks/s`; with a bar if the total is known."""
    if total is None:
        text = f"{label}: {done:,} {unit}"
    else:
        share = min(1.0, done / total) if total else 1.0
        bar = ("#" * int(share * BAR_COLUMNS)).ljust(BAR_COLUMNS, ".")
        text = f"{label} [{bar}] {int(100 * share)} %: {done:,} of {total:,} {unit}"
    return text + (f", {rate}" if rate else "")


def rate_text(done: int, seconds: float, unit: str) -> str:
    """Return a rate as text: `350 blocks/s`."""
    return f"{done / max(seconds, 1e-9):,.0f} {unit}/s"
