"""Miner facts that are impossible, repeated, or in wrong rows; and routes that ignore them."""

from __future__ import annotations

from hashlib import blake2b
from itertools import accumulate
from typing import Any

from ledger import RecordedSettings, Row
from ledger.events import (
    COLLATERAL_STREAM,
    ELSEWHERE_STREAM,
    EXCLUSIONS_STREAM,
    INCIDENTS_STREAM,
    SETTINGS_STREAM,
    CollateralRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    MinerExcluded,
    MinerReadmitted,
    ReservationReleased,
    SettingsChanged,
    account_stream,
    elsewhere_stream,
)
from ledger.settings import BY_RELIABILITY
from projections import Rule
from tests.support.log_builder import ANNA, BERT, CARL, GPU, MINERS, SECOND_NS, LogBuilder

from .fault_case import FaultCases
from .routes import first_index, job_that_tries_first

FAULT_CASES = FaultCases()
WEI = 10**18
HOUR_NS = 3600 * SECOND_NS
# The weight of a score of 0 is 1 / (1 + e^-5), that of -100 the lowest one.
HAS_NO_INCIDENT = dict.fromkeys(MINERS, 993_307_149)
HAS_INCIDENTS = {**HAS_NO_INCIDENT, ANNA: 1_000}


def excluded(
    log: LogBuilder, miner_ss58: str, *, seconds: float | None = None, reason: str = "slow", **more: Any
) -> Row:
    until_ns = None if seconds is None else log.now_ns + int(seconds * SECOND_NS)
    return log.append(EXCLUSIONS_STREAM, MinerExcluded(miner_ss58=miner_ss58, reason=reason, until_ns=until_ns), **more)


def readmitted(log: LogBuilder, miner_ss58: str) -> Row:
    return log.append(EXCLUSIONS_STREAM, MinerReadmitted(miner_ss58=miner_ss58, reason="well again"))


def collateral(log: LogBuilder, **changed: int) -> Row:
    event = CollateralRecorded(changed={f"5{name}": wei for name, wei in changed.items()}, request="digest")
    return log.append(COLLATERAL_STREAM, event)


def elsewhere(log: LogBuilder, miner_ss58: str, job_uuid: str, **more: Any) -> Row:
    """Append a job elsewhere; by default it runs from now on for a minute."""
    fields = {name: more.pop(name) for name in ("started_at_ns", "ttl_ns", "ended") if name in more}
    event = JobElsewhereRecorded(job_uuid=job_uuid, **{"started_at_ns": log.now_ns, "ttl_ns": 60 * SECOND_NS, **fields})
    columns = {"job_uuid": f"elsewhere\t{job_uuid}", "attempt": 1, **more}
    return log.append(columns.pop("stream", elsewhere_stream(account_stream(miner_ss58, GPU))), event, **columns)


def ended(log: LogBuilder, job_uuid: str, stream: str = ELSEWHERE_STREAM, **more: Any) -> Row:
    columns = {"job_uuid": f"ended elsewhere\t{job_uuid}", "attempt": 1, **more}
    return log.append(stream, JobElsewhereEnded(job_uuid=job_uuid), **columns)


def incident(log: LogBuilder, miner_ss58: str, job: str, kind: str = "failed", **more: Any) -> Row:
    columns = {"job_uuid": f"incident\t{miner_ss58}\t{job}", "attempt": 1, **more}
    event = IncidentReported(miner_ss58=miner_ss58, executor_class=GPU, kind=kind, job_uuid=job)
    return log.append(INCIDENTS_STREAM, event, **columns)


def with_miner_facts() -> LogBuilder:
    """Everything is right here: each kind of fact, routes that follow from them, and repeats that differ."""
    log = LogBuilder(RecordedSettings(minimum_collateral_wei=WEI))
    collateral(log, Anna=WEI, Bert=WEI)
    collateral(log, Anna=2 * WEI, Carl=0)
    excluded(log, ANNA, seconds=60)
    log.route("only Bert", BERT, 6, (1, 1))
    log.wait(60)
    log.route("Anna at the end of her exclusion", ANNA, 6, (1, 1))
    ended(log, "early")
    elsewhere(log, BERT, "early", ended=True)
    elsewhere(log, BERT, "theirs")
    ended(log, "theirs", elsewhere_stream(account_stream(BERT, GPU)))
    excluded(log, ANNA)
    readmitted(log, ANNA)
    excluded(log, ANNA)
    log.route("Bert again", BERT, 6, (2, 2))
    readmitted(log, ANNA)
    incident(log, ANNA, "theirs")
    incident(log, BERT, "theirs", kind="rejected")
    return log


