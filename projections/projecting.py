"""How the history's read model is written: its generations, their checkpoints, and a page of events.

Rows and checkpoint move in one transaction, so that a model is always what the log says up to its checkpoint. Each
release has a live generation of its own: a model of another version is never read, and what is not there is made
anew. One more generation may be in the making, the shadow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ledger import ProjectionStopped, RowsThere, Statements, Store

from .lines import Line, Piece, Tail
from .model import LIVE, MODEL_VERSION, NOWHERE, SHADOW, Place, in_portions, place_query

ROWS_AT_ONCE = 200
"""Events in one transaction, which all who append to a file wait for."""
CAUGHT_UP_IN = 10
"""Transactions in which whatever the model is behind is caught up with, where that asks for larger ones."""

CHECKPOINTS, LINES, PIECES = "allowance_checkpoints", "allowance_reservations", "allowance_reserved_blocks"

_BEGIN = f"INSERT INTO {CHECKPOINTS} (ledger, projection, model_version, generation, position) VALUES (?, ?, ?, ?, ?)"
_MOVE = f"UPDATE {CHECKPOINTS} SET position = ? WHERE ledger = ? AND projection = ? AND model_version = ?"
_GIVE_UP_OLDER = f"DELETE FROM {CHECKPOINTS} WHERE ledger = ? AND projection = ? AND model_version <= ?"
_GIVE_UP = f"""DELETE FROM {CHECKPOINTS}
               WHERE ledger = ? AND projection = ? AND model_version = ? AND generation = ?"""
_MAKE_WAY = f"DELETE FROM {CHECKPOINTS} WHERE ledger = ? AND projection IN ('{LIVE}', '{SHADOW}')"
_END = f"""UPDATE {LINES} SET status = ?, settled_position = ?, settled_at_ns = ?
           WHERE ledger = ? AND generation = ? AND position = ?"""


def _insert(table: str, columns: Sequence[str]) -> str:
    values = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table} (ledger, generation, {', '.join(columns)}) VALUES (?, ?, {values})"


_INSERT_LINE = _insert(LINES, Line._fields)
_INSERT_PIECE = _insert(PIECES, Piece._fields)


class Projector:
    """Writes one ledger's read model."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def live_for_writing(self) -> Place:
        """Where the live generation stands; a new, empty one where this version has none."""
        async with self._store.writing() as statements:
            return await self._place(statements, LIVE) or await self._begin(statements, LIVE)

    async def begin_shadow(self) -> Place:
        """A new, empty shadow. What another rebuild had there is given up."""
        async with self._store.writing() as statements:
            return await self._begin(statements, SHADOW)

    async def advance(self, slot: str, place: Place, tail: Tail) -> Place:
        """Writes a page of events, if the generation still stands at `place`; answers where the slot stands then.

        Raises `ProjectionStopped` where the model has not what the events end; it then stands where it stood.
        """
        async with self._store.writing() as statements:
            stands = await self._place(statements, slot)
            if stands != place or tail.position == place.position:
                # Another process has moved the checkpoint: its pages stand, ours is left unwritten.
                return stands or NOWHERE
            standing: set[int] = set()
            for query in self._standing_queries(place, tail):
                standing.update(position for (position,) in await statements.rows(query))
            _check_ends(tail, standing)
            await self._write(statements, place, tail)
            await statements.rows(_MOVE, tail.position, self._store.ledger, slot, MODEL_VERSION)
            return Place(place.generation, tail.position)

    async def refusal(self, place: Place, tail: Tail) -> ProjectionStopped | None:
        """Why a page of events could not be written, if it could not."""
        standing: set[int] = set()
        for query in self._standing_queries(place, tail):
            standing.update(position for (position,) in await self._store.select(query))
        try:
            _check_ends(tail, standing)
        except ProjectionStopped as stopped:
            return stopped
        return None

    async def go_live(self, shadow: Place) -> bool:
        """Puts the shadow in the place of the live generation, of whichever version; False if it is another by now."""
        async with self._store.writing() as statements:
            if await self._place(statements, SHADOW) != shadow:
                return False
            await statements.rows(_MAKE_WAY, self._store.ledger)
            await statements.rows(_BEGIN, self._store.ledger, LIVE, MODEL_VERSION, *shadow)
            return True

    async def give_up(self, shadow: Place) -> None:
        """Forgets the shadow, if it is still this one; its rows are left to a sweep."""
        async with self._store.writing() as statements:
            await statements.rows(_GIVE_UP, self._store.ledger, SHADOW, MODEL_VERSION, shadow.generation)

    async def _place(self, statements: Statements, slot: str) -> Place | None:
        rows = await statements.rows(place_query(self._store.ledger, slot))
        return Place(*rows[0]) if rows else None

    async def _begin(self, statements: Statements, slot: str) -> Place:
        """A new, empty generation in a slot. What the slot held, this version's or an older one's, is given up."""
        ledger, newest = self._store.ledger, 0
        for table in (CHECKPOINTS, LINES, PIECES):
            for (generation,) in await statements.rows(f"SELECT max(generation) FROM {table} WHERE ledger = ?", ledger):
                newest = max(newest, generation or 0)
        place = Place(newest + 1, 0)
        await statements.rows(_GIVE_UP_OLDER, ledger, slot, MODEL_VERSION)
        await statements.rows(_BEGIN, ledger, slot, MODEL_VERSION, *place)
        return place

    async def _write(self, statements: Statements, place: Place, tail: Tail) -> None:
        ledger, generation = self._store.ledger, place.generation
        lines = tail.lines.values()
        try:
            await statements.many(_INSERT_LINE, [(ledger, generation, *line) for line in lines])
            pieces = [(ledger, generation, *piece) for line in lines for piece in line.pieces()]
            await statements.many(_INSERT_PIECE, pieces)
        except RowsThere as cause:
            first = next(iter(lines)).position
            reason = "the history has rows already that belong behind its checkpoint"
            raise ProjectionStopped(first, "allowance-reserved", reason) from cause
        ends = tail.ends.items()
        await statements.many(_END, [(end.status, end.position, end.at_ns, ledger, generation, at) for at, end in ends])

    def _standing_queries(self, place: Place, tail: Tail) -> Iterable[str]:
        """Ask which of the reservations that the events end stand in the model."""
        for positions in in_portions(sorted(tail.ends)):
            yield (
                f"SELECT position FROM {LINES} WHERE ledger = {self._store.ledger} AND generation = {place.generation}"
                f" AND status = 'reserved' AND position IN ({', '.join(map(str, positions))})"
            )


def rows_at_once(behind: int) -> int:
    """How many events to write in one transaction: more where the model falls behind those who append meanwhile."""
    return max(ROWS_AT_ONCE, behind // CAUGHT_UP_IN)


def _check_ends(tail: Tail, standing: set[int]) -> None:
    """Each reservation that the events end must stand in the model."""
    absent = tail.ends.keys() - standing
    if absent:
        settles, end = min(((at, tail.ends[at]) for at in absent), key=lambda each: each[1].position)
        reason = f"no reservation made at position {settles} stands in the history"
        raise ProjectionStopped(end.position, end.event_type, reason)
