"""Every account's available allowance, in the ledger and in ComputeHorde's tables, and why some differ."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Literal, NamedTuple

import msgspec

from ledger.values import instant, seconds
from projections import Availability
from routing import Allowance

from .tables import Account, OldAllowance, OldTables

TOLERANCE_SECONDS = 1e-6
"""Per block: the tables hold floats, and stakes are known from shares of the allowance only."""

Reason = Literal[
    "another_grant",
    "granted_here_only",
    "granted_there_only",
    "invalidated_here_only",
    "invalidated_there_only",
    "overdue_there",
    "held_here_only",
    "held_there_only",
]
EXPLANATIONS: dict[Reason, str] = {
    "another_grant": "the block was counted with other executors or stakes: a sync took effect a block later there",
    "granted_here_only": "the block has no allowance there: it was finalized before the miner's sync, or removed",
    "granted_there_only": "the block grants nothing here: it is not recorded, or the counts of that time were others",
    "invalidated_here_only": "a drop of executors counts here: all blocks below it are invalidated, also later ones",
    "invalidated_there_only": "a drop there invalidated blocks from its own on, which were finalized late",
    "overdue_there": "the booking's time is over; here its blocks are free again, there a booking never expires",
    "held_here_only": "reserved here since the move",
    "held_there_only": "the booking was not taken over",
}
UNEXPLAINED: tuple[Reason, ...] = ("held_here_only", "held_there_only")
"""No rule explains these: blocks could be spent twice, or not at all."""


class AccountDifference(msgspec.Struct, frozen=True):
    """An account whose available allowance differs; `reasons` has the part of each reason, here minus there."""

    miner_ss58: str
    executor_class: str
    here_seconds: float
    there_seconds: float
    reasons: dict[Reason, float]


class Comparison(msgspec.Struct, frozen=True):
    """The comparison of all accounts for a job at the newest block: blocks from `first_block` on count.

    Accounts are equal if they differ by at most `tolerance_seconds`, a microsecond per block.
    """

    first_block: int
    newest_block: int
    accounts: int
    equal: int
    tolerance_seconds: float
    differences: list[AccountDifference]

    @property
    def is_explained(self) -> bool:
        """Whether every difference follows from a rule that differs."""
        return not any(reason in UNEXPLAINED for each in self.differences for reason in each.reasons)


class _Here(NamedTuple):
    """The ledger's side: each account's available allowance, and the clock."""

    available: dict[Account, float]
    now: datetime


class _BlockHere(NamedTuple):
    """A block of an account in the ledger."""

    seconds: float
    is_invalidated: bool
    is_held: bool


async def compare(tables: OldTables, ledger: Allowance, since: int) -> Comparison:
    """Compare what every account has available, for a job that starts at the ledger's newest block."""
    newest = await ledger.current_block() or 0
    settings = await ledger.settings()
    first = max(since, newest - settings.block_expiry_blocks)
    here = await ledger._read_state(partial(_available, first=first))
    there = await tables.available(ledger.validator_ss58, first)
    tolerance = TOLERANCE_SECONDS * (newest + 1 - first)
    accounts = sorted(here.available.keys() | there.keys())
    differing = [
        account for account in accounts if abs(here.available.get(account, 0.0) - there.get(account, 0.0)) > tolerance
    ]
    differences = []
    for account in differing:
        blocks_there = await tables.account(ledger.validator_ss58, account, first, here.now)
        blocks_here = await ledger._read_state(partial(_blocks, account=account, first=first, last=newest))
        reasons = _reasons(blocks_here, blocks_there)
        differences.append(
            AccountDifference(*account, here.available.get(account, 0.0), there.get(account, 0.0), reasons)
        )
    return Comparison(first, newest, len(accounts), len(accounts) - len(differing), tolerance, differences)


def _available(state: Availability, now_ns: int, *, first: int) -> _Here:
    accounts = state.chain.accounts.values()
    return _Here(
        {
            (account.miner_ss58, account.executor_class): seconds(
                account.measure(state.chain.blocks, first, now_ns).available_ns
            )
            for account in accounts
        },
        instant(now_ns),
    )


def _blocks(state: Availability, now_ns: int, *, account: Account, first: int, last: int) -> dict[int, _BlockHere]:
    known = state.chain.classes.get(account[1], {}).get(account[0])
    if known is None:
        return {}
    occupied, blocks = known.occupied(now_ns), state.chain.blocks
    granted = ((block, known.amount_ns(blocks, block, block + 1)) for block in range(first, last + 1))
    return {
        block: _BlockHere(seconds(granted_ns), block < known.invalidated_below, occupied.overlaps(block, block))
        for block, granted_ns in granted
        if granted_ns
    }


def _reasons(here: Mapping[int, _BlockHere], there: Mapping[int, OldAllowance]) -> dict[Reason, float]:
    reasons: dict[Reason, float] = {}
    for block in sorted(here.keys() | there.keys()):
        ours, theirs = here.get(block), there.get(block)
        difference = _free_seconds(ours) - _free_seconds(theirs)
        if abs(difference) > TOLERANCE_SECONDS:
            reason = _reason(ours, theirs)
            reasons[reason] = reasons.get(reason, 0.0) + difference
    return {reason: round(difference, 6) for reason, difference in reasons.items()}


def _free_seconds(block: _BlockHere | OldAllowance | None) -> float:
    return 0.0 if block is None or block.is_invalidated or block.is_held else block.seconds


def _reason(ours: _BlockHere | None, theirs: OldAllowance | None) -> Reason:
    """Return why a block's free allowance differs: the first rule that applies."""
    if ours is None:
        return "granted_there_only"
    if theirs is None:
        return "granted_here_only"
    if ours.is_invalidated != theirs.is_invalidated:
        return "invalidated_here_only" if ours.is_invalidated else "invalidated_there_only"
    if theirs.is_overdue and not ours.is_held:
        return "overdue_there"
    if ours.is_held != theirs.is_held:
        return "held_here_only" if ours.is_held else "held_there_only"
    return "another_grant"
