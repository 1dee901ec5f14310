"""The audit finds a ledger that decides wrongly, even if the audit runs in the same broken process.

Each mutant breaks the deciding code, runs a story with it, and leaves it broken while the audit runs. An audit that
shared the broken code with the ledger would not find the defect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import projections
from ledger import Account, Chain, LedgerState, UnitOfWork, WithdrawManifests
from ledger.domain.account import Claim
from ledger.events import AllowanceReserved
from projections import Rule, tie_break
from projections.ranking import Ranking
from routing import Allowance, Settings
from tests.support.small import START, VALIDATOR, Clock, miner
from tests.support.stories import CLASSES, MINERS, SETTINGS, Story, seed_shown

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]
MUTANTS: list[tuple[Rule, Mutation, bool]] = []


def mutant(rule: Rule, *, corrected: bool = False) -> Callable[[Mutation], Mutation]:
    """Collect a mutation of the deciding code, with the rule under which the audit must find it.

    `corrected` asks for the story with corrections.
    """

    def collect(mutation: Mutation) -> Mutation:
        MUTANTS.append((rule, mutation, corrected))
        return mutation

    return collect


def wrapped(patch: Patch, owner: Any, name: str, wrap: Callable[..., Any]) -> None:
    """Replace a function by `wrap(original, *arguments)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *arguments, **named: wrap(original, *arguments, **named))


# Claims


@mutant(Rule.BLOCKS_NO_MORE_THAN_NEEDED)
def claims_one_block_too_many(patch: Patch) -> None:
    def claim(original: Any, account: Account, units: Any, start: int, amount_ns: int, now_ns: int) -> Claim | None:
        claimed: Claim | None = original(account, units, start, amount_ns, now_ns)
        if claimed is None or claimed.overdue:
            return claimed
        first, last = claimed.blocks[-1]
        free = not account.occupied(now_ns).overlaps(last + 1, last + 1) and units.unit_ns(last + 1)
        return claimed._replace(blocks=[*claimed.blocks[:-1], (first, last + 1)]) if free else claimed

    wrapped(patch, Account, "claim", claim)


@mutant(Rule.BLOCKS_EARLIEST_FIRST)
def skips_the_earliest_block(patch: Patch) -> None:
    def claim(original: Any, account: Account, units: Any, start: int, amount_ns: int, now_ns: int) -> Claim | None:
        earliest = account.measure(units, start, now_ns).earliest_block
        later: Claim | None = original(account, units, earliest + 1, amount_ns, now_ns)
        return later or original(account, units, start, amount_ns, now_ns)

    wrapped(patch, Account, "claim", claim)


@mutant(Rule.BLOCKS_IN_WINDOW)
def ignores_the_age_of_blocks(patch: Patch) -> None:
    wrapped(patch, LedgerState, "window_start", lambda original, state, block: original(state, block) - 30)


@mutant(Rule.BLOCKS_ENOUGH)
def claims_less_than_the_amount(patch: Patch) -> None:
    def claim(original: Any, account: Account, units: Any, start: int, amount_ns: int, now_ns: int) -> Any:
        return original(account, units, start, max(1, amount_ns // 2), now_ns)

    wrapped(patch, Account, "claim", claim)


@mutant(Rule.BLOCKS_NOT_INVALIDATED)
def ignores_drops_in_claims(patch: Patch) -> None:
    def claim(original: Any, account: Account, *rest: Any) -> Any:
        invalidated_below, account.invalidated_below = account.invalidated_below, 0
        try:
            return original(account, *rest)
        finally:
            account.invalidated_below = invalidated_below

    wrapped(patch, Account, "claim", claim)


@mutant(Rule.DUE_TIME)
def ignores_the_margin(patch: Patch) -> None:
    def reserve(
        original: Any, unit_of_work: UnitOfWork, account: Account, claim: Claim, *, amount_ns: int, **named: Any
    ) -> Any:
        settings = unit_of_work.state.chain.settings
        unit_of_work.state.chain.settings = type(settings)()
        try:
            return original(unit_of_work, account, claim, amount_ns=amount_ns, **named)
        finally:
            unit_of_work.state.chain.settings = settings

    wrapped(patch, UnitOfWork, "reserve", reserve)


@mutant(Rule.AMOUNT_LIMITS)
def accepts_any_amount(patch: Patch) -> None:
    patch.setattr("ledger.domain.commands.check_amount", lambda *_: None)
    patch.setattr("routing.pick.check_amount", lambda *_: None)


# Time


@mutant(Rule.RECORDED_TIMES)
def lets_recorded_times_decrease(patch: Patch) -> None:
    patch.setattr(UnitOfWork, "recorded_at_ns", property(lambda unit_of_work: unit_of_work.now_ns))


@mutant(Rule.DUE_TIME)
def counts_due_times_from_the_recorded_time(patch: Patch) -> None:
    def append(original: Any, unit_of_work: UnitOfWork, stream: str, event: Any, **columns: Any) -> Any:
        if isinstance(event, AllowanceReserved) and event.due_by_clock:
            late_ns = unit_of_work.recorded_at_ns - unit_of_work.now_ns
            event = msgspec.structs.replace(event, expires_at_ns=event.expires_at_ns + late_ns)
        return original(unit_of_work, stream, event, **columns)

    wrapped(patch, UnitOfWork, "append", append)


@mutant(Rule.DECISION_CLOCK)
def forgets_the_clock_of_events_behind_the_recorded_time(patch: Patch) -> None:
    patch.setattr("ledger.domain.unit_of_work.msgspec.structs.replace", lambda event, **_: event)


@mutant(Rule.EXPIRES_OVERDUE)
def expires_reservations_before_they_are_due(patch: Patch) -> None:
    wrapped(patch, LedgerState, "overdue", lambda original, state, now_ns: original(state, now_ns + 10 * 10**9))


@mutant(Rule.EXPIRES_WHAT_IS_TAKEN)
def expires_in_the_wrong_order(patch: Patch) -> None:
    wrapped(patch, LedgerState, "overdue", lambda original, state, now_ns: original(state, now_ns)[::-1])


@mutant(Rule.EXPIRES_WHAT_IS_TAKEN)
def expires_all_except_one(patch: Patch) -> None:
    wrapped(patch, LedgerState, "overdue", lambda original, state, now_ns: original(state, now_ns)[:-1])


@mutant(Rule.EXPIRES_WHAT_IS_TAKEN)
def expires_reservations_whose_blocks_it_does_not_take(patch: Patch) -> None:
    wrapped(patch, Account, "overdue_in", lambda _, account, blocks, now_ns: account.overdue(now_ns))


# Routes


@mutant(Rule.ROUTING_DECISION)
def ignores_busy_miners(patch: Patch) -> None:
    patch.setattr("projections.ranking.is_busy", lambda *_: False)


@mutant(Rule.ROUTING_DECISION)
def breaks_ties_in_ranking_order(patch: Patch) -> None:
    patch.setattr("projections.tie_break.permutation", lambda count, _: range(count))


@mutant(Rule.ROUTING_DECISION)
def breaks_ties_from_another_seed(patch: Patch) -> None:
    wrapped(patch, tie_break, "tie_break_seed", lambda original, uuid, block_hash: original(uuid + "!", block_hash))


@mutant(Rule.ROUTING_DECISION)
def breaks_ties_without_the_blocks_hash(patch: Patch) -> None:
    wrapped(patch, tie_break, "tie_break_seed", lambda original, uuid, _: original(uuid, b""))


@mutant(Rule.ROUTING_DECISION)
def breaks_ties_by_the_hash_of_the_block_before(patch: Patch) -> None:
    patch.setattr(Chain, "tie_break_hash", property(lambda chain: chain.blocks.block_hash(chain.blocks.newest - 1)))


@mutant(Rule.GRANTS_FOLLOW)
def forgets_the_hashes_of_blocks(patch: Patch) -> None:
    patch.setattr("ledger.domain.chain.hash_of_block", lambda _: b"")


@mutant(Rule.ROUTING_DECISION)
def ranks_only_by_available_allowance(patch: Patch) -> None:
    def groups(ranking: Ranking, amount_ns: int) -> Any:
        entries = [entry for level in ranking._levels._by_start.values() for entry in level]
        amounts_ns = {each.hotkey_ss58: each.available_ns for each in ranking.ranked()}
        enough = [each for each in entries if amounts_ns[each.hotkey_ss58] >= amount_ns]
        return [(enough, 0, len(enough))]

    patch.setattr(Ranking, "groups", groups)


@mutant(Rule.ROUTING_FEED)
def routes_on_a_stale_feed(patch: Patch) -> None:
    patch.setattr("routing.pick.refuse_stale_feed", lambda *_: None)


@mutant(Rule.JOB_ATTEMPTS)
def numbers_attempts_wrongly(patch: Patch) -> None:
    def next_attempt(original: Any, *arguments: Any) -> tuple[str, int] | None:
        job = original(*arguments)
        return None if job is None else (job[0], job[1] + 1)

    wrapped(patch, UnitOfWork, "next_attempt", next_attempt)


# Facts


@mutant(Rule.GRANTS_FOLLOW)
def ignores_drops(patch: Patch) -> None:
    patch.setattr(Chain, "drop", lambda *_: None)


@mutant(Rule.GRANTS_FOLLOW)
def ignores_caps(patch: Patch) -> None:
    patch.setattr(Chain, "_capped", lambda chain, account, count: count)


@mutant(Rule.GRANTS_FOLLOW)
def ignores_registration(patch: Patch) -> None:
    wrapped(
        patch,
        Chain,
        "_set_counts",
        lambda original, chain, block, inputs: original(
            chain, block, inputs._replace(members=frozenset(chain._by_miner))
        ),
    )


@mutant(Rule.GRANTS_FOLLOW)
def counts_only_by_the_newest_sync(patch: Patch) -> None:
    wrapped(
        patch,
        Chain,
        "_set_counts",
        lambda original, chain, block, inputs: original(
            chain, block, inputs._replace(sync_block=chain.sync_blocks[-1]) if chain.sync_blocks else inputs
        ),
    )


@mutant(Rule.GRANTS_FOLLOW)
def counts_long_blocks_in_full(patch: Patch) -> None:
    def finalize(original: Any, chain: Chain, block: int) -> None:
        settings = chain.settings
        chain.settings = type(settings)(
            **{name: getattr(settings, name) for name in settings.__struct_fields__ if name != "long_block_ns"},
            long_block_ns=10**15,
        )
        original(chain, block)
        chain.settings = settings

    wrapped(patch, Chain, "_finalize", finalize)


@mutant(Rule.GRANTS_FOLLOW)
def grants_a_nanosecond_too_much(patch: Patch) -> None:
    from ledger.domain.block_table import BlockTable

    wrapped(patch, BlockTable, "finalize", lambda original, table, block, unit_ns: original(table, block, unit_ns + 1))


@mutant(Rule.BLOCKS_ENOUGH)
def sums_too_much(patch: Patch) -> None:
    """Every sum of units in the ledger has the same mistake."""
    from ledger.domain.block_table import BlockTable, PrefixSums

    def sum_before_ns(original: Any, table: Any, block: int) -> int:
        return int(original(table, block)) * 3 // 2

    wrapped(patch, PrefixSums, "_compute", sum_before_ns)
    wrapped(
        patch,
        BlockTable,
        "end_reaching",
        lambda original, table, target_ns: original(table, -(-target_ns * 2 // 3)),
    )


# Corrections and coverage


@mutant(Rule.CORRECTIONS_FOLLOW, corrected=True)
def leaves_the_drops_of_a_withdrawn_sync_in_force(patch: Patch) -> None:
    def event(original: Any, *arguments: Any) -> Any:
        return msgspec.structs.replace(original(*arguments), invalidated_below={})

    wrapped(patch, WithdrawManifests, "_event", event)


@mutant(Rule.CORRECTIONS_FOLLOW, corrected=True)
def withdraws_a_sync_on_what_was_read_before_another(patch: Patch) -> None:
    """The service reads the log once and the command believes it, whatever was recorded since."""
    first: list[Any] = []

    async def offers_without(store: Any, needed: Any) -> Any:
        first.append(await projections.offers_without(store, needed))
        return first[0]._replace(without=needed.without, versions=first[-1].versions)

    patch.setattr("routing.service.allowance.offers_without", offers_without)


@mutant(Rule.WITHDRAWN_BLOCKS_FREE, corrected=True)
def withdraws_blocks_in_use(patch: Patch) -> None:
    patch.setattr("ledger.domain.correction_commands._refuse_block_in_use", lambda *_: None)


@mutant(Rule.GRANTS_FOLLOW, corrected=True)
def ignores_what_the_withdrawal_of_a_sync_carries(patch: Patch) -> None:
    def withdraw(original: Any, chain: Chain, position: int, event: Any) -> None:
        original(chain, position, msgspec.structs.replace(event, counts={}, invalidated_below={}))

    wrapped(patch, Chain, "withdraw_manifests", withdraw)


@mutant(Rule.GRANTS_FOLLOW, corrected=True)
def keeps_the_grants_of_withdrawn_blocks(patch: Patch) -> None:
    from ledger.domain.block_table import BlockTable

    patch.setattr(BlockTable, "_reset_unit", lambda *_: None)


@mutant(Rule.GRANTS_FOLLOW, corrected=True)
def keeps_the_counts_beyond_the_highest_finalized_block(patch: Patch) -> None:
    patch.setattr(Chain, "_cut_counts", lambda chain: chain._forget_inputs())


@mutant(Rule.GRANTS_FOLLOW, corrected=True)
def keeps_the_inputs_of_counts_when_a_sync_is_withdrawn(patch: Patch) -> None:
    patch.setattr(Chain, "_forget_inputs", lambda _: None)


@mutant(Rule.GRANTS_FOLLOW, corrected=True)
def lets_a_sync_cover_all_miners(patch: Patch) -> None:
    def read(original: Any, chain: Chain, event: Any) -> None:
        original(chain, event)
        chain.last_uncovered = frozenset()

    wrapped(patch, Chain, "read_manifests", read)


@mutant(Rule.GRANTS_FOLLOW, corrected=True)
def ends_a_late_sync_at_the_next_one_that_does_not_cover_the_miner(patch: Patch) -> None:
    from ledger.domain.miner_sets import MinerSets

    patch.setattr(MinerSets, "next_without", lambda _, miner_ss58, block: block)


@mutant(Rule.COVERAGE_FOLLOWS, corrected=True)
def covers_only_the_named_miners(patch: Patch) -> None:
    patch.setattr(
        "ledger.domain.chain.uncovered_by", lambda chain, block, manifests: chain.known_miners() - manifests.keys()
    )


@mutant(Rule.COVERAGE_FOLLOWS, corrected=True)
def covers_the_miners_of_the_newest_block(patch: Patch) -> None:
    patch.setattr(Chain, "members_at", lambda chain, _: chain.metagraph.members)


@mutant(Rule.ROUTING_MANIFESTS, corrected=True)
def routes_on_stale_manifests(patch: Patch) -> None:
    patch.setattr("routing.pick.refuse_stale_manifests", lambda *_: None)


# Seals


@mutant(Rule.SEALS)
def seals_a_state_in_which_released_blocks_stay_taken(patch: Patch) -> None:
    patch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", 10)
    patch.setattr("routing.service.handle.SEAL_EVERY_ROWS", 20)
    patch.setattr(LedgerState, "_free_blocks", lambda state, active: None)


MUTANT_SETTINGS = Settings(
    block_expiry_blocks=SETTINGS.block_expiry_blocks // 4,
    reservation_margin_seconds=SETTINGS.reservation_margin_seconds,
    longest_job_seconds=39,
    executors_max_per_class={CLASSES[1]: 2},
    newest_block_max_age_seconds=150,
)


class BusyStory(Story):
    """A story of many concurrent jobs, in which blocks are late or missing for a while."""

    async def a_block(self) -> None:
        number = self.number + 1
        self.number = number
        if number > 8 and self.draw.random() < 0.1:
            return
        away = self.draw.choice([None, None, None, *MINERS])
        registered = [miner(hotkey, 8000 + self.draw.randrange(2)) for hotkey in MINERS if hotkey != away]
        created_at = START + timedelta(seconds=12 * number + self.draw.choice([0, 0, 0.7]))
        stakes = {VALIDATOR: self.draw.choice([1.0, 2.5]), "5Other": 1.0}
        await self.unless_refused(
            self.ledger.record_block(number, created_at, registered, stakes, block_hash=self.hash_of(number))
        )

    async def a_job(self) -> None:
        for _ in range(3):
            await super().a_job()


class CorrectedStory(BusyStory):
    """The same with facts that are withdrawn and recorded anew, and with syncs that name fewer miners."""

    withdrawn_block = 0

    async def goes_on(self, steps: int) -> None:
        """Take the steps of the other story, and a correction or a sync after every second one."""
        for _ in range(steps // 2):
            await super().goes_on(2)
            await self.one_of(
                (
                    (self.a_late_sync, 4),
                    (self.a_block_is_withdrawn, 2),
                    (self.a_block_comes_again, 2),
                    (self.a_sync_is_withdrawn, 1),
                )
            )

    async def a_late_sync(self) -> None:
        await self.sync_at(max(1, self.number - self.draw.randrange(12)))

    async def sync_at(self, block: int) -> None:
        offered = {
            hotkey: {name: self.draw.choice([1, 2, 3]) for name in CLASSES}
            for hotkey in MINERS
            if self.draw.random() < 0.6
        }
        await self.unless_refused(self.ledger.record_manifests(block, offered, confirm=True))

    async def a_block_is_withdrawn(self) -> None:
        number = max(1, self.number - self.draw.choice([0, 0, 1, 3, 6]))
        if await self.unless_refused(self.ledger.withdraw_block(number, "a test")):
            self.withdrawn_block = number

    async def a_block_comes_again(self) -> None:
        """Record a block in the place of the one that was withdrawn last, with another metagraph."""
        if self.withdrawn_block:
            newest, self.number = self.number, self.withdrawn_block - 1
            await self.a_block()
            self.number = max(newest, self.number)

    async def a_sync_is_withdrawn(self) -> None:
        """Withdraw a sync; every second time another one is recorded in its place."""
        blocks = await self.ledger._read_state(lambda state, _: list(state.chain.sync_blocks))
        if blocks:
            block = self.draw.choice(blocks[-4:])
            await self.unless_refused(self.ledger.withdraw_manifests(block, "a test"))
            if self.draw.random() < 0.5:
                await self.sync_at(block)


async def rules_broken(seed: int, steps: int, *, corrected: bool = False) -> set[str]:
    """Run a story with the deciding code as it is now, and return the rules that the audit found broken."""
    settings = replace(MUTANT_SETTINGS, newest_manifests_max_age_blocks=3) if corrected else MUTANT_SETTINGS
    story = CorrectedStory if corrected else BusyStory
    clock = Clock()
    with seed_shown(seed):
        async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=settings, clock_ns=clock) as ledger:
            await story(ledger, clock, seed).goes_on(steps)
            return {each.rule for each in (await ledger.audit()).findings}


@pytest.fixture
def patch() -> Iterator[Patch]:
    """A monkeypatch that is undone before the other fixtures of the test are torn down."""
    with pytest.MonkeyPatch.context() as context:
        yield context


@pytest.mark.parametrize("corrected", [False, True])
async def test_the_unchanged_ledger_breaks_no_rule(corrected: bool) -> None:
    """The stories of the mutants have no finding without a mutation."""
    assert await rules_broken(1, 250, corrected=corrected) == set()


@pytest.mark.parametrize(
    ("rule", "mutation", "corrected"), MUTANTS, ids=[f"{mutation.__name__}" for _, mutation, _ in MUTANTS]
)
async def test_each_mutant_is_found(patch: Patch, rule: Rule, mutation: Mutation, corrected: bool) -> None:
    """The audit reports the rule that the mutation breaks; it may report others as well."""
    mutation(patch)
    assert rule.value in await rules_broken(1, 250, corrected=corrected)
