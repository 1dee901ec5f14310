"""The changes that a ledger knows, but for routing: facts, settings, reserve, spend, release, expire.

Each reads the draft's state, decides, and appends. None reads a clock or a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Literal, NamedTuple

from ledger.codec import Row, position_in_key, request_in_key, reservation_position, unknown_outcome_key
from ledger.codec import reservation_id as id_of
from ledger.errors import (
    CannotReserveAllowanceException,
    ConflictingFact,
    IdempotencyConflict,
    ImplausibleFact,
    InvalidInput,
    JobAlreadySpent,
    JobRequestConflict,
    ReservationNotFound,
)
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    AllowanceReserved,
    BlockRecorded,
    Event,
    ExpiryRecorded,
    LedgerOpened,
    ManifestsRecorded,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    account_stream,
)
from ledger.settings import RecordedSettings
from ledger.values import instant, seconds

from .account import ActiveReservation
from .chain import Chain, Metagraph, block_digest, decide_block, decide_manifests, manifests_digest
from .lookup import Lookup
from .reservation import Reservation, active_to_reservation, already_settled_error, rows_to_reservation, status_after
from .state import LedgerState
from .unit_of_work import UnitOfWork

REQUEST_BYTES = 16


class ValidatedBlock(NamedTuple):
    """A block, checked and exact."""

    number: int
    created_at_ns: int
    metagraph: Metagraph

    @property
    def stream(self) -> str:
        """Where it is recorded."""
        return CHAIN_STREAM

    @property
    def title(self) -> str:
        """What errors call it."""
        return f"block {self.number}"

    def decide(self, chain: Chain, confirm: bool) -> BlockRecorded | int:
        """The event that records it, or the position at which the same was recorded; refusals raise."""
        return decide_block(chain, *self, confirm)

    def digest(self) -> bytes:
        """Bytes that tell it from any other fact."""
        return b"block" + self.number.to_bytes(8, "big") + block_digest(self.created_at_ns, self.metagraph)


class ValidatedManifests(NamedTuple):
    """A manifest sync, checked and exact."""

    block: int
    manifests: dict[str, dict[str, int]]

    @property
    def stream(self) -> str:
        """Where it is recorded."""
        return MANIFESTS_STREAM

    @property
    def title(self) -> str:
        """What errors call it."""
        return f"the manifest sync at block {self.block}"

    def decide(self, chain: Chain, confirm: bool) -> ManifestsRecorded | int:
        """The event that records it, or the position at which the same was recorded; refusals raise."""
        return decide_manifests(chain, *self, confirm)

    def digest(self) -> bytes:
        """Bytes that tell it from any other fact."""
        return b"sync" + self.block.to_bytes(8, "big") + manifests_digest(self.manifests)


FactsOutcome = tuple[list[int], ConflictingFact | ImplausibleFact | None]
"""The positions of the facts up to one that was refused, and the refusal."""


class RecordSettings:
    """Opens the ledger where it is new, and records settings where they differ from the recorded ones."""

    operation = "open"
    revertible = False

    def __init__(self, validator_ss58: str, settings: RecordedSettings | None) -> None:
        self.validator_ss58 = validator_ss58
        self.settings = settings
        self.key = None

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        pass

    def retry_key(self, row: Row) -> str:
        return unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> int:
        state = unit_of_work.state
        if state.position == 0:
            opened = LedgerOpened(self.validator_ss58, self.settings or RecordedSettings())
            return unit_of_work.append(SETTINGS_STREAM, opened).position
        if self.settings is not None and self.settings != state.chain.settings:
            return unit_of_work.append(SETTINGS_STREAM, SettingsChanged(self.settings)).position
        return int(state.position)


class RecordFacts:
    """Records facts in order up to the first that is refused; answers the positions and the refusal."""

    operation = "record_facts"
    revertible = False

    def __init__(
        self, facts: Sequence[ValidatedBlock | ValidatedManifests], confirm: bool, key: str | None = None
    ) -> None:
        self.facts = facts
        self.confirm = confirm
        self.key = key

    @cached_property
    def request(self) -> str:
        """The digest of all that is to be recorded."""
        return blake2b(b"".join(fact.digest() for fact in self.facts), digest_size=REQUEST_BYTES).hexdigest()

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row, self.request)

    def decide(self, unit_of_work: UnitOfWork) -> FactsOutcome:
        first = unit_of_work.first_outcome(self.key)
        if first is not None:
            self._refuse_other_content(*first)
            return self._first_outcome(unit_of_work.state.chain, first[0].position)
        before = len(unit_of_work.rows)
        outcome = self._record(unit_of_work)
        if self.key is not None and len(unit_of_work.rows) > before:
            unit_of_work.sign(self.key, self.request)
        return outcome

    def _record(self, unit_of_work: UnitOfWork) -> FactsOutcome:
        positions: list[int] = []
        for fact in self.facts:
            try:
                decided = fact.decide(unit_of_work.state.chain, self.confirm)
            except (ConflictingFact, ImplausibleFact) as refused:
                refused.fact_index = len(positions)
                return positions, refused
            if not isinstance(decided, int):
                decided = unit_of_work.append(fact.stream, decided).position
            positions.append(decided)
        return positions, None

    def _refuse_other_content(self, row: Row, event: Event) -> None:
        key = str(self.key)
        request = event.request if isinstance(event, (BlockRecorded, ManifestsRecorded)) else ""
        if self.request != (request if row.key == key else request_in_key(key)):
            raise IdempotencyConflict(key, row.position)

    def _first_outcome(self, chain: Chain, last_position: int) -> FactsOutcome:
        """What the call answered when the last fact that it recorded came to stand at the position.

        All but what it refused was in the log by then. What has come since, or could come now, was implausible.
        """
        positions: list[int] = []
        for fact in self.facts:
            refused: ConflictingFact | ImplausibleFact
            try:
                decided = fact.decide(chain, self.confirm)
                if isinstance(decided, int) and decided <= last_position:
                    positions.append(decided)
                    continue
                if self.confirm:
                    raise IdempotencyConflict(str(self.key), last_position)
                refused = ImplausibleFact(fact.title, "it was when it was first given with this key")
            except (ConflictingFact, ImplausibleFact) as still_refused:
                refused = still_refused
            refused.fact_index = len(positions)
            return positions, refused
        return positions, None


class Reserve:
    """Takes an account's free blocks from the earliest on, whole, until they are worth the amount."""

    operation = "reserve"
    revertible = True

    def __init__(
        self,
        miner_ss58: str,
        executor_class: str,
        amount_ns: int,
        job_start_block: int,
        job_uuid: str | None,
        key: str | None,
    ) -> None:
        self.miner_ss58 = miner_ss58
        self.executor_class = executor_class
        self.stream = account_stream(miner_ss58, executor_class)
        self.amount_ns = amount_ns
        self.job_start_block = job_start_block
        self.job_uuid = job_uuid
        self.key = key

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
            return rows_to_reservation(row, event, None, validator_ss58)
        active = active_reservation_of(unit_of_work, self.job_uuid)
        if active is not None:
            check_same_request(active, self.amount_ns, self.executor_class, miner_ss58=self.miner_ss58)
            return active_to_reservation(active, validator_ss58)
        return active_to_reservation(self._claim(unit_of_work), validator_ss58)

    def _content(self) -> tuple[str, int, int, str | None]:
        return self.stream, self.amount_ns, self.job_start_block, self.job_uuid

    def _claim(self, unit_of_work: UnitOfWork) -> ActiveReservation:
        state = unit_of_work.state
        check_amount(self.amount_ns, state.chain.settings)
        window_start = state.window_start(self.job_start_block)
        account = state.chain.accounts.get(self.stream)
        if account is None:
            raise CannotReserveAllowanceException(self.miner_ss58, seconds(self.amount_ns), 0.0)
        blocks, now_ns = state.chain.blocks, unit_of_work.now_ns
        claim = account.claim(blocks, window_start, self.amount_ns, now_ns)
        if claim is None:
            available_ns = account.measure(blocks, window_start, now_ns).available_ns
            raise CannotReserveAllowanceException(self.miner_ss58, seconds(self.amount_ns), seconds(available_ns))
        return unit_of_work.reserve(
            account,
            claim,
            amount_ns=self.amount_ns,
            job_start_block=self.job_start_block,
            key=self.key,
            job=next_attempt(unit_of_work, self.job_uuid),
        )


