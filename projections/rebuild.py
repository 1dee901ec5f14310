"""Everything derived made anew from the log, beside what is there, compared with it, and put in its place.

The history is written as a shadow generation while appends go on and readers read the live one; snapshots are
compared with the state folded from the first event. Nothing that is stored is believed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from ledger import Row, Store, encode_state, yield_to_writers
from ledger.errors import AllowanceException, RebuildOvertaken
from projections.history.garbage import delete_unreferenced_rows
from projections.history.model import NO_CHECKPOINT, SHADOW, Checkpoint, HistoryModel
from projections.history.projector import ROWS_PER_TRANSACTION, Projector
from projections.history.rows import BucketRun, HistoryRow, fold_tail

from .availability import Availability
from .snapshots import ProgressReport, Snapshot, SnapshotStore

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from projections.history.model import Columns

T = TypeVar("T", HistoryRow, BucketRun)

What = Literal["reservation", "blocks", "snapshot", "state"]

LISTED = 100
READ_LINES = 1000


class Difference(msgspec.Struct, frozen=True):
    """Where what was there is not what the log says: the fields in which they differ, None where there is nothing.

    `position`: the event that made the reservation, or at which the snapshot or the state stands.
    """

    what: What
    position: int
    found: dict[str, Any] | None
    rebuilt: dict[str, Any] | None


class RebuildReport(msgspec.Struct, frozen=True):
    """What a rebuild came to.

    `position`: how far the new history reaches. `compared_until`: how far the old one was compared, 0 where there was
    none of this release. `differences` are the first of `different`.
    """

    position: int
    compared_until: int
    reservations: int
    snapshots: int
    different: int
    differences: list[Difference]


class Rebuild:
    """One rebuild of one ledger's derived tables."""

    def __init__(self, store: Store, snapshots: SnapshotStore) -> None:
        self.state = Availability()
        """The state, folded from the first event as far as the rebuild has come."""
        self._store = store
        self._snapshots = snapshots
        self._model = HistoryModel(store)
        self._projector = Projector(store)
        self._stored: dict[int, Snapshot] = {}
        self._different = 0
        self._differences: list[Difference] = []
        self._damaged: list[int] = []

    async def run(self, progress: ProgressReport | None) -> RebuildReport:
        """Builds, compares, swaps.

        Raises `RebuildOvertaken`, and `ProjectionStopped` or `CorruptLedger` at an event that cannot be taken; the
        live history is then as it was.
        """
        self._stored = await self._snapshots.all()
        snapshots = len(self._stored)
        shadow = await self._projector.begin_shadow()
        await delete_unreferenced_rows(self._store)
        try:
            shadow = await self._build(shadow, progress)
            compared_until = await self._compare(shadow)
            shadow = await self._build(shadow, progress)
            if not await self._projector.go_live(shadow):
                raise RebuildOvertaken(shadow.position)
        except Exception:
            with suppress(AllowanceException):
                await self._projector.give_up(shadow)
                await delete_unreferenced_rows(self._store)
            raise
        await delete_unreferenced_rows(self._store)
        await self._renew_snapshots()
        reservations = await self._model.count(shadow.generation)
        return RebuildReport(
            shadow.position, compared_until, reservations, snapshots, self._different, self._differences
        )

    async def compare_state(self, position: int, payload: bytes) -> bool:
        """Whether a state that stands at a position is, byte for byte, the one that the log gives."""
        while self.state.position < position:
            rows = await self._store.read(self.state.position)
            self.state.fold([row for row in rows if row.position <= position])
            await yield_to_writers()
        rebuilt = encode_state(self.state)
        if rebuilt != payload:
            self._differ("state", position, {"digest": _digest(payload)}, {"digest": _digest(rebuilt)})
        return rebuilt == payload

    def report_with(self, report: RebuildReport) -> RebuildReport:
        """The report with the differences that were found after it."""
        return msgspec.structs.replace(report, different=self._different, differences=self._differences)

    async def _build(self, shadow: Checkpoint, progress: ProgressReport | None) -> Checkpoint:
        """Brings the shadow, and the state, to the log's head."""
        head = (await self._store.head()).position
        while shadow.position < head:
            rows = await self._store.read(shadow.position)
            for start in range(0, max(1, len(rows)), ROWS_PER_TRANSACTION):
                shadow = await self._advance(shadow, rows[start : start + ROWS_PER_TRANSACTION])
                await yield_to_writers()
            if progress is not None:
                progress(shadow.position, head)
        return shadow

    async def _advance(self, shadow: Checkpoint, rows: list[Row]) -> Checkpoint:
        """Takes the next rows into the shadow, and into the state."""
        tail, stopped = fold_tail(shadow.position, rows)
        if stopped is not None:
            raise stopped
        expected = Checkpoint(shadow.generation, tail.position)
        if await self._projector.advance(SHADOW, shadow, tail) != expected:
            raise RebuildOvertaken(shadow.position)
        self._fold(rows)
        return expected

    def _fold(self, rows: list[Row]) -> None:
        """Evolves the state, and looks at each stored snapshot as it comes by."""
        start = 0
        for at, row in enumerate(rows, start=1):
            taken = self._stored.pop(row.position, None)
            if taken is not None:
                self.state.fold(rows[start:at])
                start = at
                self._look_at(taken)
        self.state.fold(rows[start:])

    def _look_at(self, taken: Snapshot) -> None:
        rebuilt = Snapshot(self.state.position, self.state.hash, encode_state(self.state))
        if taken != rebuilt:
            self._damaged.append(taken.position)
            self._differ("snapshot", taken.position, _shown_snapshot(taken), _shown_snapshot(rebuilt))

    async def _renew_snapshots(self) -> None:
        """Saves the rebuilt state, in the place of what is damaged or stands where the log has no event."""
        for position, taken in self._stored.items():
            self._damaged.append(position)
            self._differ("snapshot", position, _shown_snapshot(taken), None)
        taken = Snapshot(self.state.position, self.state.hash, encode_state(self.state))
        await self._snapshots.save(taken, dropped=self._damaged)

    async def _compare(self, shadow: Checkpoint) -> int:
        """Compares the two histories as they stood where the one behind stands; they may both go on meanwhile."""
        live = await self._model.live()
        at = min(live.position, shadow.position)
        if live == NO_CHECKPOINT:
            return 0
        async for found, rebuilt in _different(
            self._lines(live.generation, at), self._lines(shadow.generation, at), lambda line: (line.position,)
        ):
            self._differ_in("reservation", found, rebuilt)
        async for piece, rebuilt_piece in _different(
            self._pieces(live.generation, at), self._pieces(shadow.generation, at), lambda piece: piece[:3]
        ):
            self._differ_in("blocks", piece, rebuilt_piece)
        return at

    async def _lines(self, generation: int, at: int) -> AsyncIterator[HistoryRow]:
        after = 0
        while True:
            async with self._store.read_connection() as connection:
                lines = await self._model.lines(
                    connection,
                    generation,
                    partial(_after, after, at),
                    newest_first=False,
                    limit=READ_LINES,
                )
            for line in lines:
                yield line.as_of(at)
            if len(lines) < READ_LINES:
                return
            after = lines[-1].position

    async def _pieces(self, generation: int, at: int) -> AsyncIterator[BucketRun]:
        last = BucketRun(-1, 0, 0, 0)
        while True:
            async with self._store.read_connection() as connection:
                pieces = await self._model.pieces(connection, generation, last, READ_LINES)
            for piece in pieces:
                if piece.position <= at:
                    yield piece
            if len(pieces) < READ_LINES:
                return
            last = pieces[-1]

    def _differ_in(
        self, what: What, found: HistoryRow | BucketRun | None, rebuilt: HistoryRow | BucketRun | None
    ) -> None:
        one, other = found or rebuilt, rebuilt or found
        if one is None or other is None:
            return
        names = [name for name in one._fields if not (found and rebuilt) or getattr(one, name) != getattr(other, name)]
        position = other.position
        self._differ(what, position, found and _shown(found, names), rebuilt and _shown(rebuilt, names))

    def _differ(self, what: What, position: int, found: dict[str, Any] | None, rebuilt: dict[str, Any] | None) -> None:
        self._different += 1
        if len(self._differences) < LISTED:
            self._differences.append(Difference(what, position, found, rebuilt))


def _after(after: int, until: int, columns: Columns) -> list[ColumnElement[bool]]:
    """That a line stands after one position, up to another."""
    return [columns.position > after, columns.position <= until]


async def _different(
    found: AsyncIterator[T], rebuilt: AsyncIterator[T], key: Callable[[T], tuple[int, ...]]
) -> AsyncIterator[tuple[T | None, T | None]]:
    """Where two streams in the order of a key differ."""
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


def _shown_snapshot(taken: Snapshot) -> dict[str, Any]:
    return {"hash": taken.hash.hex(), "digest": _digest(taken.payload)}


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=32).hexdigest()
