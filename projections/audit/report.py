"""What an audit comes to: findings, totals, and how allowance was used block by block."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import msgspec

from ledger import END, BlockSet
from ledger.values import seconds
from projections.audit.checks.conservation import balance_of
from projections.rules import Finding

from .state import AccountState, AuditState


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


def totals_of(state: AuditState) -> list[AccountTotals]:
    """Every account's totals, by miner and class."""
    return [_totals(state, account_state) for account_state in _books(state)]


def usage_of(state: AuditState, buckets: int) -> BlockUsage:
    """Every account's allowance in so many buckets of blocks at the most."""
    units = state.chain.blocks
    first, end = units.first_finalized, units.last_finalized + 1
    if end <= first:
        return BlockUsage([], [])
    step = -(-(end - first) // buckets)
    starts = [*range(first, end, step), end]
    return BlockUsage(starts, [_usage(state, account_state, starts) for account_state in _books(state)])


def _books(state: AuditState) -> list[AccountState]:
    return [state.account_state(stream) for stream in sorted(state.chain.accounts)]


def _totals(state: AuditState, account_state: AccountState) -> AccountTotals:
    balance = balance_of(state, account_state)
    return AccountTotals(
        account_state.miner_ss58,
        account_state.executor_class,
        seconds(balance.granted_ns),
        seconds(balance.spent_ns),
        seconds(balance.held_ns),
        seconds(balance.invalidated_ns),
        seconds(balance.available_ns),
        seconds(balance.free_ns - balance.available_ns),
    )


def _usage(state: AuditState, account_state: AccountState, starts: list[int]) -> AccountUsage:
    held, spent = BlockSet(), account_state.taken.copy()
    for active in account_state.active.values():
        for first, last in active.owned:
            held.add(first, last)
            spent.remove(first, last)
    free = BlockSet(*map(list, zip(*account_state.taken.gaps(0, account_state.account.invalidated_below), strict=True)))
    everything = BlockSet([0], [END])
    parts = (_by_bucket(state, account_state, part, starts) for part in (everything, spent, held, free))
    return AccountUsage(account_state.miner_ss58, account_state.executor_class, *parts)


def _by_bucket(state: AuditState, account_state: AccountState, blocks: BlockSet, starts: list[int]) -> list[float]:
    """What some blocks of the account grant, in seconds, bucket by bucket."""
    amounts = []
    for start, end in pairwise(starts):
        at = bisect_right(blocks.ends, start)
        is_empty = at == len(blocks.starts) or blocks.starts[at] >= end
        runs = () if is_empty else blocks.between(start, end)
        amounts.append(seconds(sum(state.amount_ns(account_state.account, *run) for run in runs)))
    return amounts
