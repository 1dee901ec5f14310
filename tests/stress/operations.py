"""The calls that workers make, and that are made once more to ask what became of them."""

from __future__ import annotations

from dataclasses import dataclass

from routing import Allowance, AllowanceException, JobRoutingException, OutcomeUnknown, Reservation, Routing

from . import network
from .diary import Answer, Outcome, Wish
from .plan import Plan


@dataclass(frozen=True)
class _Request:
    uuid: str
    executor_class: str
    execution_time_limit: float
    download_time_limit: float = 0.0
    upload_time_limit: float = 0.0
    on_trusted_miner: bool = False


async def perform(plan: Plan, ledger: Allowance, wish: Wish) -> Answer:
    """Makes the call; raises what it raises."""
    match wish.what:
        case "pick":
            request = _Request(str(wish.job), network.CLASS, wish.amount)
            route = await Routing(ledger).pick_miner_for_job_request(request)
            return Answer(route.allowance_reservation_id or 0, route.miner.hotkey_ss58, route.allowance_blocks or [])
        case "expire":
            return Answer(expired=[each.reservation_id for each in await ledger.expire_due(idempotency_key=wish.key)])
        case "block" | "sync":
            return Answer(position=await _record(plan, ledger, wish))
        case "list":
            await ledger.history(limit=5)
            return Answer(position=await ledger.current_block() or 0)
        case _:
            reservation = await _reservation(ledger, wish)
            return Answer(reservation.reservation_id, reservation.miner_ss58, reservation.blocks)


async def _reservation(ledger: Allowance, wish: Wish) -> Reservation:
    match wish.what:
        case "reserve":
            return await ledger.reserve(
                str(wish.miner), network.CLASS, wish.amount, wish.number, job_uuid=wish.job, idempotency_key=wish.key
            )
        case "spend":
            return await ledger.spend(wish.reservation_id, idempotency_key=wish.key)
        case "release":
            return await ledger.release(wish.reservation_id, idempotency_key=wish.key)
        case _:
            return await ledger.reservation(wish.reservation_id)


async def _record(plan: Plan, ledger: Allowance, wish: Wish) -> int:
    if wish.what == "sync":
        manifests = network.manifests(wish.number, plan.miners, plan.seed)
        return await ledger.record_manifests(wish.number, manifests, idempotency_key=wish.key)
    miners = network.miners(wish.number, plan.miners)
    created_at = network.created_at(wish.number)
    return await ledger.record_block(wish.number, created_at, miners, network.STAKES, idempotency_key=wish.key)


async def attempt(plan: Plan, ledger: Allowance, n: int, wish: Wish) -> Outcome:
    """Makes the call and tells its answer from its refusal; cancellation passes through."""
    try:
        return Outcome(n, answer=await perform(plan, ledger, wish))
    except OutcomeUnknown:
        return Outcome(n)
    except (AllowanceException, JobRoutingException) as refused:
        if type(refused).__name__ in NEVER_EXPECTED:
            return Outcome(n, broken=repr(refused))
        return Outcome(n, refused=type(refused).__name__, said=str(refused))
    except Exception as broken:
        return Outcome(n, broken=repr(broken))


NEVER_EXPECTED = ("ConflictingFact", "CorruptLedger", "IdempotencyConflict", "ImplausibleFact", "InvalidInput")
"""Refusals that no call of a worker gives cause for."""
