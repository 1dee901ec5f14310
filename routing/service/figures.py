"""The figures of an open ledger that metrics and pages show beside its health."""

from __future__ import annotations

from typing import NamedTuple

from ledger import Status
from ledger.values import NANOSECONDS, seconds
from projections import Availability

from .allowance import Allowance
from .health import Health
from .summaries import ClassTotals, totals_of

RESERVED: Status = "reserved"


class Figures(NamedTuple):
    """What a ledger is like now.

    `queue_length`: commands that wait for the writer of this process. `statuses`: reservations by status, without the
    settled ones if their number is not known. `verified_age_seconds` is None if no verification is recorded.
    """

    health: Health
    queue_length: int
    classes: list[ClassTotals]
    statuses: dict[Status, int]
    verified_age_seconds: float | None
    miner_facts: MinerFactCounts


class MinerFactCounts(NamedTuple):
    """How many miners are excluded, jobs of other validators run, and incidents count (those of the window)."""

    excluded_miners: int
    jobs_elsewhere: int
    incidents: int


async def figures_of(ledger: Allowance) -> Figures:
    """Return the figures of a ledger, which is opened if necessary. Raises the errors of `Allowance.health`."""
    health = await ledger.health()
    handle = await ledger._lifecycle.handle()
    classes = await ledger._read_state(
        lambda state, now_ns: [totals_of(state, name, now_ns) for name in sorted(state.chain.classes)]
    )
    facts = await ledger._read_state(_fact_counts)
    settled = await handle.runtime.run(handle.history.settled(health.position))
    verified_at, now_ns = health.verified_at, ledger._lifecycle.clock()
    return Figures(
        health,
        handle.writer.queue_length,
        classes,
        {RESERVED: health.reserved, **settled},
        None if verified_at is None else now_ns / NANOSECONDS - verified_at.timestamp(),
        facts,
    )


def _fact_counts(state: Availability, now_ns: int) -> MinerFactCounts:
    facts, window_ns = state.miner_facts, state.chain.settings.routing("reliability_window_ns")
    return MinerFactCounts(
        sum(facts.is_excluded(miner_ss58, now_ns) for miner_ss58 in facts.exclusions),
        sum(facts.running_elsewhere(stream, (), now_ns) for stream in facts.elsewhere),
        sum(facts.incidents_within(stream, now_ns - window_ns, now_ns) for stream in facts.incidents),
    )


class ChainFigures(NamedTuple):
    """What a ledger knows of the chain, under the names and in the units of ComputeHorde's validator.

    `totals`: seconds by miner and class in the window of the newest block. `stake_shares`: by validator, at the newest
    block. `manifests`: executors by miner and class, of the newest sync. `block_seconds`: the duration of the newest
    finalized block, None if there is none.
    """

    totals: dict[tuple[str, str], float]
    stake_shares: dict[str, float]
    manifests: dict[tuple[str, str], int]
    block_seconds: float | None


async def chain_figures_of(ledger: Allowance) -> ChainFigures:
    """Return what a ledger knows of the chain."""
    return await ledger._read_state(_chain_figures)


def _chain_figures(state: Availability, now_ns: int) -> ChainFigures:
    chain, newest = state.chain, state.chain.blocks.newest
    window_start = state.window_start(newest)
    stakes, staked = chain.metagraph.stakes, chain.metagraph.total_stake
    measures = {
        (account.miner_ss58, account.executor_class): account.measure(chain.blocks, window_start, now_ns).total_ns
        for account in chain.accounts.values()
        if account.miner_ss58 in chain.metagraph.members
    }
    return ChainFigures(
        {account: seconds(total_ns) for account, total_ns in measures.items() if total_ns},
        {validator: stake / staked for validator, stake in stakes.items()} if staked else {},
        {(miner, name): count for miner, counts in chain.manifests.items() for name, count in counts.items()},
        seconds(chain.blocks.created_at_ns(newest) - chain.blocks.created_at_ns(newest - 1))
        if newest - 1 in chain.blocks
        else None,
    )
