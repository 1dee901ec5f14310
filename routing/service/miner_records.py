"""What a state knows of miners beside their allowance, in public units."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

import msgspec

from ledger.events import account_of
from ledger.results import Result
from ledger.values import instant
from projections import Availability, Unfit, unfit


class MinerRecord(Result, msgspec.Struct, frozen=True):
    """The facts about one miner at a clock.

    `excluded` is True while a router must not choose it: because of `reason`, until `excluded_until` (aware UTC; None
    without an end). `collateral_wei` is None if none was recorded, which counts as 0. `incidents` has those of the
    setting's window, `running_elsewhere` the jobs of other validators that run now; both by executor class, without
    zeros. `unfit` says why a router does not choose the miner: `excluded`, or `collateral` (below the required one).
    """

    miner_ss58: str
    registered: bool
    excluded: bool
    reason: str | None
    excluded_until: datetime | None
    collateral_wei: int | None
    incidents: dict[str, int]
    running_elsewhere: dict[str, int]
    unfit: Unfit | None = None

    @property
    def is_known(self) -> bool:
        """Whether any fact about the miner counts now."""
        return bool(self.excluded or self.collateral_wei is not None or self.incidents or self.running_elsewhere)


def records_of_miners(state: Availability, now_ns: int) -> list[MinerRecord]:
    """Return every miner that is registered or has a fact that counts, in order of hotkey."""
    facts = state.miner_facts
    with_counts = {account_of(stream)[0] for stream in (*facts.incidents, *facts.elsewhere)}
    named = {*facts.exclusions, *facts.collateral, *with_counts, *state.chain.metagraph.members}
    by_miner = _streams_by_miner(state)
    records = [_record(state, each, by_miner.get(each, ()), now_ns) for each in sorted(named)]
    return [each for each in records if each.registered or each.is_known]


def record_of_miner(state: Availability, miner_ss58: str, now_ns: int) -> MinerRecord:
    """Return the facts about one miner, which need not be known."""
    return _record(state, miner_ss58, _streams_by_miner(state).get(miner_ss58, ()), now_ns)


def _streams_by_miner(state: Availability) -> dict[str, set[str]]:
    """Return the account streams that have incidents or jobs elsewhere, by miner."""
    by_miner: dict[str, set[str]] = {}
    for stream in (*state.miner_facts.incidents, *state.miner_facts.elsewhere):
        by_miner.setdefault(account_of(stream)[0], set()).add(stream)
    return by_miner


def _record(state: Availability, miner_ss58: str, streams: Collection[str], now_ns: int) -> MinerRecord:
    facts, window_ns = state.miner_facts, state.chain.settings.routing("reliability_window_ns")
    exclusion, collateral = facts.exclusions.get(miner_ss58), facts.collateral.get(miner_ss58)
    in_force = exclusion if facts.is_excluded(miner_ss58, now_ns) else None
    return MinerRecord(
        miner_ss58,
        miner_ss58 in state.chain.metagraph.members,
        in_force is not None,
        None if in_force is None else in_force.reason,
        instant(in_force.until_ns) if in_force is not None and in_force.has_end else None,
        None if collateral is None else collateral.wei,
        _counts(streams, lambda stream: facts.incidents_within(stream, now_ns - window_ns, now_ns)),
        _counts(streams, lambda stream: facts.running_elsewhere(stream, (), now_ns)),
        unfit(state, miner_ss58, now_ns),
    )


def _counts(streams: Collection[str], count: Callable[[str], int]) -> dict[str, int]:
    """Return the counts above 0 by executor class."""
    counts = {account_of(stream)[1]: count(stream) for stream in sorted(streams)}
    return {executor_class: number for executor_class, number in counts.items() if number}
