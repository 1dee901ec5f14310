"""Snapshots of the state, so that opening a ledger folds only the events after the newest one.

A snapshot is derived data and never trusted. It counts only if the log itself holds the seal of its position: an event
at a higher position with the digest of the state that the snapshot's bytes decode to. Other snapshots are skipped, and
the log is folded from an older one or from its beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

from ledger import (
    SNAPSHOT_VERSION,
    DerivedTablesUnavailable,
    Lookup,
    Row,
    Store,
    decode_state,
    encode_state,
    proves,
    seal_key,
    state_digest,
)
from ledger.codec import decode, row_hash
from ledger.events import SEALS_STREAM, StateSealed
from ledger.values import LARGEST_INTEGER

from .availability import Availability

KEPT_SNAPSHOTS = 16
"""Spread over the log, so that views of any position begin near it; an older one serves if the newest is damaged."""
# Rows that one query searches for seals; about 10 ms.
SEARCHED_ROWS = 10_000

_INSERT = """INSERT INTO allowance_snapshots (ledger, position, model_version, hash, digest, payload)
             VALUES (?, ?, ?, ?, ?, ?)"""
_DELETE = "DELETE FROM allowance_snapshots WHERE ledger = ? AND position = ?"

ProgressReport = Callable[[int, int], None]
"""Called on the ledger's own thread with the number of events processed so far and the number of events in all."""


class Snapshot(NamedTuple):
    """An encoded state, with the position and hash of the last row in it."""

    position: int
    hash: bytes
    payload: bytes


class SealedSnapshot(NamedTuple):
    """A snapshot with the digest that its seal must have. Append the seal first: without it the snapshot is useless."""

    snapshot: Snapshot
    digest: bytes


