"""The clock of a ledger: each reading is validated, and a jump is logged."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .errors import ClockUnusable
from .values import NANOSECONDS

EARLIEST_NS = 946_684_800 * NANOSECONDS
"""The start of the year 2000 (this project's choice, as all limits here)."""
LATEST_NS = 7_258_118_400 * NANOSECONDS
"""The start of the year 2200. A due time is at most 200 days later, which the databases can still store (2262)."""
LARGEST_DRIFT_NS = 60 * NANOSECONDS
EXPECTED = "a whole number of nanoseconds since 1970, between the years 2000 and 2200"

log = logging.getLogger("allowance.ledger")


class Clock:
    """Reads a clock in nanoseconds since the epoch; may be called from any thread.

    Raises `ClockUnusable` if the clock raises, or returns anything but an `int` between the years 2000 and 2200. Logs a
    warning when the clock has moved by more than a minute against the monotonic clock since the last such warning.
    """

    __slots__ = ("_clock_ns", "_monotonic_ns", "_offset_ns")

    def __init__(self, clock_ns: Callable[[], int], monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        self._monotonic_ns = monotonic_ns
        self._offset_ns: int | None = None

    def __call__(self) -> int:
        """Return a validated reading."""
        try:
            now_ns = self._clock_ns()
        except BaseException as cause:
            # A `SystemExit` would end the runtime's thread, and with it all ledgers of the process. Only Control-C,
            # which Python delivers to the main thread alone, is not the clock's own failure.
            if isinstance(cause, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            raise ClockUnusable(cause, EXPECTED) from cause
        # An exact `int`: a bool or a subclass would be encoded in another way than a number.
        if type(now_ns) is not int or not EARLIEST_NS <= now_ns < LATEST_NS:
            raise ClockUnusable(now_ns, EXPECTED)
        offset_ns = now_ns - self._monotonic_ns()
        last_ns = self._offset_ns
        if last_ns is None or not -LARGEST_DRIFT_NS <= offset_ns - last_ns <= LARGEST_DRIFT_NS:
            self._record_offset(now_ns, offset_ns)
        return now_ns

    def _record_offset(self, now_ns: int, offset_ns: int) -> None:
        last_ns, self._offset_ns = self._offset_ns, offset_ns
        if last_ns is None:
            return
        jump_ns = offset_ns - last_ns
        log.warning(
            "the clock jumped by %+.3f s against the monotonic clock, to %d ns since 1970",
            jump_ns / NANOSECONDS,
            now_ns,
            extra={"jump_ns": jump_ns, "now_ns": now_ns},
        )
