"""Look-ups of single stored rows: what the state in memory no longer holds."""

from __future__ import annotations

from ledger import EarlierExpiry, Lookup, Reservation, Row, Store
from ledger.domain.reservation import reservation_at


async def row_at(store: Store, position: int) -> Row | None:
    """Return the stored row at a log position; None if the log has none there."""
    return (await store.find(Lookup(positions=[position]))).rows.get(position)


async def reservations_of_expiry(store: Store, earlier: EarlierExpiry, validator_ss58: str) -> list[Reservation]:
    """Return the reservations that an earlier `expire_due` expired, by due time.

    One call appends its expiries as consecutive rows and in order of due time, so the last position and the number of
    rows identify them.
    """
    expiries: list[Row] = []
    while len(expiries) < earlier.expiries:
        page = await store.read(earlier.last_position - earlier.expiries + len(expiries))
        expiries += page[: earlier.expiries - len(expiries)]
    positions = [row.settles for row in expiries if row.settles is not None]
    found = await store.find(Lookup(positions=positions))
    reservations = (reservation_at(found, found.rows[position], validator_ss58) for position in positions)
    return [reservation for reservation in reservations if reservation is not None]
