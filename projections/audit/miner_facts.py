"""The audit's own fold of the miner facts: exclusions, collateral, jobs elsewhere, incidents.

The audit repeats this fold on purpose and shares nothing with the ledger's `MinerFacts`. Rules: a miner is excluded
before the end of its newest exclusion, unless it was readmitted since; its collateral is the amount recorded last; a
job elsewhere runs from its start for its ttl unless it has ended, and is forgotten a day later; the time of an incident
is the clock that decided its event.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import NamedTuple

from ledger import Row
from ledger.events import (
    CollateralRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    MinerExcluded,
    MinerReadmitted,
    account_stream,
)

from .state import AccountState

NEVER_NS = 2**63
"""The end of an exclusion that has none."""
DAY_NS = 86_400 * 10**9


class AuditedExclusion(NamedTuple):
    """The newest exclusion of a miner, which ends at `until_ns`; its readmission has 0."""

    position: int
    reason: str
    until_ns: int


class AuditedCollateral(NamedTuple):
    """A miner's collateral."""

    position: int
    wei: int


class AuditedJobElsewhere(NamedTuple):
    """A job of another validator that has not been ended; it runs while `started_at_ns <= t < ends_at_ns`."""

    started_at_ns: int
    ends_at_ns: int


class AuditMinerFacts:
    """The miner facts as of the last event."""

    def __init__(self) -> None:
        self.streams: set[str] = set()
        """The streams of miner facts that have an event."""
        self.exclusions: dict[str, AuditedExclusion] = {}
        self.collateral: dict[str, AuditedCollateral] = {}
        self.elsewhere: dict[str, dict[str, AuditedJobElsewhere]] = {}
        """By the account's stream and the job."""
        self.incidents: dict[str, list[int]] = {}
        """Times by the account's stream, ascending."""

    def is_excluded(self, miner_ss58: str, now_ns: int) -> bool:
        """Return whether the miner is excluded now."""
        newest = self.exclusions.get(miner_ss58)
        return newest is not None and newest.until_ns > now_ns

    def collateral_wei(self, miner_ss58: str) -> int:
        """Return the miner's collateral; 0 if none was ever recorded."""
        return self.collateral[miner_ss58].wei if miner_ss58 in self.collateral else 0

    def running_elsewhere(self, account: AccountState, now_ns: int) -> int:
        """Return how many jobs of others run on the account now, without those that are also ours."""
        jobs = self.elsewhere.get(account.stream, {})
        running = {job for job, times in jobs.items() if times.started_at_ns <= now_ns < times.ends_at_ns}
        if running:
            running -= {each.row.job_uuid or "" for at, each in account.active.items() if at not in account.overdue}
        return len(running)

    def incidents_between(self, stream: str, after_ns: int, until_ns: int) -> int:
        """Return how many incidents of the account happened in (after, until]."""
        times = self.incidents.get(stream, [])
        return bisect_right(times, until_ns) - bisect_right(times, after_ns)

    def apply(self, row: Row, event: object, now_ns: int) -> None:
        """Apply an event of miner facts, right or wrong, that was decided by the clock `now_ns`."""
        self.streams.add(row.stream)
        match event:
            case MinerExcluded():
                until_ns = NEVER_NS if event.until_ns is None else event.until_ns
                self.exclusions[event.miner_ss58] = AuditedExclusion(row.position, event.reason, until_ns)
            case MinerReadmitted():
                self.exclusions[event.miner_ss58] = AuditedExclusion(row.position, event.reason, 0)
            case CollateralRecorded():
                for miner_ss58, wei in event.changed.items():
                    self.collateral[miner_ss58] = AuditedCollateral(row.position, wei)
            case JobElsewhereRecorded():
                self._record_job(account_of_elsewhere(row.stream), now_ns - DAY_NS, event)
            case JobElsewhereEnded():
                self._end_job(account_of_elsewhere(row.stream), event.job_uuid)
            case IncidentReported():
                insort(self.incidents.setdefault(account_stream(event.miner_ss58, event.executor_class), []), now_ns)

    def _record_job(self, stream: str, a_day_ago_ns: int, event: JobElsewhereRecorded) -> None:
        jobs = {job: times for job, times in self.elsewhere.get(stream, {}).items() if times.ends_at_ns > a_day_ago_ns}
        times = AuditedJobElsewhere(event.started_at_ns, event.started_at_ns + event.ttl_ns)
        if not event.ended and times.ends_at_ns > a_day_ago_ns:
            jobs[event.job_uuid] = times
        self._set_jobs(stream, jobs)

    def _end_job(self, stream: str, job_uuid: str) -> None:
        self._set_jobs(stream, {job: times for job, times in self.elsewhere.get(stream, {}).items() if job != job_uuid})

    def _set_jobs(self, stream: str, jobs: dict[str, AuditedJobElsewhere]) -> None:
        self.elsewhere.pop(stream, None)
        if jobs:
            self.elsewhere[stream] = jobs


def account_of_elsewhere(stream: str) -> str:
    """Return the account's stream to which a stream of jobs elsewhere belongs; empty for that of unknown jobs."""
    return stream.split("\t", 1)[1] if "\t" in stream else ""
