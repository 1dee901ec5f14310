"""Twenty cheats of an operator who wants a friendly miner to get the jobs: each is found, flagged, or invisible.

Each cheat routes fewer than 1,000 jobs on a network of ten miners, most of them with means that the library offers. A
cheat that breaks a rule is a finding; one that bends chances is flagged by the report of fairness. The cheats that no
log can show are listed in the guide (`routing/guide/auditing.md`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import RecordedSettings
from ledger.events import ReservationReleased
from ledger.settings import UUID_AND_HASH
from projections import Rule, in_order_of_trial
from routing import Allowance, AuditReport, JobRoute, JobRoutingException, Miner, Routing, Settings
from tests.support import log_builder
from tests.support.fault_cases.routes import first_index
from tests.support.log_builder import ANNA, LogBuilder
from tests.support.small import GPU, START, VALIDATOR, Clock, job
from tests.support.stories import utc

MINERS = [f"5Miner{number}" for number in range(10)]
FRIEND = MINERS[3]
RIVALS = [miner_ss58 for miner_ss58 in MINERS if miner_ss58 != FRIEND]
BLOCKS = 20
GUIDE = Path(__file__).parents[2] / "routing" / "guide" / "auditing.md"

pytestmark = pytest.mark.slow


class Operator:
    """Routes jobs on a ledger of its own; a subclass cheats. All miners are equal at the start of each job."""

    settings = Settings()
    enough = 200
    """How many jobs show the cheat."""

    def __init__(self, ledger: Allowance, clock: Clock) -> None:
        self.ledger = ledger
        self.clock = clock
        self.draw = random.Random(20)
        self.number = 0
        self.jobs = 0
        self.router = Routing(ledger)

    async def start(self) -> None:
        await self.ledger.record_manifests(1, {miner_ss58: {GPU: 2} for miner_ss58 in MINERS})
        for _ in range(BLOCKS):
            await self.a_block()

    async def a_block(self, fork: str = "") -> None:
        self.number += 1
        created_at = START + timedelta(seconds=12 * self.number)
        self.clock.now_ns = max(self.clock.now_ns, int(created_at.timestamp()) * 10**9)
        await self.record(self.number, fork)

    async def record(self, number: int, fork: str) -> None:
        miners = [Miner("192.0.2.7", 4, 8000 + at, miner_ss58) for at, miner_ss58 in enumerate(MINERS)]
        block_hash = f"{random.Random(f'{number} {fork}').getrandbits(256):064x}"
        created_at = START + timedelta(seconds=12 * number)
        stakes = {VALIDATOR: 1.0, "5Other": 1.0}
        await self.ledger.record_block(number, created_at, miners, stakes, block_hash=block_hash)

    def uuid(self) -> str:
        self.jobs += 1
        return f"{self.jobs}-{self.draw.getrandbits(64):x}"

    async def route(self, uuid: str) -> JobRoute:
        return await self.router.pick_miner_for_job_request(job(uuid))

    async def run(self, jobs: int) -> None:
        """Route jobs, one in each step; give the allowance back, so that all miners stay equal."""
        await self.start()
        for _ in range(jobs):
            self.clock.advance(0.01)
            if self.jobs % 20 == 19:
                await self.a_block()
            try:
                await self.a_job()
            except JobRoutingException:
                continue

    async def a_job(self) -> None:
        """Route a job honestly. It is released at the end, which is no cheat: it is not routed again."""
        await self.finish(await self.route(self.uuid()))

    async def finish(self, route: JobRoute) -> None:
        assert route.allowance_reservation_id is not None
        await self.ledger.release(route.allowance_reservation_id)

    async def winner(self, uuid: str) -> str:
        """Return who would win a job, as anyone who knows the rule can compute."""

        def first(state: Any, now_ns: int) -> str:
            entry = next(in_order_of_trial(state, GPU, 6 * 10**9, uuid, now_ns))
            return str(entry.hotkey_ss58)

        return await self.ledger._read_state(first)


CHEATS: list[tuple[type[Operator], str]] = []
"""Each with the flag of the friend that it leads to."""


def flagged(flag: str) -> Callable[[type[Operator]], type[Operator]]:
    def collect(cheat: type[Operator]) -> type[Operator]:
        CHEATS.append((cheat, flag))
        return cheat

    return collect


@flagged("draws")
class GrindsUuids(Operator):
    """Tries four uuids for each job until the tie-break falls on the friend."""

    async def a_job(self) -> None:
        uuids = [self.uuid() for _ in range(4)]
        self.jobs -= 3
        chosen = ([uuid for uuid in uuids if await self.winner(uuid) == FRIEND] or uuids)[0]
        await self.finish(await self.route(chosen))


@flagged("draws")
class DelaysFacts(Operator):
    """Records a block late: first routes the jobs that the friend wins without it."""

    enough = 800

    async def a_job(self) -> None:
        uuid = self.uuid()
        if await self.winner(uuid) != FRIEND:
            await self.a_block()
        await self.finish(await self.route(uuid))


@flagged("draws")
class WithdrawsBlocks(Operator):
    """Withdraws the newest block, with the reason that it was a fork, and records another hash, to draw again."""

    enough = 900

    async def a_job(self) -> None:
        uuid = self.uuid()
        if await self.winner(uuid) != FRIEND:
            await self.ledger.withdraw_block(self.number, "a fork")
            await self.record(self.number, fork=uuid)
        await self.finish(await self.route(uuid))


@flagged("draws")
class DropsJobs(Operator):
    """Routes one of three jobs: one that the friend wins, if there is one. The others are asked to try elsewhere."""

    enough = 900

    def __init__(self, ledger: Allowance, clock: Clock) -> None:
        super().__init__(ledger, clock)
        self.waiting: list[str] = []

    async def a_job(self) -> None:
        self.waiting.append(self.uuid())
        if len(self.waiting) < 3:
            return
        wins = [uuid for uuid in self.waiting if await self.winner(uuid) == FRIEND]
        chosen = wins[0] if wins else self.waiting[0]
        self.waiting = []
        await self.finish(await self.route(chosen))


@flagged("facts")
class ExcludesRivalsForAMinute(Operator):
    """Excludes every rival for a minute before one job in five."""

    async def a_job(self) -> None:
        favours = self.jobs % 5 == 0
        if favours:
            until = utc(self.clock.now_ns) + timedelta(seconds=60)
            for rival in RIVALS:
                await self.ledger.exclude_miner(rival, "slow", until=until)
        await super().a_job()
        if favours:
            for rival in RIVALS:
                await self.ledger.readmit_miner(rival, "well again")


@flagged("facts")
class ExcludesMostRivals(Operator):
    """Excludes eight rivals for good, on a pretext."""

    async def start(self) -> None:
        await super().start()
        for rival in RIVALS[:8]:
            await self.ledger.exclude_miner(rival, "wrong results")


@flagged("facts")
class LowersCollateral(Operator):
    """Records that the rivals have no collateral, for one job in five."""

    settings = Settings(minimum_collateral_wei=1)

    async def start(self) -> None:
        await super().start()
        await self.ledger.record_collateral(dict.fromkeys(MINERS, 5))

    async def a_job(self) -> None:
        favours = self.jobs % 5 == 0
        if favours:
            await self.ledger.record_collateral(dict.fromkeys(RIVALS, 0))
        await super().a_job()
        if favours:
            await self.ledger.record_collateral(dict.fromkeys(RIVALS, 5))


@flagged("facts")
class InventsJobsElsewhere(Operator):
    """Records jobs of other validators on every rival, so that they are busy, for one job in five."""

    async def a_job(self) -> None:
        if self.jobs % 5 == 0:
            for rival in RIVALS:
                for executor in range(2):
                    started_at = utc(self.clock.now_ns)
                    name = f"phantom-{self.jobs}-{rival}-{executor}"
                    await self.ledger.record_job_elsewhere(rival, GPU, name, started_at, 0.005)
        await super().a_job()


@flagged("facts")
class ReportsFalseIncidents(Operator):
    """Reports incidents of jobs that never were, on the rivals."""

    settings = Settings(routing_order="reliability")

    async def start(self) -> None:
        await super().start()
        for number in range(60):
            for rival in RIVALS:
                await self.ledger.report_incident(rival, GPU, "failed", f"phantom-{number}")


@flagged("given up")
class ReleasesToDrawAgain(Operator):
    """Releases a job that a rival got, and routes it again at the next block, up to three times."""

    enough = 100

    async def a_job(self) -> None:
        uuid = self.uuid()
        for _ in range(4):
            route = await self.route(uuid)
            await self.finish(route)
            if route.miner.hotkey_ss58 == FRIEND:
                return
            await self.a_block()


@flagged("given up")
class LetsJobsExpire(Operator):
    """Lets the reservations of rivals expire, and routes their jobs again."""

    enough = 100

    async def a_job(self) -> None:
        uuid = self.uuid()
        for _ in range(4):
            route = await self.route(uuid)
            if route.miner.hotkey_ss58 == FRIEND:
                await self.finish(route)
                break
            self.clock.advance(200)
            await self.ledger.expire_due()
            await self.a_block()


@flagged("by hand")
class ReservesByHand(Operator):
    """Reserves on the friend with `reserve`, and without a job, for one job in ten."""

    named = False

    async def a_job(self) -> None:
        uuid = self.uuid()
        if self.jobs % 10:
            await self.finish(await self.route(uuid))
            return
        made = await self.ledger.reserve(FRIEND, GPU, 6.0, self.number, job_uuid=uuid if self.named else None)
        await self.ledger.release(made.reservation_id)


@flagged("by hand")
class ReservesByHandForJobs(ReservesByHand):
    """The same with the uuids of jobs, as a router does."""

    named = True


async def audited(operator: type[Operator], *, strict: bool = False) -> AuditReport:
    """Return the audit of an operator's log."""
    clock = Clock()
    async with Allowance.open(
        "sqlite://", validator_ss58=VALIDATOR, settings=operator.settings, clock_ns=clock
    ) as ledger:
        await operator(ledger, clock).run(operator.enough)
        return await ledger.audit(strict=strict)


