"""Every error that reaches a caller, in one tree.

    AllowanceException                      The ledger refuses the call, or cannot answer it.
    ├── InvalidInput                        The input is malformed (also a ValueError).
    ├── NotEnoughAllowanceException         No miner has the amount available.
    ├── CannotReserveAllowanceException     The account does not have the amount available.
    ├── CannotImportReservation             Blocks of another system's reservation are not granted here, or are taken.
    ├── ReservationNotFound                 This ledger has no such reservation.
    │   ├── ReservationAlreadyReleased      The reservation was released before.
    │   └── ReservationExpired              The log records that the reservation expired.
    ├── ReservationAlreadySpent             The reservation was spent before.
    ├── StreamVersionConflict               A stream has moved since the caller read its version.
    ├── IdempotencyConflict                 The idempotency key was used for another request.
    ├── ConflictingFact                     The chain fact contradicts a recorded one.
    ├── ImplausibleFact                     The chain fact is refused without `confirm=True`.
    ├── FactNotRecorded                     No such fact is recorded, so none can be withdrawn.
    ├── BlockInUse                          A reservation holds the block that is to be withdrawn.
    ├── PositionOutOfRange                  The ledger does not contain the requested moment.
    ├── BlockNotFinalized                   The block grants nothing yet: it or its successor is not recorded.
    ├── TimeOutOfRange                      No recorded block covers the receipt's time.
    ├── JobOutOfBounds                      The receipt's job starts outside the bookkeeper's blocks.
    ├── BadReceiptSignature                 A hotkey that the receipt names has not signed it.
    ├── ClockUnusable                       The clock raised, or its reading is no time of this age.
    ├── LedgerExists                        The target of a restore has another log of this validator.
    ├── DamagedExport                       The file differs from the one that was exported.
    ├── LedgerNotFound                      The database has no ledger of this validator.
    ├── ReadOnlyLedger                      A read-only ledger refuses changes.
    ├── LedgerClosed                        The ledger was closed before this call.
    ├── LedgerOverloaded                    The queue of changes is full.
    ├── NewerLedger                         A newer release wrote this schema or event.
    ├── CorruptLedger                       Stored bytes differ from the ones that were written.
    │   └── SealConflict                    The log's seal and this process's state differ.
    ├── ProjectionStopped                   The history projector cannot apply an event.
    ├── HistoryDamaged                      A row of the history's read model differs from the log.
    ├── RebuildOvertaken                    Another rebuild started meanwhile.
    ├── OutcomeUnknown                      The answer to a commit was lost; the error carries the key.
    └── StorageUnavailable                  The database cannot be used now.
        └── LogWentBack                     The stored log has lost what this process has acknowledged.
    JobRoutingException                     The job cannot be routed now.
    ├── AllMinersBusy                       There were candidates, but none could be claimed.
    ├── NotEnoughCollateralException        Some miners had the allowance, but none of them the collateral.
    ├── JobAlreadySpent                     The job ran, and its reservation was spent.
    ├── JobRequestConflict                  The job's uuid belongs to another request.
    ├── ChainFeedStale                      The newest block is too old to route on.
    └── ManifestsStale                      The newest manifest sync is too old to route on.

Each error builds its own message from its fields, so callers and tests can read the fields instead of the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

__all__ = [
    "AllMinersBusy",
    "AllowanceException",
    "BadReceiptSignature",
    "BlockInUse",
    "BlockNotFinalized",
    "CannotImportReservation",
    "CannotReserveAllowanceException",
    "ChainFeedStale",
    "ClockUnusable",
    "ConflictingFact",
    "CorruptLedger",
    "DamagedExport",
    "FactNotRecorded",
    "HistoryDamaged",
    "IdempotencyConflict",
    "ImplausibleFact",
    "InvalidInput",
    "JobAlreadySpent",
    "JobOutOfBounds",
    "JobRequestConflict",
    "JobRoutingException",
    "LedgerClosed",
    "LedgerExists",
    "LedgerNotFound",
    "LedgerOverloaded",
    "LogWentBack",
    "ManifestsStale",
    "NewerLedger",
    "NotEnoughAllowanceException",
    "NotEnoughCollateralException",
    "OutcomeUnknown",
    "PositionOutOfRange",
    "ProjectionStopped",
    "ReadOnlyLedger",
    "RebuildOvertaken",
    "ReservationAlreadyReleased",
    "ReservationAlreadySpent",
    "ReservationExpired",
    "ReservationNotFound",
    "SealConflict",
    "StorageUnavailable",
    "StreamVersionConflict",
    "TimeOutOfRange",
]


class _LedgerError(Exception):
    """The base of both branches: its fields can be listed, and they survive pickling in a task queue."""

    def to_dict(self) -> dict[str, Any]:
        """Return the error's fields by name; all values but datetimes are ready for JSON."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __reduce__(self) -> tuple[Any, ...]:
        # Python's default calls the class with `args`, which is the message alone; these classes expect fields.
        return _unpickle, (type(self), self.args, vars(self).copy())


