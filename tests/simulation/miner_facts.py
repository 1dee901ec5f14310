"""Miner facts in simulated worlds: what callers report, and the judge of what the log then has of it.

Names are few, so that reports repeat and contradict each other, and ends come before their jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from ledger import Row

if TYPE_CHECKING:
    from tests.simulation.diary import Request
    from tests.simulation.process import Process

KINDS = ("rejected", "failed", "horde_failed")
UUIDS = 12
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Report:
    """What a caller reports, by which call of `Allowance`; times are seconds from the process's clock.

    If `of_our_job`, a receipt of another validator names our newest job.
    """

    call: str
    arguments: tuple[Any, ...]
    after_seconds: float | None = None
    ttl_seconds: float = 0.0
    of_our_job: bool = False

    def invoke(self, process: Process, request: Request) -> Any:
        """Report it, with the job and the times that the first try worked out."""
        if self.of_our_job and request.reported_at is None:
            request.report = replace(self, arguments=_newest_job(process) or self.arguments)
        arguments, named = (request.report or self).arguments, {}
        if self.after_seconds is not None:
            # A report that is made again names the same time.
            request.reported_at = request.reported_at or _now(process) + timedelta(seconds=self.after_seconds)
            if self.call == "exclude_miner":
                named = {"until": request.reported_at}
            else:
                arguments = (*arguments, request.reported_at, self.ttl_seconds)
        return getattr(process.ledger, self.call)(*arguments, **named, idempotency_key=request.key)


def draw_report(chance: Random, miners: tuple[str, ...], classes: tuple[str, ...], jobs: list[str]) -> Report:
    """Draw a report; its jobs are those of others, and sometimes our own."""
    miner, executor_class = chance.choice(miners), chance.choice(classes)
    theirs = f"theirs-{chance.randrange(UUIDS)}"
    uuid = chance.choice(jobs) if jobs and chance.random() < 0.3 else theirs
    elsewhere = (miner, executor_class, uuid)
    drawn: list[Callable[[], Report]] = [
        lambda: Report("exclude_miner", (miner, chance.choice(("slow", "gone"))), chance.choice((None, 20.0, -1.0))),
        lambda: Report("readmit_miner", (miner, "fast again")),
        lambda: Report("record_collateral", ({each: chance.choice((3, 5, 5, 10**19)) for each in miners},)),
        lambda: Report(
            "record_job_elsewhere", elsewhere, chance.choice((0.0, -30.0, 10.0)), chance.choice((5.0, 90.0))
        ),
        lambda: Report("record_job_elsewhere", elsewhere, 0.0, chance.choice((5.0, 90.0)), of_our_job=True),
        lambda: Report("end_job_elsewhere", (uuid,)),
        lambda: Report("report_incident", (miner, executor_class, chance.choice(KINDS), uuid)),
    ]
    return chance.choices(drawn, (4, 3, 4, 4, 3, 3, 5))[0]()


def _newest_job(process: Process) -> tuple[str, str, str] | None:
    """Return the account and the uuid of the job that was claimed last."""
    for row in reversed(process.world.server.rows):
        if row.job_uuid is not None and "\t" not in row.job_uuid:
            miner, _, executor_class = row.stream.partition("\t")
            return miner, executor_class, row.job_uuid
    return None


def _now(process: Process) -> datetime:
    # Not by the clock that may be broken.
    return EPOCH + timedelta(microseconds=process.right_clock_ns() // 1000)


@dataclass
class JudgedFacts:
    """The miner facts of a log, replayed in plain dicts; `problems` has what contradicts a rule."""

    exclusions: dict[str, tuple[str, int | None] | None] = field(default_factory=dict)
    """By miner: the reason and the end of the last exclusion; None after a readmission."""
    collateral: dict[str, int] = field(default_factory=dict)
    elsewhere: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """By job: its account's stream, its start and its end in time."""
    ended: set[str] = field(default_factory=set)
    incidents: dict[tuple[str, str], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def replay(self, row: Row, event: dict[str, Any], decided_ns: int) -> bool:
        """Apply a row; return False if it is no miner fact."""
        known: dict[str, Callable[[Row, dict[str, Any], int], None]] = {
            "miner-excluded": self._exclude,
            "miner-readmitted": self._readmit,
            "collateral-recorded": self._collateral,
            "job-elsewhere-recorded": self._elsewhere,
            "job-elsewhere-ended": self._end,
            "incident-reported": self._incident,
        }
        if event["type"] not in known:
            return False
        known[event["type"]](row, event, decided_ns)
        return True

    def claim(self, row: Row, decided_ns: int, minimum_wei: int) -> None:
        """Check that a router could choose the miner of a claim."""
        miner = row.stream.partition("\t")[0]
        exclusion = self.exclusions.get(miner)
        if exclusion is not None and (exclusion[1] is None or decided_ns < exclusion[1]):
            self._say(f"the claim at {row.position} is on {miner}, which is excluded until {exclusion[1]}")
        if self.collateral.get(miner, 0) < minimum_wei:
            self._say(f"the claim at {row.position} is on {miner}, which has less than {minimum_wei} wei")

    def running(self, stream: str, ours: set[str | None], at_ns: int) -> int:
        """Return how many jobs of others run on an account, apart from ours."""
        return sum(
            account == stream and start <= at_ns < end and job not in self.ended and job not in ours
            for job, (account, start, end) in self.elsewhere.items()
        )

    def _exclude(self, row: Row, event: dict[str, Any], decided_ns: int) -> None:
        exclusion = event["reason"], event.get("until_ns")
        if self.exclusions.get(event["miner_ss58"]) == exclusion:
            self._say(f"row {row.position} repeats the exclusion in force")
        if exclusion[1] is not None and exclusion[1] <= decided_ns:
            self._say(f"the exclusion at {row.position} ended before it began")
        self.exclusions[event["miner_ss58"]] = exclusion

    def _readmit(self, row: Row, event: dict[str, Any], decided_ns: int) -> None:
        if self.exclusions.get(event["miner_ss58"]) is None:
            self._say(f"row {row.position} readmits a miner that is not excluded")
        self.exclusions[event["miner_ss58"]] = None

    def _collateral(self, row: Row, event: dict[str, Any], decided_ns: int) -> None:
        if not event["changed"] or not event["changed"].items().isdisjoint(self.collateral.items()):
            self._say(f"the collateral at {row.position} names an amount that is as before")
        self.collateral |= event["changed"]

    def _elsewhere(self, row: Row, event: dict[str, Any], decided_ns: int) -> None:
        job, start = event["job_uuid"], event["started_at_ns"]
        if job in self.elsewhere:
            self._say(f"the job elsewhere {job} is recorded again at {row.position}")
        if event.get("ended", False) != (job in self.ended):
            self._say(f"the job elsewhere {job} at {row.position} does not say that it has ended, or says it wrongly")
        self.elsewhere[job] = row.stream.partition("\t")[2], start, start + event["ttl_ns"]

    def _end(self, row: Row, event: dict[str, Any], decided_ns: int) -> None:
        job = event["job_uuid"]
        if job in self.ended:
            self._say(f"the job elsewhere {job} ends again at {row.position}")
        account = self.elsewhere[job][0] if job in self.elsewhere else ""
        if row.stream.partition("\t")[2] != account:
            self._say(f"the end of {job} at {row.position} is in the stream {row.stream!r}")
        self.ended.add(job)

    def _incident(self, row: Row, event: dict[str, Any], decided_ns: int) -> None:
        name = event["miner_ss58"], event["job_uuid"]
        if name in self.incidents:
            self._say(f"the incident of {name} is reported again at {row.position}")
        self.incidents[name] = event["kind"]

    def _say(self, problem: str) -> None:
        self.problems.append(problem)


CALLS = {
    "miner-excluded": "exclude_miner",
    "miner-readmitted": "readmit_miner",
    "collateral-recorded": "record_collateral",
    "job-elsewhere-recorded": "record_job_elsewhere",
    "job-elsewhere-ended": "end_job_elsewhere",
    "incident-reported": "report_incident",
}
"""The call that records each event."""


def is_what_was_reported(event: dict[str, Any], stream: str, request: Request) -> bool:
    """Return whether an event is of a request's report, or of one that it repeats."""
    report = request.report
    if report is None or CALLS.get(event["type"]) != report.call:
        return False
    if report.call == "record_collateral":
        # The other amounts were as before.
        return bool(event["changed"].items() <= report.arguments[0].items())
    at = request.reported_at
    at_ns = None if at is None else (at - EPOCH) // timedelta(microseconds=1) * 1000
    recorded: tuple[Any, ...] = ()
    expected: tuple[Any, ...] = report.arguments
    match report.call:
        case "exclude_miner":
            recorded = event["miner_ss58"], event["reason"], event.get("until_ns")
            expected = (*expected, at_ns)
        case "readmit_miner":
            # A readmission for another reason is a repeat.
            recorded, expected = (event["miner_ss58"],), expected[:1]
        case "record_job_elsewhere":
            recorded = stream, event["job_uuid"], event["started_at_ns"], event["ttl_ns"]
            miner, executor_class, job = expected
            expected = f"jobs-elsewhere\t{miner}\t{executor_class}", job, at_ns, int(report.ttl_seconds * 10**9)
        case "end_job_elsewhere":
            recorded = (event["job_uuid"],)
        case "report_incident":
            recorded = event["miner_ss58"], event["executor_class"], event["kind"], event["job_uuid"]
    return recorded == expected
