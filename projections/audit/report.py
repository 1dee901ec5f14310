"""What an audit comes to: findings, totals, and how allowance was used block by block."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import msgspec

from ledger import END, RunSet, seconds

from ..rules import Finding
from .balance import balance_of
from .books import Book, World


class AccountTotals(msgspec.Struct, frozen=True):
    """One account's allowance, in executor-seconds.

    `granted` is what all its finalized blocks grant: as much as `spent`, `held` (by reservations that no event has
    ended, overdue or not), `invalidated` (dropped while free), `available` (free, in the window of a job that starts
    at the newest block) and `aged` (free, and older than that) together.
    """

    miner_ss58: str
    executor_class: str
    granted_seconds: float
    spent_seconds: float
    held_seconds: float
    invalidated_seconds: float
    available_seconds: float
    aged_seconds: float


class AccountUsage(msgspec.Struct, frozen=True):
    """One account's allowance by the blocks that granted it: a number of executor-seconds for each bucket of them."""

    miner_ss58: str
    executor_class: str
    granted: list[float]
    spent: list[float]
    held: list[float]
    invalidated: list[float]


class BlockUsage(msgspec.Struct, frozen=True):
    """Buckets of blocks, each from one of `starts` up to before the next, the last start being only an end."""

    starts: list[int]
    accounts: list[AccountUsage]


class AuditReport(msgspec.Struct, frozen=True):
    """A whole log, replayed from nothing, and what was found.

    `findings` are by position, the first 10,000 of `findings_count`. `position` is the last event audited, `head_hash`
    its hash in hexadecimal. `events` counts them by type. `history_position` is how far the history's read model was
    compared, None where there is none; so many `snapshots` were, and `live_state` says whether the state in this
    process's memory was. Times are seconds.
    """

    validator_ss58: str
    position: int
    head_hash: str
    findings: list[Finding]
    findings_count: int
    events: dict[str, int]
    totals: list[AccountTotals]
    history_position: int | None
    elapsed_seconds: float
    events_per_second: float
    usage: BlockUsage | None = None
    snapshots: int = 0
    live_state: bool = False


def totals_of(world: World) -> list[AccountTotals]:
    """Every account's totals, by miner and class."""
    return [_totals(world, book) for book in _books(world)]


def usage_of(world: World, buckets: int) -> BlockUsage:
    """Every account's allowance in so many buckets of blocks at the most."""
    units = world.chain.blocks
    first, end = units.first_finalized, units.last_finalized + 1
    if end <= first:
        return BlockUsage([], [])
    step = -(-(end - first) // buckets)
    starts = [*range(first, end, step), end]
    return BlockUsage(starts, [_usage(world, book, starts) for book in _books(world)])


def _books(world: World) -> list[Book]:
    return [world.book(stream) for stream in sorted(world.chain.accounts)]


def _totals(world: World, book: Book) -> AccountTotals:
    balance = balance_of(world, book)
    return AccountTotals(
        book.miner_ss58,
        book.executor_class,
        seconds(balance.granted_ns),
        seconds(balance.spent_ns),
        seconds(balance.held_ns),
        seconds(balance.invalidated_ns),
        seconds(balance.available_ns),
        seconds(balance.free_ns - balance.available_ns),
    )


def _usage(world: World, book: Book, starts: list[int]) -> AccountUsage:
    held, spent = RunSet(), book.taken.copy()
    for standing in book.standing.values():
        for first, last in standing.owned:
            held.add(first, last)
            spent.remove(first, last)
    free = RunSet(*map(list, zip(*book.taken.gaps(0, book.account.floor), strict=True)))
    everything = RunSet([0], [END])
    parts = (_by_bucket(world, book, part, starts) for part in (everything, spent, held, free))
    return AccountUsage(book.miner_ss58, book.executor_class, *parts)


def _by_bucket(world: World, book: Book, blocks: RunSet, starts: list[int]) -> list[float]:
    """What some blocks of the account grant, in seconds, bucket by bucket."""
    amounts = []
    for start, end in pairwise(starts):
        at = bisect_right(blocks.ends, start)
        is_empty = at == len(blocks.starts) or blocks.starts[at] >= end
        runs = () if is_empty else blocks.between(start, end)
        amounts.append(seconds(sum(world.amount_ns(book.account, *run) for run in runs)))
    return amounts