class Settle:
    """Spends or releases a reservation that stands."""

    revertible = True

    def __init__(self, reservation_id: int, how: Literal["spend", "release"], key: str | None) -> None:
        self.reservation_id = reservation_id
        self.operation = how
        self.event = (ReservationSpent if how == "spend" else ReservationReleased)(reservation_id)
        self.key = key

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)
        if self.key is not None or self.reservation_id not in state.active:
            lookup.positions.add(reservation_position(self.reservation_id))

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> Reservation:
        state = unit_of_work.state
        first = unit_of_work.first_outcome(self.key)
        if first is not None and first[1] != self.event:
            raise IdempotencyConflict(str(self.key), first[0].position)
        active = state.active.get(self.reservation_id)
        if active is None:
            if self.reservation_id in unit_of_work.ended:
                raise already_settled_error(self.reservation_id, unit_of_work.ended[self.reservation_id])
            return self._settled_before(unit_of_work, again=first is not None)
        row = unit_of_work.settle(active, self.event, self.key)
        return active_to_reservation(active, state.chain.validator_ss58, status_after(self.event), row.recorded_at_ns)

    def _settled_before(self, unit_of_work: UnitOfWork, *, again: bool) -> Reservation:
        made = unit_of_work.reservation_row(self.reservation_id)
        if made is None or id_of(made[0].position, made[0].hash) != self.reservation_id:
            raise ReservationNotFound(self.reservation_id)
        settlement = unit_of_work.settlement(made[0].position)
        if settlement is None:
            raise ReservationNotFound(self.reservation_id)
        if not again:
            raise already_settled_error(self.reservation_id, settlement)
        return rows_to_reservation(*made, settlement, unit_of_work.state.chain.validator_ss58)


