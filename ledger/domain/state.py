"""The state of one ledger: a fold of its log, held in memory.

`evolve` applies the next row. It reads no clock and does not repeat the decision that made the event; it only refuses a
row that cannot follow. Whether the decision was right is checked by the audit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from typing import Any

from ledger.codec import GENESIS_HASH, Row, decode, reservation_id, reservation_position
from ledger.errors import CorruptLedger
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SEALS_STREAM,
    SETTINGS_STREAM,
    AllowanceReserved,
    BlockRecorded,
    BlockWithdrawn,
    CollateralRecorded,
    Event,
    ExpiryRecorded,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    MinerExcluded,
    MinerReadmitted,
    ReservationReleased,
    ReservationSpent,
    SettingsChanged,
    StateSealed,
)
from ledger.values import storable_ns

from .account import Account, ActiveReservation
from .chain import Chain
from .miner_facts import MinerFacts

SEAL_VERSION = 2
"""The version of the folding rules, and of the encoding of a state in `seal`. Version 1 had no hashes of blocks.

Increase it whenever the same events give another state, or the encoding changes. Seals of other versions prove nothing.
"""


class LedgerState:
    """The chain facts, accounts and active reservations of one ledger at `position`."""

    def __init__(self) -> None:
        self.position = 0
        self.hash = GENESIS_HASH
        self.recorded_at_ns = 0
        self.chain = Chain()
        self.miner_facts = MinerFacts()
        self.versions = {SETTINGS_STREAM: 0, CHAIN_STREAM: 0, MANIFESTS_STREAM: 0, SEALS_STREAM: 0}
        """The versions of all streams that belong to no account; an account has its own version. Streams of miner facts
        are absent until they have an event, so that the digest of a state without any stays as it was."""
        self.active: dict[int, ActiveReservation] = {}
        """The active reservations by id."""
        self.jobs: dict[str, ActiveReservation] = {}
        """The active reservations by job."""
        self.due_queue: list[tuple[int, int]] = []
        """The active reservations as (due time, id), ascending."""
        self.sealed_position = 0
        """The highest position whose seal was folded; decides nothing, and is neither sealed nor in snapshots."""

    def version(self, stream: str) -> int:
        """Return the stream's version; 0 if it has no event yet."""
        account = self.chain.accounts.get(stream)
        return account.version if account is not None else self.versions.get(stream, 0)

    def overdue(self, now_ns: int) -> list[ActiveReservation]:
        """Return the active reservations whose due time has passed, by due time and id."""
        # Ids are below 2^63, so all entries that are due at `now_ns` are included.
        end = bisect_right(self.due_queue, (now_ns, 2**63))
        return [self.active[active_id] for _, active_id in self.due_queue[:end]]

    def window_start(self, job_start_block: int) -> int:
        """Return the first block that a job starting at a block may use.

        A block may be `block_expiry_blocks` (722) old at the job's start. Source: ComputeHorde's validator.
        """
        return job_start_block - self.chain.settings.block_expiry_blocks

    def fold(self, rows: list[Row]) -> None:
        """Decode and apply stored rows, in order."""
        for row in rows:
            self.evolve(row, decode(row.position, row.payload))

    def evolve(self, row: Row, event: Event) -> None:
        """Apply the next row of the log; raise `CorruptLedger` if it cannot follow the rows before it."""
        position = row.position
        if position != self.position + 1:
            raise CorruptLedger(position, f"expected position {self.position + 1}")
        try:
            _EVOLVE[type(event)](self, row, event)
        # The folds below index dicts and sets without checks, because a log that this library wrote never fails
        # there. In a forged one, a missing reservation, account or miner surfaces as one of these errors.
        except (KeyError, ValueError, AttributeError) as cause:
            raise CorruptLedger(position, f"{type(event).__name__} cannot follow here: {cause!r}") from cause
        self.position = position
        self.hash = row.hash
        self.recorded_at_ns = row.recorded_at_ns

    def availability_changed(self, account: Account) -> None:
        """Do nothing; a subclass with a ranking overrides this hook, which each change of one account calls."""

    def account_changed(self, stream: str) -> None:
        """Call the hook for an account; a fact about a miner may name one that no manifest has ever named."""
        account = self.chain.accounts.get(stream)
        if account is not None:
            self.availability_changed(account)

    def miner_changed(self, miner_ss58: str) -> None:
        """Call the hook for all accounts of a miner."""
        for account in self.chain.accounts_of(miner_ss58):
            self.availability_changed(account)

    def _open(self, row: Row, event: LedgerOpened) -> None:
        self._advance_stream(row)
        self.chain.validator_ss58 = event.validator_ss58
        self.chain.apply_settings(event.settings)

    def _change_settings(self, row: Row, event: SettingsChanged) -> None:
        self._advance_stream(row)
        self.chain.apply_settings(event.settings)

    def _record_block(self, row: Row, event: BlockRecorded) -> None:
        self._advance_stream(row)
        self.chain.apply_block(row.position, event)

    def _record_manifests(self, row: Row, event: ManifestsRecorded) -> None:
        self._advance_stream(row)
        self.chain.apply_manifests(row.position, event)

    def _seal(self, row: Row, event: StateSealed) -> None:
        self._advance_stream(row)
        # A seal of a later position is none. If it counted, a forged one would keep the log from ever being sealed.
        if event.version == SEAL_VERSION and self.sealed_position < event.position < row.position:
            self.sealed_position = event.position

    def _withdraw_block(self, row: Row, event: BlockWithdrawn) -> None:
        self._advance_stream(row)
        self.chain.withdraw_block(row.position, event)

    def _withdraw_manifests(self, row: Row, event: ManifestsWithdrawn) -> None:
        self._advance_stream(row)
        self.chain.withdraw_manifests(row.position, event)

    def _exclude(self, row: Row, event: MinerExcluded) -> None:
        self._advance_miner_facts(row)
        self.miner_facts.exclude(row, event)
        self.miner_changed(event.miner_ss58)

    def _readmit(self, row: Row, event: MinerReadmitted) -> None:
        self._advance_miner_facts(row)
        self.miner_facts.readmit(row, event)
        self.miner_changed(event.miner_ss58)

    def _record_collateral(self, row: Row, event: CollateralRecorded) -> None:
        self._advance_miner_facts(row)
        self.miner_facts.record_collateral(row, event)
        for miner_ss58 in event.changed:
            self.miner_changed(miner_ss58)

    def _record_job_elsewhere(self, row: Row, event: JobElsewhereRecorded) -> None:
        self._advance_miner_facts(row)
        self.account_changed(self.miner_facts.record_job_elsewhere(row, event))

    def _end_job_elsewhere(self, row: Row, event: JobElsewhereEnded) -> None:
        self._advance_miner_facts(row)
        self.account_changed(self.miner_facts.end_job_elsewhere(row, event))

    def _report_incident(self, row: Row, event: IncidentReported) -> None:
        self._advance_miner_facts(row)
        self.account_changed(self.miner_facts.report_incident(row, event))

    def _advance_stream(self, row: Row) -> None:
        if row.version != self.versions[row.stream] + 1:
            raise ValueError(f"version {row.version} of {row.stream} after {self.versions[row.stream]}")
        self.versions[row.stream] = row.version

    def _advance_miner_facts(self, row: Row) -> None:
        before = self.versions.get(row.stream, 0)
        if row.version != before + 1:
            raise ValueError(f"version {row.version} of {row.stream} after {before}")
        self.versions[row.stream] = row.version

    def _reserve(self, row: Row, event: AllowanceReserved) -> None:
        # Unpacked once: each access by name costs, and nearly every row of a busy log comes through here.
        position, stream, version, recorded_at_ns, _, job_uuid, attempt, _, _, event_hash = row
        account = self._advance_account(stream, version)
        blocks = event.blocks
        active = ActiveReservation(
            reservation_id(position, event_hash),
            position,
            account,
            event.amount_ns,
            blocks,
            event.job_start_block,
            recorded_at_ns,
            storable_ns(event.expires_at_ns),
            job_uuid,
            attempt,
            event.axon,
        )
        taken = account.taken
        for first, last in blocks:
            taken.add(first, last)
        self.add_active(active)

    def _spend(self, row: Row, event: ReservationSpent) -> None:
        self._remove_active(self._settled_reservation(row, event.reservation_id))

    def _release_or_expire(self, row: Row, event: ReservationReleased | ExpiryRecorded) -> None:
        active = self._settled_reservation(row, event.reservation_id)
        self._remove_active(active)
        self._free_blocks(active)

    def add_active(self, active: ActiveReservation) -> None:
        """Insert an active reservation into all indexes; its blocks must be in the account's `taken` already."""
        account, active_id = active.account, active.reservation_id
        self.active[active_id] = active
        account.add_active(active)
        if active.job_uuid is not None:
            self.jobs[active.job_uuid] = active
        insort(self.due_queue, (active.expires_at_ns, active_id))
        self.availability_changed(account)

    def revert_seal(self, sealed_position: int) -> None:
        """Undo the last event of the stream of seals; `sealed_position` is that from before it."""
        self.versions[SEALS_STREAM] -= 1
        self.sealed_position = sealed_position

    def revert(self, active: ActiveReservation, event: Event) -> None:
        """Undo the last event of an account's stream: a reservation, or a settlement of the reservation `active`.

        Used if a batch was decided on an old head: undoing it is cheaper than folding the state again.
        """
        account = active.account
        account.version -= 1
        if isinstance(event, AllowanceReserved):
            self._free_blocks(active)
            self._remove_active(active)
            return
        # A spent reservation's blocks are still taken; a release or an expiry had freed them.
        if not isinstance(event, ReservationSpent):
            for first, last in active.blocks:
                account.taken.add(first, last)
        self.add_active(active)

    def _settled_reservation(self, row: Row, active_id: int) -> ActiveReservation:
        """Return the active reservation that the row settles, after moving its account to the row's version."""
        if row.settles != reservation_position(active_id):
            raise ValueError(f"the row settles {row.settles}, the event {active_id}")
        return self._advance_account(row.stream, row.version).active[active_id]

    def _remove_active(self, active: ActiveReservation) -> None:
        """Remove a reservation from all indexes."""
        account, active_id = active.account, active.reservation_id
        del self.active[active_id]
        account.remove_active(active)
        if active.job_uuid is not None:
            del self.jobs[active.job_uuid]
        del self.due_queue[bisect_left(self.due_queue, (active.expires_at_ns, active_id))]
        self.availability_changed(account)

    def _free_blocks(self, active: ActiveReservation) -> None:
        taken = active.account.taken
        for first, last in active.blocks:
            taken.remove(first, last)

    def _advance_account(self, stream: str, version: int) -> Account:
        """Set the account's version, which must be the next one, and return the account."""
        account = self.chain.accounts[stream]
        if version != account.version + 1:
            raise ValueError(f"version {version} of {stream!r} after {account.version}")
        account.version = version
        return account


# A dict, not a `match`: folding a long log dispatches millions of events, and a `match` checks the classes one by one,
# which took 0.2 to 0.3 µs for the later ones instead of 0.1 µs.
_EVOLVE: dict[type, Callable[[LedgerState, Row, Any], None]] = {
    AllowanceReserved: LedgerState._reserve,
    ReservationSpent: LedgerState._spend,
    ReservationReleased: LedgerState._release_or_expire,
    ExpiryRecorded: LedgerState._release_or_expire,
    BlockRecorded: LedgerState._record_block,
    ManifestsRecorded: LedgerState._record_manifests,
    BlockWithdrawn: LedgerState._withdraw_block,
    ManifestsWithdrawn: LedgerState._withdraw_manifests,
    SettingsChanged: LedgerState._change_settings,
    LedgerOpened: LedgerState._open,
    StateSealed: LedgerState._seal,
    MinerExcluded: LedgerState._exclude,
    MinerReadmitted: LedgerState._readmit,
    CollateralRecorded: LedgerState._record_collateral,
    JobElsewhereRecorded: LedgerState._record_job_elsewhere,
    JobElsewhereEnded: LedgerState._end_job_elsewhere,
    IncidentReported: LedgerState._report_incident,
}
