"""Accounts measured plainly, by the definitions: what a ranking and `find_miners` say about each.

The ranking that follows the log (`ranking.py`) must give the same results without measuring every account.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from ledger import Account, LedgerState
from ledger.results import Result
from ledger.values import seconds

SHARE_UNIT = 10**9
"""Shares are whole billionths, rounded down, so that they compare exactly. This project's own rule."""


class Candidate(Result, msgspec.Struct, frozen=True):
    """A miner with enough allowance. Seconds are executor-seconds.

    `stream_version` is the version of the account's stream. If it is still the same in a later result, the account has
    had no reservation and no settlement in between.
    """

    hotkey_ss58: str
    available_seconds: float
    total_seconds: float
    earliest_block: int
    stream_version: int


class RankedAccount(NamedTuple):
    """One account in a ranking. Entries sort as tuples.

    The first two fields are the rank. The next two put entries of equal rank in an order that is always the same, by
    available amount first. Hotkeys are unique in a class, so the fields after them never decide the order.
    """

    earliest_block: int
    minus_share: int
    """Minus the share of the total that is available, in `SHARE_UNIT`."""
    minus_available_ns: int
    hotkey_ss58: str
    total_ns: int
    account: Account
    busy: bool
    """The result of `is_busy` when the account was measured."""

    @property
    def available_ns(self) -> int:
        return -self.minus_available_ns

    def candidate(self) -> Candidate:
        """Return the public form."""
        return Candidate(
            self.hotkey_ss58,
            seconds(self.available_ns),
            seconds(self.total_ns),
            self.earliest_block,
            self.account.version,
        )


def rank_accounts(state: LedgerState, executor_class: str, window_start: int, now_ns: int) -> list[RankedAccount]:
    """Measure the class's registered accounts; return those that have allowance available in a window, best first."""
    members = state.chain.metagraph.members
    entries = []
    for hotkey_ss58, account in state.chain.classes.get(executor_class, {}).items():
        if hotkey_ss58 in members:
            entry = rank_account(state, account, window_start, now_ns)
            if entry is not None:
                entries.append(entry)
    entries.sort()
    return entries


def rank_account(state: LedgerState, account: Account, window_start: int, now_ns: int) -> RankedAccount | None:
    """Measure an account; return its entry, or None if nothing is available."""
    total_ns, available_ns, earliest = account.measure(state.chain.blocks, window_start, now_ns)
    if not available_ns:
        return None
    share = available_ns * SHARE_UNIT // total_ns
    busy = is_busy(state, account, now_ns)
    return RankedAccount(earliest, -share, -available_ns, account.miner_ss58, total_ns, account, busy)


def is_busy(state: LedgerState, account: Account, now_ns: int) -> bool:
    """Return True if at least as many jobs run on the account as the newest sync counts executors.

    The setting `respect_executor_count` switches the rule off. Source: ComputeHorde's validator, which skips miners
    whose executors are all in use.
    """
    if not state.chain.settings.respect_executor_count:
        return False
    return running_jobs(state, account, now_ns) >= state.chain.newest_count(account)


def running_jobs(state: LedgerState, account: Account, now_ns: int) -> int:
    """Return how many jobs run on an account now, each counted once.

    Every active reservation counts as one, also if it was made without a job, unless it is overdue; and so does every
    job of other validators that the log knows.
    """
    own = len(account.active) - len(account.overdue(now_ns))
    if account.stream not in state.miner_facts.elsewhere:
        return own
    counted = {each.job_uuid for each in account.active.values() if each.expires_at_ns > now_ns}
    return own + state.miner_facts.running_elsewhere(account.stream, counted, now_ns)


Unfit = Literal["excluded", "collateral"]
"""Why a miner is no candidate for a job, whatever it has available."""


def unfit(state: LedgerState, miner_ss58: str, now_ns: int) -> Unfit | None:
    """Return why a router must not choose a miner: it is excluded, or below the required collateral. None if it may."""
    facts = state.miner_facts
    if facts.is_excluded(miner_ss58, now_ns):
        return "excluded"
    if facts.collateral_wei(miner_ss58) < state.chain.settings.routing("minimum_collateral_wei"):
        return "collateral"
    return None
