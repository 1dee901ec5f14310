"""The calls that workers make, and that are made once more to ask what became of them."""

from __future__ import annotations

from dataclasses import dataclass

from routing import Allowance, AllowanceException, JobRoutingException, OutcomeUnknown, Routing

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


async def perform(plan: Plan, book: Allowance, wish: Wish) -> Answer:
    """Makes the call; raises what it raises."""
    match wish.what:
        case "pick":
            route = await Routing(book).pick_miner_for_job_request(
                _Request(str(wish.job), network.CLASS, wish.amount)
            )
            return Answer(route.allowance_reservation_id or 0, route.miner.hotkey_ss58, route.allowance_blocks or [])
        case "reserve":
            made = await book.reserve(
                str(wish.miner), network.CLASS, wish.amount, wish.number, job_uuid=wish.job, idempotency_key=wish.key
            )
            return Answer(made.reservation_id, made.miner_ss58, made.blocks)
        case "spend" | "release":
            settle = book.spend if wish.what == "spend" else book.release
            ended = await settle(wish.reservation_id, idempotency_key=wish.key)
            return Answer(ended.reservation_id, ended.miner_ss58, ended.blocks)
        case "expire":
            return Answer(expired=[each.reservation_id for each in await book.expire_due()])
        case "block":
            miners = network.miners(wish.number, plan.miners)
            created_at = network.created_at(wish.number)
            return Answer(position=await book.record_block(wish.number, created_at, miners, network.STAKES))
        case "sync":
            manifests = network.manifests(wish.number, plan.miners, plan.seed)
            return Answer(position=await book.record_manifests(wish.number, manifests))
        case "look":
            found = await book.reservation(wish.reservation_id)
            return Answer(found.reservation_id, found.miner_ss58, found.blocks)
        case "list":
            await book.history(limit=5)
            return Answer()
        case _:
            raise ValueError(wish.what)


async def attempt(plan: Plan, book: Allowance, n: int, wish: Wish) -> Outcome:
    """Makes the call and tells its answer from its refusal; cancellation passes through."""
    try:
        return Outcome(n, answer=await perform(plan, book, wish))
    except OutcomeUnknown:
        return Outcome(n)
    except (AllowanceException, JobRoutingException) as refused:
        if type(refused).__name__ in NEVER_EXPECTED:
            return Outcome(n, broken=repr(refused))
        return Outcome(n, refused=type(refused).__name__)
    except Exception as broken:
        return Outcome(n, broken=repr(broken))


NEVER_EXPECTED = ("ConflictingFact", "CorruptLedger", "IdempotencyConflict", "ImplausibleFact", "InvalidInput")
"""Refusals that no call of a worker gives cause for."""
