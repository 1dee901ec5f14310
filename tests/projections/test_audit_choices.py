"""The audit repeats the choices that claims name: races of many picks, pages read ahead, seals, older releases.

`RacingPicks` decides picks as several processes would: each is decided at some position, reverted because the log has
moved, and decided again later. `AUDIT_SEED` sets the first seed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ledger import (
    BlockFact,
    ChangeSettings,
    ExpireDue,
    FactValidator,
    LookupResult,
    ManifestsFact,
    RecordFacts,
    RecordSettings,
    Reserve,
    Row,
    Settings,
    Settle,
    UnitOfWork,
)
from ledger.errors import AllowanceException, JobRoutingException
from ledger.events import ReservationReleased
from ledger.settings import RecordedSettings
from projections import Availability, Rule
from projections.audit import read_ahead
from projections.audit.run import LogAudit
from routing import Allowance, AuditReport
from routing.choice import Choice
from routing.pick import Pick
from tests.support import logs
from tests.support.fault_cases.choices import (
    ANNAS_JOB,
    CHOSEN_AT,
    with_a_claim_after_the_choice,
    with_a_claim_that_names_its_choice,
)
from tests.support.fault_cases.seals import seal
from tests.support.log_builder import ANNA, BERT, LogBuilder, audited, stored
from tests.support.log_builder import VALIDATOR as BUILT_VALIDATOR
from tests.support.small import START, VALIDATOR, Clock, miner
from tests.support.stories import CLASSES, seed_shown

SEED = int(os.environ.get("AUDIT_SEED", "1"))
MINERS = tuple(f"5Miner{number}" for number in range(6))
SETTINGS = Settings(block_expiry_blocks=40, reservation_margin_seconds=20, longest_job_seconds=600)
Patch = pytest.MonkeyPatch


class RacingPicks:
    """A log that grows while picks wait for their claim to be decided again."""

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.clock = Clock(START + timedelta(seconds=12 * 9))
        self.state = Availability()
        self.rows: list[Row] = []
        self.pending: list[Pick] = []
        self.made: list[int] = []
        self.jobs = 0
        self.number = 0
        self.facts = FactValidator()
        self.commit(RecordSettings(VALIDATOR, SETTINGS.to_recorded()))
        self.a_sync()
        for _ in range(9):
            self.next_block()

    def goes_on(self, steps: int) -> None:
        kinds: dict[Callable[[], object], int] = {
            self.picks_are_decided: 30,
            self.a_pick_is_decided_again: 60,
            self.a_reservation: 40,
            self.a_settlement: 70,
            self.next_block: 4,
            self.a_sync: 1,
            self.other_settings: 1,
            self.expiries: 2,
        }
        for step in self.draw.choices(list(kinds), list(kinds.values()), k=steps):
            self.clock.advance(self.draw.choice([0, 0, 0, 0.001, 0.5, 0.5, 4]))
            if self.draw.random() < 0.01:
                self.clock.advance(-self.draw.choice([0.5, 30]))
            step()

    def commit(self, *commands: Any) -> list[Any]:
        """Decide the commands as one batch, and append its rows to the log."""
        unit_of_work, results = self.decided(commands)
        self.rows += unit_of_work.rows
        return results

    def decided(self, commands: Any) -> tuple[UnitOfWork, list[Any]]:
        unit_of_work, results = UnitOfWork(self.state, LookupResult(), self.clock()), []
        for command in commands:
            try:
                results.append(command.decide(unit_of_work))
            except (AllowanceException, JobRoutingException) as refused:
                results.append(refused)
        return unit_of_work, results

    def picks_are_decided(self) -> None:
        """Picks of one batch are decided here, and lose the race for the head."""
        batch = []
        for _ in range(self.draw.choice([1, 1, 2, 4])):
            self.jobs += 1
            amount_ns = self.draw.choice([1, 5, 30]) * 10**9
            batch.append(Pick(f"job-{self.jobs}", self.draw.choice(CLASSES), amount_ns))
        self.decided(batch)[0].revert()
        self.pending += batch

    def a_pick_is_decided_again(self) -> None:
        """It is decided where the log is now; sometimes it loses that race as well."""
        if not self.pending:
            return
        # Mostly one of the newest, whose choice is still recent.
        pick = self.pending.pop(max(self.draw.randrange(len(self.pending)), len(self.pending) - 3))
        if self.draw.random() < 0.3:
            self.decided([pick])[0].revert()
            self.pending.append(pick)
            return
        (route,) = self.commit(pick)
        if not isinstance(route, Exception):
            self.made.append(route.allowance_reservation_id)

    def a_reservation(self) -> None:
        amount_ns = self.draw.choice([1, 5, 30]) * 10**9
        account = self.draw.choice(MINERS), self.draw.choice(CLASSES)
        (reserved,) = self.commit(Reserve(*account, amount_ns, self.number, None, None))
        if not isinstance(reserved, Exception):
            self.made.append(reserved.reservation_id)

    def a_settlement(self) -> None:
        if self.made:
            reservation_id = self.made.pop(self.draw.randrange(len(self.made)))
            self.commit(Settle(reservation_id, self.draw.choice(["spend", "release", "release"]), None))

    def expiries(self) -> None:
        self.commit(ExpireDue())

    def next_block(self) -> None:
        self.number += self.draw.choice([1, 1, 1, 2])
        away = self.draw.choice([None, None, None, *MINERS])
        at = START + timedelta(seconds=12 * self.number)
        registered = [miner(hotkey) for hotkey in MINERS if hotkey != away]
        self._record(BlockFact(self.number, at, registered, {VALIDATOR: 1.0}))

    def a_sync(self) -> None:
        offers = {hotkey: {name: self.draw.choice([2, 3, 4]) for name in CLASSES} for hotkey in MINERS}
        self._record(ManifestsFact(self.number + 1, offers))

    def other_settings(self) -> None:
        self.commit(ChangeSettings({"respect_executor_count": self.draw.random() < 0.8}))

    def _record(self, fact: BlockFact | ManifestsFact) -> None:
        self.commit(RecordFacts(self.facts.contents([fact])[0], confirm=True))


async def audited_race(directory: Path, seed: int, steps: int = 2500) -> tuple[AuditReport, int]:
    """Let picks race; return the audit's report of their log, and how many claims name their choice."""
    race = RacingPicks(seed)
    race.goes_on(steps)
    url = await stored(directory, race.rows)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        return await ledger.audit(), sum(b'"chosen_at":' in row.payload for row in race.rows)


