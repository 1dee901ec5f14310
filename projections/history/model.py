"""The history's read model in SQL, as it is read: generations of lines, and of the pieces of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger import Store

from .rows import BucketRun, HistoryRow

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, TableClause
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.sql.base import ReadOnlyColumnCollection

    Columns = ReadOnlyColumnCollection[str, Any]

MODEL_VERSION = 1
"""Moves whenever the rows that events make are others than before."""
LIVE, SHADOW = "history", "history-shadow"
LOOKUP_VALUES = 500
"""Positions in one statement: databases limit how many values it may carry."""


class Checkpoint(NamedTuple):
    """A generation of the model and the position up to which it has taken the log."""

    generation: int
    position: int


NO_CHECKPOINT = Checkpoint(0, 0)
"""No model of this version: everything is in the log's tail."""


class HistoryModel:
    """One ledger's read model. Methods with a connection run statements in its transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def live(self) -> Checkpoint:
        """Where the live generation stands."""
        rows = await self._store.query(checkpoint_query(self._store.ledger, LIVE))
        return Checkpoint(*rows[0]) if rows else NO_CHECKPOINT

    async def live_within(self, connection: AsyncConnection) -> Checkpoint:
        """The same, as a connection's transaction sees it."""
        rows = (await connection.exec_driver_sql(checkpoint_query(self._store.ledger, LIVE))).all()
        return Checkpoint._make(rows[0]) if rows else NO_CHECKPOINT

    async def count(self, generation: int) -> int:
        """How many lines a generation has."""
        from sqlalchemy import func, select

        from projections.tables import reservations

        query = select(func.count()).select_from(reservations).where(self.in_generation(reservations, generation))
        async with self._store.read_connection() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def lines(
        self,
        connection: AsyncConnection,
        generation: int,
        conditions: Callable[[Columns], Sequence[ColumnElement[bool]]],
        *,
        newest_first: bool,
        limit: int,
        index: str | None = None,
    ) -> list[HistoryRow]:
        """Lines of a generation under conditions on their columns, in order; found by one of the table's indexes."""
        from sqlalchemy import select

        from projections.tables import Indexed

        table = Indexed(index)
        position = table.c.position
        query = (
            select(*(table.c[name] for name in HistoryRow._fields))
            .where(self.in_generation(table, generation), *conditions(table.c))
            .order_by(position.desc() if newest_first else position.asc())
            .limit(limit)
        )
        return [HistoryRow(*row) for row in await connection.execute(query)]

    async def pieces(
        self, connection: AsyncConnection, generation: int, after: BucketRun, limit: int
    ) -> list[BucketRun]:
        """Pieces of a generation after one, in the order of their key."""
        from sqlalchemy import literal, select, tuple_

        from projections.tables import reserved_blocks

        columns = [reserved_blocks.c[name] for name in BucketRun._fields]
        query = (
            select(*columns)
            .where(
                self.in_generation(reserved_blocks, generation),
                tuple_(*columns[:3]) > tuple_(*(literal(value) for value in after[:3])),
            )
            .order_by(*columns[:3])
            .limit(limit)
        )
        return [BucketRun(*row) for row in await connection.execute(query)]

    def in_generation(self, table: TableClause, generation: int) -> ColumnElement[bool]:
        """That a row is this ledger's and of a generation."""
        from sqlalchemy import and_

        return and_(table.c.ledger == self._store.ledger, table.c.generation == generation)


def checkpoint_query(ledger: int, slot: str) -> str:
    """Asks where a slot's generation stands, of this version; in plain SQL, for whoever has no SQLAlchemy at hand."""
    return (
        f"SELECT generation, position FROM allowance_checkpoints WHERE ledger = {ledger} AND projection = '{slot}'"
        f" AND model_version = {MODEL_VERSION}"
    )


def in_batches(positions: Sequence[int]) -> Iterable[Sequence[int]]:
    """Positions, as many at a time as one statement takes."""
    return (positions[at : at + LOOKUP_VALUES] for at in range(0, len(positions), LOOKUP_VALUES))
