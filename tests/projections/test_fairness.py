"""The report of fairness: exact chances, origins, what flags, and how evenly miners were used."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ledger import RecordedSettings
from ledger.events import AllowanceReserved, ReservationReleased, ReservationSpent, account_stream
from ledger.settings import BY_RELIABILITY
from projections import Rule
from projections.audit.chance_sums import ChanceSums
from projections.audit.fairness import _is_flagged
from projections.audit.ranking import Equals
from projections.audit.state import AccountState, AuditState
from projections.audit.tie_break import indexes
from routing import Allowance, Routing
from tests.projections.test_audit_miner_facts import BY_RELIABILITY as RELIABILITY_SETTINGS
from tests.projections.test_audit_miner_facts import SEED, FactStory
from tests.projections.test_audit_mutants import MUTANT_SETTINGS, BusyStory
from tests.support.fault_cases.miner_facts import elsewhere, incident, job_drawn, steps_to_bert
from tests.support.fault_cases.routes import first_index, job_that_tries_first
from tests.support.log_builder import ANNA, BERT, CARL, GPU, MINERS, LogBuilder, audited
from tests.support.small import VALIDATOR, Clock, job, small_ledger


def accounts(count: int) -> list[AccountState]:
    state = AuditState()
    return [state.account(account_stream(f"5Miner{number:02}", GPU)) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "busy"), [(2, ()), (4, (1,)), (5, (0, 1, 3)), (6, (2, 5)), (7, (0, 1, 2, 3, 4, 5)), (12, (3, 4))]
)
def test_chances_are_those_of_the_draws(count: int, busy: tuple[int, ...]) -> None:
    """Over all starts and steps of the tie-break, each candidate wins exactly as often as its chances add up to.

    Catches 1/k among those that are not busy: of four with one busy, that would be wrong by an eighth.
    """
    equals, sums, wins = accounts(count), ChanceSums(), Counter[AccountState]()
    for number in range(count * count):
        sums.add_draw(Equals(equals), number, busy)
        wins[next(equals[at] for at in indexes(count, number) if at not in busy)] += 1
    for at, account in enumerate(equals):
        chances = sums.of(account)
        assert chances.wins == pytest.approx(wins[account])
        assert chances.draws == (0 if at in busy else count * count)
        assert 0 <= chances.variance <= chances.wins or chances.variance == pytest.approx(0)


def test_chances_in_a_weighted_draw_are_the_shares_of_those_that_are_not_busy() -> None:
    """Skipping the busy ones of a draw without replacement leaves the others their weights."""
    one, two, only = accounts(3)
    sums = ChanceSums()
    sums.add_weighted([one, two], [3, 1])
    sums.add_weighted([only], [7])
    assert [sums.of(each).wins for each in (one, two, only)] == [0.75, 0.25, 1.0]
    assert [sums.of(each).variance for each in (one, two, only)] == [0.1875, 0.1875, 0.0]
    assert [sums.of(each).draws for each in (one, two, only)] == [1, 1, 0]


@pytest.mark.parametrize(
    ("difference", "variance", "flagged"),
    [
        (49.9, 100.0, False),
        (50.0, 100.0, True),
        (-60.0, 100.0, False),
        (1.0, 0.004, False),
        (5.0, 1.0, False),
        (9.0, 1.0, True),
    ],
)
def test_flags_begin_at_five_standard_deviations(difference: float, variance: float, flagged: bool) -> None:
    """One rare win is no flag, however many standard deviations it is: chance would flag every second miner."""
    assert _is_flagged(difference, variance) is flagged


def log_of_all_origins() -> LogBuilder:
    """Three equal miners: a route, a route that was chosen earlier, two reservations by hand, and an imported one."""
    log = LogBuilder()
    log.settle(log.route(job_that_tries_first(0, of=3), ANNA, 6, (1, 1)), ReservationReleased)
    chosen_at = log.position
    log.reserve(ANNA, 6, (1, 1))
    log.route(job_that_tries_first(1, of=3), BERT, 6, (1, 1), chosen_at=chosen_at)
    log.reserve(CARL, 6, (1, 1), columns={"job_uuid": "by hand", "attempt": 1})
    log.reserve(CARL, 1000, (3, 4), expires_at_ns=1, imported=True, reserved_at_ns=1)
    return log


async def test_origins_are_counted_and_only_a_strict_audit_minds(tmp_path: Path) -> None:
    """An imported reservation may have any due time, amount and granted blocks; a strict audit names each origin."""
    log = log_of_all_origins()
    report = await audited(tmp_path, log.rows)
    assert report.findings == []
    assert report.fairness is not None
    counts = {each.miner_ss58: (each.routed, each.kept, each.by_hand, each.imported) for each in report.fairness.miners}
    assert counts == {ANNA: (1, 0, 1, 0), BERT: (0, 1, 0, 0), CARL: (0, 0, 1, 1)}
    assert {each.miner_ss58: each.wins for each in report.fairness.miners} == {ANNA: 1, BERT: 1, CARL: 0}
    assert [each.expected_wins for each in report.fairness.miners] == pytest.approx([2 / 3] * 3)


@pytest.mark.parametrize("by_hand", [True, False])
async def test_a_strict_audit_requires_that_choices_are_proved(by_hand: bool) -> None:
    """A reservation by hand is a finding of it, at its position; a route is none."""
    async with small_ledger() as ledger:
        await Routing(ledger).pick_miner_for_job_request(job("routed"))
        if by_hand:
            await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="by hand")
        position = (await ledger.head()).position
        report = await ledger.audit(strict=True)
        found = [(each.position, each.rule, each.details["origin"]) for each in report.findings]
        assert found == ([(position, Rule.CHOICE_PROVED.value, "by_hand")] if by_hand else [])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"blocks": [(11, 11)]}, Rule.BLOCKS_GRANTED),
        ({"blocks": [(5, 5), (2, 2)]}, Rule.BLOCKS_ASCENDING),
        ({"blocks": [(1, 1)]}, Rule.BLOCKS_TAKEN_ONCE),
        ({"amount_ns": 0}, Rule.AMOUNT_LIMITS),
        ({"axon": ("192.0.2.7", 4, 8002)}, Rule.ROUTING_DECISION),
        ({"chosen_at": 1}, Rule.CHOSEN_AT),
        ({"reserved_at_ns": None}, Rule.DECISION_CLOCK),
    ],
)
async def test_an_imported_reservation_takes_granted_blocks_that_are_free(
    tmp_path: Path, change: dict[str, object], rule: Rule
) -> None:
    """The other rules of claims are those of the system that made it."""
    log = LogBuilder()
    log.reserve(CARL, 6, (1, 1))
    event = AllowanceReserved(1, [(5, 6)], 11, log.now_ns, imported=True, reserved_at_ns=1)
    log.append(account_stream(CARL, GPU), msgspec.structs.replace(event, **change), job_uuid="job", attempt=1)
    report = await audited(tmp_path, log.rows)
    assert {each.rule for each in report.findings} - {Rule.CONSERVATION.value} == {rule.value}
    assert ("axon" not in change) or "axon of a route" in report.findings[0].message


async def test_chances_by_reliability_follow_the_weights(tmp_path: Path) -> None:
    """Anna has hardly a chance; without the incidents she would have had a third."""
    log = LogBuilder(RecordedSettings(routing_order=BY_RELIABILITY))
    for number in range(200):
        incident(log, ANNA, f"failed-{number}")
    weights = {ANNA: 1_000, BERT: 993_307_149, CARL: 993_307_149}
    log.settle(log.route(job_drawn(BERT, weights), BERT, 6, (1, 1)), ReservationSpent)
    report = await audited(tmp_path, log.rows)
    assert report.findings == []
    assert report.fairness is not None
    expected = [each.expected_wins for each in report.fairness.miners]
    assert expected == pytest.approx([weights[miner] / sum(weights.values()) for miner in (ANNA, BERT, CARL)])
    assert [each.expected_without_facts for each in report.fairness.miners] == pytest.approx([1 / 3] * 3)
    assert [each.incidents for each in report.fairness.miners] == [200, 0, 0]


async def test_a_busy_candidate_leaves_its_chance_to_the_one_that_is_tried_after_it(tmp_path: Path) -> None:
    """Anna is busy with a job of another validator; without that job each of the three would have a third."""
    log = LogBuilder(offers=dict.fromkeys(MINERS, 1))
    elsewhere(log, ANNA, "theirs")
    job_uuid = next(each for each in map(str, range(99)) if first_index(each, 3) == 0 and steps_to_bert(each))
    log.route(job_uuid, BERT, 6, (1, 1))
    report = await audited(tmp_path, log.rows)
    assert report.findings == []
    assert report.fairness is not None
    assert [each.expected_wins for each in report.fairness.miners] == pytest.approx([0, 2 / 3, 1 / 3])
    assert [each.draws for each in report.fairness.miners] == [0, 1, 1]
    assert [each.expected_without_facts for each in report.fairness.miners] == pytest.approx([1 / 3] * 3)


async def test_a_job_that_is_routed_again_was_given_up_by_the_miner_before(tmp_path: Path) -> None:
    """A release alone gives nothing up: the job may have ended otherwise."""
    log = LogBuilder(offers={BERT: 2})
    log.settle(log.route("job", BERT, 6, (1, 1)), ReservationReleased)
    log.settle(log.route("job", BERT, 6, (1, 1), attempt=2), ReservationReleased)
    report = await audited(tmp_path, log.rows)
    assert report.fairness is not None
    assert {each.miner_ss58: each.given_up for each in report.fairness.miners}[BERT] == 1


@pytest.mark.parametrize(
    ("story", "settings"),
    [
        (BusyStory, MUTANT_SETTINGS),
        (FactStory, replace(MUTANT_SETTINGS, minimum_collateral_wei=0)),
        (FactStory, RELIABILITY_SETTINGS),
    ],
    ids=["plain", "facts", "reliability"],
)
async def test_all_chances_add_up_to_all_wins(story: type[BusyStory], settings: object) -> None:
    """In any honest log, with busy miners, corrections of ranks, and claims that were chosen earlier."""
    clock = Clock()
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=settings, clock_ns=clock) as ledger:  # type: ignore[arg-type]
        await story(ledger, clock, SEED).goes_on(250)
        report = await ledger.audit()
    assert report.findings == []
    assert report.fairness is not None
    miners = report.fairness.miners
    wins = sum(each.wins for each in miners)
    assert wins == sum(each.routed + each.kept for each in miners) >= 30
    assert sum(each.expected_wins for each in miners) == pytest.approx(wins)
    assert sum(each.expected_without_facts for each in miners) == pytest.approx(wins)
    for each in miners:
        assert abs(each.deviations) < 4
    assert msgspec.json.decode(msgspec.json.encode(report.fairness), type=type(report.fairness)) == report.fairness


async def test_the_history_shows_and_filters_by_origin(any_url: str) -> None:
    """Through pages of one item, on both engines, with the newest first and the oldest first."""
    async with small_ledger(url=any_url) as ledger:
        router = Routing(ledger)
        for number in range(3):
            await router.pick_miner_for_job_request(job(f"routed-{number}", 1.0))
            await ledger.reserve("5Anna", GPU, 1.0, 11, job_uuid=f"by hand-{number}")
        page = await ledger.history(newest_first=False)
        assert page.origins == ["routed", "by_hand"] * 3
        for newest_first in (True, False):
            found, after = [], None
            while True:
                page = await ledger.history(origin="by_hand", limit=1, after=after, newest_first=newest_first)
                found += [(each.job_uuid, origin) for each, origin in zip(page.items, page.origins, strict=True)]
                after = page.next
                if after is None:
                    break
            jobs = [(f"by hand-{number}", "by_hand") for number in range(3)]
            assert found == (jobs[::-1] if newest_first else jobs)
        assert (await ledger.history(origin="kept")).items == []
        assert (await ledger.history(origin="routed", job_uuid="by hand-1")).items == []
        assert len((await ledger.history(origin="by_hand", job_uuid="by hand-1")).items) == 1
