"""Routing decisions, made again: which candidate came first and was not busy, and where its miner listened.

The ranking and the tie-break are the audit's own, so that a router that ranks wrongly is found. Rules: a job goes to
the first candidate at the newest block that is not busy; an excluded miner, or one below the collateral, is none. The
choice is repeated directly before the claim, or at the earlier position that the claim names because it was decided
again and stayed on its miner (`chosen_at`); that miner must then still qualify at the claim. Earlier releases marked
such a claim as `kept` and named no position, so its choice cannot be repeated: it is not proved. The route names the
axon of the newest metagraph; a router refuses if the newest block is older, or the newest sync further behind it, than
configured.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger import Row
from ledger.events import AllowanceReserved, account_of
from ledger.values import seconds
from projections.audit.ranking import AuditRanking
from projections.audit.state import AccountState, AuditState
from projections.audit.tallies import FairnessTally
from projections.audit.trials import Job, Trials
from projections.rules import MOST_EVENTS_SINCE_CHOICE, Findings, Rule


class RepeatedChoice(NamedTuple):
    """The choice of a later claim, repeated at the position that the claim names."""

    first: AccountState | None
    newest_block: int


class Qualifying(NamedTuple):
    """The account of a claim, what it has available, and the clock that decided the claim."""

    account: AccountState
    available_ns: int
    now_ns: int


class RouteCheck:
    """Checks routed claims against the ranking at the position of their choice."""

    def __init__(self, state: AuditState, trials: Trials, fairness: FairnessTally, findings: Findings) -> None:
        self.unproved = 0
        """The claims whose choice cannot be repeated, by the release that wrote them or because of the start."""
        self.start = 0
        """The position at which the replay began; the choices before it cannot be repeated."""
        self.names_choices = False
        """Whether an event has shown that a release which names the position of each choice writes this log."""
        self._state = state
        self._trials = trials
        self._fairness = fairness
        self._findings = findings
        self._rankings: dict[str, AuditRanking] = {}
        self._choices: dict[int, RepeatedChoice] = {}
        """By the position of the claim."""

    def repeat_choice(self, row: Row, event: AllowanceReserved, now_ns: int) -> None:
        """Repeat the choice of a later claim on the state of now, with the clock of `DueQueue` at the claim's."""
        ranking = self.ranking(account_of(row.stream)[1])
        first = self._trials.first(ranking, Job(row.job_uuid or "", event.amount_ns, now_ns))
        self._choices[row.position] = RepeatedChoice(first, self._state.chain.blocks.newest)

    def check(self, row: Row, event: AllowanceReserved, account: AccountState, now_ns: int, decided_on: int) -> None:
        """Check a routed claim, and update its account's rank.

        Call it before the claim is applied, with the clock of `DueQueue` at `now_ns`, which decided the claim.
        `decided_on` is the position before the claim and the expiries that it caused.
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
        if not self._trials.nobody_is_unfit:
            self._check_fit(row.position, account, now_ns)
        ranking = self._rankings.get(account.executor_class) or self.ranking(account.executor_class)
        if event.chosen_at is not None:
            ranking.bring_up_to_date()
            self._check_choice(row.position, event, event.chosen_at, account, decided_on)
            qualifying = Qualifying(account, ranking.available_ns(account), now_ns)
            self._check_qualifies(row.position, Rule.CHOSEN_QUALIFIES, event, qualifying)
        else:
            job = Job(row.job_uuid or "", event.amount_ns, now_ns)
            first = self._trials.first(ranking, job, counts=not event.kept)
            if event.kept:
                qualifying = Qualifying(account, ranking.available_ns(account), now_ns)
                self._check_kept(row.position, event, qualifying, is_first=first is account)
            else:
                self._fairness.wins[account] += 1
                if first is not account:
                    self._report_other_miner(row.position, event, account, first)
        ranking.apply_claim(account, event.blocks)

    def check_no_choice(self, position: int, event: AllowanceReserved) -> None:
        """Check that a reservation which no router made does not pretend to a choice of its miner."""
        if event.kept:
            message = "the reservation is marked as kept although no router made it"
            self._findings.add(position, Rule.ROUTING_DECISION, message)
        if event.imported and event.axon is not None:
            message = "an imported reservation has the axon of a route, which another system cannot have proved"
            self._findings.add(position, Rule.ROUTING_DECISION, message)
        if event.chosen_at is not None:
            self._report_choice(position, "although no router made it", {"chosen_at": event.chosen_at})

    def settle_chances(self) -> None:
        """Give every account its chances in the draws so far."""
        for ranking in self._rankings.values():
            ranking.settle_chances()

    def ranking(self, executor_class: str) -> AuditRanking:
        """Return the ranking of a class; it is created when a route of the class is checked first."""
        if executor_class not in self._rankings:
            self._rankings[executor_class] = AuditRanking(self._state, executor_class)
        return self._rankings[executor_class]

    def _check_fit(self, position: int, account: AccountState, now_ns: int) -> None:
        """Check at the claim that its miner is a possible candidate; its choice is checked by the order of trial."""
        if self._trials.is_excluded(account, now_ns):
            message = f"the job was routed to {account.miner_ss58}, which is excluded"
            self._findings.add(position, Rule.ROUTING_EXCLUDED, message)
        if self._trials.lacks_collateral(account):
            message = f"the job was routed to {account.miner_ss58}, which is below the required collateral"
            self._findings.add(position, Rule.ROUTING_COLLATERAL, message)

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

    def _check_choice(
        self, position: int, event: AllowanceReserved, chosen_at: int, account: AccountState, decided_on: int
    ) -> None:
        """Check the position that a claim names, and that its miner came first there."""
        self.names_choices = True
        choice = self._choices.pop(position, None)
        newest = self._state.chain.blocks.newest
        details = {"chosen_at": chosen_at, "decided_on": decided_on}
        if event.kept:
            self._report_choice(position, "and is marked as kept, which no release does", details)
        if chosen_at == decided_on:
            self._report_choice(position, "that directly before it, which must be left out", details)
        elif chosen_at > decided_on:
            self._report_choice(position, "one that it cannot have seen", details)
        elif chosen_at < 1 or position - chosen_at > MOST_EVENTS_SINCE_CHOICE:
            self._report_choice(position, f"not one of the {MOST_EVENTS_SINCE_CHOICE:,} before it", details)
        elif chosen_at < self.start:
            self.unproved += 1
        elif choice is None:
            self._report_choice(position, "but the choice cannot be repeated there", details)
        else:
            if not choice.newest_block <= newest <= choice.newest_block + 1:
                details |= {"newest_block": newest, "newest_block_then": choice.newest_block}
                self._report_choice(position, "more than one newest block before it", details)
            self._fairness.wins[account] += 1
            if choice.first is not account:
                self._report_other_miner(position, event, account, choice.first)

    def _check_qualifies(self, position: int, rule: Rule, event: AllowanceReserved, qualifying: Qualifying) -> None:
        """Check that a miner that was chosen earlier qualifies at the claim; one that is not registered has nothing."""
        account, available_ns, now_ns = qualifying
        if available_ns < event.amount_ns or self._trials.is_busy(account, now_ns):
            message = "the claim kept its miner although that was busy or no longer had the amount"
            details = {"miner_ss58": account.miner_ss58, "available_ns": available_ns, "amount_ns": event.amount_ns}
            self._findings.add(position, rule, message, **details)

    def _check_kept(self, position: int, event: AllowanceReserved, qualifying: Qualifying, *, is_first: bool) -> None:
        """Check a claim of an earlier release that stayed on its miner: its choice is not proved, the rest is."""
        self.unproved += 1
        account = qualifying.account
        if self.names_choices:
            message = "the claim is marked as kept although the release that writes this log names the position instead"
            self._findings.add(position, Rule.CHOSEN_AT, message, miner_ss58=account.miner_ss58)
        if is_first:
            message = "the claim is marked as kept although its miner came first"
            self._findings.add(position, Rule.ROUTING_DECISION, message, miner_ss58=account.miner_ss58)
        self._check_qualifies(position, Rule.ROUTING_DECISION, event, qualifying)

    def _report_choice(self, position: int, which: str, details: dict[str, int]) -> None:
        message = f"the claim names a position of its choice, {which}"
        self._findings.add(position, Rule.CHOSEN_AT, message, **details)

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
