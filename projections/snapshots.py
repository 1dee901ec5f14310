"""Snapshots of the state: opening a ledger costs what came after the newest one.

A snapshot is derived and never believed: it counts only if its bytes have the digest they were stored with and
the log still has the row, by position and hash, that it was taken at. What does not count is passed over, and the
log is folded from further back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from hashlib import blake2b
from typing import NamedTuple

from ledger import SNAPSHOT_VERSION, Lookup, Store, decode_state, encode_state
from ledger.values import LARGEST_INTEGER

from .availability import Availability

KEPT_SNAPSHOTS = 2

_INSERT = """INSERT INTO allowance_snapshots (ledger, position, model_version, hash, digest, payload)
             VALUES (?, ?, ?, ?, ?, ?)"""

ProgressReport = Callable[[int, int], None]
"""Called with how many events were read, and how many there are to read, on the ledger's own thread."""


class Snapshot(NamedTuple):
    """A state as bytes, and the row that it was taken at."""

    position: int
    hash: bytes
    payload: bytes


class SnapshotStore:
    """One ledger's snapshots."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.newest = 0
        """The position of the newest snapshot that was loaded, saved or looked for here."""

    async def refresh_newest(self) -> None:
        """Finds out which snapshot is the newest, whoever saved it."""
        rows = await self._store.query(
            f"SELECT max(position) FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION}"
        )
        self.newest = max(self.newest, *(position or 0 for (position,) in rows))

    def take_if_due(self, state: Availability, every_rows: int) -> Snapshot | None:
        """A snapshot of a committed state, if so many rows have come since the newest."""
        if state.position - self.newest < every_rows:
            return None
        return Snapshot(state.position, state.hash, encode_state(state))

    async def load(self, until: int | None = None) -> Availability:
        """A state to fold on from: the newest snapshot up to a position, or the beginning."""
        before = LARGEST_INTEGER if until is None else until + 1
        while (stored := await self._newest(before)) is not None:
            before = stored.position
            state = Availability()
            try:
                decode_state(stored.payload, state)
            except Exception:
                # Whatever is wrong with it: the log has all that it could say.
                continue
            if state.position == stored.position and await self._is_of_this_log(stored):
                self.newest = max(self.newest, stored.position)
                return state
        return Availability()

    async def all(self) -> dict[int, Snapshot]:
        """The stored snapshots by position, sound or not; where the stored digest is wrong, so is the payload here."""
        rows = await self._store.query(
            f"SELECT position, hash, digest, payload FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION}"
        )
        return {
            position: Snapshot(position, bytes(a_hash), _checked_payload(payload, digest))
            for position, a_hash, digest, payload in rows
        }

    async def save(self, taken: Snapshot, dropped: Collection[int] = ()) -> None:
        """Stores a snapshot; drops those named, and the oldest beyond those kept."""
        position, ledger = taken.position, self._store.ledger
        async with self._store.write_read_models() as transaction:
            rows = await transaction.query("SELECT position FROM allowance_snapshots WHERE ledger = ?", ledger)
            positions = {each for (each,) in rows}
            kept = sorted({*positions.difference(dropped), position})[-KEPT_SNAPSHOTS:]
            gone = [each for each in positions if each not in kept or each == position]
            await transaction.execute_many(
                "DELETE FROM allowance_snapshots WHERE ledger = ? AND position = ?", [(ledger, each) for each in gone]
            )
            if position in kept:
                values = (ledger, position, SNAPSHOT_VERSION, taken.hash, _digest(taken.payload), taken.payload)
                await transaction.execute_many(_INSERT, [values])
        self.newest = max(self.newest, position)

    async def _newest(self, before: int) -> Snapshot | None:
        """The newest snapshot before a position, sound or not."""
        rows = await self._store.query(
            f"SELECT position, hash, digest, payload FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION} AND position < {before} ORDER BY position DESC LIMIT 1"
        )
        return _snapshot(*rows[0]) if rows else None

    async def _is_of_this_log(self, taken: Snapshot) -> bool:
        """Whether the log has the row that it was taken at."""
        lookup = Lookup()
        lookup.positions.add(taken.position)
        found = (await self._store.find(lookup)).rows.get(taken.position)
        return found is not None and found.hash == taken.hash


async def state_at(store: Store, position: int, progress: ProgressReport | None = None) -> Availability:
    """The state as it was right after a position, which the log must have."""
    state = await SnapshotStore(store).load(until=position)
    while state.position < position:
        rows = await store.read(state.position)
        state.fold([row for row in rows if row.position <= position])
        if progress is not None:
            progress(state.position, position)
        await asyncio.sleep(0)  # A long fold lets others have the loop between pages.
    return state


def _snapshot(position: int, a_hash: bytes, digest: bytes, payload: bytes) -> Snapshot:
    return Snapshot(position, bytes(a_hash), _checked_payload(payload, digest))


def _checked_payload(payload: bytes, digest: bytes) -> bytes:
    """The payload as it was stored; where it is not that any more, bytes that no state has."""
    return bytes(payload) if _digest(payload) == digest else b"damaged" + bytes(payload)


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=32).digest()
