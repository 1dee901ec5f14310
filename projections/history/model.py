"""Read access to the history's read model in SQL: generations of reservations and of the runs of their blocks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger import DerivedTablesUnavailable, Store
from ledger.background_imports import import_in_thread

from .rows import BucketRun, HistoryRow

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, TableClause
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.sql.base import ReadOnlyColumnCollection

    Columns = ReadOnlyColumnCollection[str, Any]

MODEL_VERSION = 2
"""To be raised whenever the same events give other rows, so that no release reads rows of another meaning."""
LIVE, SHADOW = "history", "history-shadow"
CHECKPOINTS, RESERVATIONS, RESERVED_BLOCKS = (
    "allowance_checkpoints",
    "allowance_reservations",
    "allowance_reserved_blocks",
)
"""The tables' names for plain SQL: the projector and the audit's replay run without SQLAlchemy."""
LOOKUP_VALUES = 500
"""Positions in one statement: databases limit the number of bound values (SQLite before 3.32: 999)."""


class Checkpoint(NamedTuple):
    """A generation of the model, and the position of the last event that it contains."""

    generation: int
    position: int


NO_CHECKPOINT = Checkpoint(0, 0)
"""There is no model of this version: the unprojected tail is the whole log. Generations start at 1."""


class HistoryModel:
    """One ledger's read model. Methods that take a connection run in its transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection, in which the methods below, and others, may use SQLAlchemy and `projections.tables`.

        The first import of both takes a fifth of a second. It happens on another thread, because the writer shares
        this one, and before a connection is open, because a database in memory lets nobody write meanwhile.
        """
        await import_in_thread("projections.tables")
        async with self._store.derived_connection() as connection:
            yield connection

    async def live(self) -> Checkpoint:
        """Return the checkpoint of the live generation, `NO_CHECKPOINT` if there is none of this version."""
        with suppress(DerivedTablesUnavailable):
            rows = await self._store.derived_query(checkpoint_query(self._store.ledger, LIVE))
            return Checkpoint(*rows[0]) if rows else NO_CHECKPOINT
        return NO_CHECKPOINT

    async def live_within(self, connection: AsyncConnection) -> Checkpoint:
        """Return the checkpoint of the live generation as a connection's transaction sees it."""
        rows = (await connection.exec_driver_sql(checkpoint_query(self._store.ledger, LIVE))).all()
        return Checkpoint._make(rows[0]) if rows else NO_CHECKPOINT

    async def count(self, generation: int) -> int:
        """Return the number of reservations in a generation."""
        async with self.connection() as connection:
            from sqlalchemy import func, select

            from projections.tables import reservations

            statement = (
                select(func.count()).select_from(reservations).where(self.in_generation(reservations, generation))
            )
            return int((await connection.execute(statement)).scalar_one())

    async def statuses(self, generation: int) -> dict[str, int]:
        """Return the reservations of a generation by status.

        This reads a whole index, on the driver's thread, so the event loop goes on.
        """
        async with self.connection() as connection:
            from sqlalchemy import func, select

            from projections.tables import Indexed

            table = Indexed("status")
            statement = (
                select(table.c.status, func.count())
                .where(self.in_generation(table, generation))
                .group_by(table.c.status)
            )
            return {status: int(number) for status, number in await connection.execute(statement)}

    async def rows(
        self,
        connection: AsyncConnection,
        generation: int,
        conditions: Callable[[Columns], Sequence[ColumnElement[bool]]],
        *,
        newest_first: bool,
        limit: int,
        index: str | None = None,
    ) -> list[HistoryRow]:
        """Return the first rows of a generation that meet conditions on their columns, ordered by position.

        `index`: a name in `projections.tables.INDEXES`, the index that SQLite must use; None is the primary key.
        """
        from sqlalchemy import select

        from projections.tables import Indexed

        table = Indexed(index)
        position = table.c.position
        statement = (
            select(*(table.c[name] for name in HistoryRow._fields))
            .where(self.in_generation(table, generation), *conditions(table.c))
            .order_by(position.desc() if newest_first else position.asc())
            .limit(limit)
        )
        return [HistoryRow(*row) for row in await connection.execute(statement)]

    async def bucket_runs(
        self, connection: AsyncConnection, generation: int, after: BucketRun, limit: int
    ) -> list[BucketRun]:
        """Return the next bucket runs of a generation in the order of their key (bucket, position, first block)."""
        from sqlalchemy import literal, select, tuple_

        from projections.tables import reserved_blocks

        columns = [reserved_blocks.c[name] for name in BucketRun._fields]
        statement = (
            select(*columns)
            .where(
                self.in_generation(reserved_blocks, generation),
                tuple_(*columns[:3]) > tuple_(*(literal(value) for value in after[:3])),
            )
            .order_by(*columns[:3])
            .limit(limit)
        )
        return [BucketRun(*row) for row in await connection.execute(statement)]

    def in_generation(self, table: TableClause, generation: int) -> ColumnElement[bool]:
        """Return the condition that a row belongs to this ledger and to a generation."""
        from sqlalchemy import and_

        return and_(table.c.ledger == self._store.ledger, table.c.generation == generation)


def checkpoint_query(ledger: int, slot: str) -> str:
    """Return SQL for the checkpoint of a slot, `LIVE` or `SHADOW`, in this version of the model.

    It is plain SQL because the projector uses it too, which must not wait for an import of SQLAlchemy.
    """
    return (
        f"SELECT generation, position FROM {CHECKPOINTS} WHERE ledger = {ledger} AND projection = '{slot}'"
        f" AND model_version = {MODEL_VERSION}"
    )


def in_batches(positions: Sequence[int]) -> Iterable[Sequence[int]]:
    """Split positions into batches that fit into one statement each."""
    return (positions[at : at + LOOKUP_VALUES] for at in range(0, len(positions), LOOKUP_VALUES))
