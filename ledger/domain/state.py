"""The state of one ledger: a fold of its log, kept in memory.

`evolve` takes the next row; it reads no clock and trusts the log, but refuses a row that cannot follow.
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
)

from .account import Account, ActiveReservation
from .chain import Chain


class LedgerState:
    """Chain facts, accounts, and the reservations that stand, as they are at `position`."""

    def __init__(self) -> None:
        self.position = 0
        self.hash = GENESIS_HASH
        self.recorded_at_ns = 0
        self.chain = Chain()
        self.versions = {SETTINGS_STREAM: 0, CHAIN_STREAM: 0, MANIFESTS_STREAM: 0}
        """Versions of the streams that are no account's."""
        self.active: dict[int, ActiveReservation] = {}
        """Standing reservations by id."""
        self.jobs: dict[str, ActiveReservation] = {}
        """Standing reservations by job."""
        self.due_queue: list[tuple[int, int]] = []
        """Standing reservations as (due time, id), ascending."""

    def version(self, stream: str) -> int:
        """The stream's version; 0 for one that does not exist yet."""
        account = self.chain.accounts.get(stream)
        return account.version if account is not None else self.versions.get(stream, 0)

    def overdue(self, now_ns: int) -> list[ActiveReservation]:
        """The reservations whose due time has passed, by due time."""
        return [
            self.active[active_id] for _, active_id in self.due_queue[: bisect_right(self.due_queue, (now_ns, 2**63))]
        ]

    def window_start(self, job_start_block: int) -> int:
        """The first block that a job starting at a block may use."""
        return job_start_block - self.chain.settings.block_expiry_blocks

    def fold(self, rows: list[Row]) -> None:
        """Evolves by stored rows, in order."""
        for row in rows:
            self.evolve(row, decode(row.position, row.payload))

    def evolve(self, row: Row, event: Event) -> None:
        """Takes the next row of the log."""
        position = row.position
        if position != self.position + 1:
            raise CorruptLedger(position, f"it follows position {self.position}")
        try:
            _EVOLVE[type(event)](self, row, event)
        except (KeyError, ValueError, AttributeError) as cause:
            raise CorruptLedger(position, f"{type(event).__name__} cannot follow here: {cause!r}") from cause
        self.position = position
        self.hash = row.hash
        self.recorded_at_ns = row.recorded_at_ns

    def availability_changed(self, account: Account) -> None:
        """Called where one account's availability moved; projections override it."""

    def _open(self, row: Row, event: LedgerOpened) -> None:
        self._next_version(row)
        self.chain.validator_ss58 = event.validator_ss58
        self.chain.apply_settings(event.settings)

    def _change_settings(self, row: Row, event: SettingsChanged) -> None:
        self._next_version(row)
        self.chain.apply_settings(event.settings)

    def _add_block(self, row: Row, event: BlockRecorded) -> None:
        self._next_version(row)
        self.chain.apply_block(row.position, event)

    def _sync_manifests(self, row: Row, event: ManifestsRecorded) -> None:
        self._next_version(row)
        self.chain.apply_manifests(row.position, event)

    def _next_version(self, row: Row) -> None:
        if row.version != self.versions[row.stream] + 1:
            raise ValueError(f"version {row.version} of {row.stream} after {self.versions[row.stream]}")
        self.versions[row.stream] = row.version

    def _reserve(self, row: Row, event: AllowanceReserved) -> None:
        position, stream, version, recorded_at_ns, _, job_uuid, attempt, _, _, a_hash = row
        account = self._account(stream, version)
        blocks = event.blocks
        active = ActiveReservation(
            reservation_id(position, a_hash),
            position,
            account,
            event.amount_ns,
            blocks,
            event.job_start_block,
            recorded_at_ns,
            event.expires_at_ns,
            job_uuid,
            attempt,
            event.axon,
        )
        taken = account.taken
        for first, last in blocks:
            taken.add(first, last)
        self.add_active(active)

    def _spend(self, row: Row, event: ReservationSpent) -> None:
        self._remove_active(self._ended(row, event.reservation_id))

    def _free(self, row: Row, event: ReservationReleased | ExpiryRecorded) -> None:
        active = self._ended(row, event.reservation_id)
        self._remove_active(active)
        self._free_blocks(active)

    def add_active(self, active: ActiveReservation) -> None:
        """Puts a reservation among the standing ones."""
        account, active_id = active.account, active.reservation_id
        self.active[active_id] = active
        account.add_active(active)
        if active.job_uuid is not None:
            self.jobs[active.job_uuid] = active
        insort(self.due_queue, (active.expires_at_ns, active_id))
        self.availability_changed(account)

    def revert(self, active: ActiveReservation, event: Event) -> None:
        """Takes back the last event of an account's stream: the reservation it made, or the end it made of one."""
        account = active.account
        account.version -= 1
        if isinstance(event, AllowanceReserved):
            self._free_blocks(active)
            self._remove_active(active)
            return
        if not isinstance(event, ReservationSpent):
            for first, last in active.blocks:
                account.taken.add(first, last)
        self.add_active(active)

    def _ended(self, row: Row, active_id: int) -> ActiveReservation:
        """The standing reservation that a row ends."""
        if row.settles != reservation_position(active_id):
            raise ValueError(f"the row settles {row.settles}, the event {active_id}")
        return self._account(row.stream, row.version).active[active_id]

    def _remove_active(self, active: ActiveReservation) -> None:
        """Takes a reservation out from among the standing ones."""
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

    def _account(self, stream: str, version: int) -> Account:
        """The account, moved to its next version."""
        account = self.chain.accounts[stream]
        if version != account.version + 1:
            raise ValueError(f"version {version} of {stream!r} after {account.version}")
        account.version = version
        return account


_EVOLVE: dict[type, Callable[[LedgerState, Row, Any], None]] = {
    AllowanceReserved: LedgerState._reserve,
    ReservationSpent: LedgerState._spend,
    ReservationReleased: LedgerState._free,
    ExpiryRecorded: LedgerState._free,
    BlockRecorded: LedgerState._add_block,
    ManifestsRecorded: LedgerState._sync_manifests,
    SettingsChanged: LedgerState._change_settings,
    LedgerOpened: LedgerState._open,
}
"""What each event does to a state."""