# Honest logs


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
async def test_racing_picks_leave_an_honest_log(tmp_path: Path, seed: int) -> None:
    """Whatever a pick keeps, the audit can repeat: clocks, blocks, batches, overdue reservations and busy miners.

    Catches a pick that keeps a choice which the log does not explain; the mutants below show which.
    """
    with seed_shown(seed):
        report, named = await audited_race(tmp_path, seed)
        assert report.findings == []
        assert report.unproved_choices == 0
        assert named > 10
        assert report.position > 1000


MUTANTS: dict[str, tuple[Rule, Callable[[Patch], None]]] = {}


def mutant(rule: Rule) -> Callable[[Callable[[Patch], None]], None]:
    """Collect a mutation of the pick's choice, with a rule under which the audit must find it."""

    def collect(mutation: Callable[[Patch], None]) -> None:
        MUTANTS[mutation.__name__] = rule, mutation

    return collect


def with_choices(patch: Patch, **fields: Any) -> None:
    """Let every choice have these fields."""
    made = Choice.made
    patch.setattr(Choice, "made", lambda *arguments: made(*arguments)._replace(**fields))


@mutant(Rule.ROUTING_DECISION)
def keeps_a_choice_after_a_reservation_became_due(patch: Patch) -> None:
    with_choices(patch, next_due_ns=2**63)


