"""Time that goes wrong: a ledger survives a clock that jumps, fails, or was wrong when its log was written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import Row
from ledger.codec import decode
from ledger.events import AllowanceReserved
from routing import Allowance, ClockUnusable, ReservationExpired, Routing
from tests.support.log_builder import ANNA, BERT, LogBuilder
from tests.support.log_builder import VALIDATOR as BUILT_VALIDATOR
from tests.support.logs import append, opened
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger
from tests.support.stories import events_of

YEAR_S = 365 * 86_400.0
HOTKEYS = ("5Anna", "5Bert", "5Carl")


async def a_glitch(ledger: Allowance, clock: Clock) -> None:
    """Record a block while the clock is a year ahead."""
    clock.advance(YEAR_S)
    await record_blocks(ledger, 12, 12, HOTKEYS)
    clock.advance(-YEAR_S)


async def test_one_wrong_reading_makes_no_reservation_immortal(any_url: str) -> None:
    """After a block that was recorded with a clock a year ahead, reservations are due by the clock that decides.

    Catches due times that count from the recorded time, which stays ahead: nothing would expire for a year, and the
    health report would show nothing overdue.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=any_url, clock=clock) as ledger:
        await a_glitch(ledger, clock)
        reserved = await ledger.reserve("5Anna", GPU, 120.0, 12)
        routed = await Routing(ledger).pick_miner_for_job_request(job("job-1"))
        due_ns = clock.now_ns + 220 * 10**9
        assert int(reserved.expires_at.timestamp()) * 10**9 == due_ns

        clock.now_ns = due_ns - 1
        assert (await ledger.health()).overdue == 1  # the routed job's, of 6 s
        clock.now_ns = due_ns
        assert (await ledger.health()).overdue == 2
        retaken = await ledger.reserve("5Anna", GPU, 120.0, 12)
        assert retaken.blocks == reserved.blocks
        with pytest.raises(ReservationExpired):
            await ledger.spend(reserved.reservation_id)
        assert routed.allowance_reservation_id in [each.reservation_id for each in await ledger.expire_due()]

        assert (await ledger.audit()).findings == []


async def test_events_behind_the_recorded_time_carry_the_deciding_clock(url: str) -> None:
    """While the recorded time is ahead, each event says by which clock it was decided; otherwise none does."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, clock=clock) as ledger:
        before = (await ledger.head()).position
        await a_glitch(ledger, clock)
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 12)
        await ledger.spend(reserved.reservation_id)
        await record_blocks(ledger, 13, 13, HOTKEYS)
        await ledger.reserve("5Bert", GPU, 6.0, 12)
        clock.advance(120)
        await ledger.expire_due()
        behind = [(row, decode(row.position, row.payload)) for row in await events_of(ledger)]

    ahead_ns = behind[before][0].recorded_at_ns
    assert all(event.decided_at_ns is None for _, event in behind[: before + 1])
    assert [event.decided_at_ns for _, event in behind[before + 1 :]] == [clock.now_ns - 120 * 10**9] * 4 + [
        clock.now_ns
    ]
    assert {row.recorded_at_ns for row, _ in behind[before + 1 :]} == {ahead_ns}
    assert [event.due_by_clock for _, event in behind if isinstance(event, AllowanceReserved)] == [True, True]


async def test_a_view_by_position_has_the_deciding_clock(url: str) -> None:
    """`at(position=…)` shows what the ledger showed then, `at(time=…)` goes by the recorded time.

    Catches a view whose clock is the recorded time: a year ahead, it would show every reservation as overdue.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, clock=clock) as ledger:
        await a_glitch(ledger, clock)
        await ledger.reserve("5Anna", GPU, 120.0, 12)
        position = (await ledger.head()).position
        then = await ledger.find_miners(1.0, GPU, 12)

        assert (await ledger.overview()).overdue == 0
        assert await ledger.at(position=position).find_miners(1.0, GPU, 12) == then
        assert (await ledger.at(position=position).overview()).overdue == 0
        assert (await ledger.at(block=12).overview()).overdue == 0
        by_time = ledger.at(time=START + timedelta(seconds=132 + YEAR_S))
        assert (await by_time.head()).position == position
        assert (await by_time.overview()).overdue == 1


