"""Miner facts: exclusions, collateral, jobs elsewhere and incidents, each with possible values, in its row, and once.

Rules: an exclusion ends later than it was decided, and differs from the one in force; only an excluded miner is
readmitted; an event of collateral names only amounts that differ. A job elsewhere, its end, and an incident of a job
and miner are recorded once, and the column of the job says of what. An end is final: the job is then recorded as ended.
"""

from __future__ import annotations

from collections.abc import Iterator

from ledger import Row
from ledger.errors import shortened
from ledger.events import (
    COLLATERAL_STREAM,
    ELSEWHERE_STREAM,
    EXCLUSIONS_STREAM,
    INCIDENTS_STREAM,
    CollateralRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    MinerExcluded,
    MinerFact,
    MinerReadmitted,
)
from projections.audit.miner_facts import NEVER_NS, AuditMinerFacts
from projections.rules import Findings, Rule

from .facts import LARGEST, LONGEST_REASON, is_name

# The same limits as the ledger's, repeated here so that a mistake there is found.
MOST_WEI = 2**127
LONGEST_TTL_NS = 100 * 86_400 * 10**9
OF_AN_ACCOUNT = "jobs-elsewhere, a miner and a class"
KINDS = {"rejected", "failed", "horde_failed"}


class MinerFactCheck:
    """Checks miner facts, then applies them to the audit's own, right or wrong."""

    def __init__(self, facts: AuditMinerFacts, findings: Findings) -> None:
        self._facts = facts
        self._findings = findings
        self._once: dict[str, str] = {}
        """The streams of the rows of what is recorded once, by what their column of the job must be."""
        self.knows_all = True
        """Whether the replay began at the first event, so that all that was recorded once is known."""

    def process(self, row: Row, event: MinerFact, now_ns: int) -> None:
        """Check and apply an event that was decided by the clock `now_ns`."""
        self._check_row(row, event)
        impossible = list(_impossible(event))
        if impossible:
            message = f"the miner fact has an impossible value: {impossible[0]}"
            self._findings.add(row.position, Rule.MINER_FACTS_FOLLOW, message, impossible=impossible)
        self._check_follows(row, event, now_ns)
        self._facts.apply(row, event, now_ns)

    # The row

    def _check_row(self, row: Row, event: MinerFact) -> None:
        once = _once(event)
        if (row.job_uuid, row.attempt) != ((once, 1) if once else (None, None)) or row.settles is not None:
            message = "the row of a miner fact must say in the column of the job what is recorded once, or nothing"
            details = {"job_uuid": shortened(row.job_uuid), "attempt": row.attempt, "expected": shortened(once)}
            self._findings.add(row.position, Rule.ROW_COLUMNS, message, **details)
        if isinstance(event, CollateralRecorded) and row.key is not None and not event.request:
            message = "an event of collateral with a key must have the digest of its call"
            self._findings.add(row.position, Rule.ROW_COLUMNS, message)
        expected = self._expected_stream(row, event)
        if not _is_elsewhere(row.stream) if expected == OF_AN_ACCOUNT else row.stream != expected:
            message = f"a miner fact is in the stream {shortened(row.stream)}"
            self._findings.add(row.position, Rule.STREAM_OF_EVENT, message, expected=expected)
        if once:
            self._check_once(row, once)

    def _check_once(self, row: Row, once: str) -> None:
        if once in self._once:
            message = "the same job elsewhere, end or incident was recorded before"
            self._findings.add(row.position, Rule.MINER_FACTS_ONCE, message, once=shortened(once))
        self._once.setdefault(once, row.stream)

    def _expected_stream(self, row: Row, event: MinerFact) -> str:
        """Return the stream in which the event must be, or `OF_AN_ACCOUNT`."""
        match event:
            case MinerExcluded() | MinerReadmitted():
                return EXCLUSIONS_STREAM
            case CollateralRecorded():
                return COLLATERAL_STREAM
            case IncidentReported():
                return INCIDENTS_STREAM
            case JobElsewhereEnded():
                # From a seal on, an unknown job may have been recorded before.
                may_be_known = not self.knows_all and row.stream != ELSEWHERE_STREAM
                unknown = OF_AN_ACCOUNT if may_be_known else ELSEWHERE_STREAM
                return self._once.get(once_elsewhere(event.job_uuid), unknown)
            case _:
                return OF_AN_ACCOUNT

    # What follows from the facts before it

    def _check_follows(self, row: Row, event: MinerFact, now_ns: int) -> None:
        match event:
            case MinerExcluded():
                self._check_exclusion(row.position, event, now_ns)
            case MinerReadmitted():
                newest = self._facts.exclusions.get(event.miner_ss58)
                if newest is None or not newest.until_ns:
                    self._report(row.position, "a miner is readmitted that is not excluded", event.miner_ss58)
            case CollateralRecorded():
                before = self._facts.collateral
                for miner_ss58, wei in event.changed.items():
                    if miner_ss58 in before and before[miner_ss58].wei == wei:
                        self._report(row.position, "the amount is named although it is as before", miner_ss58)
            case JobElsewhereRecorded():
                has_ended = once_ended(event.job_uuid) in self._once
                if has_ended != event.ended and (has_ended or self.knows_all):
                    message = "a job elsewhere is recorded as ended exactly if its end was recorded before"
                    self._report(row.position, message, event.job_uuid)

    def _check_exclusion(self, position: int, event: MinerExcluded, now_ns: int) -> None:
        in_force = self._facts.exclusions.get(event.miner_ss58)
        until_ns = NEVER_NS if event.until_ns is None else event.until_ns
        if in_force is not None and (in_force.reason, in_force.until_ns) == (event.reason, until_ns):
            self._report(position, "the exclusion is the same as the one in force", event.miner_ss58)
        if until_ns <= now_ns:
            self._report(position, "the exclusion ends before it begins", event.miner_ss58)

    def _report(self, position: int, message: str, name: str) -> None:
        self._findings.add(position, Rule.MINER_FACTS_FOLLOW, f"{message}: {shortened(name)}")


