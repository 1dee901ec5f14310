"""Reservations with wrong blocks, amounts, or times."""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.events import ReservationReleased
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, SECOND_NS, LogBuilder, created_at_ns

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


def with_a_short_window() -> LogBuilder:
    """A log in which a job may use blocks up to three older than its start."""
    return LogBuilder(RecordedSettings(block_expiry_blocks=3))


@FAULT_CASES(Rule.AMOUNT_LIMITS, "the amount is 0.0 s")
def an_amount_of_0(log: LogBuilder) -> None:
    log.reserve(ANNA, 0, (1, 1))


@FAULT_CASES(
    Rule.AMOUNT_LIMITS, "at most 20.0 s", logs=lambda: LogBuilder(RecordedSettings(longest_job_ns=20 * SECOND_NS))
)
def an_amount_above_the_longest_job(log: LogBuilder) -> None:
    log.reserve(ANNA, 21, (1, 2))


@FAULT_CASES(Rule.JOB_START, "block 0")
def a_job_start_at_block_0(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), start=0)


@FAULT_CASES(Rule.DUE_TIME, "expected_ns")
def a_reservation_due_a_nanosecond_late(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), expires_at_ns=log.now_ns + 106 * SECOND_NS + 1)


@FAULT_CASES(Rule.DUE_TIME, f"expected_ns {created_at_ns(11) + 106 * SECOND_NS}")
def a_reservation_without_the_margin(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), expires_at_ns=log.now_ns + 6 * SECOND_NS)


@FAULT_CASES(Rule.DECISION_CLOCK, "must be before recorded_at_ns")
def a_deciding_clock_equal_to_the_recorded_time(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), decided_at_ns=log.now_ns)


@FAULT_CASES(Rule.DECISION_CLOCK, "must be before recorded_at_ns")
def a_deciding_clock_after_the_recorded_time(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), decided_at_ns=log.now_ns + 1)


@FAULT_CASES(Rule.DECISION_CLOCK, "must be before recorded_at_ns")
def a_deciding_clock_behind_a_recorded_time_that_advanced(log: LogBuilder) -> None:
    log.wait(1)
    log.reserve(ANNA, 6, (1, 1), decided_at_ns=log.now_ns - 1)


@FAULT_CASES(Rule.BLOCKS_ASCENDING, "do not ascend")
def runs_that_descend(log: LogBuilder) -> None:
    log.reserve(ANNA, 18, (2, 2), (1, 1))


@FAULT_CASES(Rule.BLOCKS_ASCENDING, "touch")
def runs_that_touch(log: LogBuilder) -> None:
    log.reserve(ANNA, 18, (1, 1), (2, 2))


@FAULT_CASES(Rule.BLOCKS_ASCENDING, "blocks []")
def a_reservation_without_blocks(log: LogBuilder) -> None:
    log.reserve(ANNA, 6)


@FAULT_CASES(Rule.BLOCKS_GRANTED, "block 11 grants nothing", also=[(1, Rule.BLOCKS_ENOUGH)])
def a_block_that_is_not_finalized(log: LogBuilder) -> None:
    log.reserve(ANNA, 121, (1, 11))


def with_a_missing_block() -> LogBuilder:
    """A log without block 12, so blocks 11 and 12 grant nothing."""
    log = LogBuilder()
    for number in (13, 14):
        log.block(number)
    log.reserve(ANNA, 120, (1, 10), start=14)
    log.reserve(BERT, 108, (1, 9), start=14)
    return log


@FAULT_CASES(Rule.BLOCKS_GRANTED, "block 11 grants nothing", logs=with_a_missing_block)
def blocks_around_a_missing_one_as_one_run(log: LogBuilder) -> None:
    """The blocks grant the right amount; they should be recorded as two runs."""
    log.reserve(BERT, 18, (10, 13), start=14)


