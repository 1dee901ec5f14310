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

from ledger import LARGEST_INTEGER, SNAPSHOT_VERSION, Lookup, Store, dump, load

from .availability import Availability

KEPT_SNAPSHOTS = 2

ProgressReport = Callable[[int, int], None]
"""Called with how many events were read, and how many there are to read, on the ledger's own thread."""


class Taken(NamedTuple):
    """A state as bytes, and the row that it was taken at."""

    position: int
    hash: bytes
    payload: bytes


class Snapshots:
    """One ledger's snapshots."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.newest = 0
        """The position of the newest snapshot that was loaded, saved or looked for here."""

    async def look(self) -> None:
        """Finds out which snapshot is the newest, whoever saved it."""
        rows = await self._store.select(
            f"SELECT max(position) FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION}"
        )
        self.newest = max(self.newest, *(position or 0 for (position,) in rows))

    def take(self, state: Availability, every_rows: int) -> Taken | None:
        """A snapshot of a committed state, if so many rows have come since the newest."""
        if state.position - self.newest < every_rows:
            return None
        return Taken(state.position, state.hash, dump(state))

    async def load(self, until: int | None = None) -> Availability:
        """A state to fold on from: the newest snapshot up to a position, or the beginning."""
        before = LARGEST_INTEGER if until is None else until + 1
        while (stored := await self._newest(before)) is not None:
            before = stored.position
            state = Availability()
            try:
                load(stored.payload, state)
            except Exception:
                # Whatever is wrong with it: the log has all that it could say.
                continue
            if state.position == stored.position and await self._is_of_this_log(stored):
                self.newest = max(self.newest, stored.position)
                return state
        return Availability()

    async def stored(self) -> dict[int, Taken]:
        """The stored snapshots by position, sound or not; where the stored digest is wrong, so is the payload here."""
        from sqlalchemy import select

        from .tables import snapshots

        query = select(snapshots).where(
            snapshots.c.ledger == self._store.ledger, snapshots.c.model_version == SNAPSHOT_VERSION
        )
        async with self._store.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {row.position: Taken(row.position, bytes(row.hash), _sealed(row.payload, row.digest)) for row in rows}

    async def save(self, taken: Taken, dropped: Collection[int] = ()) -> None:
        """Stores a snapshot; drops those named, and the oldest beyond those kept."""
        from sqlalchemy import delete, insert, select

        from .tables import snapshots

        position = taken.position
        ledger = self._store.ledger
        async with self._store.writing() as connection:
            mine = snapshots.c.ledger == ledger
            positions = set((await connection.execute(select(snapshots.c.position).where(mine))).scalars())
            kept = sorted({*positions.difference(dropped), position})[-KEPT_SNAPSHOTS:]
            gone = [each for each in positions if each not in kept or each == position]
            await connection.execute(delete(snapshots).where(mine, snapshots.c.position.in_(gone)))
            if position in kept:
                await connection.execute(
                    insert(snapshots),
                    {
                        "ledger": ledger,
                        "position": position,
                        "model_version": SNAPSHOT_VERSION,
                        "hash": taken.hash,
                        "digest": _digest(taken.payload),
                        "payload": taken.payload,
                    },
                )
        self.newest = max(self.newest, position)

    async def _newest(self, before: int) -> Taken | None:
        """The newest snapshot before a position, sound or not."""
        rows = await self._store.select(
            f"SELECT position, hash, digest, payload FROM allowance_snapshots WHERE ledger = {self._store.ledger}"
            f" AND model_version = {SNAPSHOT_VERSION} AND position < {before} ORDER BY position DESC LIMIT 1"
        )
        for position, a_hash, digest, payload in rows:
            return Taken(position, bytes(a_hash), _sealed(payload, digest))
        return None

    async def _is_of_this_log(self, taken: Taken) -> bool:
        """Whether the log has the row that it was taken at."""
        lookup = Lookup()
        lookup.positions.add(taken.position)
        found = (await self._store.find(lookup)).rows.get(taken.position)
        return found is not None and found.hash == taken.hash


async def folded_to(store: Store, position: int, progress: ProgressReport | None = None) -> Availability:
    """The state as it was right after a position, which the log must have."""
    state = await Snapshots(store).load(until=position)
    while state.position < position:
        rows = await store.read(state.position)
        state.fold([row for row in rows if row.position <= position])
        if progress is not None:
            progress(state.position, position)
        await asyncio.sleep(0)  # A long fold lets others have the loop between pages.
    return state


def _sealed(payload: bytes, digest: bytes) -> bytes:
    """The payload as it was stored; where it is not that any more, bytes that no state has."""
    return bytes(payload) if _digest(payload) == digest else b"damaged" + bytes(payload)


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=32).digest()
