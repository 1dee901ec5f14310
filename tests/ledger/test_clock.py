"""The clock of a ledger: every reading is validated, and a jump is logged once."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from ledger import Clock
from ledger.errors import ClockUnusable
from tests.support.small import Clock as SetClock

SECOND_NS = 10**9
NOW_NS = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS


class Integer(int):
    """An integer of a subclass, which may be written in another way than a plain one."""


@pytest.mark.parametrize(
    "reading",
    [
        NOW_NS / 1,
        NOW_NS / SECOND_NS,
        True,
        None,
        "now",
        Integer(NOW_NS),
        0,
        -NOW_NS,
        NOW_NS // SECOND_NS,
        int(datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()) * SECOND_NS,
        int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS,
        2**63 - 1,
        2**64,
        10**400,
    ],
    ids=lambda reading: repr(reading)[:30] if not isinstance(reading, int) else f"{reading.bit_length()} bits",
)
def test_an_unusable_reading_is_refused(reading: Any) -> None:
    """Anything but whole nanoseconds between 2000 and 2200 raises an error with the reading and what would be right.

    Catches a clock in seconds, one that is not set, and a float, which would go into the log.
    """
    with pytest.raises(ClockUnusable) as refused:
        Clock(lambda: reading)()
    assert refused.value.reading
    assert "2000 and 2200" in str(refused.value)
    assert refused.value.to_dict()["expected"] == refused.value.expected


@pytest.mark.parametrize(
    "reading",
    [
        NOW_NS,
        int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS,
        int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS - 1,
    ],
)
def test_a_usable_reading_is_returned(reading: int) -> None:
    """The limits themselves are right: the first of 2000, and the last nanosecond before 2200."""
    assert Clock(lambda: reading)() == reading


@pytest.mark.parametrize("raised", [ValueError("no clock"), SystemExit(1), GeneratorExit()], ids=repr)
def test_a_clock_that_raises_raises_a_typed_error(raised: BaseException) -> None:
    """Also a `SystemExit`: on the runtime's thread it would end every ledger of the process."""

    def fail() -> int:
        raise raised

    with pytest.raises(ClockUnusable) as refused:
        Clock(fail)()
    assert refused.value.__cause__ is raised


def test_control_c_during_a_reading_is_passed_on() -> None:
    """On the main thread a `KeyboardInterrupt` is the user's; on any other thread it can only be the clock's."""

    def interrupted() -> int:
        raise KeyboardInterrupt

    found: list[BaseException] = []

    def read() -> None:
        try:
            Clock(interrupted)()
        except BaseException as error:
            found.append(error)

    with pytest.raises(KeyboardInterrupt):
        Clock(interrupted)()
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert [type(error) for error in found] == [ClockUnusable]


def test_a_jump_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A clock that moves by more than a minute against the monotonic clock is reported: each jump once, with its size.

    Catches a warning at every later reading, and a jump in two halves that is never noticed.
    """
    clock, monotonic = SetClock(), SetClock()
    read = Clock(clock, monotonic)

    def jumps(clock_s: float, monotonic_s: float = 0.0) -> list[int]:
        caplog.clear()
        clock.advance(clock_s)
        monotonic.advance(monotonic_s)
        for _ in range(3):
            read()
        assert {record.levelno for record in caplog.records} <= {logging.WARNING}
        return [record.jump_ns for record in caplog.records]  # type: ignore[attr-defined]  # the field of `extra`

    assert jumps(0) == []
    assert jumps(3600, 3600) == []
    assert jumps(60) == []
    assert jumps(1) == [61 * SECOND_NS]
    assert jumps(-600) == [-600 * SECOND_NS]
    assert jumps(0, 61) == [-61 * SECOND_NS]
    assert jumps(59) == []
    assert caplog.records == []
