"""Logs and snapshots that somebody changed by hand, and the states that logs lead to."""

from __future__ import annotations

from ledger import Row, Settings
from ledger.codec import decode, encode, reservation_id, row_hash
from ledger.domain.blocks import BlockSet
from ledger.events import SEALS_STREAM, SETTINGS_STREAM, SettingsChanged, StateSealed
from projections import Availability, Snapshot
from projections.snapshots import snapshot_of


def other_log(rows: list[Row], first_changed: int) -> list[Row]:
    """Return a valid log that differs from these rows from an index on, and is longer by a change of settings."""
    settings = encode(SettingsChanged(Settings(block_expiry_blocks=7).to_recorded()))
    version = sum(row.stream == SETTINGS_STREAM for row in rows) + 1
    at_ns = rows[-1].recorded_at_ns
    more = Row(len(rows) + 1, SETTINGS_STREAM, version, at_ns, None, None, None, None, settings, b"")
    changed = rows[:first_changed]
    for row in (*rows[first_changed:], more):
        payload = row.payload
        if row.settles is not None:
            # An id has bits of its row's hash, which may be another now.
            old, new = (str(reservation_id(row.settles, log[row.settles - 1].hash)) for log in (rows, changed))
            payload = payload.replace(old.encode(), new.encode())
        later = row._replace(recorded_at_ns=row.recorded_at_ns + 1, payload=payload)
        changed.append(later._replace(hash=row_hash(changed[-1].hash, later)))
    return changed


def sealed_position(rows: list[Row]) -> int:
    """Return the position that the newest seal names; 0 if there is none."""
    seals = (decode(row.position, row.payload) for row in reversed(rows) if row.stream == SEALS_STREAM)
    return next((seal.position for seal in seals if isinstance(seal, StateSealed)), 0)


def forgetful_state(rows: list[Row]) -> Snapshot:
    """Return a snapshot with the right position and hash in which no block is taken."""
    state = Availability()
    state.fold(rows)
    for active in list(state.active.values()):
        state._remove_active(active)
    for account in state.chain.accounts.values():
        account.taken = BlockSet()
    return snapshot_of(state)


def rows_as_state(rows: list[Row]) -> Snapshot:
    """Fold rows from the beginning."""
    state = Availability()
    state.fold(rows)
    return snapshot_of(state)