@mutant(Rule.CHOSEN_AT)
def keeps_a_choice_over_any_number_of_blocks(patch: Patch) -> None:
    class AnyBlock(int):
        def __le__(self, other: object) -> bool:
            return True

        def __add__(self, other: int) -> int:
            return 2**62

    with_choices(patch, newest_block=AnyBlock())


@mutant(Rule.ROUTING_DECISION)
def names_a_position_whose_state_it_did_not_see(patch: Patch) -> None:
    patch.setattr(Choice, "position", property(lambda choice: choice.batch.head.position))


@mutant(Rule.ROUTING_DECISION)
def does_not_name_the_position(patch: Patch) -> None:
    reserve = UnitOfWork.reserve

    def without_choice(*arguments: Any, **named: Any) -> Any:
        return reserve(*arguments, **{**named, "chosen_at": None})

    patch.setattr(UnitOfWork, "reserve", without_choice)


@mutant(Rule.CHOSEN_QUALIFIES)
def keeps_a_miner_that_is_busy_by_now(patch: Patch) -> None:
    patch.setattr("routing.choice.is_busy", lambda *_: False)


@pytest.mark.parametrize("name", MUTANTS)
async def test_a_pick_that_keeps_too_much_is_found(tmp_path: Path, patch: Patch, name: str) -> None:
    """The audit reports the rule that the mutation breaks; it may report others as well."""
    rule, mutation = MUTANTS[name]
    mutation(patch)
    found: Counter[str] = Counter()
    for seed in range(SEED, SEED + 3):
        found.update((await audited_race(tmp_path, seed))[0].findings_by_rule)
    assert found[rule.value]


@pytest.fixture
def patch(monkeypatch: Patch) -> Patch:
    return monkeypatch


async def test_a_claim_that_names_its_choice_is_proved(tmp_path: Path) -> None:
    """Its miner came first at the position that it names, and not at the claim."""
    report = await audited(tmp_path, with_a_claim_that_names_its_choice().rows)
    assert (report.findings, report.unproved_choices) == ([], 0)


async def test_an_audit_until_any_position_repeats_the_choices_up_to_there(tmp_path: Path) -> None:
    """Also between the choice and its claim, and with events after the last position that it may read."""
    log = with_a_claim_that_names_its_choice()
    log.route(f"{ANNAS_JOB} more", BERT, 6, (1, 1))
    for until in range(CHOSEN_AT - 1, log.position + 1):
        report = await audited(tmp_path, log.rows, until_position=until)
        whole = await audited(tmp_path, log.rows[:until])
        assert (report.position, report.findings) == (until, whole.findings)
        assert [each for each in report.findings if each.position <= CHOSEN_AT + 2] == []


# Older releases


async def test_kept_claims_of_earlier_releases_are_counted_and_no_finding(tmp_path: Path) -> None:
    """They name no position, so nobody can repeat their choice; their claim is checked as ever.

    Catches an audit that says nothing about them: with such a log, an operator could give every job to the last miner.
    """
    log = with_a_claim_after_the_choice()
    log.route("job", ANNA, 6, (2, 2), kept=True)
    log.route("job 2", ANNA, 6, (3, 3), kept=True)
    report = await audited(tmp_path, log.rows)
    assert (report.findings, report.unproved_choices) == ([], 2)


async def test_a_kept_claim_in_a_ledger_of_this_release_is_a_finding(tmp_path: Path) -> None:
    """Its settings have a tie-break that no earlier release records, so no earlier release can have kept the miner.

    Catches a log of this release that gives every job to one miner by the mark of earlier ones. Without block hashes
    and without a `chosen_at`, nothing else in it tells its release.
    """
    log = LogBuilder(RecordedSettings(respect_executor_count=False, tie_break="uuid_and_hash"))
    log.reserve(ANNA, 6, (1, 1))
    log.route("job", ANNA, 6, (2, 2), kept=True)
    report = await audited(tmp_path, log.rows)
    assert [each.rule for each in report.findings] == [Rule.CHOSEN_AT]


