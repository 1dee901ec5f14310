"""Trials: which miner a job must go to, given the candidates of a class, and how likely that was for each of them.

The audit repeats these rules on purpose and shares nothing with the router's code. Rules: miners that are excluded, or
below the required collateral, are no candidates. Among equals the tie-break decides; or, by the setting
`routing_order`, a draw by reliability decides among all candidates. The job goes to the first one that is not busy. A
miner is busy if its reservations that are not overdue, and the jobs of others, each job once, are as many as its
executors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from ledger import RecordedSettings
from ledger.settings import BY_RELIABILITY, UUID_AND_HASH

from .chance_sums import ChanceSums
from .miner_facts import AuditMinerFacts
from .ranking import AuditRanking, Equals
from .reliability import drawn, weight_of
from .state import AccountState, AuditState
from .tallies import FairnessTally
from .tie_break import indexes, tie_break_number


class Job(NamedTuple):
    """The request of a job, and the clock that decided it."""

    job_uuid: str
    amount_ns: int
    now_ns: int


class Trials:
    """Tries the candidates of jobs on the state of now."""

    def __init__(self, state: AuditState, facts: AuditMinerFacts, fairness: FairnessTally) -> None:
        self._state = state
        self._facts = facts
        self._fairness = fairness
        self._settings: RecordedSettings | None = None
        self._is_plain = False
        """Whether these settings let no miner fact matter but those that are recorded."""

    def first(self, ranking: AuditRanking, job: Job, *, counts: bool = True) -> AccountState | None:
        """Return the account that the job must go to; None if there is none. `counts`: in the report of fairness."""
        groups: Iterable[Equals] = ranking.groups(job.amount_ns)
        chances = self._fairness.chances if counts else None
        if self._facts_matter(job.now_ns):
            if counts:
                self._count_without_facts(ranking.groups(job.amount_ns), job)
                chances = self._fairness.with_facts
            groups = self._fit_groups(groups, job.now_ns)
            if self._by_reliability:
                return self._first_by_reliability([each for equals in groups for each in equals.accounts], job, chances)
        for equals in groups:
            first = self._first_of_equals(equals, job, chances)
            if first is not None:
                return first
        return None

    def is_busy(self, account: AccountState, now_ns: int) -> bool:
        """Return whether at least as many jobs run on the account as the newest sync, capped, counts executors of it.

        Overdue reservations do not count as running. Source: ComputeHorde's validator.
        """
        running = running_here(account)
        if account.stream in self._facts.elsewhere:
            running += self._facts.running_elsewhere(account, now_ns)
        return self._runs_enough(account, running)

    def is_excluded(self, account: AccountState, now_ns: int) -> bool:
        """Return whether the account's miner is excluded now."""
        return self._facts.is_excluded(account.miner_ss58, now_ns)

    def lacks_collateral(self, account: AccountState) -> bool:
        """Return whether the account's miner is below the collateral that the settings require."""
        least_wei: int = self._state.chain.settings.routing("minimum_collateral_wei")
        return least_wei > 0 and self._facts.collateral_wei(account.miner_ss58) < least_wei

    def _runs_enough(self, account: AccountState, running: int) -> bool:
        settings = self._state.chain.settings
        if running < account.chain_account.offered.values[-1] and not settings.executors_max_per_class:
            return False
        return settings.respect_executor_count and running >= self._executors(account)

    def _executors(self, account: AccountState) -> int:
        """Return the executors that the newest sync counts, capped."""
        executors = account.chain_account.offered.values[-1]
        return min(executors, self._state.chain.settings.executors_max_per_class.get(account.executor_class, executors))

    def _facts_matter(self, now_ns: int) -> bool:
        """Return whether anything is recorded that may give another order than the allowance alone."""
        if self.nobody_is_unfit:
            return False
        facts, settings = self._facts, self._state.chain.settings
        return bool(
            facts.elsewhere
            or settings.routing("minimum_collateral_wei")
            or self._by_reliability
            or any(each.until_ns > now_ns for each in facts.exclusions.values())
        )

    @property
    def nobody_is_unfit(self) -> bool:
        """Whether no miner fact can matter to any job, which is quickly seen in most ledgers."""
        if self._facts.streams:
            return False
        settings = self._state.chain.settings
        if settings is not self._settings:
            self._settings = settings
            self._is_plain = not settings.routing("minimum_collateral_wei") and not self._by_reliability
        return self._is_plain

    @property
    def _by_reliability(self) -> bool:
        return self._state.chain.settings.routing_order == BY_RELIABILITY

    def _fit_groups(self, groups: Iterable[Equals], now_ns: int) -> Iterator[Equals]:
        for accounts, _ in groups:
            fit = [each for each in accounts if not self.is_excluded(each, now_ns) and not self.lacks_collateral(each)]
            if fit:
                yield Equals(fit)

    def _first_of_equals(self, equals: Equals, job: Job, chances: ChanceSums | None) -> AccountState | None:
        accounts = equals.accounts
        if len(accounts) == 1:
            if self.is_busy(accounts[0], job.now_ns):
                return None
            if chances is not None:
                chances.add_certain(accounts[0])
            return accounts[0]
        count, number = len(accounts), self._number(job)
        order = (accounts[at] for at in indexes(count, number))
        first = next((each for each in order if not self.is_busy(each, job.now_ns)), None)
        if first is not None and chances is not None:
            chances.add_draw(equals, number, self._busy(accounts, job.now_ns))
        return first

    def _busy(self, equals: list[AccountState], now_ns: int) -> Collection[int]:
        """Return the indexes of the busy accounts."""
        settings = self._state.chain.settings
        if not settings.respect_executor_count:
            return ()
        if self._facts.elsewhere or settings.executors_max_per_class or self._state.has_accounts_without_executors:
            return [at for at, each in enumerate(equals) if self.is_busy(each, now_ns)]
        # Nearly all accounts run nothing, and most others less than they could: they are not looked at closely.
        return [
            at
            for at, each in enumerate(equals)
            if each.active and len(each.active) >= each.chain_account.offered.values[-1] and self.is_busy(each, now_ns)
        ]

    # With miner facts

    def _first_by_reliability(
        self, fit: list[AccountState], job: Job, chances: ChanceSums | None
    ) -> AccountState | None:
        weights = {account: self._weight(account, job.now_ns) for account in fit}
        order = drawn(list(weights), list(weights.values()), self._number(job))
        first = next((each for each in order if not self.is_busy(each, job.now_ns)), None)
        if first is not None and chances is not None:
            idle = [account for account in fit if not self.is_busy(account, job.now_ns)]
            chances.add_weighted(idle, [weights[account] for account in idle])
        return first

    def _weight(self, account: AccountState, now_ns: int) -> int:
        settings = self._state.chain.settings
        window_ns: int = settings.routing("reliability_window_ns")
        incidents = self._facts.incidents_between(account.stream, now_ns - window_ns, now_ns)
        return weight_of(incidents, self._executors(account), settings)

    def _count_without_facts(self, groups: Iterable[Equals], job: Job) -> None:
        """Count the chances that the accounts would have had if no miner fact were recorded."""
        chances, number = self._fairness.without_facts, self._number(job)
        by_reliability = self._by_reliability
        if by_reliability:
            groups = [Equals([account for equals in groups for account in equals.accounts])]
        for accounts, _ in groups:
            busy = {at for at, each in enumerate(accounts) if self._runs_enough(each, running_here(each))}
            if len(busy) == len(accounts):
                continue
            if by_reliability:
                idle = [each for at, each in enumerate(accounts) if at not in busy]
                chances.add_weighted(idle, [1] * len(idle))
            elif len(accounts) == 1:
                chances.add_certain(accounts[0])
            else:
                # Not the level's own sums: those are of draws that no miner fact had an influence on.
                chances.add_draw(Equals(accounts), number, busy)
            return

    def _number(self, job: Job) -> int:
        """Return the number of the tie-break, from the uuid, and the newest block's hash if the settings say so."""
        chain = self._state.chain
        is_hashed = chain.settings.tie_break == UUID_AND_HASH
        return tie_break_number(job.job_uuid, chain.blocks.block_hash(chain.blocks.newest) if is_hashed else b"")


def running_here(account: AccountState) -> int:
    """Return how many jobs of this ledger run on the account."""
    return len(account.active) - len(account.overdue)
