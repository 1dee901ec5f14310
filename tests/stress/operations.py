"""The calls of the library that workers make, and that the harness retries if their outcome is unknown."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

from routing import Allowance, AllowanceException, JobRoutingException, OutcomeUnknown, Reservation, Routing

from . import network
from .diary import Outcome, Request, Result
from .plan import Plan

NEVER_EXPECTED = ("ConflictingFact", "CorruptLedger", "IdempotencyConflict", "ImplausibleFact", "InvalidInput")
"""Refusals that no request of a worker deserves."""


@dataclass(frozen=True)
class _Job:
    uuid: str
    executor_class: str
    execution_time_limit: float
    download_time_limit: float = 0.0
    upload_time_limit: float = 0.0
    on_trusted_miner: bool = False


async def attempt(plan: Plan, ledger: Allowance, n: int, request: Request) -> Outcome:
    """Make the call and return its result or its refusal; a cancellation propagates."""
    return await outcome_of(n, perform(plan, ledger, request))


async def outcome_of(n: int, performing: Awaitable[Result]) -> Outcome:
    """Return the result or the refusal of a call, or what no caller should ever see."""
    try:
        return Outcome(n, result=await performing)
    except OutcomeUnknown:
        return Outcome(n)
    except (AllowanceException, JobRoutingException) as refused:
        if type(refused).__name__ in NEVER_EXPECTED:
            return Outcome(n, broken=repr(refused))
        return Outcome(n, refused=type(refused).__name__, message=str(refused))
    except Exception as broken:
        return Outcome(n, broken=repr(broken))


async def perform(plan: Plan, ledger: Allowance, request: Request) -> Result:
    """Make the call; raise whatever it raises."""
    match request.operation:
        case "pick":
            job = _Job(str(request.job), network.CLASS, request.amount)
            route = await Routing(ledger).pick_miner_for_job_request(job)
            return Result(route.allowance_reservation_id or 0, route.miner.hotkey_ss58, route.allowance_blocks or [])
        case "expire":
            expired = await ledger.expire_due(idempotency_key=request.key)
            return Result(expired=[each.reservation_id for each in expired])
        case "block" | "sync":
            return Result(position=await _record(plan, ledger, request))
        case "exclude" | "readmit" | "incident" | "elsewhere" | "ended":
            return Result(position=await _report(ledger, request))
        case "list":
            await ledger.history(limit=5)
            return Result(position=await ledger.current_block() or 0)
        case _:
            reservation = await _reservation(ledger, request)
            return Result(reservation.reservation_id, reservation.miner_ss58, reservation.blocks)


async def _reservation(ledger: Allowance, request: Request) -> Reservation:
    match request.operation:
        case "reserve":
            return await ledger.reserve(
                str(request.miner),
                network.CLASS,
                request.amount,
                request.number,
                job_uuid=request.job,
                idempotency_key=request.key,
            )
        case "spend":
            return await ledger.spend(request.reservation_id, idempotency_key=request.key)
        case "release":
            return await ledger.release(request.reservation_id, idempotency_key=request.key)
        case _:
            return await ledger.reservation(request.reservation_id)


async def _report(ledger: Allowance, request: Request) -> int:
    miner, job, key = str(request.miner), str(request.job), request.key
    match request.operation:
        case "exclude":
            return await ledger.exclude_miner(miner, "slow", idempotency_key=key)
        case "readmit":
            return await ledger.readmit_miner(miner, "fast again", idempotency_key=key)
        case "incident":
            return await ledger.report_incident(miner, network.CLASS, "failed", job, idempotency_key=key)
        case "elsewhere":
            started_at = network.created_at(request.number)
            return await ledger.record_job_elsewhere(miner, network.CLASS, job, started_at, 60.0, idempotency_key=key)
        case _:
            return await ledger.end_job_elsewhere(job, idempotency_key=key)


async def _record(plan: Plan, ledger: Allowance, request: Request) -> int:
    if request.operation == "sync":
        manifests = network.manifests(request.number, plan.miners, plan.seed)
        return await ledger.record_manifests(request.number, manifests, idempotency_key=request.key)
    miners = network.miners(request.number, plan.miners)
    created_at = network.created_at(request.number)
    return await ledger.record_block(request.number, created_at, miners, network.STAKES, idempotency_key=request.key)
