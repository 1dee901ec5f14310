"""Every error that reaches a caller, in one tree.

    AllowanceException                      the ledger says no, or cannot say
    ├── InvalidInput                        malformed input (also a ValueError)
    ├── NotEnoughAllowanceException         no miner has that much to spare
    ├── CannotReserveAllowanceException     this account has not that much to spare
    ├── ReservationNotFound                 no such reservation in this ledger
    │   ├── ReservationAlreadyReleased      it was given back
    │   └── ReservationExpired              its time ran out and the log says so
    ├── ReservationAlreadySpent             it was spent
    ├── IdempotencyConflict                 the key stands for another request
    ├── ConflictingFact                     the chain fact contradicts a recorded one
    ├── ImplausibleFact                     the chain fact needs `confirm=True`
    ├── PositionOutOfRange                  a past that this ledger does not have
    ├── TimeOutOfRange                      a receipt's time that no recorded block covers
    ├── LedgerExists                        a restore into a database that has another log of this validator
    ├── DamagedExport                       the file is not what was exported
    ├── LedgerNotFound                      nothing to read for this validator
    ├── ReadOnlyLedger                      a change asked of a read-only ledger
    ├── LedgerClosed                        used after it was closed
    ├── LedgerOverloaded                    the queue of changes is full
    ├── NewerLedger                         schema or events from a newer release
    ├── CorruptLedger                       stored bytes are not what was written
    ├── ProjectionStopped                   an event that the history cannot take
    ├── RebuildOvertaken                    another rebuild has begun meanwhile
    ├── OutcomeUnknown                      the answer to a commit was lost; carries the key
    └── StorageUnavailable                  the database cannot be used now
    JobRoutingException                     the job cannot be routed now
    ├── AllMinersBusy                       there were candidates, none could be claimed
    ├── JobAlreadySpent                     this job has run and was paid
    ├── JobRequestConflict                  this uuid stands for another request
    └── ChainFeedStale                      the newest block is too old to route on

An error writes its own message and keeps what it says in fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

__all__ = [
    "AllMinersBusy",
    "AllowanceException",
    "CannotReserveAllowanceException",
    "ChainFeedStale",
    "ConflictingFact",
    "CorruptLedger",
    "DamagedExport",
    "IdempotencyConflict",
    "ImplausibleFact",
    "InvalidInput",
    "JobAlreadySpent",
    "JobRequestConflict",
    "JobRoutingException",
    "LedgerClosed",
    "LedgerExists",
    "LedgerNotFound",
    "LedgerOverloaded",
    "NewerLedger",
    "NotEnoughAllowanceException",
    "OutcomeUnknown",
    "PositionOutOfRange",
    "ProjectionStopped",
    "ReadOnlyLedger",
    "RebuildOvertaken",
    "ReservationAlreadyReleased",
    "ReservationAlreadySpent",
    "ReservationExpired",
    "ReservationNotFound",
    "StorageUnavailable",
    "TimeOutOfRange",
]


class _LedgerError(Exception):
    """What both branches share: fields that can be listed, and that survive the way through a task queue."""

    def to_dict(self) -> dict[str, Any]:
        """The error's fields by name, ready for JSON but for datetimes."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as message and fields: what an error is made from is not what it keeps."""
        return _unpickle, (type(self), self.args, vars(self).copy())


class AllowanceException(_LedgerError):
    """The ledger refuses, or cannot answer."""


class JobRoutingException(_LedgerError):
    """The job cannot be routed now."""


class InvalidInput(AllowanceException, ValueError):
    """A value that cannot be taken; `field` names it, `expected` says what would be right."""

    def __init__(self, field: str, value: object, expected: str, message: str | None = None) -> None:
        self.field = field
        self.value = shortened(value)
        self.expected = expected
        self.fact_index = 0
        super().__init__(message or f"{field}: {self.value} cannot be taken; expected {expected}")

    def named(self, field: str) -> InvalidInput:
        """The same refusal, of a value that was given under another name."""
        message = f"{field}: {self.value} cannot be taken; expected {self.expected}"
        renamed = InvalidInput(field, None, self.expected, message)
        renamed.value = self.value
        return renamed


class NotEnoughAllowanceException(AllowanceException):
    """No registered miner of the class has the amount to spare; says who comes nearest, in seconds."""

    def __init__(
        self,
        highest_available_allowance: float,
        highest_available_allowance_ss58: str,
        highest_unspent_allowance: float,
        highest_unspent_allowance_ss58: str,
    ) -> None:
        self.highest_available_allowance = highest_available_allowance
        self.highest_available_allowance_ss58 = highest_available_allowance_ss58
        self.highest_unspent_allowance = highest_unspent_allowance
        self.highest_unspent_allowance_ss58 = highest_unspent_allowance_ss58
        super().__init__(
            f"no miner has enough allowance: most available is {highest_available_allowance} s"
            f" ({highest_available_allowance_ss58 or 'nobody'}), most unspent is"
            f" {highest_unspent_allowance} s ({highest_unspent_allowance_ss58 or 'nobody'})"
        )


