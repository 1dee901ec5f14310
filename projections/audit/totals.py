"""The totals of an audit: what each account was granted, and what became of it."""

from __future__ import annotations

import msgspec

from ledger.results import Result
from ledger.values import seconds
from projections.audit.checks.conservation import balance_of

from .state import AccountState, AuditState


class AccountTotals(Result, msgspec.Struct, frozen=True):
    """One account's allowance, in executor-seconds.

    `granted` is what all finalized blocks grant. The other fields are its parts and add up to it: `spent`; `held` by
    reservations that no event has settled, overdue or not; `invalidated` by a drop while free; `available`, which is
    free and in the window of a job that starts at the newest block; `aged`, which is free and older than that window.
    """

    miner_ss58: str
    executor_class: str
    granted_seconds: float
    spent_seconds: float
    held_seconds: float
    invalidated_seconds: float
    available_seconds: float
    aged_seconds: float


def totals_of(state: AuditState) -> list[AccountTotals]:
    """Return every account's totals, ordered by miner and class."""
    return [_totals(state, account) for account in accounts_of(state)]


def accounts_of(state: AuditState) -> list[AccountState]:
    """Return every account that the facts name, ordered by miner and class."""
    return [state.account(stream) for stream in sorted(state.chain.accounts)]


def _totals(state: AuditState, account: AccountState) -> AccountTotals:
    balance = balance_of(state, account)
    return AccountTotals(
        account.miner_ss58,
        account.executor_class,
        seconds(balance.granted_ns),
        seconds(balance.spent_ns),
        seconds(balance.held_ns),
        seconds(balance.invalidated_ns),
        seconds(balance.available_ns),
        seconds(balance.free_ns - balance.available_ns),
    )
