"""Claims that name a position of their choice which they may not name, or at which another miner came first.

In the log that most cases start from, a job chose Anna at position 13, where all three miners were equal, and another
claim then took her first block. So the others come first at the claim, and only the choice at 13 explains Anna.
"""

from __future__ import annotations

from ledger import RecordedSettings
from ledger.codec import row_hash
from ledger.events import ExpiryRecorded, ReservationReleased
from projections import Rule
from tests.support.log_builder import ANNA, BERT, LogBuilder

from .fault_case import FaultCases
from .routes import job_that_tries_first, with_one_executor_each

FAULT_CASES = FaultCases()

CHOSEN_AT = 13
ANNAS_JOB = job_that_tries_first(0, of=3)
BERTS_JOB = job_that_tries_first(1, of=3)


def with_a_claim_after_the_choice() -> LogBuilder:
    log = LogBuilder(RecordedSettings(respect_executor_count=False))
    log.reserve(ANNA, 6, (1, 1))
    return log


def with_a_claim_that_names_its_choice() -> LogBuilder:
    """Everything is right here; the replay of the choice finds Anna."""
    log = with_a_claim_after_the_choice()
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)
    return log


def with_ten_thousand_events_after_the_choice() -> LogBuilder:
    """The last of them makes the limit exact: a claim directly after it is 10,000 events behind the choice."""
    log = with_a_claim_after_the_choice()
    while log.position < CHOSEN_AT + 9_999:
        log.settle(log.reserve(BERT, 6, (1, 1)), ReservationReleased)
    return log


@FAULT_CASES(Rule.CHOSEN_AT, "cannot have seen", "chosen_at 15", "decided_on 14", logs=with_a_claim_after_the_choice)
def a_choice_at_the_claim_itself(log: LogBuilder) -> None:
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=15)


@FAULT_CASES(Rule.CHOSEN_AT, "cannot have seen", "chosen_at 99", logs=with_a_claim_after_the_choice)
def a_choice_in_the_future(log: LogBuilder) -> None:
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=99)


@FAULT_CASES(Rule.CHOSEN_AT, "must be left out")
def a_choice_directly_before_the_claim(log: LogBuilder) -> None:
    log.route(ANNAS_JOB, ANNA, 6, (1, 1), chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.CHOSEN_AT, "must be left out", "decided_on 14", at=2, logs=with_a_claim_after_the_choice)
def a_choice_directly_before_the_claims_own_expiry(log: LogBuilder) -> None:
    """Directly before the expiry that the claim caused is directly before the claim."""
    log.wait(200)
    log.settle(log.rows[13], ExpiryRecorded)
    log.route(ANNAS_JOB, ANNA, 6, (1, 1), chosen_at=14)


@FAULT_CASES(Rule.CHOSEN_AT, "cannot have seen", "decided_on 14", at=2, logs=with_a_claim_after_the_choice)
def a_choice_at_the_claims_own_expiry(log: LogBuilder) -> None:
    log.wait(200)
    log.settle(log.rows[13], ExpiryRecorded)
    log.route(ANNAS_JOB, ANNA, 6, (1, 1), chosen_at=15)


@FAULT_CASES(Rule.CHOSEN_AT, "not one of the 10,000 before it", logs=with_a_claim_after_the_choice)
def a_choice_before_the_first_event(log: LogBuilder) -> None:
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=0)


@FAULT_CASES(Rule.CHOSEN_AT, "not one of the 10,000 before it", at=2, logs=with_ten_thousand_events_after_the_choice)
def a_choice_more_than_ten_thousand_events_earlier(log: LogBuilder) -> None:
    """The first claim is just near enough."""
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)
    log.route(f"{ANNAS_JOB} 2", ANNA, 6, (3, 3), chosen_at=CHOSEN_AT)


