"""The commands that reserve, spend, release and expire, and the one that records settings.

Each decides on the state of a unit of work and appends to it. None reads a clock or a database. The commands for chain
facts are in `fact_commands`, the one for routing is in the package `routing`; both use the helpers at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from ledger.codec import Row, position_in_key, request_in_key, reservation_position, unknown_outcome_key
from ledger.codec import reservation_id as id_of
from ledger.errors import (
    CannotReserveAllowanceException,
    IdempotencyConflict,
    InvalidInput,
    JobRequestConflict,
    ReservationNotFound,
    StreamVersionConflict,
)
from ledger.events import (
    FACT_STREAMS,
    SETTINGS_STREAM,
    AllowanceReserved,
    Axon,
    Event,
    ExpiryRecorded,
    LedgerOpened,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    account_stream,
)
from ledger.settings import RecordedSettings, Settings
from ledger.values import instant, seconds

from .account import ActiveReservation
from .lookup import Lookup
from .reservation import Reservation, active_to_reservation, already_settled_error, rows_to_reservation, status_after
from .state import LedgerState
from .unit_of_work import UnitOfWork

REQUEST_BYTES = 16
"""The length of a digest that identifies the content of a call."""

_canonical = msgspec.json.Encoder(order="deterministic")


class SettingsChange(NamedTuple):
    """The settings before and after a command, and the position of its event; None if it changed nothing."""

    position: int | None
    before: RecordedSettings
    after: RecordedSettings


class RecordSettings:
    """Create the ledger if it is new, else record the settings if they differ.

    `settings` of None stands for the recorded ones, in a new ledger for the defaults; the fields in `named` override
    it. The recorded `tie_break` stays: only `ChangeSettings` changes it, so that code which opens ledgers of every age
    with the same settings changes the order of no old one.
    """

    operation = "open"
    # A fold of settings cannot be undone, only repeated from the log. See `RecordFacts.revertible`.
    revertible = False
    streams = FACT_STREAMS
    stands = False

    def __init__(
        self, validator_ss58: str, settings: RecordedSettings | None, named: Mapping[str, Any] | None = None
    ) -> None:
        self.validator_ss58 = validator_ss58
        self.settings = settings
        self.named = named
        self.key = None

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        pass

    def retry_key(self, row: Row) -> str:
        return unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> SettingsChange:
        is_new, recorded = unit_of_work.state.position == 0, unit_of_work.state.chain.settings
        settings = self.settings or (Settings().to_recorded() if is_new else recorded)
        if self.named:
            settings = settings.changed(self.named)
        if not is_new:
            return record_difference(unit_of_work, replace(settings, tie_break=recorded.tie_break))
        row = unit_of_work.append(SETTINGS_STREAM, LedgerOpened(self.validator_ss58, settings))
        return SettingsChange(row.position, settings, settings)


class ChangeSettings:
    """Change the named fields of the recorded settings; the others stay, whoever changes them meanwhile.

    `named` has values of `Settings` by field. If nothing differs, no row can carry the key, and it stays free.
    """

    operation = "change_settings"
    revertible = False
    streams = FACT_STREAMS
    stands = False

    def __init__(self, named: Mapping[str, Any], key: str | None = None) -> None:
        self.named = named
        self.key = key

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    @cached_property
    def request(self) -> str:
        """The digest of the values that the call names. Raises `InvalidInput` if one is wrong."""
        values = RecordedSettings().changed(self.named).named_values(self.named)
        return blake2b(_canonical.encode(values), digest_size=REQUEST_BYTES).hexdigest()

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row, self.request)

    def decide(self, unit_of_work: UnitOfWork) -> SettingsChange:
        first = unit_of_work.first_outcome(self.key)
        if first is not None:
            row, event = first
            refuse_other_content(str(self.key), self.request, row, event)
            if not isinstance(event, SettingsChanged):
                raise IdempotencyConflict(str(self.key), row.position)
            return SettingsChange(None, event.settings, event.settings)
        recorded = unit_of_work.state.chain.settings
        request = "" if self.key is None else self.request
        return record_difference(unit_of_work, recorded.changed(self.named), self.key, request)


class Reserve:
    """Reserve the earliest whole free blocks of an account that sum to at least the amount.

    The checks have a fixed order (this project's own rule): idempotency key, the job's own reservation, expected
    version, allowance. So a retry returns its reservation, even if the account has moved or has nothing left. The
    expected version is a condition of the request and not part of its content.
    """

    operation = "reserve"
    revertible = True
    streams = FACT_STREAMS
    stands = True

    def __init__(
        self,
        miner_ss58: str,
        executor_class: str,
        amount_ns: int,
        job_start_block: int,
        job_uuid: str | None,
        key: str | None,
        expected_version: int | None = None,
    ) -> None:
        self.miner_ss58 = miner_ss58
        self.executor_class = executor_class
        self.stream = account_stream(miner_ss58, executor_class)
        self.amount_ns = amount_ns
        self.job_start_block = job_start_block
        self.job_uuid = job_uuid
        self.key = key
        self.expected_version = expected_version

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)
        look_up_job(self.job_uuid, state, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> Reservation:
        validator_ss58 = unit_of_work.state.chain.validator_ss58
        first = unit_of_work.first_outcome(self.key)
        if first is not None:
            row, event = first
            if not isinstance(event, AllowanceReserved) or self._content() != (
                row.stream,
                event.amount_ns,
                event.job_start_block,
                row.job_uuid,
            ):
                raise IdempotencyConflict(str(self.key), row.position)
            # The first outcome is returned as it was then: reserved, even if the reservation was settled since.
            return rows_to_reservation(row, event, None, validator_ss58)
        active = unit_of_work.active_reservation_of(self.job_uuid)
        if active is not None:
            check_same_request(active, self.amount_ns, self.executor_class, miner_ss58=self.miner_ss58)
            return active_to_reservation(active, validator_ss58)
        return active_to_reservation(self._claim(unit_of_work), validator_ss58)

    def renumbered(self, result: Reservation, row: Row) -> Reservation:
        return msgspec.structs.replace(
            result, reservation_id=id_of(row.position, row.hash), reserved_at=instant(row.recorded_at_ns)
        )

    def _content(self) -> tuple[str, int, int, str | None]:
        """Return the content that a request with the same key must repeat."""
        return self.stream, self.amount_ns, self.job_start_block, self.job_uuid

    def _claim(self, unit_of_work: UnitOfWork) -> ActiveReservation:
        state = unit_of_work.state
        check_amount(self.amount_ns, state.chain.settings)
        active = claim_at_version(
            unit_of_work,
            self.stream,
            self.expected_version,
            amount_ns=self.amount_ns,
            job_start_block=self.job_start_block,
            job_uuid=self.job_uuid,
            key=self.key,
        )
        if active is not None:
            return active
        account, window_start = state.chain.accounts.get(self.stream), state.window_start(self.job_start_block)
        blocks, now_ns = state.chain.blocks, unit_of_work.now_ns
        available_ns = account.measure(blocks, window_start, now_ns).available_ns if account is not None else 0
        raise CannotReserveAllowanceException(self.miner_ss58, seconds(self.amount_ns), seconds(available_ns))


class Settle:
    """Spend or release an active reservation, overdue or not; a job that ran a little late is still paid."""

    revertible = True
    streams = ()
    stands = True

    def __init__(self, reservation_id: int, how: Literal["spend", "release"], key: str | None) -> None:
        self.reservation_id = reservation_id
        self.operation = how
        self.event = (ReservationSpent if how == "spend" else ReservationReleased)(reservation_id)
        self.key = key

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)
        # An active reservation is known from memory, so a settlement without a key needs no stored row. With a key,
        # it may be a retry, whose result is built from the rows.
        if self.key is not None or self.reservation_id not in state.active:
            lookup.positions.add(reservation_position(self.reservation_id))

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> Reservation:
        state = unit_of_work.state
        first = unit_of_work.first_outcome(self.key)
        if first is not None and not self._is_of(first[1]):
            raise IdempotencyConflict(str(self.key), first[0].position)
        active = state.active.get(self.reservation_id)
        if active is None:
            if self.reservation_id in unit_of_work.settled:
                raise already_settled_error(self.reservation_id, unit_of_work.settled[self.reservation_id])
            return self._settled_before(unit_of_work, is_retry=first is not None)
        row = unit_of_work.settle(active, self.event, self.key)
        return active_to_reservation(active, state.chain.validator_ss58, status_after(self.event), row.recorded_at_ns)

    def renumbered(self, result: Reservation, row: Row) -> Reservation:
        return msgspec.structs.replace(result, settled_at=instant(row.recorded_at_ns))

    def _is_of(self, event: Event) -> bool:
        """Return whether a stored event is this settlement; the clock that decided it may have been another."""
        return type(event) is type(self.event) and event.reservation_id == self.reservation_id

    def _settled_before(self, unit_of_work: UnitOfWork, *, is_retry: bool) -> Reservation:
        """Return the stored reservation for a retry of its settlement; raise for every other call."""
        reserved = unit_of_work.reservation_row(self.reservation_id)
        # The position alone is not enough: after a restored backup another reservation may be there.
        if reserved is None or id_of(reserved[0].position, reserved[0].hash) != self.reservation_id:
            raise ReservationNotFound(self.reservation_id)
        settlement = unit_of_work.settlement(reserved[0].position)
        if settlement is None:
            raise ReservationNotFound(self.reservation_id)
        if not is_retry:
            raise already_settled_error(self.reservation_id, settlement)
        return rows_to_reservation(*reserved, settlement, unit_of_work.state.chain.validator_ss58)


class EarlierExpiry(NamedTuple):
    """The first outcome of an `ExpireDue` with the same key: it appended `expiries` rows, the last at `last_position`.

    The rows are consecutive, so the caller can read the expired reservations from the log.
    """

    last_position: int
    expiries: int


class ExpireDue:
    """Expire every overdue reservation, by due time; return them, or the `EarlierExpiry` of a retried key.

    The last row carries the key and the number of rows. If nothing is overdue, no row can carry the key, and it stays
    free.
    """

    operation = "expire_due"
    revertible = True
    streams = ()
    # Behind another head there may be further overdue reservations.
    stands = False

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> list[Reservation] | EarlierExpiry:
        first = unit_of_work.first_outcome(self.key)
        if first is not None:
            row, event = first
            if not isinstance(event, ExpiryRecorded) or not event.swept:
                raise IdempotencyConflict(str(self.key), row.position)
            return EarlierExpiry(row.position, event.swept)
        validator_ss58 = unit_of_work.state.chain.validator_ss58
        overdue = unit_of_work.state.overdue(unit_of_work.now_ns)
        expired = []
        for active in overdue:
            is_last = active is overdue[-1]
            event = ExpiryRecorded(active.reservation_id, len(overdue) if is_last else 0)
            row = unit_of_work.settle(active, event, self.key if is_last else None)
            expired.append(active_to_reservation(active, validator_ss58, "expired", row.recorded_at_ns))
        return expired


def claim_at_version(
    unit_of_work: UnitOfWork,
    stream: str,
    expected_version: int | None,
    *,
    amount_ns: int,
    job_start_block: int,
    job_uuid: str | None,
    key: str | None = None,
    axon: Axon | None = None,
    chosen_at: int | None = None,
) -> ActiveReservation | None:
    """Claim an account's earliest free blocks if its stream is at the expected version; append the reservation.

    `expected_version` of None expects nothing. `Reserve` and the router's pick both claim with this call. Raises
    `StreamVersionConflict`; returns None if the free blocks do not reach the amount. Nothing is appended then. The
    store compares the version once more when the rows are appended, and the command is then decided again.
    """
    state = unit_of_work.state
    account = state.chain.accounts.get(stream)
    # An account that no fact has named has no event.
    actual_version = 0 if account is None else account.version
    if expected_version is not None and actual_version != expected_version:
        raise StreamVersionConflict(stream, expected_version, actual_version)
    window_start, now_ns = state.window_start(job_start_block), unit_of_work.now_ns
    claim = None if account is None else account.claim(state.chain.blocks, window_start, amount_ns, now_ns)
    if account is None or claim is None:
        return None
    job = unit_of_work.next_attempt(job_uuid)
    return unit_of_work.reserve(
        account,
        claim,
        amount_ns=amount_ns,
        job_start_block=job_start_block,
        key=key,
        job=job,
        axon=axon,
        chosen_at=chosen_at,
    )


def record_difference(
    unit_of_work: UnitOfWork, settings: RecordedSettings, key: str | None = None, request: str = ""
) -> SettingsChange:
    """Record the settings if they differ from the recorded ones."""
    before = unit_of_work.state.chain.settings
    if settings == before:
        return SettingsChange(None, before, before)
    row = unit_of_work.append(SETTINGS_STREAM, SettingsChanged(settings, request), key=key)
    return SettingsChange(row.position, before, settings)


def check_amount(amount_ns: int, settings: RecordedSettings) -> None:
    """Raise `InvalidInput` for an amount of 0, or above the longest job.

    Source of the limit and of its message, word for word: ComputeHorde's allowance module.
    """
    if 0 < amount_ns <= settings.longest_job_ns:
        return
    longest_seconds = seconds(settings.longest_job_ns)
    expected = f"an amount above 0 and up to {longest_seconds} seconds"
    message = f"Required allowance cannot be greater than {longest_seconds} seconds" if amount_ns > 0 else None
    raise InvalidInput("allowance_seconds", seconds(amount_ns), expected, message)


def refuse_other_content(key: str, request: str, row: Row, event: Event) -> None:
    """Raise `IdempotencyConflict` if the key of a stored row belongs to a call with other content.

    The digest of the first call is in the event if the caller chose the key, and in the key itself if it is an
    `unknown_outcome_key`.
    """
    if request != (getattr(event, "request", "") if row.key == key else request_in_key(key)):
        raise IdempotencyConflict(key, row.position)


def look_up_key(key: str | None, lookup: Lookup) -> None:
    """Add the stored row with the key; for an `unknown_outcome_key` also the row at the position that it names."""
    if key is None:
        return
    lookup.keys.add(key)
    position = position_in_key(key)
    if position is not None:
        lookup.positions.add(position)


def look_up_job(job_uuid: str | None, state: LedgerState, lookup: Lookup) -> None:
    """Add the job's last stored reservation, unless the job has an active one in memory."""
    if job_uuid is not None and job_uuid not in state.jobs:
        lookup.jobs.add(job_uuid)


def check_same_request(
    active: ActiveReservation, amount_ns: int, executor_class: str, miner_ss58: str | None = None
) -> None:
    """Raise `JobRequestConflict` if the job's active reservation was made for a request with other content.

    `miner_ss58` is None if the request does not name a miner.
    """
    recorded = {
        "executor_class": active.account.executor_class,
        "allowance_seconds": seconds(active.amount_ns),
        "miner_ss58": active.account.miner_ss58,
    }
    given = {
        "executor_class": executor_class,
        "allowance_seconds": seconds(amount_ns),
        "miner_ss58": miner_ss58 or active.account.miner_ss58,
    }
    differences = {name: (recorded[name], given[name]) for name in recorded if recorded[name] != given[name]}
    if differences:
        raise JobRequestConflict(str(active.job_uuid), active.reservation_id, differences)
