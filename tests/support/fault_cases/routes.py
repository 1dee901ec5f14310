"""Routes that a router should not have given, and jobs that have more than one."""

from __future__ import annotations

from hashlib import blake2b
from itertools import count

from ledger import RecordedSettings
from ledger.events import ReservationReleased, ReservationSpent
from projections import Rule
from tests.support.log_builder import ANNA, BERT, SECOND_NS, LogBuilder

from .fault_case import FaultCases

FAULT_CASES = FaultCases()


def only_bert() -> LogBuilder:
    return LogBuilder(offers={BERT: 2})


def one_each() -> LogBuilder:
    return LogBuilder(offers={ANNA: 1, BERT: 1})


def job_that_draws(place: int, *, of: int, called: str = "job") -> str:
    """A job that of so many equals tries the one at a place first."""
    return next(
        name
        for name in (f"{called}-{number}" for number in count())
        if int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "big") % of == place
    )


@FAULT_CASES(Rule.JOB_STANDS_ONCE, "the job has a reservation that stands", at=2, logs=only_bert)
def a_job_reserved_for_twice(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1))
    log.route("job", BERT, 6, (2, 2), attempt=2)


@FAULT_CASES(Rule.JOB_ATTEMPTS, "attempt 2 of a job that has had 0", logs=only_bert)
def a_job_that_begins_at_its_second_attempt(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), attempt=2)


@FAULT_CASES(Rule.JOB_ATTEMPTS, "attempt 1 of a job that has had 1", at=3, logs=only_bert)
def an_attempt_twice(log: LogBuilder) -> None:
    log.settle(log.route("job", BERT, 6, (1, 1)), ReservationReleased)
    log.route("job", BERT, 6, (1, 1))


@FAULT_CASES(Rule.JOB_SPENT_ONCE, "the job was spent before", at=3, logs=only_bert)
def a_job_routed_after_it_was_spent(log: LogBuilder) -> None:
    log.settle(log.route("job", BERT, 6, (1, 1)), ReservationSpent)
    log.route("job", BERT, 6, (2, 2), attempt=2)


@FAULT_CASES(Rule.ROUTING_DECISION, "5Bert came first", at=2)
def a_miner_with_later_blocks_preferred(log: LogBuilder) -> None:
    """The others would start at block 1."""
    log.reserve(ANNA, 6, (1, 1))
    log.route(job_that_draws(0, of=2), ANNA, 6, (2, 2))


@FAULT_CASES(Rule.ROUTING_DECISION, "5Bert came first", at=4)
def a_miner_with_less_left_preferred(log: LogBuilder) -> None:
    """All would start at block 1, which Anna has back, but not block 2."""
    first = log.reserve(ANNA, 6, (1, 1))
    log.reserve(ANNA, 6, (2, 2))
    log.settle(first, ReservationReleased)
    log.route(job_that_draws(0, of=2), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "5Carl came first")
def a_draw_of_ones_own(log: LogBuilder) -> None:
    log.route(job_that_draws(2, of=3), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "5Bert came first", at=4, logs=one_each)
def a_busy_miner(log: LogBuilder) -> None:
    """Anna's blocks are the earliest, but her one executor is at work."""
    log.reserve(ANNA, 6, (1, 1))
    log.settle(log.reserve(BERT, 12, (1, 2)), ReservationSpent)
    log.route("job", ANNA, 6, (2, 2))


@FAULT_CASES(
    Rule.ROUTING_DECISION,
    "no candidate had the amount and was not busy",
    at=2,
    logs=lambda: LogBuilder(offers={BERT: 1}),
)
def a_busy_miner_that_is_the_only_one(log: LogBuilder) -> None:
    log.reserve(BERT, 6, (1, 1))
    log.route("job", BERT, 6, (2, 2))


@FAULT_CASES(Rule.ROUTING_DECISION, "while the newest block was 11", logs=only_bert)
def a_route_from_another_block_than_the_newest(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), start=10)


@FAULT_CASES(Rule.ROUTING_DECISION, "while it came first", logs=only_bert)
def a_miner_kept_that_came_first(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), kept=True)


@FAULT_CASES(Rule.ROUTING_DECISION, "kept although it was busy", at=2, logs=one_each)
def a_busy_miner_kept(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1))
    log.route("job", ANNA, 6, (2, 2), kept=True)


@FAULT_CASES(Rule.ROUTING_DECISION, "no router made the reservation")
def a_reservation_by_hand_kept(log: LogBuilder) -> None:
    log.reserve(ANNA, 6, (1, 1), kept=True)


@FAULT_CASES(Rule.ROUTING_AXON, "the miner listened elsewhere", "8001", logs=only_bert)
def a_route_to_elsewhere(log: LogBuilder) -> None:
    log.route("job", BERT, 6, (1, 1), axon=("192.0.2.7", 4, 1))


@FAULT_CASES(
    Rule.ROUTING_FEED,
    "the newest block was 31.0 s old, more than 30.0 s",
    logs=lambda: LogBuilder(RecordedSettings(newest_block_max_age_ns=30 * SECOND_NS), offers={BERT: 2}),
)
def a_route_on_a_stale_feed(log: LogBuilder) -> None:
    log.wait(31)
    log.route("job", BERT, 6, (1, 1))