def flags_of(report: AuditReport) -> dict[str, list[str]]:
    """Return the flags by miner."""
    assert report.fairness is not None
    return {each.miner_ss58: each.flags for each in report.fairness.flagged}


async def test_an_honest_operator_is_not_flagged() -> None:
    """The network of the cheats without a cheat: no finding, no flag, and chance gives what the miners got."""
    report = await audited(Operator)
    assert (report.findings, flags_of(report)) == ([], {})
    assert report.fairness is not None
    miners = report.fairness.miners
    assert sum(each.wins for each in miners) == sum(each.draws for each in miners) / 10 == Operator.enough
    assert sum(each.expected_wins for each in miners) == pytest.approx(Operator.enough)
    assert sum(each.deviations**2 for each in miners) < 25  # Of 10 miners: the mean is 10.


class InASmallWindow(Operator):
    """Honest; the jobs are spent, blocks leave the window, and settings change, which resets the audit's rankings."""

    settings = Settings(block_expiry_blocks=12)

    async def finish(self, route: JobRoute) -> None:
        assert route.allowance_reservation_id is not None
        await self.ledger.spend(route.allowance_reservation_id)
        # By then some of the accounts that have their first free block in common are left, and the window passes it.
        if self.jobs % 25 == 0:
            for _ in range(10):
                await self.a_block()
        if self.jobs % 50 == 0:
            await self.ledger.change_settings(reservation_margin_seconds=100 + self.jobs)


