"""Summaries of a state at a clock: one account, one executor class, the whole ledger; in public units."""

from __future__ import annotations

from datetime import datetime

import msgspec

from ledger import Reservation
from ledger.results import Result
from ledger.values import instant, seconds
from projections import Availability


class Usage(Result, msgspec.Struct, frozen=True):
    """An account's allowance from `first_block` on, in executor-seconds, and the reservations that took its blocks.

    `total`: usable blocks. `available`: free ones of them. `unspent`: those in no spent reservation. `reservations`:
    active and spent ones, by id.
    """

    miner_ss58: str
    executor_class: str
    first_block: int
    total_seconds: float
    available_seconds: float
    unspent_seconds: float
    reservations: list[Reservation]


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
    if account is None:
        return Usage(miner_ss58, executor_class, max(1, window_start), 0.0, 0.0, 0.0, [])
    measure = account.measure(state.chain.blocks, window_start, now_ns)
    return Usage(
        miner_ss58,
        executor_class,
        max(1, window_start, account.invalidated_below),
        seconds(measure.total_ns),
        seconds(measure.available_ns),
        seconds(account.unspent_ns(state.chain.blocks, window_start)),
        [],
    )
