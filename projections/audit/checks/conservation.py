"""Conservation: each granted block of an account is in exactly one state, so the states add up to what was granted.

Rule: each granted block is spent, else held, else invalidated, else free.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger import END
from projections.audit.state import AccountState, AuditState
from projections.rules import Findings, Rule


class AccountBalance(NamedTuple):
    """An account's allowance by state, in ns. Each field is summed independently of the others."""

    granted_ns: int
    spent_ns: int
    held_ns: int
    invalidated_ns: int
    free_ns: int
    taken_ns: int
    """What the taken blocks grant, summed by blocks; `spent_ns` and `held_ns` sum the same by reservations."""
    available_ns: int
    """The part of `free_ns` in the window of a job that starts at the newest block."""

    @property
    def is_even(self) -> bool:
        """Whether all sums agree."""
        parts_ns = self.spent_ns + self.held_ns + self.invalidated_ns + self.free_ns
        return self.granted_ns == parts_ns and self.taken_ns == self.spent_ns + self.held_ns and self.held_ns >= 0


def balance_of(state: AuditState, account: AccountState) -> AccountBalance:
    """Return the account's allowance by state. Overdue reservations count as held until an event settles them."""
    chain_account, invalidated_below = account.chain_account, account.chain_account.invalidated_below
    oldest = state.chain.blocks.newest - state.chain.settings.block_expiry_blocks
    invalidated_ns = free_ns = available_ns = 0
    for start, end in account.taken.gaps(0, END):
        invalidated_ns += state.amount_ns(chain_account, start, min(end, invalidated_below))
        free_ns += state.amount_ns(chain_account, max(start, invalidated_below), end)
        available_ns += state.amount_ns(chain_account, max(start, invalidated_below, oldest), end)
    return AccountBalance(
        state.amount_ns(chain_account, 0, END),
        account.spent_ns,
        account.held_ns,
        invalidated_ns,
        free_ns,
        _taken_ns(state, account),
        available_ns,
    )


def check_changed_accounts(state: AuditState, findings: Findings) -> None:
    """Check that in every changed account the values of the reservations add up to the value of the taken blocks."""
    for account in state.changed_accounts:
        if _taken_ns(state, account) != account.spent_ns + account.held_ns:
            report_imbalance(findings, account, balance_of(state, account))
    state.changed_accounts.clear()


def report_imbalance(findings: Findings, account: AccountState, balance: AccountBalance) -> None:
    """Report an account whose balance is uneven; only once, because it usually stays so for the rest of the log."""
    if account.is_uneven:
        return
    account.is_uneven = True
    details = {
        "miner_ss58": account.miner_ss58,
        "executor_class": account.executor_class,
        **balance._asdict(),
    }
    findings.stream = f"{account.miner_ss58}\t{account.executor_class}"
    message = "the spent, held, invalidated and free allowance does not add up to the granted allowance"
    findings.add(account.last_position, Rule.CONSERVATION, message, **details)


def _taken_ns(state: AuditState, account: AccountState) -> int:
    return state.value_ns(
        account,
        [(start, end - 1) for start, end in zip(account.taken.starts, account.taken.ends, strict=True)],
    )