class EarlierExpiry(NamedTuple):
    """An earlier sweep, told by its rows: so many `expiries`, the last at `last_position`."""

    last_position: int
    expiries: int


class ExpireDue:
    """Ends every overdue reservation, by due time; answers them, or where the key is there already, which sweep it was.

    The key stands in the last of the sweep's rows, which says how many there are.
    """

    operation = "expire_due"
    revertible = True

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


def check_amount(amount_ns: int, settings: RecordedSettings) -> None:
    """Refuses an amount that no reservation may have."""
    longest_seconds = seconds(settings.longest_job_ns)
    expected = f"an amount above 0 and up to {longest_seconds} seconds"
    if amount_ns > settings.longest_job_ns:
        raise InvalidInput(
            "allowance_seconds",
            seconds(amount_ns),
            expected,
            f"Required allowance cannot be greater than {longest_seconds} seconds",
        )
    if amount_ns <= 0:
        raise InvalidInput("allowance_seconds", seconds(amount_ns), expected)


def look_up_key(key: str | None, lookup: Lookup) -> None:
    """Asks for what the key stands for."""
    if key is None:
        return
    lookup.keys.add(key)
    position = position_in_key(key)
    if position is not None:
        lookup.positions.add(position)


def look_up_job(job_uuid: str | None, state: LedgerState, lookup: Lookup) -> None:
    """Asks for a job's past, unless it stands in memory."""
    if job_uuid is not None and job_uuid not in state.jobs:
        lookup.jobs.add(job_uuid)


def active_reservation_of(unit_of_work: UnitOfWork, job_uuid: str | None) -> ActiveReservation | None:
    """The job's standing reservation; `JobAlreadySpent` where the last one was spent."""
    if job_uuid is None:
        return None
    active: ActiveReservation | None = unit_of_work.state.jobs.get(job_uuid)
    if active is None:
        last = unit_of_work.last_of_job(job_uuid)
        if last is not None and isinstance(last.settlement[1], ReservationSpent):
            row, event = last.settlement
            raise JobAlreadySpent(job_uuid, event.reservation_id, instant(row.recorded_at_ns))
    return active


def next_attempt(unit_of_work: UnitOfWork, job_uuid: str | None) -> tuple[str, int] | None:
    """The job and the number of its next reservation."""
    if job_uuid is None:
        return None
    last = unit_of_work.last_of_job(job_uuid)
    return job_uuid, last.attempt + 1 if last is not None else 1


def check_same_request(
    active: ActiveReservation, amount_ns: int, executor_class: str, miner_ss58: str | None = None
) -> None:
    """Refuses to answer a request with a reservation that was made for another."""
    recorded = {
        "executor_class": active.account.executor_class,
        "allowance_seconds": seconds(active.amount_ns),
        "miner_ss58": active.account.miner_ss58,
    }
    asked = {
        "executor_class": executor_class,
        "allowance_seconds": seconds(amount_ns),
        "miner_ss58": miner_ss58 or active.account.miner_ss58,
    }
    differences = {name: (recorded[name], asked[name]) for name in recorded if recorded[name] != asked[name]}
    if differences:
        raise JobRequestConflict(str(active.job_uuid), active.reservation_id, differences)
