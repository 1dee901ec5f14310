"""The audit agrees with a router that knows miner facts, and finds a router that ignores them or counts them wrongly.

Each mutant breaks deciding code and leaves it broken while the audit runs, as in `test_audit_mutants.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ledger import UnitOfWork
from ledger.domain.miner_fact_commands import EndJobElsewhere, ExcludeMiner, RecordCollateral, RecordJobElsewhere
from ledger.domain.miner_facts import MinerFacts
from projections import Rule
from routing import Allowance, Settings
from tests.projections.test_audit_mutants import MUTANT_SETTINGS, BusyStory
from tests.support.small import VALIDATOR, Clock
from tests.support.stories import CLASSES, MINERS, Story, seed_shown, take_snapshot, utc

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]
MUTANTS: list[tuple[Rule, Mutation]] = []
SEED = 20
STEPS = 250
WEI = 10**18
SETTINGS = replace(MUTANT_SETTINGS, minimum_collateral_wei=WEI)
BY_RELIABILITY = replace(
    SETTINGS,
    routing_order="reliability",
    reliability_soft_cutoff=-2.0,
    reliability_window_hours=0.1,
    minimum_collateral_wei=0,
)


class FactStory(BusyStory):
    """A busy story with miner facts in between, many of them repeats."""

    async def goes_on(self, steps: int) -> None:
        """Take the steps of the other story, and a miner fact after each second one."""
        await self.ledger.record_collateral(dict.fromkeys(MINERS, WEI))
        facts = (
            (self.an_exclusion, 2),
            (self.a_readmission, 2),
            (self.new_collateral, 1),
            (self.a_job_elsewhere, 8),
            (self.an_end_elsewhere, 3),
            (self.an_incident, 4),
        )
        for _ in range(steps // 2):
            await super().goes_on(2)
            # Without moving the clock: the feed would become stale.
            for fact in self.draw.choices([each for each, _ in facts], [weight for _, weight in facts], k=3):
                await fact()

    async def an_exclusion(self) -> None:
        until = utc(self.clock.now_ns) + timedelta(seconds=self.draw.choice([5, 20, 60]))
        reason = self.draw.choice(["slow", "wrong"])
        await self.unless_refused(
            self.ledger.exclude_miner(self.draw.choice(MINERS), reason, until=self.draw.choice([until, until, None]))
        )

    async def a_readmission(self) -> None:
        await self.unless_refused(self.ledger.readmit_miner(self.draw.choice(MINERS), "well again"))

    async def new_collateral(self) -> None:
        await self.ledger.record_collateral(
            {self.draw.choice(MINERS): self.draw.choice([0, WEI - 1, WEI, WEI, WEI, 10**30])}
        )

    async def a_job_elsewhere(self) -> None:
        """Record a job elsewhere; half of them run here too, and some have ended before they are recorded."""
        started_at = utc(self.clock.now_ns) + timedelta(seconds=self.draw.choice([-20, -5, 0, 5]))
        account, job = (self.draw.choice(MINERS), self.draw.choice(CLASSES)), f"theirs-{self.draw.randrange(200)}"
        if self.made and self.draw.random() < 0.5:
            ours = await self.ledger.reservation(self.draw.choice(self.made[-3:]))
            account, job = (ours.miner_ss58, ours.executor_class), ours.job_uuid or job
        await self.unless_refused(
            self.ledger.record_job_elsewhere(*account, job, started_at, self.draw.choice([30.0, 90.0]))
        )

    async def an_end_elsewhere(self) -> None:
        await self.ledger.end_job_elsewhere(f"theirs-{self.draw.randrange(200)}")

    async def an_incident(self) -> None:
        kind = self.draw.choice(["rejected", "failed", "horde_failed"])
        job = f"job-{self.draw.randrange(self.jobs + 1)}"
        await self.unless_refused(
            self.ledger.report_incident(self.draw.choice(MINERS[:2]), self.draw.choice(CLASSES), kind, job)
        )


async def rules_broken(settings: Settings, story: type[Story] = FactStory, seed: int = SEED) -> set[str]:
    """Run a story with the deciding code as it is now, and return the rules that the audit found broken."""
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=settings, clock_ns=clock) as ledger:
            await story(ledger, clock, seed).goes_on(STEPS)
            report = await ledger.audit()
            assert report.live_state
            return {each.rule for each in report.findings}


def mutant(rule: Rule) -> Callable[[Mutation], Mutation]:
    """Collect a mutation of the deciding code, with the rule under which the audit must find it."""

    def collect(mutation: Mutation) -> Mutation:
        MUTANTS.append((rule, mutation))
        return mutation

    return collect


def wrapped(patch: Patch, owner: Any, name: str, wrap: Callable[..., Any]) -> None:
    """Replace a function by `wrap(original, *arguments)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *arguments, **named: wrap(original, *arguments, **named))


@mutant(Rule.ROUTING_EXCLUDED)
def ignores_exclusions(patch: Patch) -> None:
    patch.setattr(MinerFacts, "is_excluded", lambda *_: False)


@mutant(Rule.ROUTING_EXCLUDED)
def ends_exclusions_too_early(patch: Patch) -> None:
    wrapped(
        patch, MinerFacts, "is_excluded", lambda original, facts, miner, now_ns: original(facts, miner, now_ns + 10**10)
    )


@mutant(Rule.ROUTING_DECISION)
def ends_exclusions_too_late(patch: Patch) -> None:
    wrapped(
        patch,
        MinerFacts,
        "is_excluded",
        lambda original, facts, miner, now_ns: original(facts, miner, now_ns - 4 * 10**10),
    )


@mutant(Rule.ROUTING_COLLATERAL)
def ignores_collateral(patch: Patch) -> None:
    patch.setattr(MinerFacts, "collateral_wei", lambda *_: 10**40)


@mutant(Rule.ROUTING_DECISION)
def requires_more_than_the_collateral(patch: Patch) -> None:
    wrapped(patch, MinerFacts, "collateral_wei", lambda original, *arguments: original(*arguments) - 1)


@mutant(Rule.ROUTING_DECISION)
def ignores_jobs_elsewhere(patch: Patch) -> None:
    patch.setattr(MinerFacts, "running_elsewhere", lambda *_: 0)


@mutant(Rule.ROUTING_DECISION)
def counts_jobs_elsewhere_after_their_end(patch: Patch) -> None:
    wrapped(
        patch,
        MinerFacts,
        "running_elsewhere",
        lambda original, facts, stream, counted, now_ns: original(facts, stream, counted, now_ns - 4 * 10**10),
    )


@mutant(Rule.ROUTING_DECISION)
def counts_jobs_twice_that_run_here_and_elsewhere(patch: Patch) -> None:
    wrapped(
        patch,
        MinerFacts,
        "running_elsewhere",
        lambda original, facts, stream, counted, now_ns: original(facts, stream, (), now_ns),
    )


@mutant(Rule.LIVE_STATE)
def forgets_the_ends_of_jobs_elsewhere(patch: Patch) -> None:
    patch.setattr(MinerFacts, "end_job_elsewhere", lambda *_: "")


@mutant(Rule.MINER_FACTS_ONCE)
def records_jobs_elsewhere_again(patch: Patch) -> None:
    patch.setattr(UnitOfWork, "once", lambda *_: None)
    wrapped(
        patch,
        UnitOfWork,
        "append_once",
        lambda _, unit, stream, event, once, key: unit.append(
            stream, event, key=key, job=(once, unit.state.position + 2)
        ),
    )


@mutant(Rule.MINER_FACTS_FOLLOW)
def records_equal_exclusions_again(patch: Patch) -> None:
    def record(command: ExcludeMiner, unit_of_work: UnitOfWork) -> int:
        return unit_of_work.append("exclusions", command.event).position

    patch.setattr(ExcludeMiner, "_record", record)


@mutant(Rule.MINER_FACTS_FOLLOW)
def names_unchanged_collateral(patch: Patch) -> None:
    from ledger.events import CollateralRecorded

    def record(command: RecordCollateral, unit_of_work: UnitOfWork) -> int:
        event = CollateralRecorded(changed=dict(command.wei_by_miner), request="digest")
        return unit_of_work.append("collateral", event).position

    patch.setattr(RecordCollateral, "_record", record)


@mutant(Rule.MINER_FACTS_FOLLOW)
def lets_a_job_elsewhere_run_after_its_end(patch: Patch) -> None:
    patch.setattr("ledger.domain.miner_fact_commands.once_ended", lambda job_uuid: f"never\t{job_uuid}")
    wrapped(
        patch,
        EndJobElsewhere,
        "__init__",
        ends_under_its_real_name,
    )


def ends_under_its_real_name(original: Any, command: EndJobElsewhere, job_uuid: str, key: str | None) -> None:
    original(command, job_uuid, key)
    command.once = f"ended elsewhere\t{job_uuid}"


@mutant(Rule.STREAM_OF_EVENT)
def records_jobs_elsewhere_in_a_stream_that_no_claim_expects(patch: Patch) -> None:
    patch.setattr("ledger.domain.miner_fact_commands.elsewhere_stream", lambda account: f"others\t{account}")


@pytest.fixture
def patch() -> Iterator[Patch]:
    """A monkeypatch that is undone before the other fixtures of the test are torn down."""
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.mark.parametrize("settings", [SETTINGS, BY_RELIABILITY, replace(SETTINGS, respect_executor_count=False)])
async def test_the_unchanged_ledger_breaks_no_rule(settings: Settings) -> None:
    """A story with miner facts has no finding, and the state in memory is that of the audit."""
    assert await rules_broken(settings) == set()


@pytest.mark.parametrize(("rule", "mutation"), MUTANTS, ids=[mutation.__name__ for _, mutation in MUTANTS])
async def test_each_mutant_is_found(patch: Patch, rule: Rule, mutation: Mutation) -> None:
    """The audit reports the rule that the mutation breaks; it may report others as well."""
    mutation(patch)
    assert rule.value in await rules_broken(SETTINGS)


def forgets_incidents(patch: Patch) -> None:
    patch.setattr(MinerFacts, "incidents_within", lambda *_: 0)


def counts_incidents_of_any_age(patch: Patch) -> None:
    wrapped(
        patch,
        MinerFacts,
        "incidents_within",
        lambda original, facts, stream, after_ns, until_ns: original(facts, stream, 0, until_ns),
    )


def counts_incidents_at_the_start_of_the_window(patch: Patch) -> None:
    wrapped(
        patch,
        MinerFacts,
        "incidents_within",
        lambda original, facts, stream, after_ns, until_ns: original(facts, stream, after_ns - 10**11, until_ns),
    )


def draws_by_another_digest(patch: Patch) -> None:
    patch.setattr("projections.reliability.DRAW_BYTES", 16)
    patch.setattr("projections.draw_table.DRAW_BYTES", 16)


def draws_in_another_order(patch: Patch) -> None:
    patch.setattr("projections.ranking._hotkey", lambda account: account.miner_ss58[::-1])


def draws_without_weights(patch: Patch) -> None:
    patch.setattr("projections.ranking.weight_of", lambda *_: 1)


def orders_by_allowance(patch: Patch) -> None:
    patch.setattr("projections.candidates.BY_RELIABILITY", "never")


@pytest.mark.parametrize(
    "mutation",
    [
        forgets_incidents,
        counts_incidents_of_any_age,
        counts_incidents_at_the_start_of_the_window,
        draws_by_another_digest,
        draws_in_another_order,
        draws_without_weights,
        orders_by_allowance,
    ],
    ids=lambda mutation: mutation.__name__,
)
async def test_each_mutant_of_the_order_by_reliability_is_found(patch: Patch, mutation: Mutation) -> None:
    """A draw by another rule chooses other miners."""
    mutation(patch)
    assert Rule.ROUTING_DECISION.value in await rules_broken(BY_RELIABILITY)


async def test_an_audit_from_a_seal_takes_over_the_miner_facts() -> None:
    """The seal's digest covers them, a snapshot equals the audit's state, and the audit goes on with them."""
    clock = Clock()
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=SETTINGS, clock_ns=clock) as ledger:
        story = FactStory(ledger, clock, SEED)
        await story.goes_on(STEPS // 2)
        sealed = await take_snapshot(ledger)
        await story.goes_on(STEPS // 2)
        whole = await ledger.audit()
        assert (whole.findings, whole.seals, whole.snapshots > 0) == ([], 1, True)
        assert (await ledger.audit(from_seal=sealed)).findings == []


def test_the_mutants_break_names_that_exist() -> None:
    """A patch of a name that moved would break nothing, and its test would fail for another reason."""
    assert RecordJobElsewhere.operation == "record_job_elsewhere"
