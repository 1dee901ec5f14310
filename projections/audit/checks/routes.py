"""Routing decisions, made again: which candidate came first and was not busy, and where its miner listened.

The ranking and the tie-break are the audit's own, so that a router that ranks wrongly is found. Rules: a job goes to
the first candidate at the newest block that has the amount and is not busy; a claim that was decided again after a
version conflict may stay on its miner if that still qualifies; the route names the axon of the newest metagraph; a
router refuses if the newest block is older, or the newest sync further behind it, than configured.
"""

from __future__ import annotations

from ledger import Row
from ledger.events import AllowanceReserved
from ledger.values import seconds
from projections.audit.ranking import AuditRanking
from projections.audit.state import AccountState, AuditState
from projections.rules import Findings, Rule


class RouteCheck:
    """Checks routed claims against the ranking just before each."""

    def __init__(self, state: AuditState, findings: Findings) -> None:
        self._state = state
        self._findings = findings
        self._rankings: dict[str, AuditRanking] = {}

    def check(self, row: Row, event: AllowanceReserved, account: AccountState, now_ns: int) -> None:
        """Check a routed claim, and update its account's rank.

        Call it before the claim is applied, with the clock of `DueQueue` at `now_ns`, which decided the claim.
        """
        chain = self._state.chain
        newest = chain.blocks.newest
        if event.job_start_block != newest:
            message = f"the routed job starts at block {event.job_start_block}, expected the newest block, {newest}"
            self._findings.add(row.position, Rule.ROUTING_DECISION, message, newest_block=newest)
        if chain.metagraph.miners.get(account.miner_ss58) != event.axon:
            details = {"axon": event.axon, "expected": chain.metagraph.miners.get(account.miner_ss58)}
            message = "the route's axon is not that of the miner in the metagraph"
            self._findings.add(row.position, Rule.ROUTING_AXON, message, **details)
        if chain.settings.newest_block_max_age_ns is not None:
            self._check_block_age(row.position, newest, now_ns, chain.settings.newest_block_max_age_ns)
        if chain.settings.newest_manifests_max_age_blocks is not None:
            self._check_manifests_age(row.position, newest, chain.settings.newest_manifests_max_age_blocks)
        ranking = self._rankings.get(account.executor_class) or self.ranking(account.executor_class)
        first = self._first_not_busy(ranking, event.amount_ns, row.job_uuid or "")
        if event.kept:
            available_ns = ranking.available_ns(account)
            self._check_kept(row.position, event, account, available_ns, is_first=first is account)
        elif first is not account:
            self._report_other_miner(row.position, event, account, first)
        ranking.apply_claim(account, event.blocks)

    def ranking(self, executor_class: str) -> AuditRanking:
        """Return the ranking of a class; it is created when a route of the class is checked first."""
        if executor_class not in self._rankings:
            self._rankings[executor_class] = AuditRanking(self._state, executor_class)
        return self._rankings[executor_class]

    def _first_not_busy(self, ranking: AuditRanking, amount_ns: int, job_uuid: str) -> AccountState | None:
        for account in ranking.candidates(amount_ns, job_uuid):
            if not self._is_busy(account):
                return account
        return None

    def _report_other_miner(
        self, position: int, event: AllowanceReserved, account: AccountState, first: AccountState | None
    ) -> None:
        expected = None if first is None else first.miner_ss58
        if first is None:
            message = "the job was routed although no candidate had the amount and was not busy"
        else:
            message = f"the job was routed to another miner than {expected}, the first candidate that was not busy"
        details = {"miner_ss58": account.miner_ss58, "expected": expected, "amount_ns": event.amount_ns}
        self._findings.add(position, Rule.ROUTING_DECISION, message, **details)

    def _check_kept(
        self, position: int, event: AllowanceReserved, account: AccountState, available_ns: int, *, is_first: bool
    ) -> None:
        """Check a claim that stayed on its miner after a version conflict: the miner must still qualify."""
        if is_first:
            message = "the claim is marked as kept although its miner came first"
        elif available_ns < event.amount_ns or self._is_busy(account):
            message = "the claim kept its miner although that was busy or no longer had the amount"
        else:
            return
        details = {"miner_ss58": account.miner_ss58, "available_ns": available_ns, "amount_ns": event.amount_ns}
        self._findings.add(position, Rule.ROUTING_DECISION, message, **details)

    def _check_block_age(self, position: int, newest: int, now_ns: int, most_ns: int) -> None:
        age_ns = now_ns - self._state.chain.blocks.created_at_ns(newest)
        if age_ns > most_ns:
            message = f"the newest block was {seconds(age_ns)} s old, expected at most {seconds(most_ns)} s"
            self._findings.add(position, Rule.ROUTING_FEED, message, newest_block=newest, age_ns=age_ns)

    def _check_manifests_age(self, position: int, newest: int, most: int) -> None:
        behind = newest - (self._state.chain.sync_blocks or [newest])[-1]
        if behind > most:
            message = f"the newest sync was {behind} blocks behind the newest block, expected at most {most}"
            self._findings.add(position, Rule.ROUTING_MANIFESTS, message, newest_block=newest, behind=behind)

    def _is_busy(self, account: AccountState) -> bool:
        """Return whether the miner runs as many jobs as the newest sync, capped, counts executors of it.

        Overdue reservations do not count as running. Source: ComputeHorde's validator.
        """
        settings, executors = self._state.chain.settings, account.chain_account.offered.values[-1]
        running = len(account.active) - len(account.overdue)
        if running < executors and not settings.executors_max_per_class:
            return False
        counted = min(executors, settings.executors_max_per_class.get(account.executor_class, executors))
        return settings.respect_executor_count and running >= counted
