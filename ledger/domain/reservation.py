"""A reservation as callers see it, built from the state in memory or from stored rows."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from ledger.codec import Row, decode, reservation_id
from ledger.errors import ReservationAlreadyReleased, ReservationAlreadySpent, ReservationExpired
from ledger.events import AllowanceReserved, ReservationReleased, ReservationSpent, Settlement, account_of
from ledger.results import Result
from ledger.values import instant, seconds

from .account import ActiveReservation
from .blocks import block_numbers
from .lookup import LookupResult

Status = Literal["reserved", "spent", "released", "expired"]
STATUSES: tuple[Status, ...] = ("reserved", "spent", "released", "expired")
Origin = Literal["routed", "kept", "by_hand", "imported"]
ORIGINS: tuple[Origin, ...] = ("routed", "kept", "by_hand", "imported")
"""Who chose the miner: a router directly before the claim; a router at an earlier position; a caller of `reserve`; or
another system, from which the reservation was taken over. No log proves why a miner was chosen by the last two."""


class Reservation(Result, msgspec.Struct, frozen=True):
    """Whole blocks of one account's allowance, reserved for one job.

    `allowance_seconds` is the requested amount in executor-seconds; `blocks` are ascending and grant at least that
    amount. Times are aware UTC datetimes; `settled_at` is None while the status is `reserved`.
    """

    reservation_id: int
    status: Status
    validator_ss58: str
    miner_ss58: str
    executor_class: str
    job_uuid: str | None
    allowance_seconds: float
    blocks: list[int]
    job_start_block: int
    reserved_at: datetime
    expires_at: datetime
    settled_at: datetime | None


def active_to_reservation(
    active: ActiveReservation, validator_ss58: str, status: Status = "reserved", settled_at_ns: int = 0
) -> Reservation:
    """Return the public form of an active reservation, or of one that was settled just now."""
    return Reservation(
        active.reservation_id,
        status,
        validator_ss58,
        active.account.miner_ss58,
        active.account.executor_class,
        active.job_uuid,
        seconds(active.amount_ns),
        block_numbers(active.blocks),
        active.job_start_block,
        instant(active.reserved_at_ns),
        instant(active.expires_at_ns),
        None if status == "reserved" else instant(settled_at_ns),
    )


def rows_to_reservation(
    row: Row, event: AllowanceReserved, settlement: tuple[Row, Settlement] | None, validator_ss58: str
) -> Reservation:
    """Return the public form of a stored reservation, given its row and, if it was settled, the settlement's row."""
    miner_ss58, executor_class = account_of(row.stream)
    return Reservation(
        reservation_id(row.position, row.hash),
        status_after(settlement[1]) if settlement else "reserved",
        validator_ss58,
        miner_ss58,
        executor_class,
        row.job_uuid,
        seconds(event.amount_ns),
        block_numbers(event.blocks),
        event.job_start_block,
        instant(row.recorded_at_ns),
        instant(event.expires_at_ns),
        instant(settlement[0].recorded_at_ns) if settlement else None,
    )


def found_reservation(known: LookupResult, validator_ss58: str) -> Reservation | None:
    """Return the first reservation that a look-up found, with its settlement if it has one."""
    for row in (*known.rows.values(), *known.jobs.values()):
        reservation = reservation_at(known, row, validator_ss58)
        if reservation is not None:
            return reservation
    return None


def reservation_at(known: LookupResult, row: Row, validator_ss58: str) -> Reservation | None:
    """Return the reservation that the row records, with its settlement; None if the row is another event."""
    event = decode(row.position, row.payload)
    if not isinstance(event, AllowanceReserved):
        return None
    return rows_to_reservation(row, event, settlement_of(known, row.position), validator_ss58)


def settlement_of(known: LookupResult, position: int) -> tuple[Row, Settlement] | None:
    """Return the settlement of the reservation at a position; None if it has none or was not looked up."""
    row = known.settlements.get(position)
    event = None if row is None else decode(row.position, row.payload)
    if row is None or not isinstance(event, Settlement):
        return None
    return row, event


def origin_of(event: AllowanceReserved) -> Origin:
    """Return the origin of a reservation."""
    if event.imported:
        return "imported"
    if event.axon is None:
        return "by_hand"
    return "routed" if event.chosen_at is None and not event.kept else "kept"


def status_after(settlement: Settlement) -> Status:
    """Return the reservation's status after the settlement."""
    match settlement:
        case ReservationSpent():
            return "spent"
        case ReservationReleased():
            return "released"
        case _:
            return "expired"


def already_settled_error(
    an_id: int, settlement: tuple[Row, Settlement]
) -> ReservationAlreadySpent | ReservationAlreadyReleased | ReservationExpired:
    """Return the error for settling a reservation again; it says when and how the first settlement happened."""
    row, event = settlement
    settled_at = instant(row.recorded_at_ns)
    match status_after(event):
        case "spent":
            return ReservationAlreadySpent(an_id, settled_at)
        case "released":
            return ReservationAlreadyReleased(an_id, settled_at)
        case _:
            return ReservationExpired(an_id, settled_at)
