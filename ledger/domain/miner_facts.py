"""The miner facts, which a router heeds beside allowance: exclusions, collateral, jobs elsewhere, incidents.

A fold of the events in their streams. Nothing in it depends on a clock: whether an exclusion has ended or a job runs is
asked with a time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Container
from typing import NamedTuple

from ledger.codec import Row
from ledger.events import (
    CollateralRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    MinerExcluded,
    MinerReadmitted,
    account_stream,
    account_stream_of,
    decided_at_ns,
)

from .account import NEVER_NS

FORGOTTEN_AFTER_NS = 24 * 3600 * 10**9
"""How long after its last moment a job elsewhere is kept, by the clock that decides the next one of its account. Only
a clock that is a day behind that one would miss it. Without a limit, the state would grow with every receipt (this
project's choice)."""


class Exclusion(NamedTuple):
    """The newest exclusion or readmission of a miner; excluded before `until_ns`, 0 if readmitted."""

    position: int
    reason: str
    until_ns: int

    @property
    def has_end(self) -> bool:
        """Whether it ends at a time, and not by a readmission."""
        return 0 < self.until_ns < NEVER_NS


class Collateral(NamedTuple):
    """The collateral of a miner, and the position of the event that recorded it."""

    position: int
    wei: int


class JobElsewhere(NamedTuple):
    """A job of another validator; it runs while `started_at_ns <= t < ends_at_ns`."""

    started_at_ns: int
    ends_at_ns: int


class MinerFacts:
    """The exclusions, collaterals, jobs elsewhere and incidents as of the last event."""

    def __init__(self) -> None:
        self.exclusions: dict[str, Exclusion] = {}
        self.collateral: dict[str, Collateral] = {}
        self.elsewhere: dict[str, dict[str, JobElsewhere]] = {}
        """The jobs elsewhere that have not been ended, by account stream and job."""
        self.incidents: dict[str, array[int]] = {}
        """The times of the incidents by account stream, ascending: of the clock that decided them."""
        self.boundaries: list[tuple[int, str]] = []
        """When an exclusion ends, with the miner, and when a job elsewhere begins or stops to count, with its account's
        stream; ascending."""
        self.incident_times: list[tuple[int, str]] = []
        """The times of all incidents with their account's stream, ascending."""

    def __bool__(self) -> bool:
        return bool(self.exclusions or self.collateral or self.elsewhere or self.incidents)

    def is_excluded(self, miner_ss58: str, now_ns: int) -> bool:
        """Return whether a router must not choose the miner now."""
        exclusion = self.exclusions.get(miner_ss58)
        return exclusion is not None and now_ns < exclusion.until_ns

    def collateral_wei(self, miner_ss58: str) -> int:
        """Return the miner's recorded collateral; 0 if none was recorded."""
        recorded = self.collateral.get(miner_ss58)
        return 0 if recorded is None else recorded.wei

    def running_elsewhere(self, stream: str, counted: Container[str | None], now_ns: int) -> int:
        """Return how many jobs of others run on an account now, apart from those `counted` already."""
        jobs = self.elsewhere.get(stream)
        if jobs is None:
            return 0
        return sum(each.started_at_ns <= now_ns < each.ends_at_ns and job not in counted for job, each in jobs.items())

    def incidents_within(self, stream: str, after_ns: int, until_ns: int) -> int:
        """Return how many incidents of an account were reported in (after, until]."""
        times = self.incidents.get(stream)
        return 0 if times is None else bisect_right(times, until_ns) - bisect_right(times, after_ns)

    def changed_between(self, first_ns: int, last_ns: int, window_ns: int) -> set[str]:
        """Return the miners and the streams of accounts for which more than the clock changes in (first, last].

        An exclusion ends, a job elsewhere begins or stops, or an incident becomes older than the window. For a clock
        that is behind the log, an incident also begins to count.
        """
        changed = _between(self.boundaries, first_ns, last_ns)
        if self.incident_times:
            changed |= _between(self.incident_times, first_ns, last_ns)
            changed |= _between(self.incident_times, first_ns - window_ns, last_ns - window_ns)
        return changed

    def next_change_ns(self, now_ns: int) -> int:
        """Return the first time after now at which an exclusion ends, or a job elsewhere begins or stops to count."""
        at = bisect_right(self.boundaries, (now_ns, _LAST))
        return self.boundaries[at][0] if at < len(self.boundaries) else NEVER_NS

    def exclude(self, row: Row, event: MinerExcluded) -> None:
        """Apply an exclusion."""
        until_ns = NEVER_NS if event.until_ns is None else event.until_ns
        self.set_exclusion(event.miner_ss58, Exclusion(row.position, event.reason, until_ns))

    def readmit(self, row: Row, event: MinerReadmitted) -> None:
        """Apply a readmission."""
        self.set_exclusion(event.miner_ss58, Exclusion(row.position, event.reason, 0))

    def set_exclusion(self, miner_ss58: str, exclusion: Exclusion) -> None:
        """Replace the miner's exclusion."""
        before = self.exclusions.get(miner_ss58)
        if before is not None and before.has_end:
            self._remove_boundary(before.until_ns, miner_ss58)
        self.exclusions[miner_ss58] = exclusion
        if exclusion.has_end:
            insort(self.boundaries, (exclusion.until_ns, miner_ss58))

    def record_collateral(self, row: Row, event: CollateralRecorded) -> None:
        """Apply new amounts of collateral."""
        for miner_ss58, wei in event.changed.items():
            self.collateral[miner_ss58] = Collateral(row.position, wei)

    def record_job_elsewhere(self, row: Row, event: JobElsewhereRecorded) -> str:
        """Apply a job elsewhere; return its account's stream."""
        stream = account_stream_of(row.stream)
        # Not by the recorded time: after a clock that once jumped far ahead, every job would be too old for it.
        forgotten_ns = decided_at_ns(row.recorded_at_ns, event) - FORGOTTEN_AFTER_NS
        self._forget(stream, forgotten_ns)
        job = JobElsewhere(event.started_at_ns, event.started_at_ns + event.ttl_ns)
        if not event.ended and job.ends_at_ns > forgotten_ns:
            self.add_job_elsewhere(stream, event.job_uuid, job)
        return stream

    def end_job_elsewhere(self, row: Row, event: JobElsewhereEnded) -> str:
        """Apply the end of a job elsewhere; return its account's stream, empty if the log does not know the job."""
        stream = account_stream_of(row.stream)
        if event.job_uuid in self.elsewhere.get(stream, ()):
            self._remove(stream, event.job_uuid)
        return stream

    def report_incident(self, row: Row, event: IncidentReported) -> str:
        """Apply an incident; return its account's stream."""
        stream = account_stream(event.miner_ss58, event.executor_class)
        self.add_incident(stream, decided_at_ns(row.recorded_at_ns, event))
        return stream

    def add_incident(self, stream: str, at_ns: int) -> None:
        """Insert an incident of an account."""
        insort(self.incidents.setdefault(stream, array("q")), at_ns)
        insort(self.incident_times, (at_ns, stream))

    def add_job_elsewhere(self, stream: str, job_uuid: str, job: JobElsewhere) -> None:
        """Insert a job that has not been ended."""
        self.elsewhere.setdefault(stream, {})[job_uuid] = job
        for at_ns in job:
            insort(self.boundaries, (at_ns, stream))

    def _forget(self, stream: str, before_ns: int) -> None:
        jobs = self.elsewhere.get(stream, {})
        for job_uuid in [job_uuid for job_uuid, job in jobs.items() if job.ends_at_ns <= before_ns]:
            self._remove(stream, job_uuid)

    def _remove(self, stream: str, job_uuid: str) -> None:
        jobs = self.elsewhere[stream]
        for at_ns in jobs.pop(job_uuid):
            self._remove_boundary(at_ns, stream)
        if not jobs:
            del self.elsewhere[stream]

    def _remove_boundary(self, at_ns: int, name: str) -> None:
        del self.boundaries[bisect_left(self.boundaries, (at_ns, name))]


def _between(times: list[tuple[int, str]], first_ns: int, last_ns: int) -> set[str]:
    return {name for _, name in times[bisect_right(times, (first_ns, _LAST)) : bisect_right(times, (last_ns, _LAST))]}


_LAST = "\U0010ffff"
"""Sorts after every miner and stream."""
