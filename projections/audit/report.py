"""The result of an audit: findings, totals, and the use of allowance by blocks."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime
from itertools import pairwise

import msgspec

from ledger import END, BlockSet
from ledger.results import Result
from ledger.values import seconds
from projections.rules import Finding

from .fairness import FairnessReport
from .state import AccountState, AuditState
from .totals import AccountTotals, accounts_of


class AccountUsage(Result, msgspec.Struct, frozen=True):
    """One account's allowance by the blocks that granted it, in executor-seconds, one number for each bucket."""

    miner_ss58: str
    executor_class: str
    granted: list[float]
    spent: list[float]
    held: list[float]
    invalidated: list[float]


class BlockUsage(Result, msgspec.Struct, frozen=True):
    """The use of allowance by buckets of consecutive blocks.

    Bucket `i` has the blocks of `[starts[i], starts[i + 1])`, so the last start is only an end.
    """

    starts: list[int]
    accounts: list[AccountUsage]


class AuditReport(Result, msgspec.Struct, frozen=True):
    """The result of replaying a log from its first event, or from the seal of position `from_seal`.

    `position` is the last audited event, `head_hash` its hash in hexadecimal, and `events` counts the events by type.
    `findings` are ordered by position; at most the first 10,000 of `findings_count` are listed. `history_position` is
    the position up to which the history's read model was compared, None if there is none. `snapshots` is the number of
    compared snapshots, `seals` that of compared seals; `live_state` says whether the state in this process's memory was
    compared. Times are seconds. `not_proved` says what an audit from a seal leaves open, and is empty for a whole one.
    `first_cause` is the finding to look at first, from which later ones may follow (`Finding.follows`); None without
    findings. `findings_by_rule` counts them all by rule. `unproved_choices` is the number of routes whose claim is
    checked, but not the choice of the miner: an earlier release marked the claim as kept without naming the position
    of its choice, or the position is before `from_seal`. `fairness` compares what the miners got with what they should
    have got. `strict` says whether reservations whose choice is not proved were required to be none.
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
    seals: int = 0
    from_seal: int = 0
    not_proved: list[str] = []
    first_cause: Finding | None = None
    findings_by_rule: dict[str, int] = {}
    unproved_choices: int = 0
    first_recorded_at: datetime | None = None
    last_recorded_at: datetime | None = None
    fairness: FairnessReport | None = None
    strict: bool = False


def usage_of(state: AuditState, buckets: int) -> BlockUsage:
    """Return every account's allowance in at most `buckets` buckets of equal width; only the last may be narrower."""
    table = state.chain.blocks
    first, end = table.first_finalized, table.last_finalized + 1
    if end <= first:
        return BlockUsage([], [])
    width = -(-(end - first) // buckets)
    starts = [*range(first, end, width), end]
    return BlockUsage(starts, [_usage(state, account, starts) for account in accounts_of(state)])


def _usage(state: AuditState, account: AccountState, starts: list[int]) -> AccountUsage:
    held, spent = BlockSet(), account.taken.copy()
    for reservation in account.active.values():
        for first, last in reservation.own_blocks:
            held.add(first, last)
            spent.remove(first, last)
    invalidated_below = account.chain_account.invalidated_below
    invalidated = BlockSet(*map(list, zip(*account.taken.gaps(0, invalidated_below), strict=True)))
    granted = BlockSet([0], [END])
    parts = (_by_bucket(state, account, blocks, starts) for blocks in (granted, spent, held, invalidated))
    return AccountUsage(account.miner_ss58, account.executor_class, *parts)


def _by_bucket(state: AuditState, account: AccountState, blocks: BlockSet, starts: list[int]) -> list[float]:
    """Return what these blocks grant to the account in each bucket, in seconds."""
    amounts = []
    for start, end in pairwise(starts):
        at = bisect_right(blocks.ends, start)
        is_empty = at == len(blocks.starts) or blocks.starts[at] >= end
        runs = () if is_empty else blocks.between(start, end)
        amounts.append(seconds(sum(state.amount_ns(account.chain_account, *run) for run in runs)))
    return amounts
