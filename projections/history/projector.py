"""How the history's read model is written: its generations, their checkpoints, and a page of events.

Rows and checkpoint move in one transaction, so that a model is always what the log says up to its checkpoint. Each
release has a live generation of its own: a model of another version is never read, and what is not there is made
anew. One more generation may be in the making, the shadow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ledger import ReadModelTransaction, RowExists, Store
from ledger.errors import ProjectionStopped

from .model import LIVE, MODEL_VERSION, NO_CHECKPOINT, SHADOW, Checkpoint, checkpoint_query, in_batches
from .rows import BucketRun, HistoryRow, UnprojectedTail

ROWS_PER_TRANSACTION = 200
"""Events in one transaction, which all who append to a file wait for."""
CAUGHT_UP_IN = 10
"""Transactions in which whatever the model is behind is caught up with, where that asks for larger ones."""

CHECKPOINTS, RESERVATIONS, RESERVED_BLOCKS = (
    "allowance_checkpoints",
    "allowance_reservations",
    "allowance_reserved_blocks",
)

_BEGIN = f"INSERT INTO {CHECKPOINTS} (ledger, projection, model_version, generation, position) VALUES (?, ?, ?, ?, ?)"
_MOVE = f"UPDATE {CHECKPOINTS} SET position = ? WHERE ledger = ? AND projection = ? AND model_version = ?"
_GIVE_UP_OLDER = f"DELETE FROM {CHECKPOINTS} WHERE ledger = ? AND projection = ? AND model_version <= ?"
_GIVE_UP = f"""DELETE FROM {CHECKPOINTS}
               WHERE ledger = ? AND projection = ? AND model_version = ? AND generation = ?"""
_MAKE_WAY = f"DELETE FROM {CHECKPOINTS} WHERE ledger = ? AND projection IN ('{LIVE}', '{SHADOW}')"
_END = f"""UPDATE {RESERVATIONS} SET status = ?, settled_position = ?, settled_at_ns = ?
           WHERE ledger = ? AND generation = ? AND position = ?"""


def _insert(table: str, columns: Sequence[str]) -> str:
    values = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table} (ledger, generation, {', '.join(columns)}) VALUES (?, ?, {values})"


_INSERT_LINE = _insert(RESERVATIONS, HistoryRow._fields)
_INSERT_PIECE = _insert(RESERVED_BLOCKS, BucketRun._fields)


class Projector:
    """Writes one ledger's read model."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def live_for_writing(self) -> Checkpoint:
        """Where the live generation stands; a new, empty one where this version has none."""
        async with self._store.write_read_models() as transaction:
            return await self._place(transaction, LIVE) or await self._begin(transaction, LIVE)

    async def begin_shadow(self) -> Checkpoint:
        """A new, empty shadow. What another rebuild had there is given up."""
        async with self._store.write_read_models() as transaction:
            return await self._begin(transaction, SHADOW)

    async def advance(self, slot: str, place: Checkpoint, tail: UnprojectedTail) -> Checkpoint:
        """Writes a page of events, if the generation still stands at `place`; answers where the slot stands then.

        Raises `ProjectionStopped` where the model has not what the events end; it then stands where it stood.
        """
        async with self._store.write_read_models() as transaction:
            stands = await self._place(transaction, slot)
            if stands != place or tail.position == place.position:
                # Another process has moved the checkpoint: its pages stand, ours is left unwritten.
                return stands or NO_CHECKPOINT
            standing: set[int] = set()
            for query in self._standing_queries(place, tail):
                standing.update(position for (position,) in await transaction.query(query))
            _check_settled(tail, standing)
            await self._write(transaction, place, tail)
            await transaction.query(_MOVE, tail.position, self._store.ledger, slot, MODEL_VERSION)
            return Checkpoint(place.generation, tail.position)

    async def refusal(self, place: Checkpoint, tail: UnprojectedTail) -> ProjectionStopped | None:
        """Why a page of events could not be written, if it could not."""
        standing: set[int] = set()
        for query in self._standing_queries(place, tail):
            standing.update(position for (position,) in await self._store.query(query))
        try:
            _check_settled(tail, standing)
        except ProjectionStopped as stopped:
            return stopped
        return None

    async def go_live(self, shadow: Checkpoint) -> bool:
        """Puts the shadow in the place of the live generation, of whichever version; False if it is another by now."""
        async with self._store.write_read_models() as transaction:
            if await self._place(transaction, SHADOW) != shadow:
                return False
            await transaction.query(_MAKE_WAY, self._store.ledger)
            await transaction.query(_BEGIN, self._store.ledger, LIVE, MODEL_VERSION, *shadow)
            return True

    async def give_up(self, shadow: Checkpoint) -> None:
        """Forgets the shadow, if it is still this one; its rows are left to a sweep."""
        async with self._store.write_read_models() as transaction:
            await transaction.query(_GIVE_UP, self._store.ledger, SHADOW, MODEL_VERSION, shadow.generation)

    async def _place(self, transaction: ReadModelTransaction, slot: str) -> Checkpoint | None:
        rows = await transaction.query(checkpoint_query(self._store.ledger, slot))
        return Checkpoint(*rows[0]) if rows else None

    async def _begin(self, transaction: ReadModelTransaction, slot: str) -> Checkpoint:
        """A new, empty generation in a slot. What the slot held, this version's or an older one's, is given up."""
        ledger, newest = self._store.ledger, 0
        for table in (CHECKPOINTS, RESERVATIONS, RESERVED_BLOCKS):
            for (generation,) in await transaction.query(
                f"SELECT max(generation) FROM {table} WHERE ledger = ?", ledger
            ):
                newest = max(newest, generation or 0)
        place = Checkpoint(newest + 1, 0)
        await transaction.query(_GIVE_UP_OLDER, ledger, slot, MODEL_VERSION)
        await transaction.query(_BEGIN, ledger, slot, MODEL_VERSION, *place)
        return place

    async def _write(self, transaction: ReadModelTransaction, place: Checkpoint, tail: UnprojectedTail) -> None:
        ledger, generation = self._store.ledger, place.generation
        lines = tail.lines.values()
        try:
            await transaction.execute_many(_INSERT_LINE, [(ledger, generation, *line) for line in lines])
            pieces = [(ledger, generation, *piece) for line in lines for piece in line.pieces()]
            await transaction.execute_many(_INSERT_PIECE, pieces)
        except RowExists as cause:
            first = next(iter(lines)).position
            reason = "the history has rows already that belong behind its checkpoint"
            raise ProjectionStopped(first, "allowance-reserved", reason) from cause
        ends = tail.ends.items()
        await transaction.execute_many(
            _END, [(end.status, end.position, end.at_ns, ledger, generation, at) for at, end in ends]
        )

    def _standing_queries(self, place: Checkpoint, tail: UnprojectedTail) -> Iterable[str]:
        """Ask which of the reservations that the events end stand in the model."""
        for positions in in_batches(sorted(tail.ends)):
            yield (
                f"SELECT position FROM {RESERVATIONS} WHERE ledger = {self._store.ledger}"
                f" AND generation = {place.generation} AND status = 'reserved'"
                f" AND position IN ({', '.join(map(str, positions))})"
            )


def rows_per_transaction(behind: int) -> int:
    """How many events to write in one transaction: more where the model falls behind those who append meanwhile."""
    return max(ROWS_PER_TRANSACTION, behind // CAUGHT_UP_IN)


def _check_settled(tail: UnprojectedTail, standing: set[int]) -> None:
    """Each reservation that the events end must stand in the model."""
    absent = tail.ends.keys() - standing
    if absent:
        settles, end = min(((at, tail.ends[at]) for at in absent), key=lambda each: each[1].position)
        reason = f"no reservation made at position {settles} stands in the history"
        raise ProjectionStopped(end.position, end.event_type, reason)
