"""Wrong routes, and jobs with more reservations than allowed."""

from __future__ import annotations

from hashlib import blake2b
from itertools import count

from ledger import RecordedSettings
from ledger.events import CHAIN_STREAM, BlockWithdrawn, ReservationReleased, ReservationSpent
from ledger.settings import UUID_AND_HASH
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, SECOND_NS, LogBuilder

from .fault_case import FaultCases

FAULT_CASES = FaultCases()

FIRST_HASH, HASH = "0f" * 32, "f0" * 32


def only_bert() -> LogBuilder:
    return LogBuilder(offers={BERT: 2})


def with_one_executor_each() -> LogBuilder:
    return LogBuilder(offers={ANNA: 1, BERT: 1})


def bound_to_the_chain() -> LogBuilder:
    """Return a log whose tie-break follows the uuid and the hash, with an honest route after each of two blocks."""
    log = LogBuilder(RecordedSettings(tie_break=UUID_AND_HASH))
    for number, block_hash in ((12, FIRST_HASH), (13, HASH)):
        log.block(number, block_hash=block_hash)
        job_uuid = job_that_tries_first(2, of=3, prefix=f"honest-{number}", block_hash=block_hash)
        log.settle(log.route(job_uuid, CARL, 6, (1, 1), start=number), ReservationReleased)
    return log


def with_a_hash_that_does_not_count() -> LogBuilder:
    """Return a log as an earlier release founded it, whose newest block has a hash."""
    log = LogBuilder()
    log.block(13, block_hash=HASH)
    job_uuid = job_that_tries_first(2, of=3, prefix="honest")
    log.settle(log.route(job_uuid, CARL, 6, (1, 1), start=13), ReservationReleased)
    return log


def first_index(job_uuid: str, of: int, block_hash: str = "") -> int:
    """Return the index at which the tie-break among `of` equals starts."""
    text = job_uuid.encode() + (b"\0" + bytes.fromhex(block_hash) if block_hash else b"")
    return int.from_bytes(blake2b(text, digest_size=16).digest(), "big") % of


def job_that_tries_first(index: int, *, of: int, prefix: str = "job", block_hash: str = "") -> str:
    """Return a job uuid for which the tie-break among `of` equals starts at this index."""
    names = (f"{prefix}-{number}" for number in count())
    return next(name for name in names if first_index(name, of, block_hash) == index)


def job_that_tries(wrongly: int, by: str, *, rightly: int, under: str) -> str:
    """Return a job uuid that starts at one index under one hash, and at another under another, among three."""
    names = (f"job-{number}" for number in count())
    return next(name for name in names if (first_index(name, 3, by), first_index(name, 3, under)) == (wrongly, rightly))


@FAULT_CASES(Rule.JOB_STANDS_ONCE, "the job already has an active reservation", at=2, logs=only_bert)
def a_job_with_two_active_reservations(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1))
    log.route("job", BERT, 6, (2, 2), attempt=2)


@FAULT_CASES(Rule.JOB_ATTEMPTS, "attempt 2 of the job, expected 1", logs=only_bert)
def a_job_whose_first_attempt_is_2(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), attempt=2)


@FAULT_CASES(Rule.JOB_ATTEMPTS, "attempt 1 of the job, expected 2", at=3, logs=only_bert)
def an_attempt_number_used_twice(log: LogBuilder) -> None:
    log.settle(log.route("job", BERT, 6, (1, 1)), ReservationReleased)
    log.route("job", BERT, 6, (1, 1))


@FAULT_CASES(Rule.JOB_SPENT_ONCE, "the job was already spent", at=3, logs=only_bert)
def a_job_routed_after_it_was_spent(log: LogBuilder) -> None:
    log.settle(log.route("job", BERT, 6, (1, 1)), ReservationSpent)
    log.route("job", BERT, 6, (2, 2), attempt=2)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", at=2)
def a_miner_with_a_later_earliest_block_preferred(log: LogBuilder) -> None:
    """The other miners have block 1 free."""
    log.reserve(ANNA, 6, (1, 1))
    log.route(job_that_tries_first(0, of=2), ANNA, 6, (2, 2))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", at=4)
