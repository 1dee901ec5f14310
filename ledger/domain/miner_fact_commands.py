"""The commands that record miner facts.

Each returns the position of its event, or that of the first one if it is a repeat. A job elsewhere, its end and an
incident are recorded once. Their rows say for what in the column of the job, whose values are unique with their number:
so the log itself is the index, and the state need not keep all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, TypeVar

import msgspec

from ledger.codec import Row, request_in_key, unknown_outcome_key
from ledger.errors import ConflictingFact, FactNotRecorded, IdempotencyConflict, InvalidInput
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
    account_stream,
    elsewhere_stream,
)
from ledger.values import instant

from .account import NEVER_NS
from .commands import REQUEST_BYTES, look_up_key
from .lookup import Lookup
from .state import LedgerState
from .unit_of_work import UnitOfWork

F = TypeVar("F", bound=MinerFact)


class _RecordMinerFact(ABC):
    """The common part of the commands: a retry with the key returns the first position, if it asks for the same."""

    operation: ClassVar[str]
    # A fold of facts cannot be undone. See `RecordFacts.revertible`.
    revertible = False
    streams: tuple[str, ...] = ()
    stands = False

    def __init__(self, key: str | None) -> None:
        self.key = key

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> int:
        first = unit_of_work.first_outcome(self.key)
        if first is None:
            return self._record(unit_of_work)
        row, event = first
        if not self._is_of(row, event):
            raise IdempotencyConflict(str(self.key), row.position)
        return row.position

    @abstractmethod
    def _record(self, unit_of_work: UnitOfWork) -> int:
        """Append the fact, and return its position, or that of the equal one that the log has."""

    @abstractmethod
    def _is_of(self, row: Row, event: Any) -> bool:
        """Return whether a stored event is of a call with this content."""


class ExcludeMiner(_RecordMinerFact):
    """Exclude a miner; the same exclusion as the one in force is a repeat, another one replaces it."""

    operation = "exclude_miner"

    def __init__(self, miner_ss58: str, reason: str, until_ns: int | None, key: str | None) -> None:
        super().__init__(key)
        self.event = MinerExcluded(miner_ss58=miner_ss58, reason=reason, until_ns=until_ns)

    def _record(self, unit_of_work: UnitOfWork) -> int:
        event = self.event
        in_force = unit_of_work.state.miner_facts.exclusions.get(event.miner_ss58)
        until_ns = NEVER_NS if event.until_ns is None else event.until_ns
        if in_force is not None and (in_force.reason, in_force.until_ns) == (event.reason, until_ns):
            return in_force.position
        if until_ns <= unit_of_work.now_ns:
            raise InvalidInput("until", instant(until_ns), f"a time after {instant(unit_of_work.now_ns)}, or none")
        return unit_of_work.append(EXCLUSIONS_STREAM, event, key=self.key).position

    def _is_of(self, row: Row, event: Any) -> bool:
        return bool(_undated(event) == self.event)


class ReadmitMiner(_RecordMinerFact):
    """End the exclusion of a miner; a repeat if it was readmitted since its last exclusion."""

    operation = "readmit_miner"

    def __init__(self, miner_ss58: str, reason: str, key: str | None) -> None:
        super().__init__(key)
        self.event = MinerReadmitted(miner_ss58=miner_ss58, reason=reason)

    def _record(self, unit_of_work: UnitOfWork) -> int:
        last = unit_of_work.state.miner_facts.exclusions.get(self.event.miner_ss58)
        if last is None:
            raise FactNotRecorded(f"an exclusion of miner {self.event.miner_ss58}")
        if not last.until_ns:
            return last.position
        return unit_of_work.append(EXCLUSIONS_STREAM, self.event, key=self.key).position

    def _is_of(self, row: Row, event: Any) -> bool:
        return bool(_undated(event) == self.event)


class RecordCollateral(_RecordMinerFact):
    """Record miners' collateral; the others keep theirs. A repeat if no amount differs."""

    operation = "record_collateral"

    def __init__(self, wei_by_miner: Mapping[str, int], key: str | None) -> None:
        super().__init__(key)
        self.wei_by_miner = wei_by_miner

    @cached_property
    def request(self) -> str:
        """The digest of the call's amounts."""
        amounts = sorted((miner_ss58, str(wei)) for miner_ss58, wei in self.wei_by_miner.items())
        return blake2b(msgspec.json.encode(amounts), digest_size=REQUEST_BYTES).hexdigest()

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row, self.request)

    def _record(self, unit_of_work: UnitOfWork) -> int:
        recorded = unit_of_work.state.miner_facts.collateral
        changed = {
            miner_ss58: wei
            for miner_ss58, wei in sorted(self.wei_by_miner.items())
            if miner_ss58 not in recorded or recorded[miner_ss58].wei != wei
        }
        if not changed:
            return max(recorded[miner_ss58].position for miner_ss58 in self.wei_by_miner)
        event = CollateralRecorded(changed=changed, request="" if self.key is None else self.request)
        return unit_of_work.append(COLLATERAL_STREAM, event, key=self.key).position

    def _is_of(self, row: Row, event: Any) -> bool:
        if not isinstance(event, CollateralRecorded):
            return False
        # The key may also be that of an unknown outcome, which has the request of a call without a key.
        return self.request == (event.request if row.key == self.key else request_in_key(str(self.key)))


