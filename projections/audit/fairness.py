"""Who was favoured: for each miner and class the jobs that it won, against those that the draws should have given it.

Rules, this project's own. The difference is given in standard deviations, and flagged from 5 on: if only chance
decided, that happens to one miner in 3 million. A flag is a question to the operator, no broken rule. Where few draws
were made, one rare win is many standard deviations, so a flag also needs a probability of at most 1 in 10,000 by
Freedman's inequality, which holds for few draws too.
"""

from __future__ import annotations

from collections import Counter
from math import log, sqrt

import msgspec

from ledger.results import Result
from ledger.values import seconds
from projections.inequality import gini_coefficient, jain_index

from .state import AccountState, AuditState
from .tallies import FairnessTally
from .totals import AccountTotals

FLAGGED_FROM = 5.0
"""Standard deviations."""
LEAST_BOUND = log(10_000)
"""What the exponent of Freedman's bound must be at least: the probability is then at most 1 in 10,000."""
LEAST_VARIANCE = 0.01
"""So that a win that should have been impossible is a finite number of standard deviations."""
MOST_RETURNS = 5
"""So many returns to earlier settings are flagged."""


class MinerFairness(Result, msgspec.Struct, frozen=True):
    """What one miner got in one executor class.

    `routed`, `kept`, `by_hand` and `imported` count the reservations by origin. `wins` is the number of jobs whose
    choice of the miner was repeated, `draws` that of the draws among two or more in which it was a candidate and not
    busy, `expected_wins` what chance should have given it, `deviations` the difference in standard deviations.
    `expected_without_facts` and `deviations_by_facts` compare the same wins with the chances that the miner would have
    had without exclusions, collateral, jobs elsewhere and incidents. `given_up` counts the wins that ended unspent and
    whose job was then routed again. `exclusions`, `excluded_seconds` and `incidents` are those of the miner and class;
    an exclusion is of all classes. `flags` names what is flagged: `draws`, `facts`, `given up`, `by hand`.
    """

    miner_ss58: str
    executor_class: str
    routed: int
    kept: int
    by_hand: int
    imported: int
    wins: int
    draws: int
    expected_wins: float
    deviations: float
    expected_without_facts: float
    deviations_by_facts: float
    given_up: int
    exclusions: int
    excluded_seconds: float
    incidents: int
    granted_seconds: float
    used_seconds: float
    flags: list[str]


class ClassFairness(Result, msgspec.Struct, frozen=True):
    """How evenly the miners of a class were used, by the share of its granted allowance that each miner's jobs used.

    `jain` is Jain's index: 1 if all shares are equal, 1/n if one of n miners has everything. `gini` is the Gini
    coefficient: 0 if all are equal, near 1 if one has everything.
    """

    executor_class: str
    miners: int
    granted_seconds: float
    used_seconds: float
    jain: float
    gini: float


class FairnessReport(Result, msgspec.Struct, frozen=True):
    """Who was favoured; `flags` has what is flagged of the whole ledger, in words."""

    miners: list[MinerFairness]
    classes: list[ClassFairness]
    flags: list[str]

    @property
    def flagged(self) -> list[MinerFairness]:
        """The miners with a flag."""
        return [each for each in self.miners if each.flags]


def fairness_of(
    state: AuditState, tally: FairnessTally, totals: list[AccountTotals], incidents: Counter[str]
) -> FairnessReport:
    """Return the report at the end of a replay; `incidents` counts those of each account's stream."""
    by_class: dict[str, list[AccountTotals]] = {}
    for each in totals:
        by_class.setdefault(each.executor_class, []).append(each)
    miners = [each for of_class in by_class.values() for each in _Miners(state, tally, of_class, incidents).rows()]
    miners.sort(key=lambda each: (each.miner_ss58, each.executor_class))
    return FairnessReport(miners, [_class_fairness(by_class[name]) for name in sorted(by_class)], _flags(tally))


class _Miners:
    """The miners of one class."""

    def __init__(
        self, state: AuditState, tally: FairnessTally, totals: list[AccountTotals], incidents: Counter[str]
    ) -> None:
        self._tally = tally
        self._incidents = incidents
        self._accounts = {state.account(f"{each.miner_ss58}\t{each.executor_class}"): each for each in totals}
        self._granted = sum(each.granted_seconds for each in totals)
        self._by_hand = sum(tally.origins[account, "by_hand"] for account in self._accounts)
        wins, given_up = (sum(map(counts.__getitem__, self._accounts)) for counts in (tally.wins, tally.given_up))
        self._given_up_rate = given_up / wins if wins else 0.0

    def rows(self) -> list[MinerFairness]:
        """Return a row for each miner."""
        return [self._row(account, each) for account, each in self._accounts.items()]

    def _row(self, account: AccountState, totals: AccountTotals) -> MinerFairness:
        tally = self._tally
        plain, facts, without = (sums.of(account) for sums in (tally.chances, tally.with_facts, tally.without_facts))
        plain += account.chances
        chances, chances_without = plain + facts, plain + without
        wins, given_up, by_hand = tally.wins[account], tally.given_up[account], tally.origins[account, "by_hand"]
        fair_given_up = wins * self._given_up_rate
        fair_by_hand = self._by_hand * totals.granted_seconds / self._granted if self._granted else 0.0
        flags = {
            "draws": _is_flagged(abs(wins - chances.wins), chances.variance),
            "facts": _is_flagged(wins - chances_without.wins, chances_without.variance),
            "given up": _is_flagged(fair_given_up - given_up, fair_given_up * (1 - self._given_up_rate)),
            "by hand": _is_flagged(by_hand - fair_by_hand, fair_by_hand),
        }
        return MinerFairness(
            account.miner_ss58,
            account.executor_class,
            tally.origins[account, "routed"],
            tally.origins[account, "kept"],
            by_hand,
            tally.origins[account, "imported"],
            wins,
            chances.draws,
            chances.wins,
            _deviations(wins - chances.wins, chances.variance),
            chances_without.wins,
            _deviations(wins - chances_without.wins, chances_without.variance),
            given_up,
            tally.exclusions[account.miner_ss58],
            seconds(tally.excluded_ns[account.miner_ss58]),
            self._incidents[account.stream],
            totals.granted_seconds,
            totals.spent_seconds + totals.held_seconds,
            [name for name, is_flagged in flags.items() if is_flagged],
        )


def _flags(tally: FairnessTally) -> list[str]:
    if tally.settings_returns < MOST_RETURNS:
        return []
    return [f"the settings returned to earlier ones {tally.settings_returns} times"]


def _deviations(difference: float, variance: float) -> float:
    return difference / sqrt(max(variance, LEAST_VARIANCE))


def _is_flagged(difference: float, variance: float) -> bool:
    """Return whether chance alone does not explain that a sum is this much above its mean."""
    bound = difference**2 / (2 * (variance + difference / 3)) if difference > 0 else 0.0
    return bound >= LEAST_BOUND and difference >= FLAGGED_FROM * sqrt(variance)


def _class_fairness(totals: list[AccountTotals]) -> ClassFairness:
    used = [(each.spent_seconds + each.held_seconds, each.granted_seconds) for each in totals]
    shares = [spent / granted for spent, granted in used if granted]
    return ClassFairness(
        totals[0].executor_class,
        len(shares),
        sum(granted for _, granted in used),
        sum(spent for spent, _ in used),
        jain_index(shares),
        gini_coefficient(shares),
    )
