"""Why this miner: a routing decision made again from the log alone."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from ledger import Lookup, Reservation, Row, Store, status_after
from ledger.codec import decode, reservation_position
from ledger.errors import ReservationNotFound
from ledger.events import AllowanceReserved, Settlement
from ledger.values import instant, seconds
from projections import Availability, RankedAccount, in_trial_order, state_at

Verdict = Literal["claimed", "busy", "outrun", "not reached"]


class Considered(msgspec.Struct, frozen=True):
    """A candidate as the router saw it.

    `busy`: it ran as many jobs (`running`) as it had executors. `outrun`: it came first only after another process
    had moved the log, and the miner chosen before that still qualified. `not reached`: the claim came before it.
    """

    hotkey_ss58: str
    verdict: Verdict
    earliest_block: int
    share: float
    available_seconds: float
    total_seconds: float
    running: int
    executors: int


class Explanation(msgspec.Struct, frozen=True):
    """A routing decision: the candidates in the order in which the job tried them.

    `position` is the last event that the decision saw, `decided_at` its clock. `routed` is False for a reservation
    made by hand, which no router chose; its `candidates` are empty.
    """

    reservation: Reservation
    routed: bool
    kept: bool
    position: int
    decided_at: datetime
    job_start_block: int
    required_seconds: float
    candidates: list[Considered]


async def explain(store: Store, reservation: Reservation) -> Explanation:
    """The decision behind a job's reservation."""
    position = reservation_position(reservation.reservation_id)
    row = await _row(store, position)
    event = None if row is None else decode(position, row.payload)
    if row is None or not isinstance(event, AllowanceReserved):
        raise ReservationNotFound(reservation.reservation_id)
    decided_at_ns = event.decided_at_ns if event.decided_at_ns is not None else row.recorded_at_ns
    before = await _seen_position(store, row, decided_at_ns)
    considered: list[Considered] = []
    if event.axon is not None:
        state = await state_at(store, before)
        entries = state.ranking(reservation.executor_class, decided_at_ns)
        order = in_trial_order(entries, event.amount_ns, reservation.job_uuid or "")
        considered = _considered(state, list(order), reservation.miner_ss58, decided_at_ns)
    return Explanation(
        reservation,
        event.axon is not None,
        event.kept,
        before,
        instant(decided_at_ns),
        event.job_start_block,
        seconds(event.amount_ns),
        considered,
    )


def _considered(state: Availability, order: list[RankedAccount], claimed_ss58: str, now_ns: int) -> list[Considered]:
    considered = []
    reached = True
    for entry in order:
        verdict: Verdict = "not reached"
        if entry.hotkey_ss58 == claimed_ss58:
            verdict, reached = "claimed", False
        elif reached:
            verdict = "busy" if entry.busy else "outrun"
        active = entry.account.active.values()
        considered.append(
            Considered(
                entry.hotkey_ss58,
                verdict,
                entry.earliest_block,
                entry.available_ns / entry.total_ns,
                seconds(entry.available_ns),
                seconds(entry.total_ns),
                sum(1 for each in active if each.expires_at_ns > now_ns),
                state.chain.newest_count(entry.account),
            )
        )
    return considered


async def _seen_position(store: Store, claim: Row, decided_at_ns: int) -> int:
    """The last position before the claim; the expiries that it appended ahead of itself are its own."""
    position = claim.position - 1
    while position > 0 and await _is_own_expiry(store, claim, position, decided_at_ns):
        position -= 1
    return position


async def _is_own_expiry(store: Store, claim: Row, position: int, decided_at_ns: int) -> bool:
    """Whether an event before a claim may be an expiry that the claim brought.

    One of the same account that stood there before it looks the same. It makes no difference: what is overdue
    counts as little as what has expired. Where the clock had gone back, and it does, it was not the claim's.
    """
    row = await _row(store, position)
    if row is None or row.stream != claim.stream or row.settles is None:
        return False
    settlement = decode(position, row.payload)
    if not isinstance(settlement, Settlement) or status_after(settlement) != "expired":
        return False
    made = await _row(store, row.settles)
    event = None if made is None else decode(made.position, made.payload)
    return isinstance(event, AllowanceReserved) and event.expires_at_ns <= decided_at_ns


async def _row(store: Store, position: int) -> Row | None:
    lookup = Lookup()
    lookup.positions.add(position)
    return (await store.find(lookup)).rows.get(position)
