"""The choice of a miner that a pick keeps when its claim is decided again.

Rules, this project's own. A pick keeps its miner because every claim changes the ranking: after a conflict all picks of
a batch would otherwise leave their miners for others. The claim then records the position of the choice (`chosen_at`),
so that `explain` and the audit can repeat the choice there. So that must be a committed position, not too far back, at
which the clock of the later decision gives the same order; and the miner must still qualify at the claim.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from ledger import Account, LedgerState, UnitOfWork
from ledger.events import MOST_EVENTS_SINCE_CHOICE, SEALS_STREAM, account_of
from ledger.settings import BY_RELIABILITY
from projections import Availability, is_busy, unfit

NEVER_NS = 2**63
"""Later than any due time."""


class Choice(NamedTuple):
    """The account that a decision of a pick chose, and what it saw. Every pick makes one, so making it costs little."""

    stream: str
    batch: UnitOfWork
    rows_before: int
    """How many rows the batch had when the pick was decided."""
    newest_block: int
    decided_at_ns: int
    is_drawn: bool
    """Whether the candidates were in the order by reliability."""
    next_due_ns: int
    """The first time after `decided_at_ns` from which the same state may give another order: a due time, the end of an
    exclusion, or the start or the end of a job elsewhere."""

    @classmethod
    def made(cls, unit_of_work: UnitOfWork, account: Account) -> Choice:
        """Return the choice of an account that a decision makes now."""
        state, now_ns = unit_of_work.state, unit_of_work.now_ns
        # Ids are below 2**63, so this index is that of the first reservation that is not overdue at `now_ns`.
        next_due = bisect_right(state.due_queue, (now_ns, NEVER_NS))
        next_due_ns = state.due_queue[next_due][0] if next_due < len(state.due_queue) else NEVER_NS
        if state.miner_facts:
            next_due_ns = min(next_due_ns, state.miner_facts.next_change_ns(now_ns))
        newest, rows_before = state.chain.blocks.newest, len(unit_of_work.rows)
        is_drawn = state.chain.settings.routing_order == BY_RELIABILITY
        return cls(account.stream, unit_of_work, rows_before, newest, now_ns, is_drawn, next_due_ns)

    @property
    def position(self) -> int | None:
        """The committed position whose state the choice saw; None if it also saw rows that were not committed yet.

        Rows that its batch had appended to other classes, or seals, make no difference to it. But rows of its class or
        of facts are never stored as they were if the head had moved.
        """
        _, executor_class = account_of(self.stream)
        # The streams of facts have no tab; those of jobs elsewhere end with the class too.
        of_class = f"\t{executor_class}"
        before = (row.stream for row in self.batch.rows[: self.rows_before] if row.stream != SEALS_STREAM)
        saw_uncommitted = any(stream.endswith(of_class) or "\t" not in stream for stream in before)
        return None if saw_uncommitted else self.batch.head.position

    def kept_account(self, state: Availability, amount_ns: int, now_ns: int) -> Account | None:
        """Return the account if a later decision keeps the choice; None if it must choose anew."""
        account = state.chain.accounts.get(self.stream)
        if account is None or not self._can_be_repeated(state, account, now_ns):
            return None
        blocks = state.chain.blocks
        qualifies = (
            account.miner_ss58 in state.chain.metagraph.members
            and not is_busy(state, account, now_ns)
            and unfit(state, account.miner_ss58, now_ns) is None
            and account.measure(blocks, state.window_start(blocks.newest), now_ns).available_ns >= amount_ns
        )
        return account if qualifies else None

    def _can_be_repeated(self, state: LedgerState, account: Account, now_ns: int) -> bool:
        """Return whether a claim of now may name this choice: it must be recent, and independent of the clock since."""
        # The claim's position is at most this one: before it, the claim may expire the account's overdue reservations.
        claim_position, position = state.position + len(account.overdue(now_ns)) + 1, self.position
        return (
            position is not None
            # With each instant an incident may become too old to count. The same seed mostly draws the same miner.
            and not self.is_drawn
            and state.chain.settings.routing_order != BY_RELIABILITY
            and claim_position - position <= MOST_EVENTS_SINCE_CHOICE
            and self.newest_block <= state.chain.blocks.newest <= self.newest_block + 1
            and self.decided_at_ns <= now_ns < self.next_due_ns
        )
