"""Conservation: what an account was granted is what is spent, held, invalidated and free together."""

from __future__ import annotations

from typing import NamedTuple

from ledger import END
from projections.audit.state import AccountState, AuditState
from projections.rules import Findings, Rule


class AccountBalance(NamedTuple):
    """An account's allowance by state, in ns; each part summed by a way of its own."""

    granted_ns: int
    spent_ns: int
    held_ns: int
    invalidated_ns: int
    free_ns: int
    taken_ns: int
    """What the blocks that are spent or held grant: once by the blocks, beside once by the reservations."""
    available_ns: int
    """What of the free is in the window of a job that starts at the newest block."""

    @property
    def is_even(self) -> bool:
        """Whether nothing was lost and nothing came from nowhere."""
        parts_ns = self.spent_ns + self.held_ns + self.invalidated_ns + self.free_ns
        return self.granted_ns == parts_ns and self.taken_ns == self.spent_ns + self.held_ns and self.held_ns >= 0


def balance_of(state: AuditState, account_state: AccountState) -> AccountBalance:
    """The account's allowance by state, as the log says: an overdue reservation holds until an event ends it."""
    account, invalidated_below = account_state.account, account_state.account.invalidated_below
    oldest = state.chain.blocks.newest - state.chain.settings.block_expiry_blocks
    invalidated_ns = free_ns = available_ns = 0
    for start, end in account_state.taken.gaps(0, END):
        invalidated_ns += state.amount_ns(account, start, min(end, invalidated_below))
        free_ns += state.amount_ns(account, max(start, invalidated_below), end)
        available_ns += state.amount_ns(account, max(start, invalidated_below, oldest), end)
    return AccountBalance(
        state.amount_ns(account, 0, END),
        account_state.spent_ns,
        account_state.held_ns,
        invalidated_ns,
        free_ns,
        _taken_ns(state, account_state),
        available_ns,
    )


def check_changed_accounts(state: AuditState, findings: Findings) -> None:
    """Checks the accounts that something was done to: what their reservations are worth is what they have taken."""
    for account_state in state.moved:
        if _taken_ns(state, account_state) != account_state.spent_ns + account_state.held_ns:
            report_imbalance(findings, account_state, balance_of(state, account_state))
    state.moved.clear()


def report_imbalance(findings: Findings, account_state: AccountState, balance: AccountBalance) -> None:
    """Notes an account that does not add up; once, since it stays so."""
    if account_state.is_uneven:
        return
    account_state.is_uneven = True
    details = {
        "miner_ss58": account_state.miner_ss58,
        "executor_class": account_state.executor_class,
        **balance._asdict(),
    }
    message = "what was granted is not what is spent, held, invalidated and free together"
    findings.add(account_state.last_position, Rule.CONSERVATION, message, **details)


def _taken_ns(state: AuditState, account_state: AccountState) -> int:
    return state.worth_ns(
        account_state,
        [(start, end - 1) for start, end in zip(account_state.taken.starts, account_state.taken.ends, strict=True)],
    )
