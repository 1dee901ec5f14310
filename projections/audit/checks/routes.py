"""Routing decisions made again: who was first of a class and not busy, and where its miner listened."""

from __future__ import annotations

from ledger import Row
from ledger.events import AllowanceReserved
from ledger.values import seconds
from projections.audit.ranking import AuditRanking
from projections.audit.state import AccountState, AuditState
from projections.rules import Findings, Rule


class RouteCheck:
    """Holds routed claims against the ranking at the position just before them."""

    def __init__(self, state: AuditState, findings: Findings) -> None:
        self._state = state
        self._findings = findings
        self._ranks: dict[str, AuditRanking] = {}

    def check(self, row: Row, event: AllowanceReserved, account_state: AccountState, now_ns: int) -> None:
        """Checks a routed claim, and ranks its account as the claim will leave it; `DueQueue` stand at its clock."""
        chain = self._state.chain
        newest = chain.blocks.newest
        if event.job_start_block != newest:
            message = f"it starts at block {event.job_start_block}, while the newest block was {newest}"
            self._findings.add(row.position, Rule.ROUTING_DECISION, message, newest_block=newest)
        if chain.metagraph.miners.get(account_state.miner_ss58) != event.axon:
            details = {"axon": event.axon, "expected": chain.metagraph.miners.get(account_state.miner_ss58)}
            self._findings.add(row.position, Rule.ROUTING_AXON, "the miner listened elsewhere", **details)
        if chain.settings.newest_block_max_age_ns is not None:
            self._check_feed(row.position, newest, now_ns, chain.settings.newest_block_max_age_ns)
        ranks = self._ranks.get(account_state.executor_class) or self.ranks(account_state.executor_class)
        first = self._first(ranks, event.amount_ns, row.job_uuid or "")
        if event.kept:
            self._check_kept(
                row.position, event, account_state, ranks.available_ns(account_state), is_first=first is account_state
            )
        elif first is not account_state:
            self._note_other(row.position, event, account_state, first)
        ranks.move(account_state, event.blocks)

    def ranks(self, executor_class: str) -> AuditRanking:
        """The ranking of a class."""
        if executor_class not in self._ranks:
            self._ranks[executor_class] = AuditRanking(self._state, executor_class)
        return self._ranks[executor_class]

    def _first(self, ranks: AuditRanking, amount_ns: int, job_uuid: str) -> AccountState | None:
        """The first account with the amount that is not busy, in the order in which the job tries them.

        Busy is who runs as many jobs as it has executors for by the newest sync, capped; those overdue not counted.
        """
        for account_state in ranks.candidates(amount_ns, job_uuid):
            if not self._is_busy(account_state):
                return account_state
        return None

    def _note_other(
        self, position: int, event: AllowanceReserved, account_state: AccountState, first: AccountState | None
    ) -> None:
        expected = None if first is None else first.miner_ss58
        message = "no candidate had the amount and was not busy" if first is None else f"{expected} came first"
        details = {"miner_ss58": account_state.miner_ss58, "expected": expected, "amount_ns": event.amount_ns}
        self._findings.add(position, Rule.ROUTING_DECISION, message, **details)

    def _check_kept(
        self, position: int, event: AllowanceReserved, account_state: AccountState, available_ns: int, *, is_first: bool
    ) -> None:
        """A miner that was chosen before the log moved may be kept, but only while it still qualifies."""
        if is_first:
            message = "the miner is said to be kept, while it came first"
        elif available_ns < event.amount_ns or self._is_busy(account_state):
            message = "the miner was kept although it was busy, or had not the amount any more"
        else:
            return
        details = {"miner_ss58": account_state.miner_ss58, "available_ns": available_ns, "amount_ns": event.amount_ns}
        self._findings.add(position, Rule.ROUTING_DECISION, message, **details)

    def _check_feed(self, position: int, newest: int, now_ns: int, most_ns: int) -> None:
        age_ns = now_ns - self._state.chain.blocks.created_at_ns(newest)
        if age_ns > most_ns:
            message = f"the newest block was {seconds(age_ns)} s old, more than {seconds(most_ns)} s"
            self._findings.add(position, Rule.ROUTING_FEED, message, newest_block=newest, age_ns=age_ns)

    def _is_busy(self, account_state: AccountState) -> bool:
        """Whether the miner runs as many jobs as it has executors for, those overdue not counted."""
        settings, executors = self._state.chain.settings, account_state.account.offered.values[-1]
        running = len(account_state.active) - len(account_state.overdue)
        if running < executors and not settings.executors_max_per_class:
            return False
        counted = min(executors, settings.executors_max_per_class.get(account_state.executor_class, executors))
        return settings.respect_executor_count and running >= counted
