"""Filling a ledger through the public face: all facts, and a third of the blocks reserved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random

from routing import Allowance, Candidate

from .chain import Fact

RESERVED_SHARE = 1 / 3
RELEASED_SHARE, LEFT_SHARE = 0.10, 0.04
"""Of the reservations: how many are released, and how many left standing; the rest is spent."""
FACTS_PER_COMMIT = 200
AT_ONCE = 2000


async def fill(ledger: Allowance, facts: Sequence[Fact], classes: Sequence[str]) -> None:
    """Records the facts and reserves a third of what they grant."""
    await record(ledger, facts)
    await reserve_a_third(ledger, classes)


async def record(ledger: Allowance, facts: Sequence[Fact]) -> None:
    """Records facts as an import does: many in a commit."""
    for start in range(0, len(facts), FACTS_PER_COMMIT):
        await ledger.record_facts(facts[start : start + FACTS_PER_COMMIT])


async def reserve_a_third(ledger: Allowance, classes: Sequence[str]) -> None:
    """Takes about a third of every account's blocks, in reservations of the usual sizes; most of them are spent."""
    random = Random("a third")
    newest = await ledger.current_block() or 1
    wanted: list[tuple[str, str, float]] = []
    for executor_class in classes:
        for candidate in await ledger.find_miners(1.0, executor_class, newest):
            wanted += ((candidate.hotkey_ss58, executor_class, amount) for amount in _pieces(random, candidate))
    for start in range(0, len(wanted), AT_ONCE):
        made = await asyncio.gather(*(ledger.reserve(*each, newest) for each in wanted[start : start + AT_ONCE]))
        await asyncio.gather(*(_settle(ledger, random.random(), each.reservation_id) for each in made))


def _pieces(random: Random, candidate: Candidate) -> Iterator[float]:
    left_seconds = candidate.total_seconds * RESERVED_SHARE / (1 - RELEASED_SHARE)
    while (piece_seconds := random.uniform(24, 270)) <= left_seconds:
        yield piece_seconds
        left_seconds -= piece_seconds


async def _settle(ledger: Allowance, draw: float, reservation_id: int) -> None:
    if draw < RELEASED_SHARE:
        await ledger.release(reservation_id)
    elif draw > RELEASED_SHARE + LEFT_SHARE:
        await ledger.spend(reservation_id)
