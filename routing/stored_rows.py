"""Look-ups of stored rows that the state in memory no longer holds: one row by position, or a run of rows.

`explain` and the service share them. They are not a part of `ledger`, whose commands never read rows by themselves: a
command lists its look-ups, and the writer finds the rows for all commands of a batch at once.
"""

from __future__ import annotations

from ledger import EarlierExpiry, Lookup, Reservation, Row, Store
from ledger.domain.reservation import reservation_at
from ledger.errors import CorruptLedger


async def row_at(store: Store, position: int) -> Row | None:
    """Return the stored row at a log position; None if the log has none there."""
    return (await store.find(Lookup(positions=[position]))).rows.get(position)


async def reservations_of_expire_due(store: Store, earlier: EarlierExpiry, validator_ss58: str) -> list[Reservation]:
    """Return the reservations that an earlier call of `expire_due` expired, by due time.

    One call appends its expiries as consecutive rows and in order of due time. So the last position and the number of
    rows, which the event of the last row stores as `swept`, identify them. Raises `CorruptLedger` if a row is missing.
    """
    rows = await _rows_up_to(store, earlier.last_position, earlier.expiries)
    positions = [row.settles for row in rows if row.settles is not None]
    found = await store.find(Lookup(positions=positions))
    reservations = (reservation_at(found, found.rows[position], validator_ss58) for position in positions)
    return [reservation for reservation in reservations if reservation is not None]


async def _rows_up_to(store: Store, last_position: int, count: int) -> list[Row]:
    rows: list[Row] = []
    # A loop, because `read` returns one page at a time.
    while len(rows) < count:
        after = last_position - count + len(rows)
        page = await store.read(after)
        if not page:
            # The database may have been replaced by a shorter log since the rows were counted. Without this check the
            # loop would never end.
            raise CorruptLedger(after + 1, "the row is missing")
        rows += page[: count - len(rows)]
    return rows