class SnapshotStore:
    """One ledger's stored snapshots."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def load(self, until: int | None = None) -> Availability:
        """Return the state of the newest sealed snapshot up to a position, or the empty state."""
        before = LARGEST_INTEGER if until is None else until + 1
        while (snapshot := await self._newest(before)) is not None:
            before = snapshot.position
            state = Availability()
            try:
                decode_state(snapshot.payload, state)
                digest = state_digest(state)
            except Exception:
                # Damaged bytes may raise anything, and no damage may prevent opening: the log has the same facts.
                continue
            if await self._is_sealed(snapshot, state, digest):
                return state
        return Availability()

    async def all(self) -> dict[int, Snapshot]:
        """Return the stored snapshots by position, damaged ones too; a payload that fails its digest is marked."""
        rows = await self._query(
            f"SELECT position, hash, digest, payload FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION}"
        )
        return {position: _stored_snapshot(position, *columns) for position, *columns in rows}

    async def drop(self, positions: Collection[int]) -> None:
        """Delete the snapshots at these positions."""
        async with self._store.write_derived() as transaction:
            await transaction.execute_many(_DELETE, [(self._store.ledger, position) for position in positions])

    async def save(self, snapshot: Snapshot) -> None:
        """Store a snapshot; keep `KEPT_SNAPSHOTS` that are spread over the log."""
        position, ledger = snapshot.position, self._store.ledger
        async with self._store.write_derived() as transaction:
            # Of every version: an older release's snapshots would otherwise stay for ever.
            rows = await transaction.query("SELECT position FROM allowance_snapshots WHERE ledger = ?", ledger)
            positions = {each for (each,) in rows}
            remaining = spread_positions({*positions, position}, KEPT_SNAPSHOTS)
            deleted = [each for each in positions if each not in remaining or each == position]
            await transaction.execute_many(_DELETE, [(ledger, each) for each in deleted])
            if position in remaining:
                digest = payload_digest(snapshot.payload)
                values = (ledger, position, SNAPSHOT_VERSION, snapshot.hash, digest, snapshot.payload)
                await transaction.execute_many(_INSERT, [values])

    async def _newest(self, before: int) -> Snapshot | None:
        """Return the newest snapshot before a position, sound or damaged."""
        rows = await self._query(
            f"SELECT position, hash, digest, payload FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION} AND position < {before} ORDER BY position DESC LIMIT 1"
        )
        return _stored_snapshot(*rows[0]) if rows else None

    async def _query(self, statement: str) -> list[tuple[Any, ...]]:
        with suppress(DerivedTablesUnavailable):
            return await self._store.derived_query(statement)
        return []

    async def _is_sealed(self, snapshot: Snapshot, state: Availability, digest: bytes) -> bool:
        """Return True if the log has the row at which the snapshot was taken, and seals the state that it decodes to.

        After a restore, or in a row copied from another ledger, the log may have another row at that position.
        """
        position = snapshot.position
        lookup = Lookup([position])
        lookup.keys.add(seal_key(position))
        found = await self._store.find(lookup)
        row, seal = found.rows.get(position), found.keys.get(seal_key(position))
        if row is None or seal is None or not (position == state.position and row.hash == snapshot.hash == state.hash):
            return False
        return proves(seal, position, digest) and await self._is_as_written(seal, row)

    async def _is_as_written(self, seal: Row, row: Row) -> bool:
        """Return True if a seal's row has the hash that follows from it and the row before it.

        So a seal that was edited after it was written is not believed, unless all later hashes were edited too.
        """
        before: Row | None = row
        if seal.position != row.position + 1:
            before = (await self._store.find(Lookup([seal.position - 1]))).rows.get(seal.position - 1)
        return before is not None and row_hash(before.hash, seal) == seal.hash


def spread_positions(positions: Collection[int], kept: int) -> list[int]:
    """Return at most `kept` of these positions: the two newest, and others that are the sparser the older they are.

    The next one to go is always the one whose absence lengthens the fold from its predecessor least, compared with how
    far back that is. So a later call with the result, and newer positions, never needs one that has gone.
    """
    spread = sorted(positions)
    while len(spread) > max(kept, 2):
        newest = spread[-1]
        before = [0, *spread]
        costs = [(spread[at + 1] - before[at]) / (newest - before[at]) for at in range(len(spread) - 2)]
        del spread[costs.index(min(costs))]
    return spread


def sealed_if_due(state: Availability, every_rows: int) -> SealedSnapshot | None:
    """Return a snapshot of a committed state if at least `every_rows` rows have come since the position sealed last."""
    if state.position - state.sealed_position < every_rows:
        return None
    return SealedSnapshot(snapshot_of(state), state_digest(state))


async def sealed_positions(store: Store) -> list[int]:
    """Return the positions that the log's seals name, in the order of the seals; those of unreadable rows are left out.

    Only a hint where to look: the log's rows, read in order, say what is sealed.
    """
    head = (await store.head()).position
    found: list[int] = []
    for after in range(0, head, SEARCHED_ROWS):
        rows = await store.read_streams([SEALS_STREAM], after, after + SEARCHED_ROWS)
        found += [event.position for event in map(_seal_in, rows) if event is not None]
        await asyncio.sleep(0)
    return found


async def state_at(store: Store, position: int, progress: ProgressReport | None = None) -> Availability:
    """Return the state right after a position, which the log must have."""
    state = await SnapshotStore(store).load(until=position)
    while state.position < position:
        rows = await store.read(state.position)
        state.fold([row for row in rows if row.position <= position])
        if progress is not None:
            progress(state.position, position)
        await asyncio.sleep(0)  # A long fold yields the event loop after each page.
    return state


def _seal_in(row: Row) -> StateSealed | None:
    try:
        event = decode(row.position, row.payload)
    except Exception:  # A damaged row may hold anything; an audit reports it when it reaches the row.
        return None
    return event if isinstance(event, StateSealed) else None


def snapshot_of(state: Availability) -> Snapshot:
    """Return a snapshot of a state."""
    return Snapshot(state.position, state.hash, encode_state(state))


def payload_digest(payload: bytes) -> bytes:
    """Return the digest that is stored beside a payload: BLAKE2b of 32 bytes."""
    return blake2b(payload, digest_size=32).digest()


def _stored_snapshot(position: int, a_hash: bytes, digest: bytes, payload: bytes) -> Snapshot:
    """Return a stored snapshot; a payload that fails its digest becomes bytes that no state is encoded to."""
    sound = payload_digest(payload) == digest
    return Snapshot(position, bytes(a_hash), bytes(payload) if sound else b"damaged" + bytes(payload))
