"""Reservations, each checked against its account's state just before it, and against the settings.

Rules: a reservation claims whole free blocks of its account, earliest first, until they add up to at least the amount;
the amount is above 0 and at most the longest job; it is due its amount plus the margin after the clock that decided it
(in older logs, after it was recorded); a block is in at most one active or spent reservation of an account at any time.
Of these, a reservation that was taken over from another system must only have an amount, and granted blocks that nobody
has taken.
"""

from __future__ import annotations

from ledger import Row
from ledger.errors import shortened
from ledger.events import AllowanceReserved, Run
from ledger.values import seconds
from projections.audit.due_queue import DueQueue
from projections.audit.state import AccountState, AuditedReservation, AuditState
from projections.rules import Findings, Rule

from .claims import NOT_PLAIN, ClaimCheck, is_ascending, is_run
from .conservation import balance_of, report_imbalance
from .facts import LARGEST


class ReservationCheck:
    """Checks each reservation, then applies it to the audit's state, right or wrong."""

    def __init__(self, state: AuditState, due_queue: DueQueue, findings: Findings) -> None:
        self._state = state
        self._due_queue = due_queue
        self._findings = findings
        self._claims = ClaimCheck(state)
        self._chain = state.chain
        self._active, self._changed_accounts = state.active, state.changed_accounts

    def check(self, row: Row, event: AllowanceReserved, account: AccountState, due_from_ns: int) -> tuple[int, bool]:
        """Check a reservation before it is applied; return its blocks' value in ns, and whether the claim is plain.

        `due_from_ns` is the time from which its due time counts.
        `ClaimCheck.plain_value_ns` says what a plain claim is. Call `DueQueue.set_clock` with the decision's time
        first, because the blocks of overdue reservations count as free.
        """
        settings = self._chain.settings
        amount_ns = event.amount_ns
        if event.imported:
            return self._check_imported(row.position, event, account), False
        if not 1 <= event.job_start_block <= LARGEST:
            message = f"the job starts at block {shortened(event.job_start_block)}, expected a block from 1 on"
            self._findings.add(row.position, Rule.JOB_START, message)
        if not 0 < amount_ns <= settings.longest_job_ns:
            most = seconds(settings.longest_job_ns)
            message = f"the amount is {seconds(amount_ns)} s, expected more than 0 and at most {most} s"
            self._findings.add(row.position, Rule.AMOUNT_LIMITS, message, amount_ns=amount_ns)
        expected_ns = due_from_ns + amount_ns + settings.reservation_margin_ns
        if event.expires_at_ns != expected_ns:
            details = {"expires_at_ns": event.expires_at_ns, "expected_ns": expected_ns}
            since = "recorded time" if due_from_ns == row.recorded_at_ns else "deciding clock"
            message = f"the due time is not the {since} plus the amount and the margin"
            self._findings.add(row.position, Rule.DUE_TIME, message, **details)
        oldest = event.job_start_block - settings.block_expiry_blocks
        value_ns = self._claims.plain_value_ns(account, event, oldest)
        if value_ns != NOT_PLAIN:
            return value_ns, True
        if event.blocks != self._claims.expected_blocks(account, amount_ns, oldest):
            self._check_blocks(row.position, account, event, oldest)
        return self._state.value_ns(account, [run for run in event.blocks if is_run(*run)]), False

    def _check_imported(self, position: int, event: AllowanceReserved, account: AccountState) -> int:
        """Check a reservation that another system made by rules of its own: its blocks must grant something."""
        blocks, details = event.blocks, {"blocks": event.blocks}
        if not is_ascending(blocks):
            message = "the runs of blocks do not ascend, or touch, or there is none"
            self._findings.add(position, Rule.BLOCKS_ASCENDING, message, **details)
        elif any(self._claims.first_not_granted(account, *run) is not None for run in blocks):
            message = "an imported reservation has a block that grants nothing to the account"
            self._findings.add(position, Rule.BLOCKS_GRANTED, message, **details)
        if event.amount_ns <= 0:
            self._findings.add(position, Rule.AMOUNT_LIMITS, "the amount is not above 0", amount_ns=event.amount_ns)
        return self._state.value_ns(account, [run for run in blocks if is_run(*run)])

    def apply(
        self, row: Row, event: AllowanceReserved, account: AccountState, value_ns: int, *, is_plain: bool
    ) -> AuditedReservation:
        """Record the reservation as active and its blocks as taken; the caller updates the ranking.

        `value_ns` and `is_plain` are the results of `check`.
        """
        position, blocks = row.position, event.blocks
        # A plain claim is one run of free blocks, so `add` cannot meet a taken one.
        if is_plain:
            own_blocks, is_even = blocks, True
            account.taken.add(*blocks[0])
        else:
            own_blocks, is_even = self._mark_taken(position, account, blocks)
        reservation = AuditedReservation(row, event, account, own_blocks, value_ns)
        account.active[position] = self._active[position] = reservation
        account.held_ns += value_ns
        account.last_position = position
        self._changed_accounts.add(account)
        self._due_queue.push(reservation)
        # Reported at once: a later settlement may make the sums even again before the next check of the balances.
        if not is_even:
            report_imbalance(self._findings, account, balance_of(self._state, account))
        return reservation

    def _mark_taken(self, position: int, account: AccountState, blocks: list[Run]) -> tuple[list[Run], bool]:
        """Mark the blocks as taken; return those that were free, and whether the account's balance stays even.

        An overlap with taken blocks makes it uneven. An impossible run does not: it is skipped, and `check` has not
        counted its value either.
        """
        own_blocks: list[Run] = []
        is_even = True
        for first, last in blocks:
            if not is_run(first, last):
                continue  # `BLOCKS_ASCENDING` has reported it.
            try:
                account.taken.add(first, last)
                own_blocks.append((first, last))
            except ValueError:
                own_blocks += self._mark_rest_taken(position, account, first, last)
                is_even = False
        return own_blocks, is_even

    def _mark_rest_taken(self, position: int, account: AccountState, first: int, last: int) -> list[Run]:
        """Report a run that overlaps taken blocks, and mark only its other blocks as taken.

        `held_by_positions` names the active reservations that have some of the blocks. A spent one is not named,
        because the audit's state forgets reservations once they are settled.
        """
        held_by = [
            each.position
            for each in account.active.values()
            if any(start <= last and end >= first for start, end in each.own_blocks)
        ]
        message = f"{_run_text(first, last)}: all or some of them are already taken"
        self._findings.add(position, Rule.BLOCKS_TAKEN_ONCE, message, blocks=(first, last), held_by_positions=held_by)
        gaps = [(start, end - 1) for start, end in account.taken.gaps(first, last + 1)]
        for gap in gaps:
            account.taken.add(*gap)
        return gaps

    def _check_blocks(self, position: int, account: AccountState, event: AllowanceReserved, oldest: int) -> None:
        """Report each rule that a reservation broke by claiming other blocks than expected."""
        blocks, claims, invalidated_below = event.blocks, self._claims, account.chain_account.invalidated_below
        details = {"blocks": blocks, "expected": claims.expected_blocks(account, event.amount_ns, oldest)}

        def report(rule: Rule, message: str) -> None:
            self._findings.add(position, rule, message, **details)

        # The other rules assume ascending runs, so their findings would say nothing.
        if not is_ascending(blocks):
            report(Rule.BLOCKS_ASCENDING, "the runs of blocks do not ascend, or touch, or there is none")
            return
        not_granted = next(
            (block for run in blocks if (block := claims.first_not_granted(account, *run)) is not None), None
        )
        if not_granted is not None:
            report(Rule.BLOCKS_GRANTED, f"block {not_granted} grants nothing to the account")
        first = blocks[0][0]
        if first < oldest:
            report(Rule.BLOCKS_IN_WINDOW, f"block {first} is older than {oldest}, the oldest that the job may use")
        if first < invalidated_below:
            message = f"block {first} is invalidated, like all blocks below {invalidated_below}"
            report(Rule.BLOCKS_NOT_INVALIDATED, message)
        value_ns = self._state.value_ns(account, blocks)
        if value_ns < event.amount_ns:
            message = f"the blocks grant {seconds(value_ns)} s, less than the amount of {seconds(event.amount_ns)} s"
            report(Rule.BLOCKS_ENOUGH, message)
        last = blocks[-1][1]
        without_last_ns = value_ns - self._state.value_ns(account, [(last, last)])
        if without_last_ns >= event.amount_ns:
            report(Rule.BLOCKS_NO_MORE_THAN_NEEDED, f"the blocks grant the amount without block {last}")
        skipped = claims.first_skipped(account, blocks, max(oldest, invalidated_below))
        if skipped is not None:
            report(Rule.BLOCKS_EARLIEST_FIRST, f"block {skipped} is free and earlier, but was skipped")


def _run_text(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"
