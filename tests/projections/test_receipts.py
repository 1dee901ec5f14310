"""Receipts of other validators: each offered block gets one of five verdicts, and no block is spent twice.

The environment variables `RECEIPTS_SEED` and `RECEIPTS_WORLDS` set which random worlds are compared with the reference
model, and how many.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from routing import (
    Allowance,
    Bookkeeper,
    InvalidInput,
    JobOutOfBounds,
    NotSpendable,
    Receipt,
    ReceiptOutcome,
    Settings,
    TimeOutOfRange,
)
from tests.simulation.test_against_reference import Pair, instant, miner_of, seed_shown
from tests.support import reference, strategies
from tests.support.reference import SECOND_NS, Axon, nanoseconds, seconds
from tests.support.refusal import Refused
from tests.support.strategies import CLASSES, MINERS, VALIDATORS

pytestmark = pytest.mark.compatibility

GPU = "gpu"
OTHER = "other"
START = datetime(2024, 1, 1, tzinfo=UTC)
HALVES = {"me": 1.0, OTHER: 1.0}
A, B = Axon("a", "192.0.2.1", 4, 8000), Axon("b", "192.0.2.2", 4, 8000)


# Done by hand: our validator and another have half of the stake each, a block lasts 12 s and grants 6 s per executor.


class World:
    """A ledger with blocks 12 s apart; block `n` is created `12 n` s after the start."""

    def __init__(self, ledger: Allowance) -> None:
        self.ledger = ledger

    async def sync(self, block: int, **offered: int) -> None:
        await self.ledger.record_manifests(block, {miner: {GPU: count} for miner, count in offered.items()})

    async def blocks(self, numbers: Sequence[int], stakes: dict[str, float] | None = None, late_s: float = 0.0) -> None:
        stakes = HALVES if stakes is None else stakes
        for number in numbers:
            await self.ledger.record_block(number, at_s(12 * number + late_s), map(miner_of, (A, B)), stakes)


def at_s(second: float) -> datetime:
    return START + timedelta(seconds=second)


def receipt(
    second: float,
    amount_s: float,
    blocks: Sequence[int],
    *,
    miner: str = "a",
    validator: str = OTHER,
    executor_class: str = GPU,
) -> Receipt:
    return Receipt(validator, miner, executor_class, at_s(second), list(blocks), amount_s)


def lists(outcome: ReceiptOutcome) -> dict[str, list[int]]:
    """Return those of the five lists that are not empty."""
    names = ("outside_range", "double_spent", "invalidated", "without_grant", "spendable")
    return {name: getattr(outcome, name) for name in names if getattr(outcome, name)}


REASONS = ("outside_range", "double_spent", "invalidated", "without_grant")


def runs(outcome: ReceiptOutcome) -> list[tuple[int, str]]:
    """Return the blocks that cannot be spent, each with its reason."""
    return [
        (block, each.reason) for each in outcome.not_spendable for block in range(each.first_block, each.last_block + 1)
    ]


async def stocked(ledger: Allowance, numbers: Sequence[int] = range(1, 6), **offered: int) -> Bookkeeper:
    """Record blocks 1 to 5, of which 1 to 4 are finalized, by default with 6 s each on `a` and nothing on `b`."""
    world = World(ledger)
    await world.sync(1, **(offered or {"a": 1}))
    await world.blocks(numbers)
    return await ledger.receipts()


@pytest.fixture
def new_ledger() -> Allowance:
    return Allowance.open("sqlite://", validator_ss58="me")


async def test_a_receipt_spends_exactly_its_spendable_blocks_once(new_ledger: Allowance) -> None:
    """2 and 3, worth 12 s, pay 10 s; offered again with 4, they are spent, and 4 alone pays 6 s, not 7."""
    async with new_ledger as ledger:
        keeper = await stocked(ledger)

        first = keeper.take(receipt(48, 10.0, [3, 2, 3]))
        assert (first.spent, first.blocks, first.job_start_block, first.spendable_seconds) == (True, [2, 3], 4, 12.0)
        assert lists(first) == {"spendable": [2, 3]}

        refused = keeper.take(receipt(48, 7.0, [2, 3, 4]))
        assert (refused.spent, refused.blocks, refused.spendable_seconds) == (False, [], 6.0)
        assert lists(refused) == {"double_spent": [2, 3], "spendable": [4]}

        assert keeper.take(receipt(48, 6.0, [2, 3, 4])).blocks == [4]


async def test_a_receipt_is_refused_for_one_nanosecond_too_little(new_ledger: Allowance) -> None:
    """Two blocks are worth 12 s: they pay 12 s, and not a nanosecond more."""
    async with new_ledger as ledger:
        keeper = await stocked(ledger)
        assert not keeper.take(receipt(48, 12.000000001, [2, 3])).spent
        assert keeper.take(receipt(48, 12.0, [2, 3])).spent


async def test_the_ledgers_own_reservations_are_ignored(new_ledger: Allowance) -> None:
    """The bookkeeper counts no block of our own reservations as spent, and counts each account separately."""
    async with new_ledger as ledger:
        await stocked(ledger)
        await ledger.spend((await ledger.reserve("a", GPU, 24.0, 5)).reservation_id)
        keeper = await ledger.receipts()
        assert keeper.take(receipt(48, 6.0, [1])).spent
        assert keeper.take(receipt(48, 6.0, [1], validator="me")).spent
        assert not keeper.take(receipt(48, 6.0, [1])).spent


async def test_each_block_gets_the_first_verdict_that_applies(new_ledger: Allowance) -> None:
    """A spent block that is too old is `outside_range`; an invalidated one that is spent is `double_spent`."""
    settings = Settings(block_expiry_blocks=3, validation_leeway_lower_blocks=1, validation_leeway_upper_blocks=1)
    async with Allowance.open("sqlite://", validator_ss58="me", settings=settings) as ledger:
        world = World(ledger)
        await world.sync(1, a=2)
        await world.blocks(range(1, 9))
        await world.sync(7, a=1)
        await world.blocks(range(9, 13))
        keeper = await ledger.receipts()
        # At block 6 the range is 2 to 7, and the drop at 7 does not count yet: 12 s each, but 6 s for 7.
        early = keeper.take(receipt(12 * 6, 12.0, [1, 3, 4, 8]))
        assert lists(early) == {"outside_range": [1, 8], "spendable": [3, 4]}
        # At block 8 the range is 4 to 9, and 7 is the first block that is not invalidated.
        later = keeper.take(receipt(12 * 8 + 11.9, 1.0, [3, 4, 5, 6, 7, 9, 10]))
        assert lists(later) == {
            "outside_range": [3, 10],
            "double_spent": [4],
            "invalidated": [5, 6],
            "spendable": [7, 9],
        }
        assert later.spendable_seconds == 18.0


async def test_each_run_that_cannot_be_spent_has_its_reason_and_distance(new_ledger: Allowance) -> None:
    """For a job at block 8 that may use 4 to 9, with a drop at 7: 1 and 2 are 2 blocks too old, 12 is 3 too new."""
    settings = Settings(block_expiry_blocks=3, validation_leeway_lower_blocks=1, validation_leeway_upper_blocks=1)
    async with Allowance.open("sqlite://", validator_ss58="me", settings=settings) as ledger:
        world = World(ledger)
        await world.sync(1, a=2)
        await world.blocks(range(1, 9))
        await world.sync(7, a=1)
        await world.blocks(range(9, 14))
        keeper = await ledger.receipts()
        assert keeper.take(receipt(12 * 8, 1.0, [7])).spent
        refused = keeper.take(receipt(12 * 8, 100.0, [1, 2, 4, 5, 7, 8, 12]))
        assert not refused.spent
        assert refused.not_spendable == [
            NotSpendable(1, 2, "outside_range", -2),
            NotSpendable(4, 5, "invalidated", 2),
            NotSpendable(7, 7, "double_spent", 0),
            NotSpendable(12, 12, "outside_range", 3),
        ]
        (unknown,) = keeper.take(receipt(12 * 8, 1.0, [8], miner="b")).not_spendable
        assert unknown == NotSpendable(8, 8, "without_grant", 0)


async def test_an_amount_of_0_is_accepted_and_spends_nothing(new_ledger: Allowance) -> None:
    """With blocks and without; the blocks pay for a later receipt. Catches: the offered blocks are spent."""
    async with new_ledger as ledger:
        keeper = await stocked(ledger)
        free = keeper.take(receipt(48, 0.0, [2, 3]))
        assert (free.spent, free.blocks, free.spendable) == (True, [], [2, 3])
        assert keeper.take(receipt(48, 0.0, [])).spent
        assert keeper.take(receipt(48, 12.0, [2, 3])).blocks == [2, 3]


async def test_a_bounded_bookkeeper_takes_jobs_that_start_within_its_bounds(new_ledger: Allowance) -> None:
    """From the first block on, and before the end block; the refused receipt spends nothing."""
    async with new_ledger as ledger:
        await stocked(ledger)
        keeper = await ledger.receipts(first_block=3, end_block=4)
        for second in (12 * 3 - 0.001, 12 * 4):
            with pytest.raises(JobOutOfBounds) as refused:
                keeper.take(receipt(second, 6.0, [1]))
            assert (refused.value.first_block, refused.value.end_block) == (3, 4)
        assert keeper.take(receipt(12 * 4 - 0.001, 6.0, [1])).spent
        assert (await ledger.receipts(keeper)).bounds == (3, 4)


async def test_a_bounded_bookkeeper_keeps_all_blocks_that_its_jobs_may_use(new_ledger: Allowance) -> None:
    """Down to 722 and 330 blocks below its first; further if the setting has grown. Catches: missing stakes."""
    async with new_ledger as ledger:
        world = World(ledger)
        await world.sync(1, a=1)
        await world.blocks(range(1, 10))
        await world.blocks(range(2000, 2003))
        keeper = await ledger.receipts(first_block=2001, end_block=2002)
        assert lists(keeper.take(receipt(12 * 2001, 6.0, [1, 5]))) == {"outside_range": [1, 5]}
        await ledger.change_settings(block_expiry_blocks=3000)
        keeper = await ledger.receipts(keeper)
        assert keeper.take(receipt(12 * 2001, 12.0, [1, 5])).spent


@pytest.mark.parametrize("bounds", [{"first_block": 1}, {"end_block": 2}, {"first_block": 2, "end_block": 2}], ids=repr)
async def test_bounds_are_given_together_and_in_order(new_ledger: Allowance, bounds: dict[str, Any]) -> None:
    """Half a range, or an empty one, is a mistake."""
    async with new_ledger as ledger:
        with pytest.raises(InvalidInput):
            await ledger.receipts(**bounds)


async def test_the_last_drop_at_or_before_the_start_counts(new_ledger: Allowance) -> None:
    """With drops at 3 and 6, blocks 1 and 2 are invalidated for a job at block 5, and all up to 5 for a job at 6."""
    async with new_ledger as ledger:
        world = World(ledger)
        await world.sync(1, a=3)
        await world.sync(3, a=2)
        await world.sync(6, a=1)
        await world.blocks(range(1, 9))
        for start, invalidated in ((2, []), (3, [1, 2]), (5, [1, 2]), (6, [1, 2, 3, 4, 5]), (7, [1, 2, 3, 4, 5])):
            keeper = await ledger.receipts()
            assert keeper.take(receipt(12 * start, 1.0, range(1, start + 1))).invalidated == invalidated


async def test_a_drop_that_is_recorded_late_counts_from_its_block_on(new_ledger: Allowance) -> None:
    """A sync at 3 that is recorded after one at 6 invalidates 1 and 2 for jobs from block 3 on."""
    async with new_ledger as ledger:
        world = World(ledger)
        await world.sync(1, a=2)
        await world.sync(6, a=2)
        await world.blocks(range(1, 9))
        await world.sync(3, a=1)
        for start, invalidated in ((2, []), (3, [1, 2]), (7, [1, 2])):
            keeper = await ledger.receipts()
            assert keeper.take(receipt(12 * start, 1.0, [1, 2, 3])).invalidated == invalidated


async def test_a_grant_depends_on_the_validators_stake_at_the_block(new_ledger: Allowance) -> None:
    """At block 1 the other validator has a quarter of the stake, at 2 nothing, at 3 it is not listed, at 4 all."""
    async with new_ledger as ledger:
        world = World(ledger)
        await world.sync(1, a=2)
        for number, stakes in enumerate(
            [{"me": 3.0, OTHER: 1.0}, {"me": 3.0, OTHER: 0.0}, {"me": 3.0}, {OTHER: 9.0}, {}, {OTHER: 1.0}], start=1
        ):
            await world.blocks([number], stakes)
        keeper = await ledger.receipts()
        outcome = keeper.take(receipt(12 * 5, 30.0, [1, 2, 3, 4, 5]))
        assert lists(outcome) == {"without_grant": [2, 3, 5], "spendable": [1, 4]}
        assert (outcome.spent, outcome.spendable_seconds) == (True, 30.0)


async def test_amounts_are_fixed_when_a_block_is_finalized(tmp_path: Path) -> None:
    """Multiplier, cap and long blocks count as set at that time, the window as set now."""
    database = f"sqlite:///{tmp_path / 'ledger.db'}"
    first = Settings(allowance_multiplier="1/3", executors_max_per_class={GPU: 1}, long_block_seconds=11)
    async with Allowance.open(database, validator_ss58="me", settings=first) as ledger:
        world = World(ledger)
        await world.sync(1, a=4)
        await world.blocks([1, 2, 3])
    second = Settings(block_expiry_blocks=2, validation_leeway_lower_blocks=1, long_block_counts_as_seconds=5)
    async with Allowance.open(database, validator_ss58="me", settings=second) as ledger:
        world = World(ledger)
        await world.blocks([4])
        await world.blocks([5, 6], late_s=1.0)
        keeper = await ledger.receipts()
        # 2: 12 s · 1/3 · 1/2 · 1 executor. 3: 12 s · 1/2 · 4. 4: 13 s are long, so 5 s · 1/2 · 4.
        worth = [keeper.take(receipt(12 * 4 + 1, 1e9, [block])).spendable_seconds for block in (1, 2, 3, 4)]
        assert worth == [2.0, 2.0, 24.0, 10.0]
        assert keeper.take(receipt(12 * 5 + 1, 1e9, range(1, 7))).outside_range == [1, 6]


async def test_a_miner_or_class_that_nobody_offered_has_no_grant(new_ledger: Allowance) -> None:
    """Blocks of an unknown miner, class or validator are `without_grant`."""
    async with new_ledger as ledger:
        keeper = await stocked(ledger)
        for stranger in (
            receipt(48, 1.0, [0, 3], miner="b"),
            receipt(48, 1.0, [0, 3], miner="nobody"),
            receipt(48, 1.0, [0, 3], executor_class="abacus"),
            receipt(48, 1.0, [0, 3], validator="nobody"),
        ):
            outcome = keeper.take(stranger)
            assert (outcome.spent, lists(outcome)) == (False, {"without_grant": [0, 3]})


@pytest.mark.parametrize(("second", "start"), [(11.9, None), (12.0, 1), (35.999999, 2), (59.9, 4), (60.0, None)])
async def test_a_time_must_be_covered_by_the_known_blocks(
    new_ledger: Allowance, second: float, start: int | None
) -> None:
    """Blocks 1 to 5 cover the seconds 12 to 60, the last excluded; other times raise `TimeOutOfRange`."""
    async with new_ledger as ledger:
        keeper = await stocked(ledger)
        if start is not None:
            assert keeper.take(receipt(second, 1.0, [])).job_start_block == start
            return
        with pytest.raises(TimeOutOfRange) as caught:
            keeper.take(receipt(second, 1.0, [1]))
        assert (caught.value.asked, caught.value.first, caught.value.last) == (at_s(second), at_s(12), at_s(60))
        assert keeper.take(receipt(12, 6.0, [1])).spent


async def test_without_blocks_no_time_is_covered(new_ledger: Allowance) -> None:
    """An empty ledger raises `TimeOutOfRange` without bounds."""
    async with new_ledger as ledger:
        with pytest.raises(TimeOutOfRange) as caught:
            (await ledger.receipts()).take(receipt(1, 1.0, [1]))
        assert (caught.value.first, caught.value.last) == (None, None)


async def test_in_a_gap_the_block_before_it_is_the_newest(new_ledger: Allowance) -> None:
    """With 3 to 5 unknown, a job between 2 and 6 started at block 2."""
    async with new_ledger as ledger:
        keeper = await stocked(ledger, [1, 2, 6, 7])
        assert keeper.take(receipt(12 * 6 - 0.1, 6.0, [1])).job_start_block == 2
        assert keeper.take(receipt(12 * 6, 6.0, [1])).job_start_block == 6


async def test_a_bookkeeper_follows_the_log_and_remembers_spent_blocks(new_ledger: Allowance) -> None:
    """After `follow` it knows newer blocks and drops, and spent blocks stay spent."""
    async with new_ledger as ledger:
        world = World(ledger)
        await world.sync(1, a=2)
        await world.blocks(range(1, 6))
        keeper = await ledger.receipts()
        assert keeper.take(receipt(48, 12.0, [2])).spent
        await world.sync(5, a=1)
        await world.blocks([6, 7])
        with pytest.raises(TimeOutOfRange):
            keeper.take(receipt(60, 1.0, [2]))
        assert await ledger.receipts(keeper) is keeper
        assert keeper.position == (await ledger.head()).position
        assert lists(keeper.take(receipt(60, 1.0, [2, 3, 5]))) == {
            "double_spent": [2],
            "invalidated": [3],
            "spendable": [5],
        }


async def test_a_view_of_the_past_has_its_own_bookkeeper(new_ledger: Allowance) -> None:
    """At a position it does not know later facts."""
    async with new_ledger as ledger:
        world = World(ledger)
        await world.sync(1, a=1)
        await world.blocks([1, 2, 3])
        then = (await ledger.head()).position
        await world.blocks([4])
        keeper = await ledger.at(position=then).receipts()
        assert keeper.position == then
        assert keeper.take(receipt(35.9, 6.0, [2])).spent
        with pytest.raises(TimeOutOfRange):
            keeper.take(receipt(36, 6.0, [2]))


@pytest.mark.parametrize(
    "malformed",
    [
        {"validator_ss58": ""},
        {"miner_ss58": 7},
        {"executor_class": "a\0b"},
        {"started_at": datetime(2024, 1, 1)},  # noqa: DTZ001 - has no time zone
        {"started_at": "2024-01-01"},
        {"blocks": [1, -1]},
        {"blocks": [True]},
        {"blocks": [1.0]},
        {"blocks": ["1"]},
        {"blocks": "12"},
        {"blocks": 7},
        {"blocks": [2**63]},
        {"allowance_seconds": -1.0},
        {"allowance_seconds": float("nan")},
        {"allowance_seconds": "1"},
    ],
    ids=repr,
)
async def test_malformed_receipts_are_refused_and_spend_nothing(
    new_ledger: Allowance, malformed: dict[str, Any]
) -> None:
    """`InvalidInput` names the field."""
    good: dict[str, Any] = {
        "validator_ss58": OTHER,
        "miner_ss58": "a",
        "executor_class": GPU,
        "started_at": at_s(48),
        "blocks": [1],
        "allowance_seconds": 1.0,
    }
    async with new_ledger as ledger:
        keeper = await stocked(ledger)
        with pytest.raises(InvalidInput) as caught:
            keeper.take(Receipt(**{**good, **malformed}))
        assert caught.value.field == next(iter(malformed))
        assert keeper.take(Receipt(**good)).spent


def test_the_blocking_api_returns_a_bookkeeper() -> None:
    """Code without an event loop uses the same bookkeeper."""
    from routing import sync

    with sync.Allowance.open("sqlite://", validator_ss58="me") as ledger, pytest.raises(TimeOutOfRange):
        ledger.receipts().take(receipt(1, 1.0, [1]))


# Random worlds, against the reference model.


class Day:
    """Facts in any order, with gaps, drops and changed settings, and receipts in between."""

    def __init__(self, database_url: str, draw: random.Random) -> None:
        self.draw = draw
        self.rules = replace(
            strategies.SMALL_RULES,
            validation_leeway_lower_blocks=draw.choice([0, 1, 3]),
            validation_leeway_upper_blocks=draw.choice([0, 0, 2]),
        )
        self.pair = Pair(database_url, self.rules)
        first, end = draw.choice([(None, None), (None, None), (8, 20), (14, 400)])
        self.keepers = (
            reference.Bookkeeper(self.pair.model, None if first is None or end is None else (first, end)),
            self.pair.run(self.pair.ledger.receipts(first_block=first, end_block=end)),
        )
        self.verdicts: set[str] = set()

    def live(self, steps: int) -> None:
        self.pair.record_manifests(5, {miner: dict.fromkeys(CLASSES, 2) for miner in MINERS})
        for number in range(5, 12):
            self.pair.record_block(number, 0.0, strategies.WHOLE_NETWORK)
        for _ in range(steps):
            happening = self.draw.choices(
                [self.a_block, self.a_sync, self.other_rules, self.a_receipt], [20, 4, 1, 30]
            )[0]
            happening()

    def a_block(self) -> None:
        number = self.pair.near(self.draw.choice([1, 1, 1, 1, 2, -1, -4, -9]))
        if self.pair.model.block(number) is None:
            stakes = tuple((v, self.draw.choice([0.0, 1.0, 2.5, 0.1])) for v in VALIDATORS if self.draw.random() < 0.9)
            away = self.draw.choice([None, None, *MINERS])
            axons = tuple(axon for axon in strategies.WHOLE_NETWORK.axons if axon.hotkey != away)
            self.pair.record_block(number, self.draw.choice(strategies.LATENESS_S), strategies.Metagraph(axons, stakes))

    def a_sync(self) -> None:
        offered = {
            miner: {name: self.draw.choice([0, 1, 2, 3]) for name in CLASSES}
            for miner in MINERS
            if self.draw.random() < 0.9
        }
        self.pair.record_manifests(self.pair.near(self.draw.randrange(-12, 3)), offered, confirm=True)

    def other_rules(self) -> None:
        self.rules = replace(
            self.rules,
            block_expiry_blocks=self.draw.choice([4, 10, 25]),
            long_block_counts_as_seconds=self.draw.choice([12.0, 7.3]),
            allowance_multiplier=self.draw.choice([Fraction(1), Fraction(1, 3), Fraction(7, 2), Fraction(0)]),
            executors_max_per_class=self.draw.choice([{}, {CLASSES[0]: 1}, {CLASSES[0]: 0, CLASSES[1]: 2}]),
        )
        self.pair.restart(self.rules)

    def a_receipt(self) -> None:
        """Check that both bookkeepers return the same verdicts and sums, or the same error."""
        model, keeper = self.keepers
        self.pair.run(self.pair.ledger.receipts(keeper))
        validator, miner, executor_class = account = (
            self.draw.choice(VALIDATORS),
            self.draw.choice([*MINERS[:2], MINERS[0], strategies.STRANGER]),
            self.draw.choice([CLASSES[0], CLASSES[0], strategies.UNKNOWN_CLASS, CLASSES[1]]),
        )
        started_at_ns = self.a_time()
        offered = [max(0, self.pair.near(self.draw.randrange(-14, 4))) for _ in range(self.draw.randrange(1, 9))]
        amount_s = self.draw.choice([0.0, 1e-9, 0.5, 1.0, 6.0, 12.0, 20.0])
        outcome: reference.ReceiptOutcome | Refused
        try:
            outcome = model.receive(account, started_at_ns, nanoseconds(amount_s), offered)
        except Refused as refused:
            outcome = refused
        given = Receipt(validator, miner, executor_class, instant(started_at_ns), offered, amount_s)
        if isinstance(outcome, Refused):
            with pytest.raises((TimeOutOfRange, JobOutOfBounds)) as raised:
                keeper.take(given)
            assert raised.typename == outcome.error
            self.verdicts.add(raised.typename)
            return
        actual = keeper.take(given)
        assert actual.spent == outcome.accepted
        assert actual.blocks == (list(outcome.spendable) if outcome.accepted and amount_s else [])
        assert sorted(runs(actual)) == sorted((block, name) for name in REASONS for block in getattr(outcome, name))
        assert lists(actual) == {
            name: list(value) for name, value in vars(outcome).items() if name != "accepted" and value
        }
        grants = self.pair.model.granted(miner, executor_class, validator)
        assert actual.spendable_seconds == seconds(sum(grants[block] for block in outcome.spendable))
        self.verdicts |= lists(actual).keys()

    def a_time(self) -> int:
        """Return a time at, just before or just after a block, or half a block away."""
        block = self.draw.choice(self.pair.model.blocks)
        return block.created_at_ns + self.draw.choice([0, -1000, 1000, 6 * SECOND_NS, -6 * SECOND_NS])


def compare_a_world(directory: Path, world_seed: int, steps: int) -> set[str]:
    with seed_shown(world_seed):
        day = Day(f"sqlite:///{directory / f'{world_seed}.db'}", random.Random(world_seed))
        try:
            day.live(steps)
        finally:
            day.pair.close()
            day.pair.loop.close()
        return day.verdicts


def test_random_receipts_have_the_outcomes_of_the_reference_model(tmp_path: Path) -> None:
    """With facts and settings in any order; every one of the five verdicts and of the two refusals occurs."""
    first = int(os.environ.get("RECEIPTS_SEED", "1"))
    verdicts: set[str] = set()
    for world_seed in range(first, first + int(os.environ.get("RECEIPTS_WORLDS", "12"))):
        verdicts |= compare_a_world(tmp_path, world_seed, steps=120)
    assert len(verdicts) == 7 or "RECEIPTS_SEED" in os.environ
