"""What a state knows of miners beside their allowance, in public units."""

from __future__ import annotations

from datetime import datetime

import msgspec

from ledger.events import account_of
from ledger.results import Result
from ledger.values import instant
from projections import Availability

NEVER_NS = 2**63


class MinerRecord(Result, msgspec.Struct, frozen=True):
    """The facts about one miner at a clock.

    `excluded` is True while a router must not choose it: because of `reason`, until `excluded_until` (aware UTC; None
    without an end). `collateral_wei` is None if none was recorded, which counts as 0. `incidents` has those of the
    setting's window, `running_elsewhere` the jobs of other validators that run now; both by executor class, without
    zeros.
    """

    miner_ss58: str
    registered: bool
    excluded: bool
    reason: str | None
    excluded_until: datetime | None
    collateral_wei: int | None
    incidents: dict[str, int]
    running_elsewhere: dict[str, int]


def records_of_miners(state: Availability, now_ns: int) -> list[MinerRecord]:
    """Return every miner that is registered or has a fact, in order of hotkey."""
    facts = state.miner_facts
    incidents: dict[str, dict[str, int]] = {}
    window_ns = state.chain.settings.routing("reliability_window_ns")
    for stream in facts.incidents:
        _count(incidents, stream, facts.incidents_within(stream, now_ns - window_ns, now_ns))
    running: dict[str, dict[str, int]] = {}
    for stream in facts.elsewhere:
        _count(running, stream, facts.running_elsewhere(stream, (), now_ns))
    named = {*facts.exclusions, *facts.collateral, *incidents, *running, *state.chain.metagraph.members}
    return [_record_of(state, each, incidents.get(each, {}), running.get(each, {}), now_ns) for each in sorted(named)]


def _record_of(
    state: Availability, miner_ss58: str, incidents: dict[str, int], running: dict[str, int], now_ns: int
) -> MinerRecord:
    facts = state.miner_facts
    exclusion, collateral = facts.exclusions.get(miner_ss58), facts.collateral.get(miner_ss58)
    in_force = exclusion if facts.is_excluded(miner_ss58, now_ns) else None
    ends = in_force is not None and in_force.until_ns < NEVER_NS
    return MinerRecord(
        miner_ss58,
        miner_ss58 in state.chain.metagraph.members,
        in_force is not None,
        None if in_force is None else in_force.reason,
        instant(in_force.until_ns) if in_force is not None and ends else None,
        None if collateral is None else collateral.wei,
        incidents,
        running,
    )


def _count(by_miner: dict[str, dict[str, int]], stream: str, count: int) -> None:
    if count:
        miner_ss58, executor_class = account_of(stream)
        by_miner.setdefault(miner_ss58, {})[executor_class] = count
