"""What nobody reads any more: rows of the history's generations that no checkpoint names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ledger import Store, yield_to_writers

from .projector import CHECKPOINTS, RESERVATIONS, RESERVED_BLOCKS

DELETED_ROWS = 1000


async def delete_unreferenced_rows(store: Store) -> None:
    """Deletes the rows of generations that no checkpoint names, some in each transaction."""
    for table, key in ((RESERVED_BLOCKS, "bucket, position"), (RESERVATIONS, "position")):
        # Looked for first without a lock: there is hardly ever anything.
        while await _unreferenced_generation(store.query, table, store.ledger) is not None:
            await _delete_some(store, table, key)
            await yield_to_writers()


async def _delete_some(store: Store, table: str, key: str) -> None:
    async with store.write_read_models() as transaction:
        generation = await _unreferenced_generation(transaction.query, table, store.ledger)
        if generation is None:
            return
        its = f"FROM {table} WHERE ledger = ? AND generation = ?"
        some = f"SELECT {key} {its} ORDER BY {key} LIMIT {DELETED_ROWS}"
        last = (await transaction.query(some, store.ledger, generation))[-1]
        marks = ", ".join("?" for _ in last)
        await transaction.query(f"DELETE {its} AND ({key}) <= ({marks})", store.ledger, generation, *last)


async def _unreferenced_generation(
    ask: Callable[[str], Awaitable[list[tuple[Any, ...]]]], table: str, ledger: int
) -> int | None:
    """The lowest generation with rows that no checkpoint names; found without reading the others' rows."""
    kept = {row[0] for row in await ask(f"SELECT generation FROM {CHECKPOINTS} WHERE ledger = {ledger}")}
    generation = 0
    while True:
        query = f"SELECT min(generation) FROM {table} WHERE ledger = {ledger} AND generation > {generation}"
        found: int | None = (await ask(query))[0][0]
        if found is None or found not in kept:
            return found
        generation = found
