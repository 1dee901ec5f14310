"""The candidates of a job, in the order in which it tries them, as one state says.

They are the registered miners with the amount, without those that are excluded or below the required collateral; busy
ones are included. The order is that of the setting `routing_order`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Literal

from ledger.settings import BY_RELIABILITY

from .availability import Availability
from .rank_levels import Group, RankEntry
from .reliability import drawn, weight_of
from .tie_break import in_trial_order, tie_break_digest

Unfit = Literal["excluded", "collateral"]
"""Why a miner with the amount is no candidate."""

_hotkey = attrgetter("hotkey_ss58")


def in_order_of_trial(
    state: Availability, executor_class: str, amount_ns: int, job_uuid: str, now_ns: int
) -> Iterator[RankEntry]:
    """Yield the candidates for a job that starts at the newest block."""
    groups = state.groups_of_equals(executor_class, amount_ns, now_ns)
    if state.miner_facts or state.chain.settings.routing("minimum_collateral_wei"):
        groups = _fit_groups(state, groups, now_ns)
    block_hash = state.chain.tie_break_hash
    if state.chain.settings.routing_order != BY_RELIABILITY:
        return in_trial_order(groups, job_uuid, block_hash)
    candidates = sorted(with_amount(groups), key=_hotkey)
    weights = [weight_of(state, entry.account, now_ns) for entry in candidates]
    return drawn(candidates, weights, tie_break_digest(job_uuid, block_hash))


def with_amount(groups: Iterable[Group]) -> Iterator[RankEntry]:
    """Yield the entries of groups of equals that have the amount."""
    for entries, start, enough in groups:
        yield from entries[start : start + enough]


def unfit(state: Availability, miner_ss58: str, now_ns: int) -> Unfit | None:
    """Return why a miner is no candidate, whatever allowance it has; None if it may be one."""
    facts = state.miner_facts
    if facts.is_excluded(miner_ss58, now_ns):
        return "excluded"
    if facts.collateral_wei(miner_ss58) < state.chain.settings.routing("minimum_collateral_wei"):
        return "collateral"
    return None


def _fit_groups(state: Availability, groups: Iterable[Group], now_ns: int) -> Iterator[Group]:
    for entries, start, enough in groups:
        fit = [each for each in entries[start : start + enough] if unfit(state, each.hotkey_ss58, now_ns) is None]
        yield fit, 0, len(fit)
