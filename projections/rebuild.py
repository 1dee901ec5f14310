"""Rebuild of everything derived: built from the log beside the stored tables, compared with them, then put live.

The history is written as a shadow generation while appends go on and readers read the live one. Snapshots are compared
with the state folded from the first event. Nothing derived that is stored goes into the result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from ledger import Row, Store, encode_state, yield_to_writers
from ledger.errors import AllowanceException, RebuildOvertaken
from ledger.results import Result
from projections.history.garbage import delete_unreferenced_rows
from projections.history.model import NO_CHECKPOINT, SHADOW, Checkpoint, HistoryModel
from projections.history.projector import ROWS_PER_TRANSACTION, Projector
from projections.history.rows import BucketRun, HistoryRow, fold_tail

from .availability import Availability
from .derived_tables import remake_broken_tables
from .snapshots import ProgressReport, Snapshot, SnapshotStore, payload_digest, snapshot_of

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from projections.history.model import Columns

T = TypeVar("T", HistoryRow, BucketRun)

What = Literal["reservation", "blocks", "snapshot", "state"]

LISTED_DIFFERENCES = 100
"""Further differences are only counted: a damaged table may differ in every row."""
COMPARED_ROWS = 1000
"""Rows of either history in memory at a time."""


class Difference(Result, msgspec.Struct, frozen=True):
    """A difference between stored and rebuilt data: the differing fields of both, or None if one of them is missing.

    `position`: of the event that made the reservation, or of the snapshot or state.
    """

    what: What
    position: int
    found: dict[str, Any] | None
    rebuilt: dict[str, Any] | None


class RebuildReport(Result, msgspec.Struct, frozen=True):
    """The result of a rebuild.

    `position`: of the last event in the new history. `compared_until`: the position up to which the old history was
    compared, 0 if there was none of this release. `reservations`: rows of the new history. `snapshots`: stored
    snapshots that were compared. `different`: the number of differences. `differences`: the first of them. `remade`:
    the tables that were lost or broken and had to be made again.
    """

    position: int
    compared_until: int
    reservations: int
    snapshots: int
    different: int
    differences: list[Difference]
    remade: list[str] = []


class Rebuild:
    """One rebuild of one ledger's derived tables."""

    def __init__(self, store: Store, snapshots: SnapshotStore) -> None:
        self.state = Availability()
        """The fold of the log from its first event, up to where the rebuild is."""
        self._store = store
        self._snapshots = snapshots
        self._model = HistoryModel(store)
        self._projector = Projector(store)
        self._unchecked: dict[int, Snapshot] = {}
        self._different = 0
        self._differences: list[Difference] = []
        self._damaged: list[int] = []
        self._sealed_position = 0
        self._sealed: Snapshot | None = None
        self._remade: list[str] = []

    async def run(self, progress: ProgressReport | None, sealed_position: int = 0) -> RebuildReport:
        """Build the shadow, compare it with the live history, and put it live.

        `sealed_position` is the highest position whose seal the log has: a snapshot is made there, since no other one
        would count.
        Raises `RebuildOvertaken` if another rebuild began meanwhile, and `ProjectionStopped` or `CorruptLedger` at an
        event that cannot be applied. The live history is then unchanged.
        """
        self._sealed_position = sealed_position
        self._remade = await remake_broken_tables(self._store)
        self._unchecked = await self._snapshots.all()
        snapshots = len(self._unchecked)
        shadow = await self._projector.begin_shadow()
        await delete_unreferenced_rows(self._store)
        try:
            shadow = await self._build(shadow, progress)
            compared_until = await self._compare(shadow)
            # The comparison takes time in which events are appended: a second, short pass leaves little lag.
            shadow = await self._build(shadow, progress)
            if not await self._projector.go_live(shadow):
                raise RebuildOvertaken(shadow.position)
        except Exception:
            with suppress(AllowanceException):
                await self._projector.discard_shadow(shadow)
                await delete_unreferenced_rows(self._store)
            raise
        await delete_unreferenced_rows(self._store)
        await self._renew_snapshots()
        reservations = await self._model.count(shadow.generation)
        return RebuildReport(
            shadow.position,
            compared_until,
            reservations,
            snapshots,
            self._different,
            self._differences,
            self._remade,
        )

    async def compare_state(self, position: int, payload: bytes) -> bool:
        """Return True if an encoded state equals the fold of the log up to its position, byte for byte."""
        while self.state.position < position:
            rows = await self._store.read(self.state.position)
            self.state.fold([row for row in rows if row.position <= position])
            await yield_to_writers()
        rebuilt = encode_state(self.state)
        if rebuilt != payload:
            found, expected = payload_digest(payload).hex(), payload_digest(rebuilt).hex()
            self._add_difference("state", position, {"digest": found}, {"digest": expected})
        return rebuilt == payload

    def report_with(self, report: RebuildReport) -> RebuildReport:
        """Return a report of `run` with the differences that `compare_state` has found since."""
        return msgspec.structs.replace(report, different=self._different, differences=self._differences)

    async def _build(self, shadow: Checkpoint, progress: ProgressReport | None) -> Checkpoint:
        """Project and fold the log up to its head as it is now."""
        head = (await self._store.head()).position
        while shadow.position < head:
            rows = await self._store.read(shadow.position)
            # At least once, also without rows: `_advance` then raises that an event is missing.
            for start in range(0, max(1, len(rows)), ROWS_PER_TRANSACTION):
                shadow = await self._advance(shadow, rows[start : start + ROWS_PER_TRANSACTION])
                await yield_to_writers()
            if progress is not None:
                progress(shadow.position, head)
        return shadow

    async def _advance(self, shadow: Checkpoint, rows: list[Row]) -> Checkpoint:
        """Project the next events into the shadow and fold them into the state."""
        tail, stopped = fold_tail(shadow.position, rows)
        if stopped is not None:
            raise stopped
        expected = Checkpoint(shadow.generation, tail.position)
        if await self._projector.advance(SHADOW, shadow, tail) != expected:
            raise RebuildOvertaken(shadow.position)
        self._fold(rows)
        return expected

    def _fold(self, rows: list[Row]) -> None:
        """Fold events into the state; stop at the positions of stored snapshots to compare them, and at the seal's."""
        start = 0
        for at, row in enumerate(rows, start=1):
            snapshot = self._unchecked.pop(row.position, None)
            is_sealed = row.position == self._sealed_position
            if snapshot is not None or is_sealed:
                self.state.fold(rows[start:at])
                start = at
            if snapshot is not None:
                self._compare_snapshot(snapshot)
            if is_sealed:
                self._sealed = snapshot_of(self.state)
        self.state.fold(rows[start:])

    def _compare_snapshot(self, snapshot: Snapshot) -> None:
        rebuilt = snapshot_of(self.state)
        if snapshot != rebuilt:
            self._damaged.append(snapshot.position)
            found, expected = _snapshot_fields(snapshot), _snapshot_fields(rebuilt)
            self._add_difference("snapshot", snapshot.position, found, expected)

    async def _renew_snapshots(self) -> None:
        """Save the state at the seal; drop the snapshots that are damaged or at positions without an event."""
        for position, snapshot in self._unchecked.items():
            self._damaged.append(position)
            self._add_difference("snapshot", position, _snapshot_fields(snapshot), None)
        await self._snapshots.drop(self._damaged)
        if self._sealed is not None:
            await self._snapshots.save(self._sealed)

    async def _compare(self, shadow: Checkpoint) -> int:
        """Compare both histories as they were at the lower of their checkpoints; return that position.

        Readers and writers may project into the live history meanwhile, so rows are compared as of a position.
        """
        live = await self._model.live()
        until = min(live.position, shadow.position)
        if live == NO_CHECKPOINT:
            return 0
        async for found, rebuilt in _differing_pairs(
            self._rows(live.generation, until), self._rows(shadow.generation, until), lambda row: (row.position,)
        ):
            self._add_differing_fields("reservation", found, rebuilt)
        async for found_run, rebuilt_run in _differing_pairs(
            self._bucket_runs(live.generation, until),
            self._bucket_runs(shadow.generation, until),
            lambda bucket_run: bucket_run[:3],
        ):
            self._add_differing_fields("blocks", found_run, rebuilt_run)
        return until

    async def _rows(self, generation: int, until: int) -> AsyncIterator[HistoryRow]:
        after = 0
        while True:
            # A connection per batch, because an open one would make a fork, and in memory every writer, wait.
            async with self._model.connection() as connection:
                rows = await self._model.rows(
                    connection,
                    generation,
                    partial(_position_in, after, until),
                    newest_first=False,
                    limit=COMPARED_ROWS,
                )
            for row in rows:
                yield row.as_of(until)
            if len(rows) < COMPARED_ROWS:
                return
            after = rows[-1].position

    async def _bucket_runs(self, generation: int, until: int) -> AsyncIterator[BucketRun]:
        last = BucketRun(-1, 0, 0, 0)
        while True:
            async with self._model.connection() as connection:
                bucket_runs = await self._model.bucket_runs(connection, generation, last, COMPARED_ROWS)
            for bucket_run in bucket_runs:
                if bucket_run.position <= until:
                    yield bucket_run
            if len(bucket_runs) < COMPARED_ROWS:
                return
            last = bucket_runs[-1]

    def _add_differing_fields(
        self, what: What, found: HistoryRow | BucketRun | None, rebuilt: HistoryRow | BucketRun | None
    ) -> None:
        one, other = found or rebuilt, rebuilt or found
        if one is None or other is None:
            return
        names = [name for name in one._fields if not (found and rebuilt) or getattr(one, name) != getattr(other, name)]
        position = other.position
        self._add_difference(what, position, found and _shown(found, names), rebuilt and _shown(rebuilt, names))

    def _add_difference(
        self, what: What, position: int, found: dict[str, Any] | None, rebuilt: dict[str, Any] | None
    ) -> None:
        self._different += 1
        if len(self._differences) < LISTED_DIFFERENCES:
            self._differences.append(Difference(what, position, found, rebuilt))