class CannotReserveAllowanceException(AllowanceException):
    """The account's free blocks do not add up to the amount; nothing changed."""

    def __init__(self, miner: str, required_allowance_seconds: float, available_allowance_seconds: float) -> None:
        self.miner = miner
        self.required_allowance_seconds = required_allowance_seconds
        self.available_allowance_seconds = available_allowance_seconds
        super().__init__(
            f"cannot reserve {required_allowance_seconds} s on {miner}: {available_allowance_seconds} s are available"
        )


class ReservationNotFound(AllowanceException):
    """No reservation that could be meant is in this ledger."""

    def __init__(self, reservation_id: object, message: str | None = None) -> None:
        self.reservation_id = reservation_id
        super().__init__(message or f"reservation {shortened(reservation_id)} is not in this ledger")


class ReservationAlreadyReleased(ReservationNotFound):
    """The reservation was released before."""

    def __init__(self, reservation_id: int, settled_at: datetime) -> None:
        self.settled_at = settled_at
        super().__init__(reservation_id, f"reservation {reservation_id} was released at {settled_at}")


class ReservationExpired(ReservationNotFound):
    """The reservation's time ran out and its expiry is in the log."""

    def __init__(self, reservation_id: int, settled_at: datetime) -> None:
        self.settled_at = settled_at
        super().__init__(reservation_id, f"reservation {reservation_id} expired at {settled_at}")


class ReservationAlreadySpent(AllowanceException):
    """The reservation was spent before."""

    def __init__(self, reservation_id: int, settled_at: datetime) -> None:
        self.reservation_id = reservation_id
        self.settled_at = settled_at
        super().__init__(f"reservation {reservation_id} was spent at {settled_at}")


class IdempotencyConflict(AllowanceException):
    """The idempotency key was used before, for a request with other content."""

    def __init__(self, idempotency_key: str, first_position: int) -> None:
        self.idempotency_key = idempotency_key
        self.first_position = first_position
        super().__init__(
            f"idempotency key {shortened(idempotency_key)} was used for another request"
            f" (position {first_position}); take a new key for a new request"
        )


class ConflictingFact(AllowanceException):
    """The fact contradicts one that is recorded; `differences` says in what."""

    def __init__(self, fact: str, recorded_position: int | None, differences: dict[str, Any]) -> None:
        self.fact = fact
        self.recorded_position = recorded_position
        self.fact_index = 0
        self.describe(differences)

    def describe(self, differences: dict[str, Any]) -> None:
        """Says in what the fact differs: (recorded, given) by name."""
        self.differences = differences
        shown = dict(list(differences.items())[:5])
        more = f" and {len(differences) - len(shown)} more" if len(differences) > len(shown) else ""
        where = f" at position {self.recorded_position}" if self.recorded_position else ""
        self.args = (f"{self.fact} contradicts what is recorded{where}: {shown}{more}",)


class ImplausibleFact(AllowanceException):
    """The fact is likely a mistake; `confirm=True` records it all the same."""

    def __init__(self, fact: str, reason: str) -> None:
        self.fact = fact
        self.reason = reason
        self.fact_index = 0
        super().__init__(f"{fact} is implausible: {reason}; pass confirm=True if it is right")


class PositionOutOfRange(AllowanceException):
    """The asked-for moment lies outside of what the log holds, `first` to `last`; None where that end is open."""

    def __init__(self, asked: str, first: object, last: object) -> None:
        self.asked = asked
        self.first = first
        self.last = last
        if first is None and last is None:
            held = "nothing is recorded yet"
        elif last is None:
            held = f"the first recorded is {first}"
        elif first is None:
            held = f"the last recorded is {last}"
        else:
            held = f"the ledger holds {first} to {last}"
        super().__init__(f"{asked} is out of range: {held}")


class TimeOutOfRange(AllowanceException):
    """A time before the first known block, or at or after the last one."""

    def __init__(self, asked: datetime, first: datetime | None, last: datetime | None) -> None:
        self.asked = asked
        self.first = first
        self.last = last
        known = "of which there are none yet" if first is None else f"which run from {first} to {last}"
        super().__init__(f"{asked} is not covered by the known blocks, {known}")


class LedgerNotFound(AllowanceException):
    """The database holds no ledger of this validator."""

    def __init__(self, validator_ss58: str) -> None:
        self.validator_ss58 = validator_ss58
        super().__init__(f"there is no ledger of {validator_ss58} here")


class LedgerExists(AllowanceException):
    """The database holds another log of this validator; nothing was restored."""

    def __init__(self, validator_ss58: str, position: int) -> None:
        self.validator_ss58 = validator_ss58
        self.position = position
        super().__init__(
            f"the database has another log of {validator_ss58}, which stands at position {position};"
            " restore into one that has none, or that has the beginning of the log to restore"
        )