@FAULT_CASES(
    Rule.BLOCKS_GRANTED,
    "block 1 grants nothing",
    also=[(1, Rule.BLOCKS_ENOUGH)],
    logs=lambda: LogBuilder(offers={BERT: 2}),
)
def an_account_that_no_fact_names(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(Rule.BLOCKS_IN_WINDOW, "block 7 is older than 8", logs=with_a_short_window)
def a_block_that_is_too_old(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (7, 7))


@FAULT_CASES(Rule.BLOCKS_NOT_INVALIDATED, "block 1 is invalidated, like all blocks below 12", at=3)
def a_block_that_a_drop_invalidated(log: LogBuilder) -> None:
    log.sync(12, {ANNA: {GPU: 1}})
    log.block(12)
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(
    Rule.BLOCKS_TAKEN_ONCE,
    "block 1: all or some of them are already taken",
    "held_by_positions [14]",
    at=2,
    also=[(2, Rule.CONSERVATION)],
)
def a_block_of_another_reservation(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(
    Rule.BLOCKS_TAKEN_ONCE,
    "blocks 1 to 2",
    "held_by_positions [15]",
    at=4,
    also=[(4, Rule.CONSERVATION)],
)
def a_run_from_the_first_free_block_into_taken_ones(log: LogBuilder) -> None:
    first = log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 6, (2, 2))
    log.settle(first, ReservationReleased)
    log.reserve(ANNA, 18, (1, 2))


@FAULT_CASES(
    Rule.BLOCKS_TAKEN_ONCE,
    "blocks 1 to 2",
    "held_by_positions [14]",
    at=2,
    also=[(2, Rule.CONSERVATION)],
)
def a_run_with_one_taken_block(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 18, (1, 2))


@FAULT_CASES(
    Rule.CONSERVATION,
    "5Carl",
    "taken_ns 24000000000",
    "held_ns 36000000000",
    at=3,
    also=[(3, Rule.BLOCKS_TAKEN_ONCE)],
)
def an_imbalance_that_a_later_event_hides(log: LogBuilder) -> None:
    """The balance is even again before the next regular check, so the overlap must be reported at once."""
    log.reserve(BERT, 6, (1, 1))
    log.reserve(CARL, 18, (1, 2))
    twice = log.reserve(CARL, 6, (2, 2))
    log.settle(twice, ReservationReleased)


@FAULT_CASES(Rule.BLOCKS_ENOUGH, "the blocks grant 12.0 s, less than the amount of 13.0 s")
def too_few_blocks(log: LogBuilder) -> None:
    log.reserve(ANNA, 13, (1, 1))


@FAULT_CASES(Rule.BLOCKS_NO_MORE_THAN_NEEDED, "the blocks grant the amount without block 2")
def one_block_too_many(log: LogBuilder) -> None:
    log.reserve(ANNA, 12, (1, 2))


@FAULT_CASES(Rule.BLOCKS_EARLIEST_FIRST, "block 1 is free and earlier")
def a_later_block_than_the_earliest_free_one(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (2, 2))


@FAULT_CASES(Rule.BLOCKS_EARLIEST_FIRST, "block 2 is free and earlier")
def a_free_block_skipped_between_two_runs(log: LogBuilder) -> None:
    log.reserve(ANNA, 18, (1, 1), (3, 3))


@FAULT_CASES(Rule.BLOCKS_EARLIEST_FIRST, "block 1 is free and earlier", at=3)
def a_released_block_skipped(log: LogBuilder) -> None:
    log.settle(log.reserve(ANNA, 6, (1, 1)), ReservationReleased)
    log.reserve(ANNA, 6, (2, 2))


@FAULT_CASES(Rule.BLOCKS_EARLIEST_FIRST, "block 1 is free and earlier", at=3)
def a_block_of_an_overdue_reservation_skipped(log: LogBuilder) -> None:
    """The blocks of an overdue reservation count as free for the next claim."""
    log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.block(12)
    log.reserve(ANNA, 6, (2, 2), start=12)