def with_required_collateral() -> LogBuilder:
    log = LogBuilder(RecordedSettings(minimum_collateral_wei=WEI))
    collateral(log, Anna=WEI - 1, Bert=WEI)
    return log


def with_one_executor_each() -> LogBuilder:
    return LogBuilder(offers=dict.fromkeys(MINERS, 1))


def by_reliability() -> LogBuilder:
    """Anna has so many incidents that she is nearly never drawn."""
    log = LogBuilder(RecordedSettings(routing_order=BY_RELIABILITY))
    for number in range(200):
        incident(log, ANNA, f"failed-{number}")
    log.settle(log.route(job_drawn(CARL, HAS_INCIDENTS, "honest"), CARL, 6, (1, 1)), ReservationReleased)
    # An incident invalidates no claim: one that is appended behind it names the position of its choice.
    chosen_at = log.position
    incident(log, BERT, "ended")
    job = job_drawn(BERT, HAS_INCIDENTS, "honest")
    log.settle(log.route(job, BERT, 6, (1, 1), chosen_at=chosen_at), ReservationReleased)
    return log


def drawn_first(job_uuid: str, weights: dict[str, int]) -> str:
    """Return who is drawn first: the rule written a third time, for logs without hashes of blocks."""
    seed = blake2b(job_uuid.encode(), digest_size=16).digest()
    number = int(blake2b(seed + bytes(4), digest_size=32).hexdigest(), 16) % sum(weights.values())
    sums = dict(zip(sorted(weights), accumulate(weights[each] for each in sorted(weights)), strict=True))
    return next(miner_ss58 for miner_ss58 in sums if number < sums[miner_ss58])


def job_drawn(miner_ss58: str, weights: dict[str, int], prefix: str = "job") -> str:
    """Return a job for which a miner is drawn first."""
    jobs = (f"{prefix}-{number}" for number in range(1000))
    return next(job for job in jobs if drawn_first(job, weights) == miner_ss58)


# Rows


@FAULT_CASES(Rule.ROW_COLUMNS, "column of the job", logs=with_miner_facts)
def an_incident_row_without_what_is_recorded_once(log: LogBuilder) -> None:
    incident(log, ANNA, "other", job_uuid=None, attempt=None)


@FAULT_CASES(Rule.ROW_COLUMNS, "column of the job", "expected", logs=with_miner_facts)
def an_incident_row_that_names_another_job(log: LogBuilder) -> None:
    """The unique index on the column would not see that the incident is repeated."""
    incident(log, ANNA, "other", job_uuid=f"incident\t{ANNA}\tanother")


@FAULT_CASES(Rule.ROW_COLUMNS, "attempt 2", logs=with_miner_facts)
def an_incident_row_with_a_second_attempt(log: LogBuilder) -> None:
    incident(log, ANNA, "other", attempt=2)


@FAULT_CASES(Rule.ROW_COLUMNS, "column of the job")
def an_exclusion_row_with_a_job(log: LogBuilder) -> None:
    excluded(log, ANNA, job_uuid="job", attempt=1)


@FAULT_CASES(Rule.ROW_COLUMNS, "must have the digest of its call")
def a_collateral_row_with_a_key_but_no_digest(log: LogBuilder) -> None:
    log.append(COLLATERAL_STREAM, CollateralRecorded(changed={ANNA: 1}), key="key")


@FAULT_CASES(Rule.STREAM_OF_EVENT, "'collateral'", "expected exclusions")
def an_exclusion_in_another_stream(log: LogBuilder) -> None:
    """A claim expects the version of the stream of exclusions; it would not see one elsewhere."""
    log.append(COLLATERAL_STREAM, MinerExcluded(miner_ss58=ANNA, reason="slow"))


@FAULT_CASES(Rule.STREAM_OF_EVENT, "'exclusions'", "expected collateral")
def collateral_in_another_stream(log: LogBuilder) -> None:
    log.append(EXCLUSIONS_STREAM, CollateralRecorded(changed={ANNA: 1}, request="digest"))


@FAULT_CASES(Rule.STREAM_OF_EVENT, "'incidents-elsewhere'")
def an_incident_in_another_stream(log: LogBuilder) -> None:
    log.append(
        "incidents-elsewhere",
        IncidentReported(miner_ss58=ANNA, executor_class=GPU, kind="failed", job_uuid="job"),
        job_uuid=f"incident\t{ANNA}\tjob",
        attempt=1,
    )


