"""Garbage collection of the history: rows of generations that no checkpoint names.

A reader may still be reading such a generation. It notices that the checkpoint has changed, and reads again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ledger import Store, yield_to_writers

from .model import CHECKPOINTS, RESERVATIONS, RESERVED_BLOCKS

DELETED_ROWS = 1000
"""Rows deleted in one transaction."""
DELETED_ROWS_APART = 100
"""The same for a file of derived tables: there, everything happens on the loop, on which callers may wait."""


async def delete_unreferenced_rows(store: Store, pause: Callable[[], Awaitable[object]] = yield_to_writers) -> None:
    """Delete the rows of generations that no checkpoint names, a batch per transaction, with a pause after each."""
    for table, key in ((RESERVED_BLOCKS, "bucket, position"), (RESERVATIONS, "position")):
        # The search takes no lock, because there is hardly ever anything to delete.
        while await _unreferenced_generation(store.derived_query, table, store.ledger) is not None:
            await _delete_batch(store, table, key)
            await pause()


async def _delete_batch(store: Store, table: str, key: str) -> None:
    async with store.write_derived() as transaction:
        # Searched again under the lock: meanwhile another process may have deleted the rows that were found.
        generation = await _unreferenced_generation(transaction.query, table, store.ledger)
        if generation is None:
            return
        most = DELETED_ROWS_APART if store.keeps_derived_apart else DELETED_ROWS
        rows = f"FROM {table} WHERE ledger = ? AND generation = ?"
        batch = f"SELECT {key} {rows} ORDER BY {key} LIMIT {most}"
        last = (await transaction.query(batch, store.ledger, generation))[-1]
        marks = ", ".join("?" for _ in last)
        # A range of the key, because DELETE has no portable LIMIT.
        await transaction.query(f"DELETE {rows} AND ({key}) <= ({marks})", store.ledger, generation, *last)


async def _unreferenced_generation(
    query: Callable[[str], Awaitable[list[tuple[Any, ...]]]], table: str, ledger: int
) -> int | None:
    """Return the lowest generation that has rows and no checkpoint, or None.

    It skips from generation to generation in the primary key, so its time does not grow with the number of rows.
    """
    rows = await query(f"SELECT generation FROM {CHECKPOINTS} WHERE ledger = {ledger}")
    referenced = {generation for (generation,) in rows}
    generation = 0
    while True:
        lowest = f"SELECT min(generation) FROM {table} WHERE ledger = {ledger} AND generation > {generation}"
        found: int | None = (await query(lowest))[0][0]
        if found is None or found not in referenced:
            return found
        generation = found
