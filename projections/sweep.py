"""What nobody reads any more: rows of the history's generations that no checkpoint names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ledger import Store, give_way

from .projecting import CHECKPOINTS, LINES, PIECES

SWEPT_ROWS = 1000


async def sweep(store: Store) -> None:
    """Deletes the rows of generations that no checkpoint names, some in each transaction."""
    for table, key in ((PIECES, "bucket, position"), (LINES, "position")):
        # Looked for first without a lock: there is hardly ever anything.
        while await _forsaken(store.select, table, store.ledger) is not None:
            await _sweep_some(store, table, key)
            await give_way()


async def _sweep_some(store: Store, table: str, key: str) -> None:
    async with store.writing() as statements:
        generation = await _forsaken(statements.rows, table, store.ledger)
        if generation is None:
            return
        its = f"FROM {table} WHERE ledger = ? AND generation = ?"
        some = f"SELECT {key} {its} ORDER BY {key} LIMIT {SWEPT_ROWS}"
        last = (await statements.rows(some, store.ledger, generation))[-1]
        marks = ", ".join("?" for _ in last)
        await statements.rows(f"DELETE {its} AND ({key}) <= ({marks})", store.ledger, generation, *last)


async def _forsaken(ask: Callable[[str], Awaitable[list[tuple[Any, ...]]]], table: str, ledger: int) -> int | None:
    """The lowest generation with rows that no checkpoint names; found without reading the others' rows."""
    kept = {row[0] for row in await ask(f"SELECT generation FROM {CHECKPOINTS} WHERE ledger = {ledger}")}
    generation = 0
    while True:
        query = f"SELECT min(generation) FROM {table} WHERE ledger = {ledger} AND generation > {generation}"
        found: int | None = (await ask(query))[0][0]
        if found is None or found not in kept:
            return found
        generation = found