class AllowanceException(_LedgerError):
    """The ledger refuses the call, or cannot answer it."""


class JobRoutingException(_LedgerError):
    """The job cannot be routed now."""


class InvalidInput(AllowanceException, ValueError):
    """A value is malformed; `field` names it, `expected` completes the sentence "FIELD must be …".

    `fact_index` is the index of the malformed fact in a call that records several.
    """

    def __init__(self, field: str, value: object, expected: str, message: str | None = None) -> None:
        self.field = field
        self.value = shortened(value)
        self.expected = expected
        self.fact_index = 0
        super().__init__(message or self._message())

    def named(self, field: str) -> InvalidInput:
        """Return the same error for a value that the caller gave under another name, such as an option's."""
        renamed = InvalidInput(field, None, self.expected)
        # Set afterwards, since `self.value` is a repr already and would be quoted a second time.
        renamed.value = self.value
        renamed.args = (renamed._message(),)
        return renamed

    def _message(self) -> str:
        return f"{self.field} must be {self.expected}, got {self.value}"


class NotEnoughAllowanceException(AllowanceException):
    """No registered miner of the class has the amount available.

    The fields name the miner with the most available and the one with the most unspent allowance, in seconds.
    """

    def __init__(
        self,
        highest_available_allowance: float,
        highest_available_allowance_ss58: str,
        highest_unspent_allowance: float,
        highest_unspent_allowance_ss58: str,
        wanted: str = "enough allowance",
    ) -> None:
        """`wanted` names the amount and the class in the message; it is no field."""
        self.highest_available_allowance = highest_available_allowance
        self.highest_available_allowance_ss58 = highest_available_allowance_ss58
        self.highest_unspent_allowance = highest_unspent_allowance
        self.highest_unspent_allowance_ss58 = highest_unspent_allowance_ss58
        super().__init__(
            f"no miner has {wanted}: most available is {highest_available_allowance} s"
            f" ({highest_available_allowance_ss58 or 'nobody'}), most unspent is"
            f" {highest_unspent_allowance} s ({highest_unspent_allowance_ss58 or 'nobody'})"
        )


class CannotReserveAllowanceException(AllowanceException):
    """The account's free blocks sum to less than the amount; nothing changed."""

    def __init__(self, miner: str, required_allowance_seconds: float, available_allowance_seconds: float) -> None:
        self.miner = miner
        self.required_allowance_seconds = required_allowance_seconds
        self.available_allowance_seconds = available_allowance_seconds
        super().__init__(
            f"cannot reserve {required_allowance_seconds} s on {miner}: {available_allowance_seconds} s are available"
        )


class CannotImportReservation(AllowanceException):
    """Some blocks of the other system's reservation grant nothing here, or are taken; nothing changed.

    `not_granted` and `taken` are runs of blocks, (first, last).
    """

    def __init__(
        self,
        miner_ss58: str,
        executor_class: str,
        not_granted: list[tuple[int, int]],
        taken: list[tuple[int, int]],
    ) -> None:
        self.miner_ss58 = miner_ss58
        self.executor_class = executor_class
        self.not_granted = not_granted
        self.taken = taken
        reasons = [
            f"{reason}: {_runs_text(runs)}" for reason, runs in (("not granted", not_granted), ("taken", taken)) if runs
        ]
        super().__init__(
            f"the reservation on {miner_ss58} in {executor_class} cannot be imported; blocks {'; '.join(reasons)}"
        )


class ReservationNotFound(AllowanceException):
    """This ledger has no such reservation; the subclasses say that it was settled without being spent."""

    def __init__(self, reservation_id: object, message: str | None = None) -> None:
        self.reservation_id = reservation_id
        super().__init__(message or f"reservation {shortened(reservation_id)} is not in this ledger")


