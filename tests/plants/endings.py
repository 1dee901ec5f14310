"""Settlements of what does not stand, and expiries out of turn."""

from __future__ import annotations

from ledger import (
    RecordedSettings,
    ReservationExpiredEvent,
    ReservationReleased,
    ReservationSpent,
    account_stream,
    reservation_id,
)
from projections import Rule
from tests.forged import ANNA, BERT, CARL, GPU, Forged

from .plant import Plants

PLANTS = Plants()


@PLANTS(Rule.SETTLES_STANDING, "no reservation that was made at position 3 stands")
def a_block_spent(log: Forged) -> None:
    row = log.rows[2]
    log.append(account_stream(ANNA, GPU), ReservationSpent(reservation_id(row.position, row.hash)), settles=3)


@PLANTS(Rule.SETTLES_STANDING, "made at position 14 stands", at=3)
def a_reservation_spent_twice(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent)
    log.settle(made, ReservationSpent)


@PLANTS(Rule.SETTLES_STANDING, "made at position 14 stands", at=3)
def a_spent_reservation_released(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent)
    log.settle(made, ReservationReleased)


@PLANTS(Rule.SETTLES_STANDING, "the row settles position 14, the event another reservation", at=2)
def an_id_with_other_bits(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made._replace(hash=bytes(32)), ReservationSpent)


@PLANTS(Rule.SETTLES_STANDING, "the reservation is another account's", at=2)
def a_settlement_in_another_account(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.settle(made, ReservationSpent, stream=account_stream(BERT, GPU))


@PLANTS(Rule.EXPIRES_OVERDUE, "it expired 1.0 s before it was due", at=2)
def a_sweep_too_early(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(105)
    log.settle(made, ReservationExpiredEvent, 1)


@PLANTS(Rule.EXPIRES_WHAT_IS_TAKEN, "no sweep tells of it, and nothing took its blocks", at=2)
def an_expiry_for_nothing(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.settle(made, ReservationExpiredEvent)


@PLANTS(Rule.EXPIRES_WHAT_IS_TAKEN, "no sweep tells of it, and nothing took its blocks", at=3)
def an_expiry_of_what_the_claim_leaves(log: Forged) -> None:
    log.reserve(ANNA, 6, (1, 1))
    spared = log.reserve(ANNA, 6, (2, 2))
    log.wait(106)
    log.settle(spared, ReservationExpiredEvent)
    log.settle(log.rows[-3], ReservationExpiredEvent)
    log.reserve(ANNA, 6, (1, 1))


@PLANTS(Rule.EXPIRES_WHAT_IS_TAKEN, "no sweep tells of it", at=3)
def an_expiry_of_another_account_than_the_claims(log: Forged) -> None:
    log.reserve(ANNA, 6, (1, 1))
    theirs = log.reserve(BERT, 6, (1, 1))
    log.wait(106)
    log.settle(theirs, ReservationExpiredEvent)
    log.settle(log.rows[-3], ReservationExpiredEvent)
    log.reserve(ANNA, 6, (1, 1))


@PLANTS(Rule.EXPIRES_WHAT_IS_TAKEN, "tells of 2 expiries, and stands after 1", at=2)
def a_sweep_that_counts_wrong(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.wait(200)
    log.settle(made, ReservationExpiredEvent, 2)


@PLANTS(Rule.EXPIRES_WHAT_IS_TAKEN, "another was due as well, and did not expire", at=3)
def a_sweep_that_spares_one(log: Forged) -> None:
    made = log.reserve(ANNA, 6, (1, 1))
    log.reserve(BERT, 7, (1, 1))
    log.wait(200)
    log.settle(made, ReservationExpiredEvent, 1)


@PLANTS(
    Rule.EXPIRES_WHAT_IS_TAKEN,
    "others were due before it and did not expire",
    at=3,
    logs=lambda: Forged(RecordedSettings(reservation_margin_ns=0)),
)
def a_sweep_out_of_turn(log: Forged) -> None:
    first, second = log.reserve(ANNA, 6, (1, 1)), log.reserve(CARL, 7, (1, 1))
    log.wait(8)
    log.settle(second, ReservationExpiredEvent)
    log.settle(first, ReservationExpiredEvent, 2)
