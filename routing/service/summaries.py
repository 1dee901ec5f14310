"""Accounts, classes and whole ledgers summed up: what a state at a clock adds up to, in public units."""

from __future__ import annotations

from datetime import datetime

import msgspec

from ledger import Reservation
from ledger.values import instant, seconds
from projections import Availability


class Usage(msgspec.Struct, frozen=True):
    """An account's allowance from `first_block` on, in executor-seconds, and what took its blocks."""

    miner_ss58: str
    executor_class: str
    first_block: int
    total_seconds: float
    available_seconds: float
    unspent_seconds: float
    reservations: list[Reservation]


class ClassTotals(msgspec.Struct, frozen=True):
    """One executor class, for a job that starts at the newest block: sums over its registered miners.

    `miners` have allowance in the class, `executors` are those of the newest sync, amounts are executor-seconds.
    `reserved` counts the standing reservations of the class, on any miner.
    """

    executor_class: str
    miners: int
    executors: int
    total_seconds: float
    available_seconds: float
    unspent_seconds: float
    reserved: int


class Overview(msgspec.Struct, frozen=True):
    """A ledger at a position, as seen by a clock: what it knows, what stands, and what each class has."""

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
    """A state summed up."""
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
    """A class summed up, for a job that starts at the newest block."""
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


def usage_of(state: Availability, miner_ss58: str, executor_class: str, now_ns: int) -> Usage:
    """The sums of an account in the window of a job that starts at the newest block."""
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
