"""The gaps of a ledger that a feeder fills, and the pieces in which it reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from routing.service.allowance import Allowance
from routing.service.queries import MOST_BLOCKS

BATCH_BLOCKS = 50
"""The blocks of a gap that are read at once, and recorded in one commit."""


async def gaps_below_newest(ledger: Allowance, backfill_blocks: int | None) -> list[tuple[int, int]]:
    """Return the missing blocks between the lowest recorded block and the newest one, as ascending runs.

    They are at most `backfill_blocks` below the newest one; None is the recorded setting `block_expiry_blocks`.
    """
    lowest, newest = await ledger.first_block(), await ledger.current_block()
    if lowest is None or newest is None:
        return []
    if backfill_blocks is None:
        backfill_blocks = (await ledger.settings()).block_expiry_blocks
    # A setting may reach further back than one call may ask.
    first = max(lowest, newest - min(backfill_blocks, MOST_BLOCKS))
    return await ledger.missing_blocks(first, newest - 1) if first < newest else []


def batches(runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the runs, from the newest block to the oldest, in pieces of at most `BATCH_BLOCKS`."""
    for first, last in reversed(runs):
        for high in range(last, first - 1, -BATCH_BLOCKS):
            yield max(first, high - BATCH_BLOCKS + 1), high
