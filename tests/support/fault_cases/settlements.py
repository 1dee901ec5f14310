"""Settlements of what does not stand, and expiries out of turn."""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.codec import reservation_id
from ledger.events import ExpiryRecorded, ReservationReleased, ReservationSpent, account_stream
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, LogBuilder

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


@FAULT_CASES(Rule.SETTLES_STANDING, "no reservation that was made at position 3 stands")
def a_block_spent(log: LogBuilder) -> None:
    row = log.rows[2]
    log.append(account_stream(ANNA, GPU), ReservationSpent(reservation_id(row.position, row.hash)), settles=3)


@FAULT_CASES(Rule.SETTLES_STANDING, "made at position 14 stands", at=3)
def a_reservation_spent_twice(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent)
    log.settle(made, ReservationSpent)


@FAULT_CASES(Rule.SETTLES_STANDING, "made at position 14 stands", at=3)
def a_spent_reservation_released(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent)
    log.settle(made, ReservationReleased)


@FAULT_CASES(Rule.SETTLES_STANDING, "the row settles position 14, the event another reservation", at=2)
def an_id_with_other_bits(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made._replace(hash=bytes(32)), ReservationSpent)


@FAULT_CASES(Rule.SETTLES_STANDING, "the reservation is another account's", at=2)
def a_settlement_in_another_account(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent, stream=account_stream(BERT, GPU))


@FAULT_CASES(Rule.EXPIRES_OVERDUE, "it expired 1.0 s before it was due", at=2)
def a_sweep_too_early(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(105)
    log.settle(made, ExpiryRecorded, 1)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no sweep tells of it, and nothing took its blocks", at=2)
def an_expiry_for_nothing(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.settle(made, ExpiryRecorded)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no sweep tells of it, and nothing took its blocks", at=3)
def an_expiry_of_what_the_claim_leaves(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    spared = log.reserve(ANNA, 6, (2, 2))
    log.wait(106)
    log.settle(spared, ExpiryRecorded)
    log.settle(log.rows[-3], ExpiryRecorded)
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "no sweep tells of it", at=3)
def an_expiry_of_another_account_than_the_claims(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    theirs = log.reserve(BERT, 6, (1, 1))
    log.wait(106)
    log.settle(theirs, ExpiryRecorded)
    log.settle(log.rows[-3], ExpiryRecorded)
    log.reserve(ANNA, 6, (1, 1))


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "tells of 2 expiries, and stands after 1", at=2)
def a_sweep_that_counts_wrong(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.settle(made, ExpiryRecorded, 2)


@FAULT_CASES(Rule.EXPIRES_WHAT_IS_TAKEN, "another was due as well, and did not expire", at=3)
def a_sweep_that_spares_one(log: LogBuilder) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.reserve(BERT, 7, (1, 1))
    log.wait(200)
    log.settle(made, ExpiryRecorded, 1)


@FAULT_CASES(
    Rule.EXPIRES_WHAT_IS_TAKEN,
    "others were due before it and did not expire",
    at=3,
    logs=lambda: LogBuilder(RecordedSettings(reservation_margin_ns=0)),
)
def a_sweep_out_of_turn(log: LogBuilder) -> None:
    first, second = log.reserve(ANNA, 6, (1, 1)), log.reserve(CARL, 7, (1, 1))
    log.wait(8)
    log.settle(second, ExpiryRecorded)
    log.settle(first, ExpiryRecorded, 2)