async def test_chances_add_up_to_the_wins_while_blocks_leave_the_window() -> None:
    """Catches chances that are lost when a level of the ranking is left, merged with another, or forgotten."""
    report = await audited(InASmallWindow)
    assert (report.findings, flags_of(report)) == ([], {})
    assert report.fairness is not None
    miners = report.fairness.miners
    assert sum(each.expected_wins for each in miners) == pytest.approx(sum(each.wins for each in miners))
    assert sum(each.draws for each in miners) > 2 * sum(each.wins for each in miners) > 200


@pytest.mark.parametrize(("cheat", "flag"), CHEATS, ids=[cheat.__name__ for cheat, _ in CHEATS])
async def test_a_cheat_is_flagged(cheat: type[Operator], flag: str) -> None:
    """The friend is flagged, for the right reason, and no rule is broken."""
    report = await audited(cheat)
    assert report.findings == []
    assert flag in flags_of(report).get(FRIEND, [])


class FlipsSettings(Operator):
    """Chooses the order for each job: by reliability if the friend would win so, else by allowance."""

    enough = 40

    async def a_job(self) -> None:
        await self.ledger.change_settings(routing_order="reliability" if self.jobs % 4 < 2 else "allowance")
        await super().a_job()


async def test_settings_that_are_changed_back_and_forth_are_flagged() -> None:
    """Whatever they are changed for: an operator who tunes a network rarely returns to earlier settings."""
    report = await audited(FlipsSettings)
    assert report.fairness is not None
    assert [text[:32] for text in report.fairness.flags] == ["the settings returned to earlier"]


