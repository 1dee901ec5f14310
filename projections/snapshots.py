"""Snapshots of the state: opening a ledger costs what came after the newest one.

A snapshot is derived and never believed: it counts only if its bytes have the digest they were stored with and
the log still has the row, by position and hash, that it was taken at. What does not count is passed over, and the
log is folded from further back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from ledger import SNAPSHOT_VERSION, Lookup, Store, dump, load

from .availability import Availability

if TYPE_CHECKING:
    from sqlalchemy import Row

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
        """The position of the newest snapshot that was loaded or saved here."""

    def take(self, state: Availability, every_rows: int) -> Taken | None:
        """A snapshot of a committed state, if so many rows have come since the newest."""
        if state.position - self.newest < every_rows:
            return None
        return Taken(state.position, state.hash, dump(state))

    async def load(self, until: int | None = None) -> Availability:
        """A state to fold on from: the newest snapshot up to a position, or the beginning."""
        for position, payload in await self._sound(until):
            state = Availability()
            try:
                load(payload, state)
            except Exception:
                # Whatever is wrong with it: the log has all that it could say.
                continue
            if state.position == position:
                self.newest = max(self.newest, position)
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
        return {row.position: Taken(row.position, bytes(row.hash), _payload_of(row)) for row in rows}

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

    async def _sound(self, until: int | None) -> list[tuple[int, bytes]]:
        """The snapshots that count, newest first."""
        from sqlalchemy import select

        from .tables import snapshots

        query = select(snapshots).where(
            snapshots.c.ledger == self._store.ledger, snapshots.c.model_version == SNAPSHOT_VERSION
        )
        if until is not None:
            query = query.where(snapshots.c.position <= until)
        async with self._store.reading() as connection:
            rows = (await connection.execute(query.order_by(snapshots.c.position.desc()))).all()
        return [(int(row.position), bytes(row.payload)) for row in rows if await self._counts(row)]

    async def _counts(self, row: Row[tuple[int, int, int, bytes, bytes, bytes]]) -> bool:
        lookup = Lookup()
        lookup.positions.add(row.position)
        found = (await self._store.find(lookup)).rows.get(row.position)
        return found is not None and found.hash == row.hash and _digest(row.payload) == row.digest


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


def _payload_of(row: Row[tuple[int, int, int, bytes, bytes, bytes]]) -> bytes:
    """The payload as it was stored; where it is not that any more, bytes that no state has."""
    payload = bytes(row.payload)
    return payload if _digest(payload) == row.digest else b"damaged" + payload


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=32).digest()
