"""Reservations: held against the account as it was just before, and against the settings."""

from __future__ import annotations

from ledger import Row
from ledger.errors import shortened
from ledger.events import AllowanceReserved, Run
from ledger.values import seconds
from projections.audit.due_queue import DueQueue
from projections.audit.state import AccountState, AuditedReservation, AuditState
from projections.rules import Findings, Rule

from .claims import NO_WORTH, ClaimCheck, ascend, is_run
from .conservation import balance_of, report_imbalance
from .facts import LARGEST


class ReservationCheck:
    """Takes reservations: checks each, then lets it stand."""

    def __init__(self, state: AuditState, due_queue: DueQueue, findings: Findings) -> None:
        self._state = state
        self._due_queue = due_queue
        self._findings = findings
        self._claims = ClaimCheck(state)
        self._chain = state.chain
        self._active, self._moved = state.active, state.moved

    def check(self, row: Row, event: AllowanceReserved, account_state: AccountState) -> tuple[int, bool]:
        """Checks a reservation that is about to stand; answers what its blocks are worth, and if they are a free run.

        `DueQueue` stand at the clock that decided.
        """
        settings = self._chain.settings
        amount_ns = event.amount_ns
        if not 1 <= event.job_start_block <= LARGEST:
            message = f"the job starts at block {shortened(event.job_start_block)}"
            self._findings.add(row.position, Rule.JOB_START, message)
        if not 0 < amount_ns <= settings.longest_job_ns:
            message = f"{seconds(amount_ns)} s are not above 0 and up to {seconds(settings.longest_job_ns)} s"
            self._findings.add(row.position, Rule.AMOUNT_LIMITS, message, amount_ns=amount_ns)
        expected_ns = row.recorded_at_ns + amount_ns + settings.reservation_margin_ns
        if event.expires_at_ns != expected_ns:
            details = {"expires_at_ns": event.expires_at_ns, "expected_ns": expected_ns}
            self._findings.add(row.position, Rule.DUE_TIME, "it is due at another time than it should be", **details)
        oldest = event.job_start_block - settings.block_expiry_blocks
        worth_ns = self._claims.worth_as_due(account_state, event, oldest)
        if worth_ns != NO_WORTH:
            return worth_ns, True
        if event.blocks != self._claims.due_blocks(account_state, amount_ns, oldest):
            self._check_blocks(row.position, account_state, event, oldest)
        return self._state.worth_ns(account_state, [run for run in event.blocks if is_run(*run)]), False

    def stand(
        self, row: Row, event: AllowanceReserved, account_state: AccountState, worth_ns: int, *, is_free_run: bool
    ) -> AuditedReservation:
        """Lets a reservation stand, with those of its blocks that no other one has; who calls it touches the book."""
        position, blocks = row.position, event.blocks
        if is_free_run:
            owned, is_even = blocks, True
            account_state.taken.add(*blocks[0])
        else:
            owned, is_even = self._own(position, account_state, blocks)
        active = AuditedReservation(row, event, account_state, owned, worth_ns)
        account_state.active[position] = self._active[position] = active
        account_state.held_ns += worth_ns
        account_state.last_position = position
        self._moved.add(account_state)
        self._due_queue.add(active)
        if not is_even:
            report_imbalance(self._findings, account_state, balance_of(self._state, account_state))
        return active

    def _own(self, position: int, account_state: AccountState, blocks: list[Run]) -> tuple[list[Run], bool]:
        """Takes those of the blocks that nobody has; whether these are all."""
        owned: list[Run] = []
        is_even = True
        for first, last in blocks:
            if not is_run(first, last):
                continue  # A finding of its own.
            try:
                account_state.taken.add(first, last)
                owned.append((first, last))
            except ValueError:
                owned += self._rest(position, account_state, first, last)
                is_even = False
        return owned, is_even

    def _rest(self, position: int, account_state: AccountState, first: int, last: int) -> list[Run]:
        """What of a run nobody has; that somebody has the others is noted."""
        held_by = [
            each.position
            for each in account_state.active.values()
            if any(a <= last and b >= first for a, b in each.owned)
        ]
        message = f"of {_run_text(first, last)} some are reserved or spent already"
        self._findings.add(position, Rule.BLOCKS_TAKEN_ONCE, message, blocks=(first, last), held_by_positions=held_by)
        gaps = [(start, end - 1) for start, end in account_state.taken.gaps(first, last + 1)]
        for gap in gaps:
            account_state.taken.add(*gap)
        return gaps

    def _check_blocks(self, position: int, account_state: AccountState, event: AllowanceReserved, oldest: int) -> None:
        """Names the rules that a reservation broke by taking other blocks than it should have."""
        blocks, claims, invalidated_below = event.blocks, self._claims, account_state.account.invalidated_below
        details = {"blocks": blocks, "expected": claims.due_blocks(account_state, event.amount_ns, oldest)}

        def broken(rule: Rule, message: str) -> None:
            self._findings.add(position, rule, message, **details)

        if not ascend(blocks):
            broken(Rule.BLOCKS_ASCENDING, "the runs of blocks do not ascend, or touch")
            return
        without = next(
            (block for run in blocks if (block := claims.first_without(account_state, *run)) is not None), None
        )
        if without is not None:
            broken(Rule.BLOCKS_GRANTED, f"block {without} grants nothing to the account")
        first = blocks[0][0]
        if first < oldest:
            broken(Rule.BLOCKS_IN_WINDOW, f"block {first} is older than {oldest}, the first that a job may use")
        if first < invalidated_below:
            broken(Rule.BLOCKS_NOT_INVALIDATED, f"block {first} is invalidated, as all below {invalidated_below} are")
        worth_ns = self._state.worth_ns(account_state, blocks)
        if worth_ns < event.amount_ns:
            broken(Rule.BLOCKS_ENOUGH, f"worth {seconds(worth_ns)} s, not the {seconds(event.amount_ns)} s asked for")
        last = blocks[-1][1]
        without_last_ns = worth_ns - self._state.worth_ns(account_state, [(last, last)])
        if without_last_ns >= event.amount_ns:
            broken(Rule.BLOCKS_NO_MORE_THAN_NEEDED, f"without block {last} they are worth enough")
        skipped = claims.skipped(account_state, blocks, max(oldest, invalidated_below))
        if skipped is not None:
            broken(Rule.BLOCKS_EARLIEST_FIRST, f"block {skipped} is free and earlier, and was left out")


def _run_text(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"
