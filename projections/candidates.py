"""The candidates of a job, in the order in which it tries them, as one state says.

They are the registered miners with the amount, without those that are excluded or below the required collateral; busy
ones are included. The order is that of the setting `routing_order`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ledger.settings import BY_RELIABILITY

from .availability import Availability
from .rank_levels import RankEntry
from .tie_break import in_trial_order, tie_break_digest


def in_order_of_trial(
    state: Availability, executor_class: str, amount_ns: int, job_uuid: str, now_ns: int
) -> Iterator[RankEntry]:
    """Yield the candidates for a job that starts at the newest block."""
    block_hash = state.chain.tie_break_hash
    if state.chain.settings.routing_order == BY_RELIABILITY:
        return state.drawn(executor_class, amount_ns, tie_break_digest(job_uuid, block_hash), now_ns)
    return in_trial_order(state.groups_of_equals(executor_class, amount_ns, now_ns), job_uuid, block_hash)
