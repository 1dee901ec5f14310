"""Times as positions: recorded times never decrease within a log, so a range of times is a range of positions."""

from __future__ import annotations

from ledger import Store

from .queries import PositionBounds
from .rows import HistoryFilters


async def position_bounds(store: Store, filters: HistoryFilters, head: int) -> PositionBounds:
    """Return the positions up to a head that were recorded in the times that filters name."""
    first, end = filters.reserved_from_ns, filters.reserved_until_ns
    return PositionBounds(
        None if first is None else await _first_since(store, first, head),
        None if end is None else await _first_since(store, end, head),
    )


async def _first_since(store: Store, at_ns: int, head: int) -> int:
    """Return the first position recorded at a time or later; the one after the head if there is none.

    The statement bisects the log by its primary key, so it takes one round trip and no index of times. All values are
    integers, so nothing needs to be quoted.
    """
    is_earlier = (
        f"(SELECT recorded_at_ns FROM allowance_events WHERE ledger = {store.ledger}"
        f" AND position = (low + high) / 2) < {at_ns}"
    )
    rows = await store.query(
        f"WITH RECURSIVE search (low, high) AS (SELECT CAST(1 AS BIGINT), CAST({head + 1} AS BIGINT) UNION ALL"
        f" SELECT CASE WHEN {is_earlier} THEN (low + high) / 2 + 1 ELSE low END,"
        f" CASE WHEN {is_earlier} THEN high ELSE (low + high) / 2 END FROM search WHERE low < high)"
        " SELECT low FROM search WHERE low = high"
    )
    return int(rows[0][0])
