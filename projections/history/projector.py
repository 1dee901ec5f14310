"""Write access to the history's read model: its generations, their checkpoints, and batches of projected events.

Rows and checkpoint move in one transaction, so a generation always equals the fold of the log up to its checkpoint.
A release reads only the live generation of its own `MODEL_VERSION`, and builds one from the log if it is missing, so
releases with different versions can run side by side. A rebuild writes a second generation, the shadow, and at the end
replaces the live generations of all versions by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ledger import DerivedTransaction, RowExists, Store
from ledger.errors import ProjectionStopped

from .model import (
    CHECKPOINTS,
    LIVE,
    MODEL_VERSION,
    NO_CHECKPOINT,
    RESERVATIONS,
    RESERVED_BLOCKS,
    SHADOW,
    Checkpoint,
    checkpoint_query,
    in_batches,
)
from .rows import BucketRun, HistoryRow, UnprojectedTail

ROWS_PER_TRANSACTION = 200
"""Events in one transaction, if the derived tables share a database with the log."""
ROWS_PER_PIECE = 32
"""Events in one transaction on a file of derived tables: for each of them the loop stops for about 0.5 ms."""
BACKLOG_SHARE = 10
"""A transaction writes a tenth of the backlog that is left, if that is more.

Appends go first between two transactions. With transactions of a fixed size, busy writers could append events faster
than the projector writes them, and the backlog would grow without end. A transaction never goes beyond the page of the
log that was read.
"""

_INSERT_CHECKPOINT = (
    f"INSERT INTO {CHECKPOINTS} (ledger, projection, model_version, generation, position) VALUES (?, ?, ?, ?, ?)"
)
_MOVE_CHECKPOINT = f"UPDATE {CHECKPOINTS} SET position = ? WHERE ledger = ? AND projection = ? AND model_version = ?"
_DELETE_UP_TO_VERSION = f"DELETE FROM {CHECKPOINTS} WHERE ledger = ? AND projection = ? AND model_version <= ?"
_DELETE_GENERATION = f"""DELETE FROM {CHECKPOINTS}
                         WHERE ledger = ? AND projection = ? AND model_version = ? AND generation = ?"""
_DELETE_ALL = f"DELETE FROM {CHECKPOINTS} WHERE ledger = ? AND projection IN ('{LIVE}', '{SHADOW}')"
_SETTLE = f"""UPDATE {RESERVATIONS} SET status = ?, settled_position = ?, settled_at_ns = ?
              WHERE ledger = ? AND generation = ? AND position = ?"""


def _insert(table: str, columns: Sequence[str]) -> str:
    values = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table} (ledger, generation, {', '.join(columns)}) VALUES (?, ?, {values})"


_INSERT_ROW = _insert(RESERVATIONS, HistoryRow._fields)
_INSERT_BUCKET_RUN = _insert(RESERVED_BLOCKS, BucketRun._fields)


class Projector:
    """Writes one ledger's read model."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin_live_if_missing(self) -> Checkpoint:
        """Begin an empty live generation if this version has none; return the checkpoint of the live generation."""
        async with self._store.write_derived() as transaction:
            return await self._checkpoint(transaction, LIVE) or await self._begin(transaction, LIVE)

    async def begin_shadow(self) -> Checkpoint:
        """Begin a new, empty shadow generation, instead of that of any other rebuild, and return its checkpoint."""
        async with self._store.write_derived() as transaction:
            return await self._begin(transaction, SHADOW)

    async def advance(self, slot: str, checkpoint: Checkpoint, tail: UnprojectedTail) -> Checkpoint:
        """Write a tail if the slot is still at `checkpoint`; return the slot's checkpoint afterwards.

        Raises `ProjectionStopped`, and writes nothing, if the model lacks a reservation that the tail settles.
        """
        async with self._store.write_derived() as transaction:
            stored = await self._checkpoint(transaction, slot)
            # If the checkpoint is another one, another process has moved it: its rows count, and ours would be written
            # twice. If the tail is empty, because its first event is missing or cannot be applied, there is nothing to
            # write.
            if stored != checkpoint or tail.position == checkpoint.position:
                return stored or NO_CHECKPOINT
            active: set[int] = set()
            for query in self._active_queries(checkpoint, tail):
                active.update(position for (position,) in await transaction.query(query))
            _check_active(tail, active)
            await self._write(transaction, checkpoint, tail)
            await transaction.query(_MOVE_CHECKPOINT, tail.position, self._store.ledger, slot, MODEL_VERSION)
            return Checkpoint(checkpoint.generation, tail.position)

    async def refusal(self, checkpoint: Checkpoint, tail: UnprojectedTail) -> ProjectionStopped | None:
        """Return the error with which `advance` would refuse a tail, or None; write nothing."""
        active: set[int] = set()
        for query in self._active_queries(checkpoint, tail):
            active.update(position for (position,) in await self._store.derived_query(query))
        try:
            _check_active(tail, active)
        except ProjectionStopped as stopped:
            return stopped
        return None

    async def go_live(self, shadow: Checkpoint) -> bool:
        """Replace the live generations of all versions by the shadow; return False if the shadow is another by now.

        A newer release's generation is deleted too, because a rebuild leaves no history that was derived before it.
        That release then finds its version missing and builds it from the log again.
        """
        async with self._store.write_derived() as transaction:
            if await self._checkpoint(transaction, SHADOW) != shadow:
                return False
            await transaction.query(_DELETE_ALL, self._store.ledger)
            await transaction.query(_INSERT_CHECKPOINT, self._store.ledger, LIVE, MODEL_VERSION, *shadow)
            return True

    async def discard_shadow(self, shadow: Checkpoint) -> None:
        """Delete the shadow's checkpoint, if it is still this one; the garbage collection deletes its rows."""
        async with self._store.write_derived() as transaction:
            await transaction.query(_DELETE_GENERATION, self._store.ledger, SHADOW, MODEL_VERSION, shadow.generation)

    async def _checkpoint(self, transaction: DerivedTransaction, slot: str) -> Checkpoint | None:
        rows = await transaction.query(checkpoint_query(self._store.ledger, slot))
        return Checkpoint(*rows[0]) if rows else None

    async def _begin(self, transaction: DerivedTransaction, slot: str) -> Checkpoint:
        """Put a new, empty generation into a slot, and delete that of this version and of older ones.

        A newer version keeps its generation: if two releases run side by side and each deleted the other's generation,
        both would build theirs from the log again and again. Only a rebuild, which somebody asked for, deletes it.
        """
        ledger, newest = self._store.ledger, 0
        # The rows count too: a generation without a checkpoint may still have rows, which would become the new one's.
        for table in (CHECKPOINTS, RESERVATIONS, RESERVED_BLOCKS):
            query = f"SELECT max(generation) FROM {table} WHERE ledger = ?"
            for (generation,) in await transaction.query(query, ledger):
                newest = max(newest, generation or 0)
        checkpoint = Checkpoint(newest + 1, 0)
        await transaction.query(_DELETE_UP_TO_VERSION, ledger, slot, MODEL_VERSION)
        await transaction.query(_INSERT_CHECKPOINT, ledger, slot, MODEL_VERSION, *checkpoint)
        return checkpoint

    async def _write(self, transaction: DerivedTransaction, checkpoint: Checkpoint, tail: UnprojectedTail) -> None:
        ledger, generation = self._store.ledger, checkpoint.generation
        rows = tail.rows.values()
        try:
            await transaction.execute_many(_INSERT_ROW, [(ledger, generation, *row) for row in rows])
            bucket_runs = [(ledger, generation, *bucket_run) for row in rows for bucket_run in row.bucket_runs()]
            await transaction.execute_many(_INSERT_BUCKET_RUN, bucket_runs)
        except RowExists as cause:
            # Rows and checkpoint commit together, so only damage or a change by hand leads here. The error names the
            # first reservation that was to be written; the database does not say which row was in the way.
            first = next(iter(rows)).position
            reason = "the history already has rows beyond its checkpoint"
            raise ProjectionStopped(first, "allowance-reserved", reason) from cause
        settlements = tail.settlements.items()
        await transaction.execute_many(
            _SETTLE,
            [(each.status, each.position, each.at_ns, ledger, generation, settles) for settles, each in settlements],
        )

    def _active_queries(self, checkpoint: Checkpoint, tail: UnprojectedTail) -> Iterable[str]:
        """Return SQL for the positions of those reservations that the tail settles and that are active in the model.

        The values are part of the text because `refusal` passes it to `Store.derived_query`, which takes no values. All
        of them are integers of this ledger, or are written here, so nothing needs to be quoted.
        """
        for positions in in_batches(sorted(tail.settlements)):
            yield (
                f"SELECT position FROM {RESERVATIONS} WHERE ledger = {self._store.ledger}"
                f" AND generation = {checkpoint.generation} AND status = 'reserved'"
                f" AND position IN ({', '.join(map(str, positions))})"
            )


def rows_per_transaction(store: Store, behind: int) -> int:
    """Return how many events to write in one transaction; more if the model is far behind, see `BACKLOG_SHARE`."""
    least = ROWS_PER_PIECE if store.keeps_derived_apart else ROWS_PER_TRANSACTION
    return max(least, behind // BACKLOG_SHARE)


def _check_active(tail: UnprojectedTail, active: set[int]) -> None:
    """Raise `ProjectionStopped` for the first settlement of a reservation that is not active in the model."""
    absent = tail.settlements.keys() - active
    if absent:
        unsettled = ((position, tail.settlements[position]) for position in absent)
        settles, settlement = min(unsettled, key=lambda each: each[1].position)
        reason = f"the history has no active reservation of position {settles}"
        raise ProjectionStopped(settlement.position, settlement.event_type, reason)
