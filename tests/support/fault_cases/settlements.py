"""Settlements without an active reservation, and expiries without a reason."""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.codec import reservation_id
from ledger.events import ExpiryRecorded, ReservationReleased, ReservationSpent, account_stream
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, LogBuilder

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


@FAULT_CASES(Rule.SETTLES_STANDING, "position 3 is not that of an active reservation")
def a_spend_of_a_block_event(log: LogBuilder) -> None:
    row = log.rows[2]
    log.append(account_stream(ANNA, GPU), ReservationSpent(reservation_id(row.position, row.hash)), settles=3)


@FAULT_CASES(Rule.SETTLES_STANDING, "position 14 is not that of an active reservation", at=3)
def a_reservation_spent_twice(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent)
    log.settle(made, ReservationSpent)


@FAULT_CASES(Rule.SETTLES_STANDING, "position 14 is not that of an active reservation", at=3)
def a_spent_reservation_released(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent)
    log.settle(made, ReservationReleased)


@FAULT_CASES(
    Rule.SETTLES_STANDING, "the row settles the reservation at position 14, but the event names another id", at=2
)
def a_reservation_id_with_wrong_hash_bits(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made._replace(hash=bytes(32)), ReservationSpent)


@FAULT_CASES(Rule.SETTLES_STANDING, "in the stream of another account", at=2)
def a_settlement_in_the_stream_of_another_account(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent, stream=account_stream(BERT, GPU))


@FAULT_CASES(Rule.EXPIRES_OVERDUE, "the reservation expired 1.0 s before it was due", at=2)
def an_expiry_before_the_due_time(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(105)
    log.settle(made, ExpiryRecorded, 1)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no `expire_due` includes it, and no claim takes its blocks", at=2)
def an_expiry_without_a_claim(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.settle(made, ExpiryRecorded)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no `expire_due` includes it, and no claim takes its blocks", at=3)
def an_expiry_of_blocks_that_the_claim_does_not_take(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    not_taken = log.reserve(ANNA, 6, (2, 2))
    log.wait(106)
    log.settle(not_taken, ExpiryRecorded)
    log.settle(log.rows[-3], ExpiryRecorded)
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no `expire_due` includes it", at=3)
def an_expiry_in_another_account_than_the_claim(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    theirs = log.reserve(BERT, 6, (1, 1))
    log.wait(106)
    log.settle(theirs, ExpiryRecorded)
    log.settle(log.rows[-3], ExpiryRecorded)
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "recorded 2 expiries, but the log has 1", at=2)
def an_expire_due_with_a_wrong_count(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.settle(made, ExpiryRecorded, 2)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "another reservation was due as well and did not expire", at=3)
def an_expire_due_that_omits_a_reservation(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.reserve(BERT, 7, (1, 1))
    log.wait(200)
    log.settle(made, ExpiryRecorded, 1)


@FAULT_CASES(
    Rule.EXPIRES_WHAT_IS_TAKEN,
    "another reservation was due earlier and did not expire before it",
    at=3,
    logs=lambda: LogBuilder(RecordedSettings(reservation_margin_ns=0)),
)
def an_expire_due_in_the_wrong_order(log: LogBuilder) -> None:
    first, second = log.reserve(ANNA, 6, (1, 1)), log.reserve(CARL, 7, (1, 1))
    log.wait(8)
    log.settle(second, ExpiryRecorded)
    log.settle(first, ExpiryRecorded, 2)