class ReservationAlreadyReleased(ReservationNotFound):
    """The reservation was released before."""

    def __init__(self, reservation_id: int, settled_at: datetime) -> None:
        self.settled_at = settled_at
        super().__init__(reservation_id, f"reservation {reservation_id} was released at {settled_at}")


class ReservationExpired(ReservationNotFound):
    """The reservation became overdue, and the log records its expiry."""

    def __init__(self, reservation_id: int, settled_at: datetime) -> None:
        self.settled_at = settled_at
        super().__init__(reservation_id, f"reservation {reservation_id} expired at {settled_at}")


class ReservationAlreadySpent(AllowanceException):
    """The reservation was spent before."""

    def __init__(self, reservation_id: int, settled_at: datetime) -> None:
        self.reservation_id = reservation_id
        self.settled_at = settled_at
        super().__init__(f"reservation {reservation_id} was spent at {settled_at}")


class StreamVersionConflict(AllowanceException):
    """A stream has moved since the caller read its version; nothing was recorded. Look again, and decide anew.

    `stream` is the stream's name: of an account, the miner and the executor class with a tab between them.
    """

    def __init__(self, stream: str, expected_version: int, actual_version: int) -> None:
        self.stream = stream
        self.expected_version = expected_version
        self.actual_version = actual_version
        super().__init__(f"stream {stream!r} is at version {actual_version}, expected {expected_version}")


class IdempotencyConflict(AllowanceException):
    """The idempotency key was used before, for a request with other content."""

    def __init__(self, idempotency_key: str, first_position: int) -> None:
        self.idempotency_key = idempotency_key
        self.first_position = first_position
        super().__init__(
            f"idempotency key {shortened(idempotency_key)} was used for another request"
            f" (position {first_position}); use a new key for a new request"
        )


class ConflictingFact(AllowanceException):
    """The fact contradicts a recorded one; `differences` maps each differing name to (recorded, given).

    `fact_index` is the index of the refused fact in a call that records several.
    """

    def __init__(self, fact: str, recorded_position: int | None, differences: dict[str, Any]) -> None:
        self.fact = fact
        self.recorded_position = recorded_position
        self.fact_index = 0
        self.describe(differences)

    def describe(self, differences: dict[str, Any]) -> None:
        """Set the differences, (recorded, given) by name, and the message that lists the first five.

        Called a second time when the differences have been read back from the log: the fold that refuses a fact
        keeps digests only.
        """
        self.differences = differences
        shown = dict(list(differences.items())[:5])
        more = f" and {len(differences) - len(shown)} more" if len(differences) > len(shown) else ""
        where = f" at position {self.recorded_position}" if self.recorded_position else ""
        found = f"{shown}{more}" if shown else "the log could not be read to show the differences"
        self.args = (f"{self.fact} contradicts the fact recorded{where}: {found}",)


class ImplausibleFact(AllowanceException):
    """The fact is likely a mistake; `confirm=True` records it nevertheless.

    `fact_index` is the index of the refused fact in a call that records several.
    """

    def __init__(self, fact: str, reason: str) -> None:
        self.fact = fact
        self.reason = reason
        self.fact_index = 0
        super().__init__(f"{fact} is implausible: {reason}; pass confirm=True if it is right")


class FactNotRecorded(AllowanceException):
    """The ledger has no such fact, so there is nothing to withdraw."""

    def __init__(self, fact: str) -> None:
        self.fact = fact
        super().__init__(f"{fact} is not recorded, so it cannot be withdrawn")


class BlockInUse(AllowanceException):
    """The block cannot be withdrawn while a reserved or spent reservation holds it or the block below it.

    Without its successor, the block below grants nothing either. Reserved ones can be released first.
    """

    def __init__(self, number: int, reservation_ids: list[int]) -> None:
        self.number = number
        self.reservation_ids = reservation_ids
        shown = ", ".join(map(str, reservation_ids[:MOST_IDS_SHOWN]))
        more = " and others" if len(reservation_ids) > MOST_IDS_SHOWN else ""
        super().__init__(
            f"block {number} cannot be withdrawn: it or block {number - 1} is held by reservation {shown}{more};"
            " only released and expired reservations hold no blocks"
        )