# Reading ahead


async def test_a_choice_several_pages_before_its_claim_is_repeated(tmp_path: Path) -> None:
    """Reading ahead reaches beyond the next page; a fault case has the limit of 10,000 events.

    Catches a reach of one page: the choice could not be repeated.
    """
    log = with_a_claim_after_the_choice()
    while log.position < CHOSEN_AT + 4_500:
        log.settle(log.reserve(BERT, 6, (1, 1)), ReservationReleased)
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)
    report = await audited(tmp_path, log.rows)
    assert (report.findings, report.unproved_choices) == ([], 0)


async def test_large_pages_are_read_again_instead_of_kept(tmp_path: Path, patch: Patch) -> None:
    """The report is the same, and no page is read more than twice; without the limit, none is read twice.

    Catches pages that fill the memory, and a page that is replayed twice or left out.
    """
    race = RacingPicks(SEED)
    race.goes_on(3000)
    url = await stored(tmp_path, race.rows)
    reads: Counter[Any] = Counter()
    read = LogAudit._read

    async def noted(audit: LogAudit, after: Any) -> list[Row]:
        reads[after] += 1
        return await read(audit, after)

    patch.setattr(LogAudit, "_read", noted)
    found, most = [], []
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        for bytes_kept in (read_ahead.MOST_BYTES, 1):
            patch.setattr(read_ahead, "MOST_BYTES", bytes_kept)
            reads.clear()
            report = await ledger.audit()
            found.append((report.findings, report.position, report.head_hash, report.unproved_choices))
            most.append(max(reads.values()))
    assert found[0] == found[1]
    assert (found[0][0], most) == ([], [1, 2])


async def test_a_large_claim_is_repeated_without_keeping_it(tmp_path: Path, patch: Patch) -> None:
    """A claim whose payload is not kept in memory has the same result."""
    patch.setattr(read_ahead, "LARGE_BYTES", 0)
    report = await audited(tmp_path, with_a_claim_that_names_its_choice().rows)
    assert (report.findings, report.unproved_choices) == ([], 0)


# Seals


@pytest.mark.parametrize(("sealed_at", "unproved"), [(12, 0), (13, 0), (14, 1)])
async def test_a_choice_before_the_seal_is_counted_as_unproved(url: str, sealed_at: int, unproved: int) -> None:
    """The state at the seal itself is known, so a choice there is repeated; one before it cannot be.

    Catches a finding for such a claim, and one that counts as proved.
    """
    log = with_a_claim_after_the_choice()
    seal(log, sealed_at)
    log.route(ANNAS_JOB, ANNA, 6, (2, 2), chosen_at=CHOSEN_AT)
    async with logs.opened(url, BUILT_VALIDATOR) as store:
        await logs.append(store, log.rows)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        report = await ledger.audit(from_seal=sealed_at)
        assert (report.findings, report.unproved_choices) == ([], unproved)
        assert any("choice of a miner" in each for each in report.not_proved)
        assert (await ledger.audit()).unproved_choices == 0


async def test_a_wrong_choice_at_the_seal_is_found(url: str) -> None:
    """The choice at the start of the replay is repeated like any other."""
    log: LogBuilder = with_a_claim_after_the_choice()
    seal(log, CHOSEN_AT)
    log.route(ANNAS_JOB, BERT, 6, (1, 1), chosen_at=CHOSEN_AT)
    async with logs.opened(url, BUILT_VALIDATOR) as store:
        await logs.append(store, log.rows)
    async with Allowance.open(url, validator_ss58=BUILT_VALIDATOR, read_only=True) as ledger:
        report = await ledger.audit(from_seal=CHOSEN_AT)
    assert [each.rule for each in report.findings] == [Rule.ROUTING_DECISION.value]
