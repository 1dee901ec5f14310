"""How many reservations have which status, from the read model and the unprojected tail."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from ledger import STATUSES, DerivedTablesUnavailable, RecoveryConflict, Status, Store, status_after
from ledger.codec import decode
from ledger.events import Settlement

from .model import NO_CHECKPOINT, HistoryModel

MOST_TAIL_ROWS = 50_000
"""The longest tail in events that is read to count; under load the upkeep leaves about 20,000."""
PAGE_ROWS = 128
"""Events that are read at a time: the loop cannot do anything else meanwhile."""


async def settled_by_status(store: Store, model: HistoryModel, head: int) -> dict[Status, int]:
    """Return the number of settled reservations by status at position `head`; empty if it is not known.

    It is not known if the tables cannot be read, or if a long tail of the log is not projected. The active reservations
    are in the state.
    """
    with suppress(DerivedTablesUnavailable, RecoveryConflict):
        checkpoint = await model.live()
        counts = {} if checkpoint == NO_CHECKPOINT else await model.statuses(checkpoint.generation)
        # The checkpoint may have moved between the statements. Then the numbers are known at the next call.
        if checkpoint == await model.live() and head - checkpoint.position <= MOST_TAIL_ROWS:
            tail = await _settled_in_tail(store, checkpoint.position, head)
            return {status: counts.get(status, 0) + tail[status] for status in STATUSES if status != "reserved"}
    return {}


async def _settled_in_tail(store: Store, position: int, head: int) -> Counter[Status]:
    numbers: Counter[Status] = Counter()
    while position < head:
        rows = await store.read(position, PAGE_ROWS)
        settlements = [decode(row.position, row.payload) for row in rows if row.settles and row.position <= head]
        numbers.update(status_after(event) for event in settlements if isinstance(event, Settlement))
        position = rows[-1].position if rows else head
        await asyncio.sleep(0)
    return numbers