class PositionOutOfRange(AllowanceException):
    """The requested moment is outside of the log, which covers `first` to `last`; None if that end is open."""

    def __init__(self, asked: str, first: object, last: object) -> None:
        self.asked = asked
        self.first = first
        self.last = last
        if first is None and last is None:
            covered = "nothing is recorded yet"
        elif last is None:
            covered = f"the first recorded is {first}"
        elif first is None:
            covered = f"the last recorded is {last}"
        else:
            covered = f"the ledger covers {first} to {last}"
        super().__init__(f"{asked} is out of range: {covered}")


class BlockNotFinalized(AllowanceException):
    """The block's grants are not fixed yet: it or its successor is not recorded, or was withdrawn."""

    def __init__(self, block: int) -> None:
        self.block = block
        super().__init__(f"block {block} is not finalized: record blocks {block} and {block + 1}")


class JobOutOfBounds(AllowanceException):
    """The job starts at a block outside of `[first_block, end_block)`; the receipt was not checked."""

    def __init__(self, job_start_block: int, first_block: int, end_block: int) -> None:
        self.job_start_block = job_start_block
        self.first_block = first_block
        self.end_block = end_block
        super().__init__(
            f"the job starts at block {job_start_block}, outside of the bookkeeper's blocks, {first_block} to"
            f" {end_block - 1}"
        )


class TimeOutOfRange(AllowanceException):
    """The time is before the first recorded block, or at or after the last one."""

    def __init__(self, asked: datetime, first: datetime | None, last: datetime | None) -> None:
        self.asked = asked
        self.first = first
        self.last = last
        covered = "no block is recorded yet" if first is None else f"they cover {first} to {last}"
        super().__init__(f"{asked} is not covered by the recorded blocks: {covered}")


class BadReceiptSignature(AllowanceException):
    """The signature is not that of the hotkey that the receipt names, or the receipt was changed after signing.

    `signer` is "validator" or "miner".
    """

    def __init__(self, receipt_type: str, job_uuid: str, signer: str, hotkey_ss58: str) -> None:
        self.receipt_type = receipt_type
        self.job_uuid = job_uuid
        self.signer = signer
        self.hotkey_ss58 = hotkey_ss58
        super().__init__(f"the {receipt_type} of job {job_uuid} is not signed by the {signer}, {hotkey_ss58}")


class ClockUnusable(AllowanceException):
    """The clock by which the call would be decided raised, or returned no usable time; nothing was done.

    `reading` is what it returned or raised; `expected` says what would be right.
    """

    def __init__(self, reading: object, expected: str) -> None:
        self.reading = shortened(reading)
        self.expected = expected
        did = "raised" if isinstance(reading, BaseException) else "returned"
        super().__init__(f"the clock must return {expected}; it {did} {self.reading}")


class LedgerNotFound(AllowanceException):
    """The database has no ledger of this validator."""

    def __init__(self, validator_ss58: str) -> None:
        self.validator_ss58 = validator_ss58
        super().__init__(f"the database has no ledger of {validator_ss58}")


class LedgerExists(AllowanceException):
    """The database has another log of this validator; nothing was restored."""

    def __init__(self, validator_ss58: str, position: int) -> None:
        self.validator_ss58 = validator_ss58
        self.position = position
        super().__init__(
            f"the database has another log of {validator_ss58}, with its head at position {position};"
            " restore into a database that has no log of this validator, or only the beginning of the restored log"
        )


class DamagedExport(AllowanceException):
    """The file differs from the one that was exported; `position` is the first event that is wrong or missing."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"the export is damaged at position {position}: {reason}")


class ReadOnlyLedger(AllowanceException):
    """The caller requested a change from a ledger that was opened read-only, or from a view of the past."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"{operation} is a change, and this ledger is open for reading only")


class LedgerClosed(AllowanceException):
    """The ledger was closed before this call; open it again."""

    def __init__(self, reason: str = "the ledger is closed; open it again") -> None:
        self.reason = reason
        super().__init__(reason)