def _position_in(after: int, until: int, columns: Columns) -> list[ColumnElement[bool]]:
    """Return the condition that a row's position is in `(after, until]`."""
    return [columns.position > after, columns.position <= until]


async def _differing_pairs(
    found: AsyncIterator[T], rebuilt: AsyncIterator[T], key: Callable[[T], tuple[int, ...]]
) -> AsyncIterator[tuple[T | None, T | None]]:
    """Merge two iterators that are sorted by a key; yield the pairs that differ, None for a missing partner."""
    one, other = await anext(found, None), await anext(rebuilt, None)
    while one is not None or other is not None:
        if other is None or (one is not None and key(one) < key(other)):
            yield one, None
            one = await anext(found, None)
        elif one is None or key(other) < key(one):
            yield None, other
            other = await anext(rebuilt, None)
        else:
            if one != other:
                yield one, other
            one, other = await anext(found, None), await anext(rebuilt, None)


def _shown(stored: HistoryRow | BucketRun, names: list[str]) -> dict[str, Any]:
    values = stored._asdict()
    return {name: _text(values[name]) for name in names}


def _text(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _snapshot_fields(snapshot: Snapshot) -> dict[str, Any]:
    return {"hash": snapshot.hash.hex(), "digest": payload_digest(snapshot.payload).hex()}
