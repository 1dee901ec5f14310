"""A reservation as callers see it, and where one comes from."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from .account import Held
from .blocks import numbers
from .codec import Row, decode, reservation_id
from .errors import ReservationAlreadyReleased, ReservationAlreadySpent, ReservationExpired
from .events import (
    AllowanceReserved,
    ReservationReleased,
    ReservationSpent,
    Settlement,
    account_of,
)
from .log import Known, Lookup, Store
from .values import instant, seconds

Status = Literal["reserved", "spent", "released", "expired"]
STATUSES: tuple[Status, ...] = ("reserved", "spent", "released", "expired")


class Reservation(msgspec.Struct, frozen=True):
    """Whole blocks' allowance of one account, set aside for one job.

    `allowance_seconds` is the amount asked for, in executor-seconds; `blocks` ascend and are worth at least that.
    Times are aware UTC; `settled_at` is None while the status is `reserved`.
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


def of_held(held: Held, validator_ss58: str, status: Status = "reserved", settled_at_ns: int = 0) -> Reservation:
    """A reservation that stands, or that has just been settled."""
    return Reservation(
        held.reservation_id,
        status,
        validator_ss58,
        held.account.miner_ss58,
        held.account.executor_class,
        held.job_uuid,
        seconds(held.amount_ns),
        numbers(held.blocks),
        held.job_start_block,
        instant(held.reserved_at_ns),
        instant(held.expires_at_ns),
        None if status == "reserved" else instant(settled_at_ns),
    )


def of_rows(
    row: Row, event: AllowanceReserved, settlement: tuple[Row, Settlement] | None, validator_ss58: str
) -> Reservation:
    """A reservation from the rows that made it and, where it has ended, that ended it."""
    miner_ss58, executor_class = account_of(row.stream)
    return Reservation(
        reservation_id(row.position, row.hash),
        status_after(settlement[1]) if settlement else "reserved",
        validator_ss58,
        miner_ss58,
        executor_class,
        row.job_uuid,
        seconds(event.amount_ns),
        numbers(event.blocks),
        event.job_start_block,
        instant(row.recorded_at_ns),
        instant(event.expires_at_ns),
        instant(settlement[0].recorded_at_ns) if settlement else None,
    )


def stored_reservation(known: Known, validator_ss58: str) -> Reservation | None:
    """The reservation that a look-up found, with its end where it has one."""
    for row in (*known.rows.values(), *known.jobs.values()):
        reservation = _reservation_at(known, row, validator_ss58)
        if reservation is not None:
            return reservation
    return None


async def swept_reservations(store: Store, last_position: int, count: int, validator_ss58: str) -> list[Reservation]:
    """The reservations that a sweep ended with as many expiries up to a position, by due time."""
    expiries: list[Row] = []
    while len(expiries) < count:
        page = await store.read(last_position - count + len(expiries))
        expiries += page[: count - len(expiries)]
    lookup = Lookup()
    lookup.positions.update(row.settles for row in expiries if row.settles is not None)
    known = await store.find(lookup)
    ended = (known.rows[row.settles] for row in expiries if row.settles is not None)
    reservations = (_reservation_at(known, row, validator_ss58) for row in ended)
    return [reservation for reservation in reservations if reservation is not None]


def _reservation_at(known: Known, row: Row, validator_ss58: str) -> Reservation | None:
    event = decode(row.position, row.payload)
    if not isinstance(event, AllowanceReserved):
        return None
    return of_rows(row, event, settlement_of(known, row.position), validator_ss58)


def settlement_of(known: Known, position: int) -> tuple[Row, Settlement] | None:
    """How the reservation made at a position ended, if that was looked up and it has."""
    row = known.settlements.get(position)
    event = None if row is None else decode(row.position, row.payload)
    if row is None or not isinstance(event, Settlement):
        return None
    return row, event


def status_after(settlement: Settlement) -> Status:
    """The status that a settlement leaves."""
    match settlement:
        case ReservationSpent():
            return "spent"
        case ReservationReleased():
            return "released"
        case _:
            return "expired"


def refusal(
    an_id: int, settlement: tuple[Row, Settlement]
) -> ReservationAlreadySpent | ReservationAlreadyReleased | ReservationExpired:
    """Why a settled reservation cannot be settled again, and when it was."""
    row, event = settlement
    settled_at = instant(row.recorded_at_ns)
    match status_after(event):
        case "spent":
            return ReservationAlreadySpent(an_id, settled_at)
        case "released":
            return ReservationAlreadyReleased(an_id, settled_at)
        case _:
            return ReservationExpired(an_id, settled_at)