class LedgerOverloaded(AllowanceException):
    """The writer's queue is full; the change was not made."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        super().__init__(f"{waiting} changes are already queued, so this one was not made; try again later")


class NewerLedger(AllowanceException):
    """A newer release wrote to the database; this one neither reads nor writes it."""

    def __init__(self, what: str, found: object, supported: object) -> None:
        self.what = what
        self.found = found
        self.supported = supported
        super().__init__(
            f"{what} {found} is newer than this release understands ({supported}); upgrade allowance-ledger"
        )


class CorruptLedger(AllowanceException):
    """Stored rows differ from the ones that were written; `position` is the first wrong row."""

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        self.reason = reason
        super().__init__(f"the log is damaged at position {position}: {reason}")


class SealConflict(CorruptLedger):
    """The log's seal of `position` has another digest than the state there; nothing may be decided on that state.

    A writer that finds this refuses all changes until the ledger is opened again.
    """

    def __init__(self, position: int, sealed_digest: str, digest: str) -> None:
        self.position = position
        self.reason = f"its seal has the digest {shortened(sealed_digest)}, but the state there has {shortened(digest)}"
        self.sealed_digest = sealed_digest
        self.digest = digest
        AllowanceException.__init__(
            self,
            f"the seal of position {position} and the state there differ: {self.reason}. A writer that finds this"
            " refuses changes until the ledger is opened again. Run `allowance audit` to find out which of the two is"
            " wrong",
        )


class ProjectionStopped(AllowanceException):
    """The history projector cannot apply the event at `position`; it never skips one, so it stopped there."""

    def __init__(self, position: int, event_type: str, reason: str) -> None:
        self.position = position
        self.event_type = event_type
        self.reason = reason
        super().__init__(
            f"the history stopped before position {position}, {event_type}: {reason}."
            " Run `allowance verify` to find the first event that differs from the one that was written"
        )


class HistoryDamaged(AllowanceException):
    """The history's read model has a row that differs from the log; the log decides, so the row is not shown.

    `position`: of the reservation. `fields`: in which the row differs; empty if the log has no reservation there.
    """

    def __init__(self, position: int, fields: list[str]) -> None:
        self.position = position
        self.fields = fields
        difference = f"differs from the log in {', '.join(fields)}" if fields else "is not in the log"
        super().__init__(
            f"the history's row of position {position} {difference}. Run `allowance rebuild` to make the history anew"
        )


class RebuildOvertaken(AllowanceException):
    """Another rebuild of the same ledger started meanwhile; this one was abandoned and changed nothing."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(
            f"another rebuild started while this one was at position {position}; this one was abandoned,"
            " the other one continues"
        )


class OutcomeUnknown(AllowanceException):
    """The library could not find out whether the change was made.

    Repeat the call with `idempotency_key`: it returns the outcome, and the change happens at most once.
    """

    def __init__(self, idempotency_key: str, operation: str) -> None:
        self.idempotency_key = idempotency_key
        self.operation = operation
        super().__init__(
            f"the outcome of {operation} is unknown: the database did not confirm the commit."
            f" Repeat the call with idempotency_key={idempotency_key!r}:"
            " it returns the outcome, and the change happens at most once"
        )


