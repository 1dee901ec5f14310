"""The history's read model in SQL: its generations, their checkpoints, and how a page of events is written.

Rows and checkpoint move in one transaction, so that a model is always what the log says up to its checkpoint. Each
release has a live generation of its own: a model of another version is never read, and what is not there is made
anew. One more generation may be in the making, the shadow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger import ProjectionStopped, Store

from .lines import Line, Piece, Tail

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

MODEL_VERSION = 1
"""Moves whenever the rows that events make are others than before."""
LIVE, SHADOW = "history", "history-shadow"
LOOKED_UP = 500
"""Positions in one statement: databases limit how many values it may carry."""


class Place(NamedTuple):
    """A generation of the model and the position up to which it has taken the log."""

    generation: int
    position: int


NOWHERE = Place(0, 0)
"""No model of this version: everything is in the log's tail."""


class HistoryModel:
    """One ledger's read model. Methods with a connection are statements of its transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def live(self) -> Place:
        """Where the live generation stands."""
        async with self._store.reading() as connection:
            return await self.place(connection, LIVE) or NOWHERE

    async def live_for_writing(self) -> Place:
        """Where the live generation stands; a new, empty one where this version has none."""
        async with self._store.writing() as connection:
            place = await self.place(connection, LIVE)
            return place or await self.begin(connection, LIVE)

    async def place(self, connection: AsyncConnection, slot: str) -> Place | None:
        """Where a generation stands: the live one, or the shadow."""
        from sqlalchemy import select

        from .tables import checkpoints

        query = select(checkpoints.c.generation, checkpoints.c.position).where(self._mine(checkpoints, slot))
        row = (await connection.execute(query)).first()
        return None if row is None else Place(*row)

    async def begin(self, connection: AsyncConnection, slot: str) -> Place:
        """A new, empty generation in a slot. What the slot held, this version's or an older one's, is given up."""
        from sqlalchemy import delete, func, insert, select

        from .tables import checkpoints, reservations, reserved_blocks

        newest = 0
        for table in (checkpoints, reservations, reserved_blocks):
            query = select(func.max(table.c.generation)).where(table.c.ledger == self._store.ledger)
            newest = max(newest, (await connection.execute(query)).scalar() or 0)
        place = Place(newest + 1, 0)
        await connection.execute(
            delete(checkpoints).where(
                checkpoints.c.ledger == self._store.ledger,
                checkpoints.c.projection == slot,
                checkpoints.c.model_version <= MODEL_VERSION,
            )
        )
        await connection.execute(insert(checkpoints), self._checkpoint(slot, place))
        return place

    async def advance(self, slot: str, place: Place, tail: Tail) -> Place:
        """Writes a page of events, if the generation still stands at `place`; answers where the slot stands then.

        Raises `ProjectionStopped` where the model has not what the events end; it then stands where it stood.
        """
        async with self._store.writing() as connection:
            stands = await self.place(connection, slot)
            if stands != place or tail.position == place.position:
                # Another process has moved the checkpoint: its pages stand, ours is left unwritten.
                return stands or NOWHERE
            await self._check_ends(connection, place, tail)
            await self._write(connection, place, tail)
            advanced = Place(place.generation, tail.position)
            await self._move(connection, slot, advanced)
            return advanced

    async def refusal(self, place: Place, tail: Tail) -> ProjectionStopped | None:
        """Why a page of events could not be written, if it could not."""
        async with self._store.reading() as connection:
            try:
                await self._check_ends(connection, place, tail)
            except ProjectionStopped as stopped:
                return stopped
        return None

    async def go_live(self, shadow: Place) -> bool:
        """Puts the shadow in the place of the live generation, of whichever version; False if it is another by now."""
        from sqlalchemy import delete, insert

        from .tables import checkpoints

        async with self._store.writing() as connection:
            if await self.place(connection, SHADOW) != shadow:
                return False
            await connection.execute(
                delete(checkpoints).where(
                    checkpoints.c.ledger == self._store.ledger, checkpoints.c.projection.in_((LIVE, SHADOW))
                )
            )
            await connection.execute(insert(checkpoints), self._checkpoint(LIVE, shadow))
            return True

    async def give_up(self, shadow: Place) -> None:
        """Forgets the shadow, if it is still this one; its rows are left to a sweep."""
        from sqlalchemy import delete

        from .tables import checkpoints

        async with self._store.writing() as connection:
            await connection.execute(
                delete(checkpoints).where(
                    self._mine(checkpoints, SHADOW), checkpoints.c.generation == shadow.generation
                )
            )

    async def count(self, generation: int) -> int:
        """How many lines a generation has."""
        from sqlalchemy import func, select

        from .tables import reservations

        query = select(func.count()).select_from(reservations).where(self.in_generation(reservations, generation))
        async with self._store.reading() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def lines(
        self,
        connection: AsyncConnection,
        generation: int,
        conditions: Sequence[ColumnElement[bool]],
        *,
        newest_first: bool,
        limit: int,
    ) -> list[Line]:
        """Lines of a generation under conditions, in order."""
        from sqlalchemy import select

        from .tables import reservations

        position = reservations.c.position
        query = (
            select(*(reservations.c[name] for name in Line._fields))
            .where(self.in_generation(reservations, generation), *conditions)
            .order_by(position.desc() if newest_first else position.asc())
            .limit(limit)
        )
        return [Line(*row) for row in await connection.execute(query)]

    async def pieces(self, connection: AsyncConnection, generation: int, after: Piece, limit: int) -> list[Piece]:
        """Pieces of a generation after one, in the order of their key."""
        from sqlalchemy import literal, select, tuple_

        from .tables import reserved_blocks

        columns = [reserved_blocks.c[name] for name in Piece._fields]
        query = (
            select(*columns)
            .where(
                self.in_generation(reserved_blocks, generation),
                tuple_(*columns[:3]) > tuple_(*(literal(value) for value in after[:3])),
            )
            .order_by(*columns[:3])
            .limit(limit)
        )
        return [Piece(*row) for row in await connection.execute(query)]

    def in_generation(self, table: Table, generation: int) -> ColumnElement[bool]:
        """That a row is this ledger's and of a generation."""
        from sqlalchemy import and_

        return and_(table.c.ledger == self._store.ledger, table.c.generation == generation)

    async def _check_ends(self, connection: AsyncConnection, place: Place, tail: Tail) -> None:
        """Each reservation that the events end must stand in the model."""
        standing: set[int] = set()
        for positions in in_portions(sorted(tail.ends)):
            standing.update(await self._standing(connection, place, positions))
        absent = tail.ends.keys() - standing
        if absent:
            settles, end = min(((at, tail.ends[at]) for at in absent), key=lambda each: each[1].position)
            reason = f"no reservation made at position {settles} stands in the history"
            raise ProjectionStopped(end.position, end.event_type, reason)

    async def _standing(self, connection: AsyncConnection, place: Place, positions: Sequence[int]) -> Iterable[int]:
        from sqlalchemy import select

        from .tables import reservations

        query = select(reservations.c.position).where(
            self.in_generation(reservations, place.generation),
            reservations.c.position.in_(positions),
            reservations.c.status == "reserved",
        )
        return (await connection.execute(query)).scalars()

    async def _write(self, connection: AsyncConnection, place: Place, tail: Tail) -> None:
        from sqlalchemy import bindparam, insert, update
        from sqlalchemy.exc import IntegrityError

        from .tables import reservations, reserved_blocks

        key = {"ledger": self._store.ledger, "generation": place.generation}
        lines = tail.lines.values()
        try:
            await _execute_many(connection, insert(reservations), [{**key, **line._asdict()} for line in lines])
            pieces = [{**key, **piece._asdict()} for line in lines for piece in line.pieces()]
            await _execute_many(connection, insert(reserved_blocks), pieces)
        except IntegrityError as cause:
            first = next(iter(lines)).position
            reason = "the history has rows already that belong behind its checkpoint"
            raise ProjectionStopped(first, "allowance-reserved", reason) from cause
        statement = (
            update(reservations)
            .where(self.in_generation(reservations, place.generation), reservations.c.position == bindparam("at"))
            .values(
                status=bindparam("ended"),
                settled_position=bindparam("ended_position"),
                settled_at_ns=bindparam("ended_at_ns"),
            )
        )
        ends = [
            {"at": at, "ended": end.status, "ended_position": end.position, "ended_at_ns": end.at_ns}
            for at, end in tail.ends.items()
        ]
        await _execute_many(connection, statement, ends)

    async def _move(self, connection: AsyncConnection, slot: str, place: Place) -> None:
        from sqlalchemy import update

        from .tables import checkpoints

        await connection.execute(
            update(checkpoints).where(self._mine(checkpoints, slot)).values(position=place.position)
        )

    def _mine(self, checkpoints: Table, slot: str) -> ColumnElement[bool]:
        from sqlalchemy import and_

        return and_(
            checkpoints.c.ledger == self._store.ledger,
            checkpoints.c.projection == slot,
            checkpoints.c.model_version == MODEL_VERSION,
        )

    def _checkpoint(self, slot: str, place: Place) -> dict[str, Any]:
        return {
            "ledger": self._store.ledger,
            "projection": slot,
            "model_version": MODEL_VERSION,
            **place._asdict(),
        }


def in_portions(positions: Sequence[int]) -> Iterable[Sequence[int]]:
    """Positions, as many at a time as one statement takes."""
    return (positions[at : at + LOOKED_UP] for at in range(0, len(positions), LOOKED_UP))


async def _execute_many(connection: AsyncConnection, statement: Any, rows: list[dict[str, Any]]) -> None:
    if rows:
        await connection.execute(statement, rows)