@FAULT_CASES(Rule.STREAM_OF_EVENT, "a miner fact is in the stream")
def a_job_elsewhere_in_the_stream_of_its_account(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs", stream=account_stream(ANNA, GPU))


@FAULT_CASES(Rule.STREAM_OF_EVENT, "expected", "5Anna", at=2)
def an_end_in_another_stream_than_its_job(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs")
    ended(log, "theirs")


# Facts


@FAULT_CASES(Rule.MINER_FACTS_ONCE, "was recorded before", logs=with_miner_facts)
def an_incident_reported_twice(log: LogBuilder) -> None:
    incident(log, ANNA, "theirs", kind="rejected")


@FAULT_CASES(Rule.MINER_FACTS_ONCE, "was recorded before", at=2)
def a_job_elsewhere_recorded_on_two_accounts(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs")
    elsewhere(log, BERT, "theirs")


@FAULT_CASES(Rule.MINER_FACTS_ONCE, "was recorded before", logs=with_miner_facts)
def a_job_elsewhere_ended_twice(log: LogBuilder) -> None:
    ended(log, "theirs", elsewhere_stream(account_stream(BERT, GPU)))


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "as ended exactly if its end was recorded before", at=2)
def a_job_elsewhere_that_runs_after_its_end(log: LogBuilder) -> None:
    ended(log, "theirs")
    elsewhere(log, ANNA, "theirs")


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "as ended exactly if its end was recorded before")
def a_job_elsewhere_that_never_ended_but_says_so(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs", ended=True)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "the same as the one in force", at=2)
def an_exclusion_recorded_twice(log: LogBuilder) -> None:
    excluded(log, ANNA)
    excluded(log, ANNA)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "ends before it begins")
def an_exclusion_that_has_ended_already(log: LogBuilder) -> None:
    excluded(log, ANNA, seconds=0)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "readmitted that is not excluded", logs=with_miner_facts)
def a_miner_readmitted_twice(log: LogBuilder) -> None:
    readmitted(log, ANNA)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "readmitted that is not excluded")
def a_miner_readmitted_that_was_never_excluded(log: LogBuilder) -> None:
    readmitted(log, ANNA)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "the amount is named although it is as before", logs=with_miner_facts)
def collateral_that_is_as_before(log: LogBuilder) -> None:
    collateral(log, Anna=2 * WEI, Bert=5)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "wei")
def more_collateral_than_exists(log: LogBuilder) -> None:
    collateral(log, Anna=2**127 + 1)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "-1 wei")
def negative_collateral(log: LogBuilder) -> None:
    collateral(log, Anna=-1)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "no amount")
def collateral_of_nobody(log: LogBuilder) -> None:
    collateral(log)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "the reason ''")
