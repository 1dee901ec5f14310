"""The gaps of a ledger that a feeder fills, and the pieces in which it reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from routing.service.allowance import Allowance
from routing.service.queries import MOST_BLOCKS

BATCH_BLOCKS = 50
"""The blocks of a gap that are read at once, and recorded in one commit."""


async def gaps_below_newest(ledger: Allowance, backfill_blocks: int | None) -> list[tuple[int, int]]:
    """Return the missing blocks below the newest one, at most `backfill_blocks` below it, as ascending runs.

    None is the recorded setting `block_expiry_blocks`. Blocks below the lowest recorded one are no gap.
    """
    newest = await ledger.current_block()
    if newest is None or newest == 1:
        return []
    start = max(1, newest - MOST_BLOCKS + 1)
    runs = await ledger.missing_blocks(start, newest - 1)
    # A run that begins so far below was never recorded: the ledger began after it.
    if start > 1 and runs and runs[0][0] == start:
        runs = runs[1:]
    if backfill_blocks is None:
        backfill_blocks = (await ledger.settings()).block_expiry_blocks
    lowest = newest - backfill_blocks
    return [(max(first, lowest), last) for first, last in runs if last >= lowest]


def batches(runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the runs, from the newest block to the oldest, in pieces of at most `BATCH_BLOCKS`."""
    for first, last in reversed(runs):
        for high in range(last, first - 1, -BATCH_BLOCKS):
            yield max(first, high - BATCH_BLOCKS + 1), high
