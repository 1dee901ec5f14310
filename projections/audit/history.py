"""The history's read model held against the log: line by line, up to its checkpoint.

A line says how a reservation began and how it ended. The beginnings come from the log in the model's own order and are
compared as they come; what the model says of an end waits until the log comes to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ledger import AllowanceReserved, Row, Settlement, Status, Store, status_after

from ..lines import BUCKET_BLOCKS, Line, Piece, line_of
from ..model import HistoryModel, Place
from ..rules import Findings, Rule

End = tuple[Status, int | None, int | None]
"""Status, and position and time of the settlement."""
STANDS: End = ("reserved", None, None)
MODULUS = 2**31 - 1
"""Keeps sums within what a database adds up."""
BEGINNING = Line._fields.index("status")
"""How many fields of a line, the first ones, tell how it began."""


class Pieces(NamedTuple):
    """The pieces in a bucket, told by their number and by sums that only the same pieces are likely to have."""

    number: int
    positions: int
    first_blocks: int
    last_blocks: int

    def with_one(self, piece: Piece) -> Pieces:
        """These and one more."""
        return Pieces(
            self.number + 1,
            self.positions + piece.position % MODULUS,
            self.first_blocks + piece.first_block % MODULUS,
            self.last_blocks + piece.last_block % MODULUS,
        )


NO_PIECES = Pieces(0, 0, 0, 0)


class HistoryCheck:
    """Compares one generation of the model with the log."""

    def __init__(self, store: Store, place: Place, until: int) -> None:
        self.findings = Findings()
        self.place = place
        self.until = min(place.position, until)
        """Both the model and the audit reach at least so far."""
        self._model = HistoryModel(store)
        self._store = store
        self._position = 0
        self._told: dict[int, End] = {}
        """Ends that the model tells, and that the log has not come to."""
        self._standing: set[int] = set()
        self._pieces: dict[int, Pieces] = {}
        """What the log makes of each bucket of blocks."""

    @classmethod
    async def begin(cls, store: Store, until: int) -> HistoryCheck:
        """A check of the live generation."""
        return cls(store, await HistoryModel(store).live(), until)

    async def is_still_live(self) -> bool:
        """Whether the generation was not replaced by another meanwhile."""
        return (await self._model.live()).generation == self.place.generation

    async def take(self, position: int, page: Sequence[tuple[Row, AllowanceReserved | Settlement]]) -> None:
        """Compares what the log made and ended up to a position with what the model says of it."""
        position = min(position, self.until)
        if position <= self._position:
            return
        lines = {line.position: line for line in await self._lines(position)}
        for row, event in page:
            if row.position > self.until:
                break
            if isinstance(event, AllowanceReserved):
                self._begin(line_of(row, event), lines.pop(row.position, None))
            else:
                self._end(row, event)
        for line in lines.values():
            self._note(line.position, "the history has a reservation that the log has not", line._asdict(), {})
        self._position = position

    async def end(self) -> None:
        """Compares what can be told only at the end: ends that the log never came to, and the blocks by bucket."""
        for position, told in sorted(self._told.items()):
            self._note(position, "the history tells of an end that the log does not", _end_fields(told), {})
        told_pieces = await self._pieces_told()
        for bucket in sorted(told_pieces.keys() | self._pieces.keys()):
            told_here, here = told_pieces.get(bucket, NO_PIECES), self._pieces.get(bucket, NO_PIECES)
            if told_here != here:
                first = bucket * BUCKET_BLOCKS
                message = (
                    f"the history finds other reservations by block, from block {first} to {first + BUCKET_BLOCKS - 1}"
                )
                self._note(self.until, message, told_here._asdict(), here._asdict())

    def _begin(self, expected: Line, line: Line | None) -> None:
        for piece in expected.pieces():
            self._pieces[piece.bucket] = self._pieces.get(piece.bucket, NO_PIECES).with_one(piece)
        if line is None:
            self._note(expected.position, "the history lacks a reservation", {}, expected._asdict())
            return
        self._standing.add(line.position)
        if line[:BEGINNING] != expected[:BEGINNING]:
            told, of_log = line._asdict(), expected._asdict()
            names = [name for name in Line._fields[:BEGINNING] if told[name] != of_log[name]]
            message = f"the history differs in {', '.join(names)}"
            self._note(
                expected.position, message, {name: told[name] for name in names}, {name: of_log[name] for name in names}
            )
        as_of = line.as_of(self.until)
        end: End = (as_of.status, as_of.settled_position, as_of.settled_at_ns)
        if end != STANDS:
            self._told[line.position] = end

    def _end(self, row: Row, event: Settlement) -> None:
        settles = row.settles or 0
        if settles not in self._standing:
            return  # Its line is missing, or it ends nothing; either is noted elsewhere.
        self._standing.discard(settles)
        expected: End = (status_after(event), row.position, row.recorded_at_ns)
        told = self._told.pop(settles, STANDS)
        if told != expected:
            self._note(settles, "the history tells of another end", _end_fields(told), _end_fields(expected))

    async def _lines(self, position: int) -> Iterable[Line]:
        from ..tables import reservations

        between = [reservations.c.position > self._position, reservations.c.position <= position]
        async with self._store.reading() as connection:
            return await self._model.lines(
                connection, self.place.generation, between, newest_first=False, limit=position - self._position
            )

    async def _pieces_told(self) -> dict[int, Pieces]:
        from sqlalchemy import func, select

        from ..tables import reserved_blocks

        columns = reserved_blocks.c
        sums = [func.sum(columns[name] % MODULUS) for name in ("position", "first_block", "last_block")]
        query = (
            select(columns.bucket, func.count(), *sums)
            .where(self._model.in_generation(reserved_blocks, self.place.generation), columns.position <= self.until)
            .group_by(columns.bucket)
        )
        async with self._store.reading() as connection:
            rows = await connection.execute(query)
            return {int(bucket): Pieces(*map(int, sums)) for bucket, *sums in rows}

    def _note(self, position: int, message: str, told: dict[str, object], log: dict[str, object]) -> None:
        self.findings.add(position, Rule.HISTORY_MODEL, message, told=_shown(told), log=_shown(log))


def _end_fields(end: End) -> dict[str, object]:
    return dict(zip(Line._fields[BEGINNING:], end, strict=True))


def _shown(fields: dict[str, object]) -> dict[str, object]:
    return {
        name: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for name, value in fields.items()
    }