async def test_a_settlement_is_repeated_under_its_key_whatever_the_clock(url: str) -> None:
    """A retry compares what was settled, not the clock that decided it.

    Catches a comparison of whole events: the stored one has a clock, the retried one has none.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, clock=clock) as ledger:
        await a_glitch(ledger, clock)
        reserved = await ledger.reserve("5Anna", GPU, 6.0, 12)
        spent = await ledger.spend(reserved.reservation_id, idempotency_key="key")
        clock.advance(5)
        assert await ledger.spend(reserved.reservation_id, idempotency_key="key") == spent


class FailingClock(Clock):
    """A clock that runs `failure` at the readings with these numbers, counted from `arm`."""

    def __init__(self) -> None:
        super().__init__(START + timedelta(seconds=132))
        self.failing: set[int] = set()
        self.failure: Callable[[], Any] = lambda: None
        self.count = 0

    def arm(self, failure: Callable[[], Any], *failing: int) -> None:
        self.failure, self.failing, self.count = failure, set(failing), 0

    def __call__(self) -> int:
        self.count += 1
        reading: int = self.failure() if self.count in self.failing else self.now_ns
        return reading


def exits() -> int:
    raise SystemExit(1)


def fails() -> int:
    raise OSError("the clock cannot be read")


NONSENSE = [exits, fails, lambda: 1.5, lambda: True, lambda: 2**63 - 1, lambda: 10]


@pytest.mark.parametrize("failure", NONSENSE, ids=["exits", "fails", "float", "bool", "2262", "1970"])
async def test_a_clock_that_fails_fails_only_its_caller(any_url: str, failure: Callable[[], Any]) -> None:
    """Of a batch, only the command whose reading was wrong is refused; it leaves nothing, and the rest is committed.

    Catches a reading outside of the command's own `try`, which fails the batch; and a `SystemExit` from a clock, which
    ends the thread of the runtime, so that every later call waits for ever.
    """
    clock = FailingClock()
    async with small_ledger(url=any_url, clock=clock) as ledger:
        before = (await ledger.head()).position
        clock.arm(failure, 2)
        outcomes = await asyncio.gather(
            *(ledger.reserve("5Anna", GPU, 1.0, 11, job_uuid=f"job-{n}") for n in range(5)), return_exceptions=True
        )
        assert clock.count == 5
        assert [type(each).__name__ for each in outcomes].count("Reservation") == 4
        assert [type(each) for each in outcomes if isinstance(each, BaseException)] == [ClockUnusable]
        assert (await ledger.head()).position == before + 4

        clock.arm(failure, 1)
        with pytest.raises(ClockUnusable):
            await ledger.find_miners(1.0, GPU, 11)
        assert await ledger.find_miners(1.0, GPU, 11)
        clock.arm(failure, 1)
        with pytest.raises(ClockUnusable):
            await Routing(ledger).pick_miner_for_job_request(job("job-9"))
        await Routing(ledger).pick_miner_for_job_request(job("job-9"))
        assert (await ledger.audit()).findings == []


async def test_a_query_in_a_batch_fails_alone(url: str) -> None:
    """Queries that run together have a reading each: one that fails leaves the others their results."""
    clock = FailingClock()
    async with small_ledger(url=url, clock=clock) as ledger:
        clock.arm(exits, 2)
        outcomes = await asyncio.gather(*(ledger.overview() for _ in range(4)), return_exceptions=True)
        assert [type(each).__name__ for each in outcomes].count("Overview") == 3
        assert [type(each) for each in outcomes if isinstance(each, BaseException)] == [ClockUnusable]


def log_with_a_late_due_time(due_ns: int, recorded_at_ns: int | None = None) -> list[Row]:
    """A log with a reservation that is due then, followed by another one."""
    log = LogBuilder()
    if recorded_at_ns is not None:
        log.now_ns = recorded_at_ns
    log.reserve(ANNA, 6, (1, 1), expires_at_ns=due_ns)
    log.reserve(BERT, 6, (1, 1))
    return log.rows


async def shown(directory: Path, rows: list[Row]) -> list[Any]:
    """Use a ledger with these rows in every way that shows due times; return its findings."""
    url = f"sqlite:///{directory / 'late.db'}"
    async with opened(url, BUILT_VALIDATOR) as store:
        await append(store, rows)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, clock_ns=Clock()) as ledger:
        by_tail = await ledger.history()
        assert (await ledger.rebuild()).position == rows[-1].position
        by_model = await ledger.history()
        assert by_tail.items == by_model.items
        late = by_model.items[1]
        assert late.expires_at.year == 2262
        assert await ledger.reservation(late.reservation_id) == late
        assert late in (await ledger.why(ANNA, GPU)).reservations
        findings = (await ledger.audit()).findings
        assert (await ledger.spend(late.reservation_id)).expires_at == late.expires_at
    return list(findings)


async def test_an_old_log_with_a_clock_near_the_limit_stays_usable(tmp_path: Path) -> None:
    """A due time beyond 2^63 ns, which an earlier release stored, is shown as the limit, and the audit accepts it.

    Catches the `OverflowError` with which `history` and `rebuild` failed for ever.
    """
    recorded_at_ns = 2**63 - 10**9
    rows = log_with_a_late_due_time(recorded_at_ns + 106 * 10**9, recorded_at_ns)
    assert await shown(tmp_path, rows) == []


@pytest.mark.parametrize("due_ns", [2**63, 2**64 - 1, 10**30])
async def test_a_forged_due_time_is_shown_and_found(tmp_path: Path, due_ns: int) -> None:
    """The ledger works with it, and the audit names the rule that it breaks."""
    assert {each.rule for each in await shown(tmp_path, log_with_a_late_due_time(due_ns))} == {"due-time"}


async def test_the_clock_of_the_system_is_the_default(url: str) -> None:
    """Without `clock_ns` the system's clock decides, and it is usable."""
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert (await ledger.overview()).at.year >= 2024
