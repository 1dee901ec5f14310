"""Events decided while the recorded time is ahead of the clock: wrong due times, and expiries before their time."""

from __future__ import annotations

from typing import Any

from ledger.codec import reservation_id
from ledger.events import CHAIN_STREAM, BlockRecorded, ExpiryRecorded
from projections import Rule
from tests.support.log_builder import ANNA, BERT, LogBuilder, created_at_ns

from .fault_case import FaultCases
from .seals import seal

FAULT_CASES = FaultCases()

SECOND_NS = 10**9
CLOCK_NS = created_at_ns(12)
"""The clock that decides, while the recorded time is a day ahead."""


def with_a_recorded_time_ahead() -> LogBuilder:
    """A log whose last block was recorded with a clock a day ahead; two reservations were made right after it."""
    log = LogBuilder()
    log.wait(86_400)
    log.block(12)
    reserve(log, ANNA)
    reserve(log, BERT)
    return log


def reserve(log: LogBuilder, miner_ss58: str, block: int = 1, at_ns: int = CLOCK_NS, **fields: Any) -> None:
    """Append a reservation that is due by the clock, 106 s after it was decided."""
    fields.setdefault("expires_at_ns", at_ns + 106 * SECOND_NS)
    fields.setdefault("due_by_clock", True)
    log.reserve(miner_ss58, 6, (block, block), start=12, decided_at_ns=at_ns, **fields)


def expire(log: LogBuilder, index: int, at_ns: int, swept: int = 0) -> None:
    """Append the expiry of one of the two reservations, decided at a time."""
    made = log.rows[14 + index]
    event = ExpiryRecorded(reservation_id(made.position, made.hash), swept, decided_at_ns=at_ns)
    log.append(made.stream, event, settles=made.position)


@FAULT_CASES(Rule.DUE_TIME, "is not the deciding clock plus", logs=with_a_recorded_time_ahead)
def a_due_time_by_the_recorded_time_ahead(log: LogBuilder) -> None:
    reserve(log, ANNA, 2, expires_at_ns=log.now_ns + 106 * SECOND_NS)


@FAULT_CASES(Rule.DUE_TIME, "is not the recorded time plus", logs=with_a_recorded_time_ahead)
def an_old_reservation_that_is_due_by_the_clock(log: LogBuilder) -> None:
    reserve(log, ANNA, 2, due_by_clock=False)


def with_a_seal_and_a_recorded_time_ahead() -> LogBuilder:
    """A log of a release that counts due times from the clock, as its seal shows, with a recorded time a day ahead."""
    log = LogBuilder()
    seal(log)
    log.wait(86_400)
    log.block(12)
    return log


@FAULT_CASES(Rule.DUE_TIME, "is not the deciding clock plus", logs=with_a_seal_and_a_recorded_time_ahead)
def a_due_time_by_the_recorded_time_from_a_release_that_knows_better(log: LogBuilder) -> None:
    reserve(log, ANNA, 1, due_by_clock=False, expires_at_ns=log.now_ns + 106 * SECOND_NS)


@FAULT_CASES(Rule.DECISION_CLOCK, "between the years 2000 and 2200", logs=with_a_seal_and_a_recorded_time_ahead)
def a_clock_that_no_release_accepts(log: LogBuilder) -> None:
    reserve(log, ANNA, 1, at_ns=-5)


@FAULT_CASES(Rule.DECISION_CLOCK, "does not carry its reading")
def a_due_time_by_a_clock_that_is_not_recorded(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), due_by_clock=True)


@FAULT_CASES(Rule.DECISION_CLOCK, "must be before recorded_at_ns", logs=with_a_recorded_time_ahead)
def a_block_decided_after_it_was_recorded(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockRecorded(13, created_at_ns(13), decided_at_ns=log.now_ns + 1))


@FAULT_CASES(Rule.EXPIRES_OVERDUE, "the reservation expired 1.0 s before it was due", logs=with_a_recorded_time_ahead)
def an_expiry_before_the_clock_reached_the_due_time(log: LogBuilder) -> None:
    """By the recorded time, a day ahead, it would be overdue."""
    expire(log, 0, CLOCK_NS + 105 * SECOND_NS, swept=1)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "another reservation was due as well", at=1, logs=with_a_recorded_time_ahead)
def an_expire_due_behind_the_recorded_time_that_omits_a_reservation(log: LogBuilder) -> None:
    """Both were due by the recorded clock; without it, only the due time of the expired one would be sure."""
    expire(log, 0, CLOCK_NS + 107 * SECOND_NS, swept=1)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no claim takes its blocks", logs=with_a_recorded_time_ahead)
def an_expiry_by_another_clock_than_its_claim(log: LogBuilder) -> None:
    """An expiry and the claim that takes its blocks are decided at one reading of the clock."""
    expire(log, 0, CLOCK_NS + 200 * SECOND_NS)
    reserve(log, ANNA, at_ns=CLOCK_NS + 201 * SECOND_NS)


@FAULT_CASES(Rule.DECISION_CLOCK, "exactly if it is imported", "reserved_at_ns 7")
def a_time_of_another_system_in_a_reservation_of_this_one(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), reserved_at_ns=7)
