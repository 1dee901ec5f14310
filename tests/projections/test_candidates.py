"""Candidates: excluded miners and those below the collateral are none, busy ones are; times count to the nanosecond."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ledger import RecordedSettings
from ledger.events import (
    COLLATERAL_STREAM,
    EXCLUSIONS_STREAM,
    INCIDENTS_STREAM,
    CollateralRecorded,
    IncidentReported,
    JobElsewhereRecorded,
    MinerExcluded,
    MinerReadmitted,
    account_stream,
    elsewhere_stream,
)
from ledger.settings import BY_RELIABILITY
from projections import Availability, in_order_of_trial
from projections.tie_break import in_trial_order
from tests.support.log_builder import ANNA, BERT, CARL, GPU, MINERS, SECOND_NS, LogBuilder

AMOUNT_NS = 6 * SECOND_NS
BY_DRAW = RecordedSettings(routing_order=BY_RELIABILITY)


class Facts:
    """A log of the three equal miners with miner facts, and the candidates that it leads to."""

    def __init__(self, settings: RecordedSettings | None = None, offers: Mapping[str, int] | None = None) -> None:
        self.log = LogBuilder(settings, offers=offers)
        self.now_ns = self.log.now_ns
        self.state = Availability()
        self._folded = 0

    def tried(self, now_ns: int | None = None, uuid: str = "job") -> dict[str, bool]:
        """Return the candidates in the order of trial, and whether each is busy. The state is kept, as in a router."""
        self.state.fold(self.log.rows[self._folded :])
        self._folded = len(self.log.rows)
        entries = in_order_of_trial(self.state, GPU, AMOUNT_NS, uuid, self.now_ns if now_ns is None else now_ns)
        return {each.hotkey_ss58: each.busy for each in entries}

    def exclude(self, miner_ss58: str, until_ns: int | None = None) -> None:
        self.log.append(EXCLUSIONS_STREAM, MinerExcluded(miner_ss58, "slow", until_ns))

    def elsewhere(self, miner_ss58: str, job_uuid: str, started_at_ns: int, ttl_ns: int) -> None:
        stream = elsewhere_stream(account_stream(miner_ss58, GPU))
        self.log.append(stream, JobElsewhereRecorded(job_uuid, started_at_ns, ttl_ns))


@pytest.mark.parametrize("settings", [None, BY_DRAW], ids=["allowance", "reliability"])
def test_an_excluded_miner_is_no_candidate_before_the_exclusion_ends(settings: RecordedSettings | None) -> None:
    """One nanosecond before its end it counts, at its end it does not; a clock that goes back makes it count again.

    Catches a ranking that notices facts, but not the time at which they end.
    """
    facts = Facts(settings)
    end_ns = facts.now_ns + 60 * SECOND_NS
    facts.exclude(ANNA, end_ns)
    for now_ns, excluded in ((facts.now_ns, True), (end_ns - 1, True), (end_ns, False), (end_ns - 1, True)):
        assert (ANNA not in facts.tried(now_ns)) is excluded
    facts.exclude(ANNA)
    assert ANNA not in facts.tried(end_ns)
    facts.log.append(EXCLUSIONS_STREAM, MinerReadmitted(ANNA, "fast again"))
    assert ANNA in facts.tried(end_ns - 1)


@pytest.mark.parametrize("uuid", [f"job-{number}" for number in range(6)])
def test_the_tie_break_is_among_the_equals_that_are_candidates(uuid: str) -> None:
    """The k of the tie-break does not count excluded miners, but counts busy ones.

    Catches an order that is drawn among all equals, from which excluded ones are left out afterwards.
    """
    facts = Facts(offers={ANNA: 1, BERT: 1, CARL: 1})
    facts.exclude(ANNA)
    facts.elsewhere(BERT, "theirs", facts.now_ns, SECOND_NS)
    assert list(facts.tried(uuid=uuid)) == list(in_trial_order([([BERT, CARL], 0, 2)], uuid, b""))


@pytest.mark.parametrize("settings", [None, BY_DRAW], ids=["allowance", "reliability"])
def test_collateral_at_the_minimum_is_enough(settings: RecordedSettings | None) -> None:
    """One wei less is not, nor is none; other settings and amounts count from their position on."""
    import msgspec

    minimum = msgspec.structs.replace(settings or RecordedSettings(), minimum_collateral_wei=10**19)
    facts = Facts(minimum)
    assert facts.tried() == {}
    facts.log.append(COLLATERAL_STREAM, CollateralRecorded({ANNA: 10**19, BERT: 10**19 - 1}))
    assert set(facts.tried()) == {ANNA}
    facts.log.append(COLLATERAL_STREAM, CollateralRecorded({ANNA: 0, BERT: 10**19}))
    assert set(facts.tried()) == {BERT}
    assert {each.hotkey_ss58: each.unfit for each in facts.state.unfit(GPU, AMOUNT_NS, facts.now_ns)} == {
        ANNA: "collateral",
        CARL: "collateral",
    }


@pytest.mark.parametrize("settings", [None, BY_DRAW], ids=["allowance", "reliability"])
def test_a_job_elsewhere_makes_a_miner_busy_while_it_runs(settings: RecordedSettings | None) -> None:
    """From its start on, and no longer at its end; then in both directions of the clock.

    Catches a ranking that is told of the event, but not of the times at which the job starts and stops.
    """
    facts = Facts(settings, offers={ANNA: 1, BERT: 2, CARL: 2})
    start_ns, end_ns = facts.now_ns + SECOND_NS, facts.now_ns + 3 * SECOND_NS
    facts.elsewhere(ANNA, "theirs", start_ns, end_ns - start_ns)
    times = ((start_ns - 1, False), (start_ns, True), (end_ns - 1, True), (end_ns, False), (start_ns, True), (0, False))
    for now_ns, busy in times:
        assert facts.tried(now_ns)[ANNA] is busy
    assert not any(facts.tried(start_ns)[each] for each in MINERS if each != ANNA)


def test_our_job_and_its_receipt_count_once() -> None:
    """A reservation and a job elsewhere with one uuid are one running job, on the same account only.

    Catches the sum of both, and a job that no longer counts at all once the reservation is overdue.
    """
    facts = Facts(offers={ANNA: 2, BERT: 1, CARL: 1})
    facts.log.route("ours", ANNA, 6, (1, 1))
    facts.elsewhere(ANNA, "ours", facts.now_ns, 10_000 * SECOND_NS)
    assert facts.tried()[ANNA] is False
    facts.elsewhere(ANNA, "theirs", facts.now_ns, 10_000 * SECOND_NS)
    assert facts.tried()[ANNA] is True
    # Overdue: our reservation no longer counts, so the receipt of the same job does.
    overdue_ns = facts.now_ns + 1000 * SECOND_NS
    assert facts.tried(overdue_ns)[ANNA] is True


def test_incidents_lower_the_weight_while_they_are_in_the_window() -> None:
    """An incident counts at its own time, and no longer a window after it; of another class it never does.

    With a hundred incidents a miner of three equals is hardly ever first. Catches a window that ignores the clock, and
    one whose ends are the wrong way round.
    """
    facts = Facts(BY_DRAW)
    window_ns = 24 * 3600 * SECOND_NS
    for executor_class, miner_ss58 in ((GPU, ANNA), ("another", BERT)):
        for number in range(200):
            event = IncidentReported(miner_ss58, executor_class, "failed", f"job-{number}")
            facts.log.append(INCIDENTS_STREAM, event)
    jobs = [f"job-{number}" for number in range(60)]

    def wins(now_ns: int) -> int:
        return sum(next(iter(facts.tried(now_ns, uuid))) == ANNA for uuid in jobs)

    for now_ns, counts in (
        (facts.now_ns, True),
        (facts.now_ns + window_ns - 1, True),
        (facts.now_ns + window_ns, False),
        (facts.now_ns - 1, False),
        (facts.now_ns, True),
    ):
        assert (wins(now_ns) == 0) is counts