def once_elsewhere(job_uuid: str) -> str:
    """Return the column of the job in the row of a job elsewhere."""
    return "elsewhere\t" + job_uuid


def once_ended(job_uuid: str) -> str:
    """Return the column of the job in the row of its end."""
    return "ended elsewhere\t" + job_uuid


def _once(event: MinerFact) -> str:
    match event:
        case JobElsewhereRecorded():
            return once_elsewhere(event.job_uuid)
        case JobElsewhereEnded():
            return once_ended(event.job_uuid)
        case IncidentReported():
            return f"incident\t{event.miner_ss58}\t{event.job_uuid}"
        case _:
            return ""


def _is_elsewhere(stream: str) -> bool:
    """Return whether a stream is that of the jobs elsewhere of an account."""
    match stream.split("\t"):
        case [kind, miner_ss58, executor_class]:
            return kind == ELSEWHERE_STREAM and is_name(miner_ss58) and is_name(executor_class)
    return False


def _impossible(event: MinerFact) -> Iterator[str]:
    """Yield the values that no call could have given."""
    match event:
        case MinerExcluded() | MinerReadmitted():
            yield from _impossible_names(event.miner_ss58)
            if not is_name(event.reason, LONGEST_REASON):
                yield f"the reason {shortened(event.reason)}"
            if isinstance(event, MinerExcluded) and not 0 <= (event.until_ns or 0) <= LARGEST:
                yield f"an end at {shortened(event.until_ns)} ns"
        case CollateralRecorded():
            yield from _impossible_names(*event.changed)
            yield from (f"{shortened(wei)} wei" for wei in event.changed.values() if not 0 <= wei <= MOST_WEI)
            if not event.changed:
                yield "no amount"
        case JobElsewhereRecorded():
            yield from _impossible_names(event.job_uuid)
            if not 0 <= event.started_at_ns <= LARGEST or not 0 < event.ttl_ns <= LONGEST_TTL_NS:
                yield f"a job from {shortened(event.started_at_ns)} ns for {shortened(event.ttl_ns)} ns"
        case JobElsewhereEnded():
            yield from _impossible_names(event.job_uuid)
        case IncidentReported():
            yield from _impossible_names(event.miner_ss58, event.executor_class, event.job_uuid)
            if event.kind not in KINDS:
                yield f"an incident of the kind {shortened(event.kind)}"


def _impossible_names(*names: str) -> Iterator[str]:
    return (f"the name {shortened(name)}" for name in names if not is_name(name))