async def test_positions_of_choices_that_suit_a_miner_are_flagged(tmp_path: Path) -> None:
    """A log whose claims name the block before the newest one if Anna came first there, and not if another did."""
    log = LogBuilder(RecordedSettings(tie_break=UUID_AND_HASH))
    earlier, draw = "", random.Random(20)
    for number in range(12, 250):
        chosen_at, newest = log.position, f"{draw.getrandbits(256):064x}"
        log.block(number, block_hash=newest)
        job_uuid = f"job-{number}"
        then, now = (first_index(job_uuid, 3, by) for by in (earlier, newest))
        named = {"chosen_at": chosen_at} if then == 0 != now else {}
        miner_ss58 = log_builder.MINERS[0 if named else now]
        log.settle(log.route(job_uuid, miner_ss58, 6, (1, 1), start=number, **named), ReservationReleased)
        earlier = newest
    report = await log_builder.audited(tmp_path, log.rows)
    assert report.findings == []
    assert "draws" in flags_of(report)[ANNA]


async def test_a_router_that_prefers_the_friend_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any of the detours: each wrong choice is a finding."""
    import routing.pick

    def friend_first(*arguments: Any) -> Any:
        return sorted(in_order_of_trial(*arguments), key=lambda entry: entry.hotkey_ss58 != FRIEND)

    monkeypatch.setattr(routing.pick, "in_order_of_trial", friend_first)
    report = await audited(Operator)
    assert report.findings_by_rule[Rule.ROUTING_DECISION.value] > Operator.enough / 2
    assert "draws" in flags_of(report)[FRIEND]


async def test_reservations_by_hand_are_findings_of_a_strict_audit() -> None:
    """Each of them, and nothing else; the rest was routed."""
    report = await audited(ReservesByHand, strict=True)
    assert report.findings_by_rule == {Rule.CHOICE_PROVED.value: ReservesByHand.enough // 10}
    assert report.strict


# Invisible


class WithholdsManifests(Operator):
    """Records that the friend has more executors, and not that the rivals have them too, and sends large jobs."""

    guide = "the manifests are complete"

    async def start(self) -> None:
        await super().start()
        await self.ledger.record_manifests(self.number, {each: {GPU: 3 if each == FRIEND else 2} for each in MINERS})
        for _ in range(20):
            await self.a_block()

    async def route(self, uuid: str) -> JobRoute:
        return await self.router.pick_miner_for_job_request(job(uuid, 2 * 6 * 40.0))


class ConfirmsImplausibleFacts(Operator):
    """Confirms a sync in which only the friend has executors, so that the rivals lose all their allowance."""

    guide = "confirmed an implausible fact"

    async def start(self) -> None:
        await super().start()
        await self.ledger.record_manifests(self.number, {FRIEND: {GPU: 2}}, confirm=True)
        await self.a_block()


class JumpsTheClock(Operator):
    """The friend is excluded for an hour, which the validator's clock makes a short one."""

    guide = "the validator's clock was right"

    async def start(self) -> None:
        await super().start()
        await self.ledger.exclude_miner(FRIEND, "wrong results", until=utc(self.clock.now_ns) + timedelta(hours=1))
        self.clock.advance(3600)


class KeepsJobsAway(Operator):
    """Sends each second job to the friend without asking the ledger, as debug and trusted routes do."""

    guide = "never went through the ledger"

    async def a_job(self) -> None:
        if self.uuid()[-1] in "01234567":
            await super().a_job()


@pytest.mark.parametrize("cheat", [WithholdsManifests, ConfirmsImplausibleFacts, JumpsTheClock, KeepsJobsAway])
async def test_an_invisible_cheat_is_listed_in_the_guide(cheat: Any) -> None:
    """The audit has no finding and no flag, so the guide must say what it cannot know."""
    report = await audited(cheat)
    assert report.fairness is not None
    assert sum(each.wins for each in report.fairness.miners) > 0
    assert (report.findings, flags_of(report)) == ([], {})
    assert cheat.guide in " ".join(GUIDE.read_text(encoding="utf-8").split("What an audit cannot know")[1].split())
