"""Explain a routing decision: decide it again from the log alone."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from ledger import Reservation, Row, Store, status_after
from ledger.codec import decode, reservation_position
from ledger.errors import ReservationNotFound
from ledger.events import AllowanceReserved, Settlement, decided_at_ns
from ledger.results import Result
from ledger.settings import BY_RELIABILITY
from ledger.values import instant, seconds
from projections import (
    Availability,
    RankedAccount,
    in_order_of_trial,
    running_jobs,
    state_at,
    weight_of,
)

from .stored_rows import row_at

Verdict = Literal["claimed", "busy", "outrun", "not reached", "excluded", "collateral"]


class Considered(Result, msgspec.Struct, frozen=True):
    """A candidate as the router saw it; amounts are executor-seconds, `share` is available / total.

    Verdicts: `claimed`: the job was routed here. `busy`: the miner ran as many jobs (`running`) as it had `executors`.
    `not reached`: the claim was made on a miner before this one. `outrun`: only in claims of earlier releases that are
    `kept`: the miner was not busy and earlier in the order, but the job stayed on another one. `excluded` and
    `collateral`: the miner had the amount, but was excluded, or below the required collateral, so it was no candidate;
    these come last.

    `running` counts the jobs that this ledger knows to run on the miner, those of other validators included.
    `incidents` are those of the setting's window; `weight` is that of the draw, None in the order by allowance.
    """

    hotkey_ss58: str
    verdict: Verdict
    earliest_block: int
    share: float
    available_seconds: float
    total_seconds: float
    running: int
    executors: int
    incidents: int = 0
    weight: float | None = None


class Explanation(Result, msgspec.Struct, frozen=True):
    """A routing decision, with its candidates in the order in which the job tried them.

    `position` is the last event that the choice had seen, `decided_at` the router's clock (aware UTC). `chosen_at` is
    that position if the claim names it, because other events came between the choice and the claim; else None. `kept`:
    an earlier release stayed on a miner that it had chosen at a position which nothing names; the candidates are those
    directly before the claim, and the choice is not proved. `routed` is False for a reservation made with
    `Allowance.reserve`, which no router chose; its `candidates` are empty.
    """

    reservation: Reservation
    routed: bool
    kept: bool
    position: int
    decided_at: datetime
    job_start_block: int
    required_seconds: float
    candidates: list[Considered]
    chosen_at: int | None = None


async def explain(store: Store, reservation: Reservation) -> Explanation:
    """Return the decision that made a reservation. Raises `ReservationNotFound` if its event is not in the log."""
    position = reservation_position(reservation.reservation_id)
    row = await row_at(store, position)
    event = None if row is None else decode(position, row.payload)
    if row is None or not isinstance(event, AllowanceReserved):
        raise ReservationNotFound(reservation.reservation_id)
    clock_ns = decided_at_ns(row.recorded_at_ns, event)
    chosen_at = event.chosen_at if event.chosen_at is not None and 0 < event.chosen_at < position else None
    decided_on = chosen_at or await _position_decided_on(store, row, clock_ns)
    considered: list[Considered] = []
    # Only a router records an axon.
    if event.axon is not None:
        state = await state_at(store, decided_on)
        considered = _considered(state, reservation, event.amount_ns, clock_ns)
    return Explanation(
        reservation,
        event.axon is not None,
        event.kept,
        decided_on,
        instant(clock_ns),
        event.job_start_block,
        seconds(event.amount_ns),
        considered,
        chosen_at,
    )


def _considered(state: Availability, reservation: Reservation, amount_ns: int, now_ns: int) -> list[Considered]:
    """Return the candidates in the order in which the job tried them, and then the miners that were none."""
    executor_class = reservation.executor_class
    measured = {each.hotkey_ss58: each for each in state.ranking(executor_class, now_ns)}
    order = in_order_of_trial(state, executor_class, amount_ns, reservation.job_uuid or "", now_ns)
    considered, reached = [], True
    for candidate in order:
        entry = measured[candidate.hotkey_ss58]
        verdict: Verdict = "not reached"
        if entry.hotkey_ss58 == reservation.miner_ss58:
            verdict, reached = "claimed", False
        elif reached:
            verdict = "busy" if entry.busy else "outrun"
        considered.append(_described(state, entry, verdict, now_ns))
    unfit = {each.hotkey_ss58: each.unfit for each in state.unfit(executor_class, amount_ns, now_ns)}
    for miner_ss58, reason in sorted(unfit.items()):
        considered.append(_described(state, measured[miner_ss58], reason or "excluded", now_ns))
    return considered


def _described(state: Availability, entry: RankedAccount, verdict: Verdict, now_ns: int) -> Considered:
    settings, account = state.chain.settings, entry.account
    window_ns = settings.routing("reliability_window_ns")
    is_drawn = settings.routing_order == BY_RELIABILITY
    return Considered(
        entry.hotkey_ss58,
        verdict,
        entry.earliest_block,
        entry.available_ns / entry.total_ns,
        seconds(entry.available_ns),
        seconds(entry.total_ns),
        running_jobs(state, account, now_ns),
        state.chain.newest_count(account),
        state.miner_facts.incidents_within(account.stream, now_ns - window_ns, now_ns),
        seconds(weight_of(state, account, now_ns)) if is_drawn else None,
    )


async def _position_decided_on(store: Store, claim: Row, clock_ns: int) -> int:
    """Return the last log position that the router had seen when it decided on a claim.

    A claim appends the expiries of the overdue reservations whose blocks it takes just before itself; the router had
    not seen those.
    """
    position = claim.position - 1
    while position > 0 and await _is_expiry_by_claim(store, claim, position, clock_ns):
        position -= 1
    return position


async def _is_expiry_by_claim(store: Store, claim: Row, position: int, clock_ns: int) -> bool:
    """Return whether a claim may have appended the event at a position before it, as an expiry of its own account.

    An earlier expiry of the same account, appended by `expire_due`, looks the same. Treating it as the claim's changes
    neither the candidates nor their order, because an overdue reservation counts for as little as an expired one. Only
    `Explanation.position` is then lower than the router saw. The exception is a clock that had
    gone back: if the reservation was not overdue when the claim was decided, the claim did not expire it.
    """
    row = await row_at(store, position)
    if row is None or row.stream != claim.stream or row.settles is None:
        return False
    settlement = decode(position, row.payload)
    if not isinstance(settlement, Settlement) or status_after(settlement) != "expired":
        return False
    reserved = await row_at(store, row.settles)
    event = None if reserved is None else decode(reserved.position, reserved.payload)
    return isinstance(event, AllowanceReserved) and event.expires_at_ns <= clock_ns
