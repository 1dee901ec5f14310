"""Progress of long commands: one line on standard error, rewritten in place, only where a person watches."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Self

REDRAW_SECONDS = 0.1
BAR_COLUMNS = 20


class Progress:
    """Shows how far a command has come, as `with Progress("import", "lines") as progress: progress.show(12)`."""

    def __init__(self, label: str, unit: str, *, total: int | None = None) -> None:
        self._label = label
        self._unit = unit
        self._total = total
        self._watched = sys.stderr is not None and sys.stderr.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watched and self._drawn:
            self._write("\r\x1b[K")

    def show(self, done: int, rate: str = "", *, total: int | None = None) -> None:
        """Redraws the line, at most ten times a second."""
        self._total = self._total if total is None else total
        now = time.monotonic()
        if not self._watched or now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        line = progress_line(self._label, done, self._total, self._unit, rate)
        # A longer line would be wrapped, and only its end rewritten.
        self._write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])

    def rate(self, done: int, unit: str) -> str:
        """How many a second since the start, in words."""
        return rate_text(done, time.monotonic() - self._started, unit)

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            # Whoever watched has gone; the work goes on.
            self._watched = False


def progress_line(label: str, done: int, total: int | None, unit: str, rate: str) -> str:
    """The words of a progress line: `import: 1,200 lines, 350 blocks/s`; with a bar where the end is known."""
    if total is None:
        told = f"{label}: {done:,} {unit}"
    else:
        share = min(1.0, done / total) if total else 1.0
        bar = ("#" * int(share * BAR_COLUMNS)).ljust(BAR_COLUMNS, ".")
        told = f"{label} [{bar}] {int(100 * share)} %: {done:,} of {total:,} {unit}"
    return told + (f", {rate}" if rate else "")


def rate_text(done: int, seconds: float, unit: str) -> str:
    """How many a second: `350 blocks/s`."""
    return f"{done / max(seconds, 1e-9):,.0f} {unit}/s"
