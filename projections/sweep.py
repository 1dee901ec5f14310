"""What nobody reads any more: rows of the history's generations that no checkpoint names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger import Store

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

SWEPT_ROWS = 1000


async def sweep(store: Store) -> None:
    """Deletes the rows of generations that no checkpoint names, some in each transaction."""
    from .tables import reservations, reserved_blocks

    for table, column in ((reserved_blocks, "bucket"), (reservations, "position")):
        while await _swept_some(store, table, column):
            pass


async def _swept_some(store: Store, table: Table, column: str) -> bool:
    from sqlalchemy import delete, select

    async with store.writing() as connection:
        generation = await _forsaken(connection, table, store.ledger)
        if generation is None:
            return False
        its = [table.c.ledger == store.ledger, table.c.generation == generation]
        some = select(table.c[column]).where(*its).order_by(table.c[column]).limit(SWEPT_ROWS)
        last = list((await connection.execute(some)).scalars())[-1]
        await connection.execute(delete(table).where(*its, table.c[column] <= last))
        return True


async def _forsaken(connection: AsyncConnection, table: Table, ledger: int) -> int | None:
    """The lowest generation with rows that no checkpoint names; found without reading the others' rows."""
    from sqlalchemy import func, select

    from .tables import checkpoints

    named = select(checkpoints.c.generation).where(checkpoints.c.ledger == ledger)
    kept = set((await connection.execute(named)).scalars())
    generation = 0
    while True:
        query = select(func.min(table.c.generation)).where(table.c.ledger == ledger, table.c.generation > generation)
        found: int | None = (await connection.execute(query)).scalar()
        if found is None or found not in kept:
            return found
        generation = found