def a_miner_with_a_smaller_share_preferred(log: LogBuilder) -> None:
    """All have block 1 free; Anna's was released, but her block 2 is still taken."""
    first = log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 6, (2, 2))
    log.settle(first, ReservationReleased)
    log.route(job_that_tries_first(0, of=2), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Carl")
def a_tie_broken_by_another_rule(log: LogBuilder) -> None:
    log.route(job_that_tries_first(2, of=3), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Carl", logs=bound_to_the_chain)
def a_tie_broken_by_the_uuid_alone_although_the_hash_counts(log: LogBuilder) -> None:
    """Whoever chose the uuid chose the miner."""
    log.route(job_that_tries(0, "", rightly=2, under=HASH), ANNA, 6, (1, 1), start=13)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Carl", logs=bound_to_the_chain)
def a_tie_broken_by_the_hash_of_an_older_block(log: LogBuilder) -> None:
    log.route(job_that_tries(0, FIRST_HASH, rightly=2, under=HASH), ANNA, 6, (1, 1), start=13)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Carl", logs=with_a_hash_that_does_not_count)
def a_tie_broken_by_the_hash_although_the_setting_is_uuid(log: LogBuilder) -> None:
    log.route(job_that_tries(0, HASH, rightly=2, under=""), ANNA, 6, (1, 1), start=13)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Carl", at=2, logs=bound_to_the_chain)
def a_tie_broken_by_the_hash_of_a_withdrawn_block(log: LogBuilder) -> None:
    log.append(CHAIN_STREAM, BlockWithdrawn(13, "a fork", 12))
    log.route(job_that_tries(0, HASH, rightly=2, under=FIRST_HASH), ANNA, 6, (1, 1), start=12)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", at=4, logs=with_one_executor_each)
def a_busy_miner_preferred(log: LogBuilder) -> None:
    """Anna's blocks are the earliest, but her only executor is in use."""
    log.reserve(ANNA, 6, (1, 1))
    log.settle(log.reserve(BERT, 12, (1, 2)), ReservationSpent)
    log.route("job", ANNA, 6, (2, 2))


@FAULT_CASES(
    Rule.ROUTING_DECISION,
    "although no candidate had the amount and was not busy",
    at=2,
    logs=lambda: LogBuilder(offers={BERT: 1}),
)
def the_only_miner_although_it_is_busy(log: LogBuilder) -> None:
    log.reserve(BERT, 6, (1, 1))
    log.route("job", BERT, 6, (2, 2))


@FAULT_CASES(Rule.ROUTING_DECISION, "expected the newest block, 11", logs=only_bert)
def a_route_that_starts_at_an_older_block(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), start=10)


@FAULT_CASES(Rule.ROUTING_DECISION, "although its miner came first", logs=only_bert)
def a_claim_kept_although_its_miner_came_first(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), kept=True)


@FAULT_CASES(Rule.ROUTING_DECISION, "kept its miner although that was busy", at=2, logs=with_one_executor_each)
def a_claim_kept_although_its_miner_is_busy(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    log.route("job", ANNA, 6, (2, 2), kept=True)


@FAULT_CASES(Rule.ROUTING_DECISION, "although no router made it")
def a_direct_reservation_marked_as_kept(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), kept=True)


@FAULT_CASES(Rule.ROUTING_AXON, "axon is not that of the miner", "8001", logs=only_bert)
def a_route_with_a_wrong_axon(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), axon=("192.0.2.7", 4, 1))


@FAULT_CASES(
    Rule.ROUTING_FEED,
    "the newest block was 31.0 s old, expected at most 30.0 s",
    logs=lambda: LogBuilder(RecordedSettings(newest_block_max_age_ns=30 * SECOND_NS), offers={BERT: 2}),
)
def a_route_on_a_stale_chain_feed(log: LogBuilder) -> None:
    log.wait(31)
    log.route("job", BERT, 6, (1, 1))