class DamagedExport(AllowanceException):
    """The file is not what was exported; `position` is the first event that is wrong or missing."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"the export is damaged at position {position}: {reason}")


class ReadOnlyLedger(AllowanceException):
    """A change was asked of a ledger that was opened read-only, or of a view of the past."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"{operation}: this ledger is open for reading only")


class LedgerClosed(AllowanceException):
    """The ledger was closed; open it again."""

    def __init__(self, reason: str = "the ledger is closed; open it again") -> None:
        self.reason = reason
        super().__init__(reason)


class LedgerOverloaded(AllowanceException):
    """More changes wait than the queue takes; nothing of this one was done."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        super().__init__(f"{waiting} changes wait already; try again later, nothing was done")


class NewerLedger(AllowanceException):
    """The database was written by a newer release; this one reads and writes nothing in it."""

    def __init__(self, what: str, found: object, supported: object) -> None:
        self.what = what
        self.found = found
        self.supported = supported
        super().__init__(
            f"{what} {found} is newer than this release understands ({supported}); upgrade allowance-ledger"
        )


class CorruptLedger(AllowanceException):
    """Stored rows are not what was written; `position` is the first that is wrong."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"the log is damaged at position {position}: {reason}")


class ProjectionStopped(AllowanceException):
    """The history stands before an event that it cannot take; nothing is skipped, so it goes no further."""

    def __init__(self, position: int, event_type: str, reason: str) -> None:
        self.position = position
        self.event_type = event_type
        self.reason = reason
        super().__init__(
            f"the history stopped before position {position}, {event_type}: {reason}."
            " `allowance verify` names the first event that is not what was written"
        )


class RebuildOvertaken(AllowanceException):
    """Another rebuild of the same ledger has begun meanwhile; this one was given up and changed nothing."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(f"another rebuild has begun while this one was at position {position}; that one goes on")


class OutcomeUnknown(AllowanceException):
    """Whether the change was made could not be found out; the same call with this key tells."""

    def __init__(self, idempotency_key: str, operation: str) -> None:
        self.idempotency_key = idempotency_key
        self.operation = operation
        super().__init__(
            f"whether {operation} was done is unknown: the answer was lost."
            f" The same call with the key {idempotency_key!r} tells, and does it once at the most"
        )


class StorageUnavailable(AllowanceException):
    """The database cannot be used now; what was asked for was not done."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the database cannot be used now: {reason}")


class AllMinersBusy(JobRoutingException):
    """Miners had the allowance, but none could be claimed."""

    def __init__(self, job_uuid: str, busy: int, lost: int) -> None:
        self.job_uuid = job_uuid
        self.busy = busy
        self.lost = lost
        super().__init__(f"all miners are busy for job {job_uuid}: {busy} run at capacity, {lost} were lost")


class JobAlreadySpent(JobRoutingException):
    """The job's reservation was spent; a job is paid once."""

    def __init__(self, job_uuid: str, reservation_id: int, settled_at: datetime) -> None:
        self.job_uuid = job_uuid
        self.reservation_id = reservation_id
        self.settled_at = settled_at
        super().__init__(f"job {job_uuid} was spent at {settled_at} (reservation {reservation_id})")


class JobRequestConflict(JobRoutingException):
    """The job's uuid holds a reservation for a request with other content."""

    def __init__(self, job_uuid: str, reservation_id: int, differences: dict[str, Any]) -> None:
        self.job_uuid = job_uuid
        self.reservation_id = reservation_id
        self.differences = differences
        super().__init__(f"job {job_uuid} holds reservation {reservation_id} for another request: {differences}")


class ChainFeedStale(JobRoutingException):
    """The newest block is older than `newest_block_max_age_seconds`."""

    def __init__(self, newest_block: int, age_seconds: float, max_age_seconds: float) -> None:
        self.newest_block = newest_block
        self.age_seconds = age_seconds
        self.max_age_seconds = max_age_seconds
        super().__init__(
            f"the newest block {newest_block} is {age_seconds:.1f} s old, more than {max_age_seconds} s;"
            " record the chain's blocks before routing"
        )


def _unpickle(kind: type[_LedgerError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> _LedgerError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(fields)
    return error


LONGEST_SHOWN = 120
MOST_BITS_SHOWN = 256


def shortened(value: object, limit: int = LONGEST_SHOWN) -> str:
    """`repr(value)` cut to `limit` characters, so that a hostile value cannot flood a log."""
    if isinstance(value, (str, bytes)) and len(value) > limit:
        return f"{value[:limit]!r}… ({len(value)} long)"
    if isinstance(value, int) and value.bit_length() > MOST_BITS_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


@contextmanager
def renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Inside, a refusal of one of these fields goes by the name under which its value was given."""
    try:
        yield
    except InvalidInput as refused:
        if refused.field not in names:
            raise
        raise refused.named(names[refused.field]) from None