def an_exclusion_without_a_reason(log: LogBuilder) -> None:
    excluded(log, ANNA, reason="")


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "the name ''")
def an_exclusion_of_nobody(log: LogBuilder) -> None:
    excluded(log, "")


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "a job from")
def a_job_elsewhere_without_a_duration(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs", ttl_ns=0)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "a job from")
def a_job_elsewhere_for_a_year(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs", ttl_ns=365 * 24 * HOUR_NS)


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "of the kind 'slow'")
def an_incident_of_an_unknown_kind(log: LogBuilder) -> None:
    incident(log, ANNA, "job", kind="slow")


@FAULT_CASES(Rule.MINER_FACTS_FOLLOW, "the name ''")
def an_end_without_a_job(log: LogBuilder) -> None:
    ended(log, "")


# Routes


@FAULT_CASES(Rule.ROUTING_EXCLUDED, "5Anna, which is excluded", at=2, also=[(2, Rule.ROUTING_DECISION)])
def an_excluded_miner_chosen(log: LogBuilder) -> None:
    excluded(log, ANNA)
    log.route(job_that_tries_first(0, of=3), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_EXCLUDED, "5Anna, which is excluded", at=2, also=[(2, Rule.ROUTING_DECISION)])
def an_excluded_miner_chosen_in_the_last_nanosecond(log: LogBuilder) -> None:
    excluded(log, ANNA, seconds=60)
    log.wait(60)
    log.now_ns -= 1
    log.route(job_that_tries_first(0, of=3), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Anna", at=2)
def a_miner_passed_over_after_its_exclusion(log: LogBuilder) -> None:
    """An exclusion ends by itself: at its end the miner is a candidate again."""
    excluded(log, ANNA, seconds=60)
    log.wait(60)
    log.route(job_that_tries_first(0, of=3), BERT, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Carl", at=2)
def a_tie_broken_as_if_the_excluded_miner_were_a_candidate(log: LogBuilder) -> None:
    excluded(log, ANNA)
    job = next(job for job in map(str, range(1000)) if (first_index(job, 3), first_index(job, 2)) == (1, 1))
    log.route(job, BERT, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_EXCLUDED, "5Anna, which is excluded", at=2)
def a_miner_that_was_excluded_after_it_was_chosen(log: LogBuilder) -> None:
    """Only the position of the choice was before the exclusion; the claim had to be decided again."""
    excluded(log, ANNA)
    log.route(job_that_tries_first(0, of=3), ANNA, 6, (1, 1), chosen_at=13)


@FAULT_CASES(
    Rule.ROUTING_COLLATERAL,
    "5Anna, which is below the required collateral",
    also=[(1, Rule.ROUTING_DECISION)],
    logs=with_required_collateral,
)
def a_miner_without_the_collateral_chosen(log: LogBuilder) -> None:
    log.route(job_that_tries_first(0, of=3), ANNA, 6, (1, 1))


@FAULT_CASES(
    Rule.ROUTING_COLLATERAL,
    "5Carl, which is below the required collateral",
    also=[(1, Rule.ROUTING_DECISION)],
    logs=with_required_collateral,
)
def a_miner_whose_collateral_is_unknown_chosen(log: LogBuilder) -> None:
    log.route(job_that_tries_first(2, of=3), CARL, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_COLLATERAL, "5Bert, which is below", at=2, logs=with_required_collateral)
def a_miner_whose_collateral_sank_after_it_was_chosen(log: LogBuilder) -> None:
    collateral(log, Bert=0)
    log.route("job", BERT, 6, (1, 1), chosen_at=14)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", at=2, logs=with_one_executor_each)
def a_miner_chosen_that_runs_a_job_of_another_validator(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs")
    job = next(job for job in map(str, range(1000)) if first_index(job, 3) == 0 and steps_to_bert(job))
    log.route(job, ANNA, 6, (1, 1))


def steps_to_bert(job_uuid: str) -> bool:
    """Return whether the second of three equals that a job tries is the one after the first."""
    number = int.from_bytes(blake2b(job_uuid.encode(), digest_size=16).digest(), "big")
    return number // 3 % 3 in (0, 1)


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Anna", at=2, logs=with_one_executor_each)
def a_miner_passed_over_when_the_other_validators_job_is_over(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs")
    log.wait(60)
    log.route(job_that_tries_first(0, of=3), BERT, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Anna", at=3, logs=with_one_executor_each)
def a_miner_passed_over_whose_job_elsewhere_has_ended(log: LogBuilder) -> None:
    elsewhere(log, ANNA, "theirs")
    ended(log, "theirs", elsewhere_stream(account_stream(ANNA, GPU)))
    log.route(job_that_tries_first(0, of=3), BERT, 6, (1, 1))


@FAULT_CASES(
    Rule.ROUTING_DECISION,
    "another miner than 5Anna",
    at=4,
    logs=lambda: LogBuilder(offers={ANNA: 2, BERT: 2}),
)
def a_job_counted_here_and_elsewhere(log: LogBuilder) -> None:
    """Anna has two executors and runs one job, although two parties tell of it."""
    log.reserve(ANNA, 6, (1, 1), columns={"job_uuid": "ours", "attempt": 1})
    log.reserve(BERT, 12, (1, 1))
    elsewhere(log, ANNA, "ours")
    log.route(next(job for job in map(str, range(99)) if first_index(job, 2) == 0), BERT, 6, (2, 2))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", logs=by_reliability)
def another_miner_than_the_drawn_one(log: LogBuilder) -> None:
    log.route(job_drawn(BERT, HAS_INCIDENTS), CARL, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", at=1, logs=by_reliability)
def a_miner_with_many_incidents_preferred(log: LogBuilder) -> None:
    log.route(job_drawn(BERT, HAS_INCIDENTS), ANNA, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Anna", at=2, logs=by_reliability)
def incidents_counted_after_the_window(log: LogBuilder) -> None:
    """A day after the last incident Anna has the same weight as the others."""
    log.settings = RecordedSettings(routing_order=BY_RELIABILITY, reliability_window_ns=HOUR_NS)
    log.append(SETTINGS_STREAM, SettingsChanged(log.settings))
    log.wait(3600)
    log.route(job_drawn(ANNA, HAS_NO_INCIDENT), BERT, 6, (1, 1))


@FAULT_CASES(Rule.ROUTING_DECISION, "another miner than 5Bert", at=2, logs=by_reliability)
def another_miner_than_the_one_drawn_at_the_named_position(log: LogBuilder) -> None:
    """Bert's incident came after the choice, so it is no reason for Carl."""
    incident(log, BERT, "late")
    log.route(job_drawn(BERT, HAS_INCIDENTS), CARL, 6, (1, 1), chosen_at=log.position - 1)