class _RecordOnce(_RecordMinerFact):
    """A fact that is recorded once: the column of the job in its row names it."""

    once: str
    """The subject of the fact. It contains a tab, so it is never the uuid of a job of this ledger."""

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        super().add_lookups(state, lookup)
        lookup.jobs.add(self.once)


class RecordJobElsewhere(_RecordOnce):
    """Record a job of another validator; another content for its uuid is refused."""

    operation = "record_job_elsewhere"

    def __init__(
        self, miner_ss58: str, executor_class: str, job_uuid: str, started_at_ns: int, ttl_ns: int, key: str | None
    ) -> None:
        super().__init__(key)
        self.stream = elsewhere_stream(account_stream(miner_ss58, executor_class))
        self.event = JobElsewhereRecorded(job_uuid=job_uuid, started_at_ns=started_at_ns, ttl_ns=ttl_ns)
        self.once = once_elsewhere(job_uuid)

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        super().add_lookups(state, lookup)
        lookup.jobs.add(once_ended(self.event.job_uuid))

    def _record(self, unit_of_work: UnitOfWork) -> int:
        first = unit_of_work.once(self.once)
        if first is None:
            ended = unit_of_work.once(once_ended(self.event.job_uuid)) is not None
            appended = msgspec.structs.replace(self.event, ended=ended)
            return unit_of_work.append_once(self.stream, appended, self.once, self.key).position
        row, event = first
        if not self._is_of(row, event):
            recorded, given = _elsewhere_fields(row.stream, event), _elsewhere_fields(self.stream, self.event)
            raise ConflictingFact(f"job elsewhere {self.event.job_uuid}", row.position, _different(recorded, given))
        return row.position

    def _is_of(self, row: Row, event: Any) -> bool:
        return (
            isinstance(event, JobElsewhereRecorded)
            and row.stream == self.stream
            and msgspec.structs.replace(event, decided_at_ns=None, ended=False) == self.event
        )


class EndJobElsewhere(_RecordOnce):
    """End a job of another validator, for good; a later call is a repeat. The job need not be known yet."""

    operation = "end_job_elsewhere"

    def __init__(self, job_uuid: str, key: str | None) -> None:
        super().__init__(key)
        self.event = JobElsewhereEnded(job_uuid=job_uuid)
        self.once = once_ended(job_uuid)

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        super().add_lookups(state, lookup)
        lookup.jobs.add(once_elsewhere(self.event.job_uuid))

    def _record(self, unit_of_work: UnitOfWork) -> int:
        first = unit_of_work.once(self.once)
        if first is not None:
            return first[0].position
        recorded = unit_of_work.once(once_elsewhere(self.event.job_uuid))
        stream = ELSEWHERE_STREAM if recorded is None else recorded[0].stream
        return unit_of_work.append_once(stream, self.event, self.once, self.key).position

    def _is_of(self, row: Row, event: Any) -> bool:
        return bool(_undated(event) == self.event)


class ReportIncident(_RecordOnce):
    """Report an incident; a different one of the same job and miner is refused."""

    operation = "report_incident"

    def __init__(self, miner_ss58: str, executor_class: str, kind: str, job_uuid: str, key: str | None) -> None:
        super().__init__(key)
        self.event = IncidentReported(
            miner_ss58=miner_ss58, executor_class=executor_class, kind=kind, job_uuid=job_uuid
        )
        self.once = once_incident(miner_ss58, job_uuid)

    def _record(self, unit_of_work: UnitOfWork) -> int:
        first = unit_of_work.once(self.once)
        if first is None:
            return unit_of_work.append_once(INCIDENTS_STREAM, self.event, self.once, self.key).position
        row, event = first
        if not self._is_of(row, event):
            fields = ("executor_class", "kind")
            recorded, given = ({field: getattr(each, field) for field in fields} for each in (event, self.event))
            title = f"the incident of job {self.event.job_uuid} on miner {self.event.miner_ss58}"
            raise ConflictingFact(title, row.position, _different(recorded, given))
        return row.position

    def _is_of(self, row: Row, event: Any) -> bool:
        return bool(_undated(event) == self.event)


def once_elsewhere(job_uuid: str) -> str:
    """Return what a job elsewhere has in the column of the job. It is stored, so it never changes."""
    return f"elsewhere\t{job_uuid}"


def once_ended(job_uuid: str) -> str:
    """Return what the end of a job elsewhere has in the column of the job."""
    return f"ended elsewhere\t{job_uuid}"


def once_incident(miner_ss58: str, job_uuid: str) -> str:
    """Return what an incident has in the column of the job."""
    return f"incident\t{miner_ss58}\t{job_uuid}"


def _undated(event: F) -> F:
    """Return the event without its clock, which is no part of what a call asks for."""
    return msgspec.structs.replace(event, decided_at_ns=None)


def _elsewhere_fields(stream: str, event: Any) -> dict[str, object]:
    _, miner_ss58, executor_class = stream.split("\t")
    return {
        "miner_ss58": miner_ss58,
        "executor_class": executor_class,
        "started_at": instant(event.started_at_ns).isoformat(),
        "ttl_seconds": event.ttl_ns / 10**9,
    }


def _different(recorded: Mapping[str, object], given: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    return {field: (recorded[field], given[field]) for field in recorded if recorded[field] != given[field]}
