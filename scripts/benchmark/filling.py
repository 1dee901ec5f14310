"""Fills a ledger through the public API: records all facts, and reserves a third of the blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random

from routing import Allowance, Candidate

from .chain import Fact

RESERVED_SHARE = 1 / 3
RELEASED_SHARE, ACTIVE_SHARE = 0.10, 0.04
"""The shares of reservations that are released, and that stay active; the others are spent."""
FACTS_PER_COMMIT = 200
AT_ONCE = 2000


async def fill(ledger: Allowance, facts: Sequence[Fact], classes: Sequence[str]) -> None:
    """Record the facts, and reserve a third of their grants."""
    await record(ledger, facts)
    await reserve_a_third(ledger, classes)


async def record(ledger: Allowance, facts: Sequence[Fact]) -> None:
    """Record facts as an import does: many per commit."""
    for start in range(0, len(facts), FACTS_PER_COMMIT):
        await ledger.record_facts(facts[start : start + FACTS_PER_COMMIT])


async def reserve_a_third(ledger: Allowance, classes: Sequence[str]) -> None:
    """Reserve about a third of every account's blocks, in reservations of usual sizes, and spend most of them."""
    random = Random("a third")
    newest = await ledger.current_block() or 1
    wanted: list[tuple[str, str, float]] = []
    for executor_class in classes:
        for candidate in await ledger.find_miners(1.0, executor_class, newest):
            wanted += ((candidate.hotkey_ss58, executor_class, amount) for amount in _amounts(random, candidate))
    for start in range(0, len(wanted), AT_ONCE):
        made = await asyncio.gather(*(ledger.reserve(*each, newest) for each in wanted[start : start + AT_ONCE]))
        await asyncio.gather(*(_settle(ledger, random.random(), each.reservation_id) for each in made))


def _amounts(random: Random, candidate: Candidate) -> Iterator[float]:
    left_seconds = candidate.total_seconds * RESERVED_SHARE / (1 - RELEASED_SHARE)
    while (amount_seconds := random.uniform(24, 270)) <= left_seconds:
        yield amount_seconds
        left_seconds -= amount_seconds


async def _settle(ledger: Allowance, number: float, reservation_id: int) -> None:
    if number < RELEASED_SHARE:
        await ledger.release(reservation_id)
    elif number > RELEASED_SHARE + ACTIVE_SHARE:
        await ledger.spend(reservation_id)