class StorageUnavailable(AllowanceException):
    """The database cannot be used now; the call changed nothing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the database cannot be used now: {reason}")


class LogWentBack(StorageUnavailable):
    """The stored log has lost positions that this process has acknowledged, or has read as committed.

    `acknowledged_position` is the newest of them, `stored_position` the stored log's head. Up to `kept_position` this
    process knows the stored log to be the same; of the positions after it, at least the acknowledged one is gone.
    """

    def __init__(self, acknowledged_position: int, stored_position: int, kept_position: int) -> None:
        self.acknowledged_position = acknowledged_position
        self.stored_position = stored_position
        self.kept_position = kept_position
        first_lost = max(kept_position, min(stored_position, acknowledged_position - 1)) + 1
        others = f", and perhaps others after {kept_position}" if kept_position + 1 < first_lost else ""
        super().__init__(
            f"the stored log went back or was replaced. This process has acknowledged or read positions up to"
            f" {acknowledged_position}; the stored log ends at {stored_position}, and has lost positions"
            f" {first_lost} to {acknowledged_position}{others}. Find out whether a backup was restored or a standby"
            " promoted; to work on the stored log, close the ledger and open it again"
        )


class AllMinersBusy(JobRoutingException):
    """Some miners had the allowance, but none could be claimed.

    `busy` counts miners that run at least as many jobs as they have executors, `excluded` those that are excluded.
    `lost` is 1 if the job had chosen a miner and lost it before the commit, usually to another claim; that miner may be
    counted in `busy` as well.
    """

    def __init__(self, job_uuid: str, busy: int, lost: int, excluded: int = 0) -> None:
        self.job_uuid = job_uuid
        self.busy = busy
        self.lost = lost
        self.excluded = excluded
        super().__init__(
            f"all miners are busy for job {job_uuid}: {busy} run as many jobs as they have executors,"
            f" {lost} were claimed by others first" + (f", {excluded} are excluded" if excluded else "")
        )


class NotEnoughCollateralException(JobRoutingException):
    """Some miners had the allowance, but none of them has the collateral that the settings require, in wei.

    `highest_collateral_wei` is the highest among them, `highest_collateral_ss58` the miner that has it.
    """

    def __init__(
        self,
        job_uuid: str,
        minimum_collateral_wei: int,
        highest_collateral_wei: int,
        highest_collateral_ss58: str,
    ) -> None:
        self.job_uuid = job_uuid
        self.minimum_collateral_wei = minimum_collateral_wei
        self.highest_collateral_wei = highest_collateral_wei
        self.highest_collateral_ss58 = highest_collateral_ss58
        super().__init__(
            f"no miner with the allowance for job {job_uuid} has the required collateral of {minimum_collateral_wei:,}"
            f" wei; the highest has {highest_collateral_wei:,} wei ({highest_collateral_ss58})"
        )


class JobAlreadySpent(JobRoutingException):
    """The job's reservation was spent; a job is never routed again after that."""

    def __init__(self, job_uuid: str, reservation_id: int, settled_at: datetime) -> None:
        self.job_uuid = job_uuid
        self.reservation_id = reservation_id
        self.settled_at = settled_at
        super().__init__(f"job {job_uuid} was spent at {settled_at} (reservation {reservation_id})")


class JobRequestConflict(JobRoutingException):
    """The job has a reservation for a request with other content; `differences` has (recorded, given) by name."""

    def __init__(self, job_uuid: str, reservation_id: int, differences: dict[str, Any]) -> None:
        self.job_uuid = job_uuid
        self.reservation_id = reservation_id
        self.differences = differences
        super().__init__(f"job {job_uuid} has reservation {reservation_id} for another request: {differences}")


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


class ManifestsStale(JobRoutingException):
    """The newest manifest sync is further behind the newest block than `newest_manifests_max_age_blocks`."""

    def __init__(self, newest_sync: int, newest_block: int, max_age_blocks: int) -> None:
        self.newest_sync = newest_sync
        self.newest_block = newest_block
        self.age_blocks = newest_block - newest_sync
        self.max_age_blocks = max_age_blocks
        super().__init__(
            f"the newest manifest sync, at block {newest_sync}, is {self.age_blocks} blocks behind the newest block,"
            f" {newest_block}, more than {max_age_blocks}; record the miners' manifests before routing"
        )


def _unpickle(kind: type[_LedgerError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> _LedgerError:
    """Restore an error without its constructor, which would build the message and the fields anew."""
    error = kind.__new__(kind, *arguments)
    vars(error).update(fields)
    return error


def _runs_text(runs: list[tuple[int, int]]) -> str:
    shown = ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in runs[:MOST_IDS_SHOWN])
    return f"{shown} and others" if len(runs) > MOST_IDS_SHOWN else shown


LONGEST_SHOWN = 120
MOST_IDS_SHOWN = 5
MOST_BITS_SHOWN = 256


def shortened(value: object, limit: int = LONGEST_SHOWN) -> str:
    """Return `repr(value)` cut to `limit` characters, so that a hostile value cannot flood a log."""
    # Strings are cut first: the repr of a very long one would cost as much memory again.
    if isinstance(value, (str, bytes)) and len(value) > limit:
        return f"{value[:limit]!r}… ({len(value)} long)"
    # Python refuses to print integers of more than 4,300 digits.
    if isinstance(value, int) and value.bit_length() > MOST_BITS_SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


@contextmanager
def renamed_fields(names: Mapping[str, str]) -> Iterator[None]:
    """Within the block, rename the field of each `InvalidInput` as `names` says, to the name that the caller used."""
    try:
        yield
    except InvalidInput as refused:
        if refused.field not in names:
            raise
        raise refused.named(names[refused.field]) from None
