"""Summaries of a state at a clock: one account, one executor class, the whole ledger; in public units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec

from ledger import Account, BlockSet, Reservation
from ledger.results import Result
from ledger.values import instant, seconds
from projections import Availability, running_jobs

from .miner_records import MinerRecord, record_of_miner

if TYPE_CHECKING:
    from ledger.domain.block_table import BlockTable
    from projections import AccountUsage, BlockUsage


class Usage(Result, msgspec.Struct, frozen=True):
    """An account's allowance from `first_block` on, in executor-seconds, and the reservations that took its blocks.

    `total`: usable blocks. `available`: free ones of them. `unspent`: those in no spent reservation. `reservations`:
    active and spent ones, by id. `known`: what else a router knows about the miner.
    """

    miner_ss58: str
    executor_class: str
    first_block: int
    total_seconds: float
    available_seconds: float
    unspent_seconds: float
    reservations: list[Reservation]
    known: MinerRecord | None = None


class Workload(Result, msgspec.Struct, frozen=True):
    """A miner's running jobs in a class, and its executors.

    Jobs are reservations that are not overdue, and jobs of other validators that the log knows.
    """

    running: int
    executors: int


class ClassTotals(Result, msgspec.Struct, frozen=True):
    """The totals of one executor class over its registered miners, for a job that starts at the newest block.

    `miners` counts those with allowance in the class, `executors` those of the newest sync. Amounts are
    executor-seconds. `reserved` counts the active reservations of the class, including those on miners that are no
    longer registered.
    """

    executor_class: str
    miners: int
    executors: int
    total_seconds: float
    available_seconds: float
    unspent_seconds: float
    reserved: int


class Overview(Result, msgspec.Struct, frozen=True):
    """A summary of a ledger at a log position and a clock.

    `recorded_at` is the time of the last event, `at` the clock; both are aware UTC. `newest_block` is None if no block
    is recorded. `miners` are registered at the newest block. `reserved` counts the active reservations, `overdue` those
    of them that are overdue. `classes` are in order of name.
    """

    position: int
    recorded_at: datetime
    at: datetime
    newest_block: int | None
    blocks: int
    syncs: int
    miners: int
    accounts: int
    reserved: int
    overdue: int
    classes: list[ClassTotals]


def overview_of(state: Availability, now_ns: int) -> Overview:
    """Summarize a whole ledger at a clock (ns since the epoch)."""
    chain = state.chain
    return Overview(
        state.position,
        instant(state.recorded_at_ns),
        instant(now_ns),
        chain.blocks.newest or None,
        sum(1 for _ in chain.blocks.recorded_blocks()),
        len(chain.syncs),
        len(chain.metagraph.miners),
        len(chain.accounts),
        len(state.active),
        len(state.overdue(now_ns)),
        [totals_of(state, executor_class, now_ns) for executor_class in sorted(chain.classes)],
    )


def totals_of(state: Availability, executor_class: str, now_ns: int) -> ClassTotals:
    """Summarize an executor class, for a job that starts at the newest block."""
    chain = state.chain
    window_start = state.window_start(chain.blocks.newest)
    accounts = chain.classes[executor_class].values()
    registered = [account for account in accounts if account.miner_ss58 in chain.metagraph.members]
    measures = [account.measure(chain.blocks, window_start, now_ns) for account in registered]
    return ClassTotals(
        executor_class,
        sum(1 for measure in measures if measure.total_ns),
        sum(chain.newest_count(account) for account in registered),
        seconds(sum(measure.total_ns for measure in measures)),
        seconds(sum(measure.available_ns for measure in measures)),
        seconds(sum(account.unspent_ns(chain.blocks, window_start) for account in registered)),
        sum(len(account.active) for account in accounts),
    )


def capped_manifests(state: Availability, _now_ns: int) -> dict[str, dict[str, int]]:
    """Return the executors that routing counts, by miner and class, filled with zeros."""
    chain = state.chain
    miners = sorted(chain.metagraph.miners.keys() | chain.manifests.keys())
    return {
        miner_ss58: {
            executor_class: chain.newest_count(accounts[miner_ss58]) if miner_ss58 in accounts else 0
            for executor_class, accounts in sorted(chain.classes.items())
        }
        for miner_ss58 in miners
    }


def usage_of(state: Availability, miner_ss58: str, executor_class: str, now_ns: int) -> Usage:
    """Summarize an account, for a job that starts at the newest block; `reservations` are left empty.

    The state holds no spent reservation, so the caller adds them from the history.
    """
    window_start = state.window_start(state.chain.blocks.newest)
    account = state.chain.classes.get(executor_class, {}).get(miner_ss58)
    known = record_of_miner(state, miner_ss58, now_ns)
    if account is None:
        return Usage(miner_ss58, executor_class, max(1, window_start), 0.0, 0.0, 0.0, [], known)
    measure = account.measure(state.chain.blocks, window_start, now_ns)
    return Usage(
        miner_ss58,
        executor_class,
        max(1, window_start, account.invalidated_below),
        seconds(measure.total_ns),
        seconds(measure.available_ns),
        seconds(account.unspent_ns(state.chain.blocks, window_start)),
        [],
        known,
    )


def workload_of(state: Availability, executor_class: str, now_ns: int) -> dict[str, Workload]:
    """Return the workload of each registered miner of a class, by hotkey."""
    chain = state.chain
    return {
        hotkey_ss58: Workload(running_jobs(state, account, now_ns), chain.newest_count(account))
        for hotkey_ss58, account in chain.classes.get(executor_class, {}).items()
        if hotkey_ss58 in chain.metagraph.members
    }


def usage_by_block_of(state: Availability, miner_ss58: str, buckets: int) -> BlockUsage:
    """Return the use of a miner's accounts in the window of a job that starts at the newest block, in buckets."""
    from projections import BlockUsage

    chain = state.chain
    accounts = [accounts[miner_ss58] for _, accounts in sorted(chain.classes.items()) if miner_ss58 in accounts]
    first, end = max(1, state.window_start(chain.blocks.newest), chain.blocks.first), chain.blocks.newest
    if not accounts or end <= first:
        return BlockUsage([], [])
    width = -(-(end - first) // buckets)
    starts = [*range(first, end, width), end]
    return BlockUsage(starts, [_account_usage(chain.blocks, account, starts) for account in accounts])


def _account_usage(blocks: BlockTable, account: Account, starts: Sequence[int]) -> AccountUsage:
    from projections import AccountUsage

    active = BlockSet()
    for each in account.active.values():
        for run_first, run_last in each.blocks:
            active.add(run_first, run_last)

    def amount(runs: Iterable[tuple[int, int]]) -> float:
        return seconds(sum(account.amount_ns(blocks, *run) for run in runs))

    granted, spent, held, invalidated = [], [], [], []
    for start, end in pairwise(starts):
        held_seconds = amount(active.between(start, end))
        granted.append(amount([(start, end)]))
        held.append(held_seconds)
        spent.append(amount(account.taken.between(start, end)) - held_seconds)
        invalidated.append(amount(account.taken.gaps(start, max(start, min(end, account.invalidated_below)))))
    return AccountUsage(account.miner_ss58, account.executor_class, granted, spent, held, invalidated)