@FAULT_CASES(
    Rule.CHOSEN_AT,
    "more than one newest block before it",
    "newest_block 13",
    "newest_block_then 11",
    at=4,
    logs=with_a_claim_after_the_choice,
)
def a_choice_two_newest_blocks_earlier(log: LogBuilder) -> None:
    """One block after the choice is allowed: the first claim has no finding."""
    log.block(12)
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), start=12, chosen_at=CHOSEN_AT)
    log.block(13)
    log.route(job_that_tries_first(0, of=3, prefix="late"), ANNA, 6, (3, 3), start=13, chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.CHOSEN_AT, "marked as kept, which no release does", logs=with_a_claim_after_the_choice)
def a_choice_that_is_marked_as_kept_too(log: LogBuilder) -> None:
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT, kept=True)


@FAULT_CASES(Rule.CHOSEN_AT, "although no router made it", logs=with_a_claim_after_the_choice)
def a_choice_without_a_router(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.CHOSEN_AT, "the choice cannot be repeated there", logs=with_a_claim_after_the_choice)
def a_choice_that_is_written_in_another_form(log: LogBuilder) -> None:
    """A payload that hides the name of the field from whoever reads ahead."""
    row = log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)
    row = row._replace(payload=row.payload.replace(b'"chosen_at":', b'"chosen_at" :'))
    log.rows[-1] = row._replace(hash=row_hash(log.rows[-2].hash, row))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", logs=with_a_claim_after_the_choice)
def a_miner_that_did_not_come_first_at_the_choice(log: LogBuilder) -> None:
    log.route(BERTS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Anna", logs=with_a_claim_after_the_choice)
def a_miner_that_comes_first_only_at_the_claim(log: LogBuilder) -> None:
    """Bert has an earlier block at the claim, but the claim says that it was chosen before."""
    log.route(ANNAS_JOB, BERT, 6, (1, 1), chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.CHOSEN_QUALIFIES, "although that was busy", at=2, logs=with_one_executor_each)
def a_chosen_miner_that_is_busy_at_the_claim(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    log.route(job_that_tries_first(0, of=2), ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)


@FAULT_CASES(
    Rule.CHOSEN_QUALIFIES,
    "or no longer had the amount",
    "available_ns 12000000000",
    at=2,
    also=[(2, Rule.BLOCKS_ENOUGH)],
)
def a_chosen_miner_without_the_amount_at_the_claim(log: LogBuilder) -> None:
    log.reserve(ANNA, 108, (1, 9))
    log.route(ANNAS_JOB, ANNA, 13, (10, 10), chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.CHOSEN_QUALIFIES, "available_ns 0", at=2, also=[(2, Rule.ROUTING_AXON)])
def a_chosen_miner_that_is_not_registered_at_the_claim(log: LogBuilder) -> None:
    log.block(12, deregistered=[ANNA])
    log.route(ANNAS_JOB, ANNA, 6, (1, 1), start=12, chosen_at=CHOSEN_AT)


@FAULT_CASES(Rule.CHOSEN_AT, "names the position instead", logs=with_a_claim_that_names_its_choice)
def a_kept_claim_after_one_that_names_its_choice(log: LogBuilder) -> None:
    """Otherwise whoever writes a log could go on leaving the position out."""
    log.route("job", ANNA, 6, (3, 3), kept=True)


@FAULT_CASES(Rule.CHOSEN_AT, "names the position instead", at=3)
def a_kept_claim_after_a_block_with_its_hash(log: LogBuilder) -> None:
    log.block(12, block_hash="0" * 64)
    log.reserve(ANNA, 6, (1, 1), start=12)
    log.route("job", ANNA, 6, (2, 2), start=12, kept=True)


@FAULT_CASES(
    Rule.ROUTING_DECISION,
    "although no candidate had the amount",
    at=2,
    also=[(2, Rule.AMOUNT_LIMITS), (2, Rule.BLOCKS_ENOUGH), (2, Rule.CHOSEN_QUALIFIES)],
)
def a_chosen_claim_of_an_impossible_amount(log: LogBuilder) -> None:
    """Whatever a claim says must not end the audit when its choice is repeated."""
    log.reserve(ANNA, 6, (1, 1))
    log.route(ANNAS_JOB, ANNA, 10**9, (2, 2), chosen_at=CHOSEN_AT)
