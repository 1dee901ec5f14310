"""The reference model agrees with examples computed by hand, so tests may compare the product with it.

Unless an example says otherwise, our validator `me` has half of the stake and a block lasts 12 s, so it grants 6 s per
executor; block `n` is created `12 n` s after the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from tests.support.reference import (
    SECOND_NS,
    Axon,
    Block,
    Bookkeeper,
    Candidate,
    Counts,
    Drop,
    Ledger,
    ReceiptOutcome,
    Rules,
    nanoseconds,
)
from tests.support.refusal import Refused

ME, OTHER = "me", "other"
GPU, CPU = "gpu", "cpu"
HALVES = {ME: 1.0, OTHER: 1.0}
NOW = 1_000_000 * SECOND_NS
S = SECOND_NS


def axon(hotkey: str, port: int = 8000) -> Axon:
    """Return a registered miner."""
    return Axon(hotkey, "192.0.2.1", 4, port)


def new_ledger(rules: Rules | None = None) -> Ledger:
    """Return a ledger without facts."""
    return Ledger(ME, rules or Rules(), NOW)


def record_blocks(
    ledger: Ledger,
    numbers: Iterable[int],
    miners: Sequence[str] = ("a", "b"),
    stakes: dict[str, float] | None = None,
    at_s: float | None = None,
) -> None:
    """Record blocks with the same miners and stakes."""
    for number in numbers:
        created_at_ns = nanoseconds(12 * number if at_s is None else at_s)
        ledger.record_block(number, created_at_ns, [axon(miner) for miner in miners], stakes or HALVES, NOW)


def stocked(blocks: Iterable[int] = range(1, 6), counts: Counts | None = None, **rules: Any) -> Ledger:
    """Return a ledger with these facts; by default blocks 1 to 4 grant 6 s each on `a`, and nothing on `b`."""
    ledger = new_ledger(replace(Rules(), **rules))
    ledger.record_manifests(1, {"a": {GPU: 1}} if counts is None else counts, NOW)
    record_blocks(ledger, blocks)
    return ledger


def refusal(call: object, *arguments: object, **named: object) -> Refused:
    """Make a call that must be refused; return the refusal."""
    assert callable(call)
    with pytest.raises(Refused) as caught:
        call(*arguments, **named)
    return caught.value


class TestNumbers:
    """Decimals become whole numbers once, from their shortest spelling."""

    @pytest.mark.parametrize(
        ("given", "whole"),
        [(0.1, 100_000_000), (1e-9, 1), (5e-10, 0), (1.5e-9, 2), (2.5e-9, 2), (1001.0, 1_001_000_000_000)],
    )
    def test_seconds_become_nanoseconds_half_even(self, given: float, whole: int) -> None:
        """0.5 ns rounds to 0 and 1.5 and 2.5 ns to 2; 0.1 s is exactly 10^8 ns."""
        assert nanoseconds(given) == whole


class TestBlocks:
    """A block is recorded once, and grants allowance as soon as its end is known."""

    def test_the_newest_block_grants_nothing_yet(self) -> None:
        """The last of blocks 1 to 5 has no end: 1 to 4 grant 12 s · 1/2 · 1 = 6 s each."""
        assert stocked().granted("a", GPU) == {1: 6 * S, 2: 6 * S, 3: 6 * S, 4: 6 * S}

    def test_a_long_block_counts_as_twelve_seconds(self) -> None:
        """12.5 s is not long and grants 6.25 s; 12.500001 s is long and grants 6 s; 11 s grants 5.5 s."""
        ledger = stocked(blocks=[])
        for number, at_s in [(1, 0.0), (2, 12.5), (3, 25.000001), (4, 36.000001)]:
            record_blocks(ledger, [number], at_s=at_s)
        assert ledger.granted("a", GPU) == {1: 6_250_000_000, 2: 6 * S, 3: 5_500_000_000}

    def test_a_missing_block_leaves_the_block_before_it_without_an_end(self) -> None:
        """While 3 is missing, 2 has no end; when 3 arrives, 2 and 3 are both complete."""
        ledger = stocked(blocks=[1, 2, 4, 5])
        assert list(ledger.granted("a", GPU)) == [1, 4]
        record_blocks(ledger, [3])
        assert list(ledger.granted("a", GPU)) == [1, 2, 3, 4]

    def test_a_backfill_gives_the_same_grants(self) -> None:
        """Blocks recorded newest to oldest, after the same manifests, grant the same as blocks in order."""
        assert stocked(range(5, 0, -1)).granted("a", GPU) == stocked(range(1, 6)).granted("a", GPU)

    def test_a_repeat_changes_nothing(self) -> None:
        """The same block with its miners in another order is accepted and changes nothing."""
        ledger = new_ledger()
        assert ledger.record_block(1, 12 * S, [axon("a"), axon("b")], {ME: 1.0}, NOW)
        assert not ledger.record_block(1, 12 * S, [axon("b"), axon("a")], {ME: 1}, NOW + 5)
        assert len(ledger.blocks) == 1
        assert ledger.recorded_ns == NOW

    @pytest.mark.parametrize(
        ("at_ns", "axons", "stakes"),
        [
            (12 * S + 1000, [axon("a")], {ME: 1.0}),
            (12 * S, [axon("a", 8001)], {ME: 1.0}),
            (12 * S, [], {ME: 1.0}),
            (12 * S, [axon("a")], {ME: 1.5}),
        ],
    )
    def test_the_same_number_with_other_content_conflicts(
        self, at_ns: int, axons: list[Axon], stakes: dict[str, float]
    ) -> None:
        """A block with another time, axon, set of miners or stake is another block."""
        ledger = new_ledger()
        ledger.record_block(1, 12 * S, [axon("a")], {ME: 1.0}, NOW)
        assert refusal(ledger.record_block, 1, at_ns, axons, stakes, NOW, confirm=True).error == "ConflictingFact"

    @pytest.mark.parametrize(("number", "at_s"), [(2, 36.0), (2, 36.5), (4, 36.0), (4, 35.5)])
    def test_a_block_must_be_between_its_neighbours_in_time(self, number: int, at_s: float) -> None:
        """Block 3 is at 36 s: 2 must be earlier and 4 later; an equal time would give a duration of zero."""
        ledger = new_ledger()
        record_blocks(ledger, [3])
        refused = refusal(ledger.record_block, number, nanoseconds(at_s), [], {}, NOW, confirm=True)
        assert refused.error == "ConflictingFact"
        assert [block.number for block in ledger.blocks] == [3]

    def test_a_number_far_above_the_newest_needs_a_confirmation(self) -> None:
        """100,000 above 5 is plausible; one more needs a confirmation; the first block may have any number."""
        ledger = stocked()
        assert refusal(ledger.record_block, 100_006, NOW, [], {}, NOW).error == "ImplausibleFact"
        assert ledger.record_block(100_005, NOW, [], {}, NOW)
        assert ledger.record_block(200_006, NOW + 1, [], {}, NOW, confirm=True)
        assert new_ledger().record_block(7_000_000, NOW, [], {}, NOW)

    def test_numbers_start_at_one(self) -> None:
        """There is no block 0."""
        assert refusal(new_ledger().record_block, 0, NOW, [], {}, NOW).error == "InvalidInput"


class TestGrants:
    """The grants of a block are fixed when its end becomes known."""

    def test_the_unit_is_rounded_down_before_it_is_multiplied(self) -> None:
        """12 s · 1/7 = 1,714,285,714.28… ns; three executors get three times the integer part."""
        ledger = stocked(blocks=[], counts={"a": {GPU: 3}})
        record_blocks(ledger, [1, 2], stakes={ME: 1.0, OTHER: 6.0})
        assert ledger.granted("a", GPU) == {1: 3 * 1_714_285_714}

    def test_the_multiplier_is_exact(self) -> None:
        """12 s · 1/3 · 1/2 is 2 s to the nanosecond."""
        assert stocked([1, 2], allowance_multiplier=Fraction(1, 3)).granted("a", GPU) == {1: 2 * S}

    @pytest.mark.parametrize("stakes", [{}, {ME: 0.0, OTHER: 0.0}, {OTHER: 1.0}, {ME: 0.0, OTHER: 1.0}])
    def test_without_stake_there_is_no_grant(self, stakes: dict[str, float]) -> None:
        """No stakes at all, our stake of zero, and a missing stake of ours all grant nothing."""
        ledger = stocked(blocks=[])
        for number in (1, 2):
            ledger.record_block(number, 12 * S * number, [axon("a")], stakes, NOW)
        assert ledger.granted("a", GPU) == {}

    def test_only_miners_registered_at_the_block_are_granted(self) -> None:
        """`a` is absent at block 2 and registered again at 3: 1 and 3 grant."""
        ledger = stocked(blocks=[1])
        record_blocks(ledger, [2], miners=["b"])
        record_blocks(ledger, [3, 4])
        assert list(ledger.granted("a", GPU)) == [1, 3]

    def test_other_validators_are_granted_by_their_own_stake(self) -> None:
        """With 3 of 4 shares the other has 9 s of 12, and we have 3 s."""
        ledger = stocked(blocks=[])
        record_blocks(ledger, [1, 2], stakes={ME: 1.0, OTHER: 3.0})
        assert ledger.granted("a", GPU, OTHER) == {1: 9 * S}
        assert ledger.granted("a", GPU) == {1: 3 * S}

    def test_the_count_is_that_of_the_newest_sync_not_after_the_block(self) -> None:
        """Syncs at 2 and 4: block 1 has no count, 2 and 3 have 1 executor, 4 has 2."""
        ledger = new_ledger()
        ledger.record_manifests(4, {"a": {GPU: 2}}, NOW)
        ledger.record_manifests(2, {"a": {GPU: 1}}, NOW)
        record_blocks(ledger, range(1, 6))
        assert ledger.granted("a", GPU) == {2: 6 * S, 3: 6 * S, 4: 12 * S}

    def test_a_late_sync_changes_nothing_that_is_finalized(self) -> None:
        """Blocks 1 and 2 were complete before the sync at 1 with 5 executors arrived; only 3 grants 30 s."""
        ledger = new_ledger()
        record_blocks(ledger, range(1, 4))
        ledger.record_manifests(1, {"a": {GPU: 5}}, NOW)
        record_blocks(ledger, [4])
        assert ledger.granted("a", GPU) == {3: 30 * S}

    def test_a_cap_applies_from_the_change_on(self) -> None:
        """Block 1 counts 3 executors; a cap of 2, then of 0, applies to 2 and 3, and is no drop."""
        ledger = stocked([1, 2], counts={"a": {GPU: 3}})
        assert ledger.change_rules(replace(ledger.rules, executors_max_per_class={GPU: 2}), NOW)
        record_blocks(ledger, [3])
        ledger.change_rules(replace(ledger.rules, executors_max_per_class={GPU: 0}), NOW)
        record_blocks(ledger, [4])
        assert ledger.granted("a", GPU) == {1: 18 * S, 2: 12 * S}
        assert ledger.drops == []

    def test_a_changed_long_block_rule_does_not_change_the_past(self) -> None:
        """Block 1 lasts 12 s and counts as 12 s; block 2 lasts 12 s and counts as 8 s under the new rule."""
        ledger = stocked([1, 2])
        ledger.change_rules(replace(ledger.rules, long_block_seconds=11.0, long_block_counts_as_seconds=8.0), NOW)
        record_blocks(ledger, [3])
        assert ledger.granted("a", GPU) == {1: 6 * S, 2: 4 * S}


class TestManifests:
    """A sync covers all miners and invalidates blocks of executors that are no longer offered."""

    def test_a_repeated_sync_changes_nothing(self) -> None:
        """A repeat is accepted; another sync at the same block conflicts, confirmed or not."""
        ledger = new_ledger()
        assert ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert not ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert refusal(ledger.record_manifests, 3, {"a": {GPU: 2}}, NOW, confirm=True).error == "ConflictingFact"

    def test_less_than_a_tenth_needs_a_confirmation(self) -> None:
        """After 20 executors, 1 is less than a tenth and 2 are not; with a confirmation even 0 is accepted."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 15}, "b": {CPU: 5}}, NOW)
        assert refusal(ledger.record_manifests, 2, {"a": {GPU: 1}}, NOW).error == "ImplausibleFact"
        assert ledger.record_manifests(2, {"a": {GPU: 1}, "b": {CPU: 1}}, NOW)
        assert ledger.record_manifests(3, {}, NOW, confirm=True)

    def test_a_tenth_is_of_the_sync_before_it_in_the_chain(self) -> None:
        """With 20 executors at 1 and 100 at 9, a late sync at 5 is compared with the 20."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 20}}, NOW)
        ledger.record_manifests(9, {"a": {GPU: 100}}, NOW)
        assert refusal(ledger.record_manifests, 5, {"a": {GPU: 1}}, NOW).error == "ImplausibleFact"
        assert ledger.record_manifests(5, {"a": {GPU: 2}}, NOW)

    def test_a_drop_invalidates_all_earlier_blocks_of_the_class(self) -> None:
        """From 2 to 1 executor at block 3: blocks 1 and 2 are invalid; 3, 4 and the other class are not."""
        ledger = stocked(counts={"a": {GPU: 2, CPU: 1}}, blocks=range(1, 4))
        ledger.record_manifests(3, {"a": {GPU: 1, CPU: 1}}, NOW)
        record_blocks(ledger, [4, 5])
        assert ledger.drops == [Drop(3, "a", GPU)]
        assert list(ledger.usable("a", GPU, 5)) == [3, 4]
        assert list(ledger.usable("a", CPU, 5)) == [1, 2, 3, 4]

    def test_absence_is_a_drop_to_zero(self) -> None:
        """The sync does not name `a`, and names no GPU of `b`."""
        ledger = stocked([], counts={"a": {GPU: 1}, "b": {GPU: 1, CPU: 1}})
        ledger.record_manifests(4, {"b": {CPU: 1}}, NOW)
        assert ledger.drops == [Drop(4, "a", GPU), Drop(4, "b", GPU)]

    def test_a_drop_invalidates_blocks_that_are_finalized_later(self) -> None:
        """Block 2 arrives after the drop at 4: the new grants of 1 and 2 are invalid at once."""
        ledger = stocked([1, 3], counts={"a": {GPU: 2}})
        ledger.record_manifests(4, {"a": {GPU: 1}}, NOW)
        record_blocks(ledger, [2])
        assert list(ledger.granted("a", GPU)) == [1, 2]
        assert ledger.usable("a", GPU, 4) == {}

    def test_a_late_sync_is_compared_with_the_one_before_its_block(self) -> None:
        """1 executor at 1 and 3 at 9; a late sync at 5 with 4 is no drop, and makes no drop at 9 either."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 1}}, NOW)
        ledger.record_manifests(9, {"a": {GPU: 3}}, NOW)
        ledger.record_manifests(5, {"a": {GPU: 4}}, NOW)
        assert ledger.drops == []
        ledger.record_manifests(3, {}, NOW, confirm=True)
        assert ledger.drops == [Drop(3, "a", GPU)]

    def test_counts_above_the_cap_drop_nothing(self) -> None:
        """With a cap of 2, 5 to 3 executors count as 2 to 2; 3 to 1 is a drop."""
        ledger = stocked([], counts={"a": {GPU: 5}}, executors_max_per_class={GPU: 2})
        ledger.record_manifests(2, {"a": {GPU: 3}}, NOW)
        assert ledger.drops == []
        ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert ledger.drops == [Drop(3, "a", GPU)]

    def test_the_newest_sync_is_returned_as_it_was_recorded(self) -> None:
        """Neither the cap nor the order of arrival changes it."""
        ledger = stocked([], counts={"a": {GPU: 5}}, executors_max_per_class={GPU: 2})
        ledger.record_manifests(9, {"a": {GPU: 7, CPU: 0}}, NOW)
        ledger.record_manifests(4, {"a": {GPU: 6}}, NOW)
        newest = ledger.newest_sync()
        assert newest is not None
        assert (newest.block, newest.counts) == (9, {"a": {GPU: 7, CPU: 0}})


class TestCoverage:
    """A sync covers the miners that it names and those registered at its block; others keep their counts."""

    def test_a_miner_off_the_metagraph_keeps_its_counts(self) -> None:
        """At 3 only `a` is registered, so a sync that names `a` alone leaves the 2 of `b`, and drops nothing."""
        ledger = stocked(range(1, 3), counts={"a": {GPU: 1}, "b": {GPU: 2}})
        record_blocks(ledger, [3], miners=["a"])
        ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        record_blocks(ledger, [4, 5])
        assert ledger.granted("b", GPU) == {1: 12 * S, 2: 12 * S, 4: 12 * S}
        assert ledger.drops == []

    def test_a_named_miner_is_covered(self) -> None:
        """Naming it without a class is enough: then its count is 0."""
        ledger = stocked(range(1, 3), counts={"a": {GPU: 1}, "b": {GPU: 2}})
        record_blocks(ledger, [3], miners=["a"])
        ledger.record_manifests(3, {"a": {GPU: 1}, "b": {}}, NOW)
        assert ledger.drops == [Drop(3, "b", GPU)]

    def test_without_a_block_below_it_a_sync_covers_all(self) -> None:
        """The metagraph of a later block says nothing about an earlier one."""
        ledger = stocked([], counts={"b": {GPU: 2}})
        record_blocks(ledger, [9], miners=["a"])
        ledger.record_manifests(5, {}, NOW, confirm=True)
        assert ledger.drops == [Drop(5, "b", GPU)]

    def test_a_late_sync_counts_until_the_next_that_covers_the_miner(self) -> None:
        """The sync at 3 does not cover `b`, so what the late one at 2 says of `b` holds at 4."""
        ledger = stocked(range(1, 3), counts={"a": {GPU: 1}, "b": {GPU: 2}})
        record_blocks(ledger, [3], miners=["a"])
        ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        ledger.record_manifests(2, {"a": {GPU: 4}, "b": {GPU: 5}}, NOW)
        record_blocks(ledger, [4, 5])
        assert ledger.granted("b", GPU)[4] == 30 * S
        assert ledger.granted("a", GPU)[4] == 6 * S


class TestCorrections:
    """A withdrawn fact counts as never recorded."""

    def test_a_withdrawn_sync_drops_nothing(self) -> None:
        """What later syncs drop is compared with what remains: 3 to 2 is a drop, once the 1 between them is gone."""
        ledger = stocked(counts={"a": {GPU: 3}})
        ledger.record_manifests(4, {"a": {GPU: 1}}, NOW)
        ledger.record_manifests(5, {"a": {GPU: 2}}, NOW)
        assert ledger.drops == [Drop(4, "a", GPU)]
        ledger.withdraw_manifests(4, NOW)
        assert ledger.drops == [Drop(5, "a", GPU)]
        assert refusal(ledger.record_manifests, 4, {"a": {GPU: 1}}, NOW).error == "ImplausibleFact"

    def test_a_withdrawn_block_and_its_predecessor_are_not_finalized(self) -> None:
        """Recorded anew, both have the counts of the syncs recorded by then."""
        ledger = stocked()
        ledger.withdraw_block(3, NOW)
        assert ledger.granted("a", GPU) == {1: 6 * S, 4: 6 * S}
        ledger.record_manifests(2, {"a": {GPU: 2}}, NOW)
        record_blocks(ledger, [3], at_s=37)
        assert ledger.granted("a", GPU) == {1: 6 * S, 2: 12 * S, 3: 11 * S, 4: 6 * S}

    def test_a_block_in_use_is_not_withdrawn(self) -> None:
        """Neither a block that a reservation holds, nor the one after it, until it is released."""
        ledger = stocked()
        held = ledger.reserve("a", GPU, 6.0, 5, NOW)
        for number in (1, 2):
            assert refusal(ledger.withdraw_block, number, NOW).fields == {"reservation_ids": [held.reservation_id]}
        ledger.release(held.reservation_id, NOW)
        assert ledger.withdraw_block(2, NOW)
        assert not ledger.withdraw_block(2, NOW)
        assert refusal(ledger.withdraw_block, 77, NOW).error == "FactNotRecorded"


class TestFindingMiners:
    """Miners with enough available allowance; those with the oldest free blocks come first."""

    def test_the_window_is_inclusive_and_has_no_upper_end(self) -> None:
        """At 5 with an expiry of 3, block 2 is still usable; at 1 all blocks are, also those above 1."""
        ledger = stocked(block_expiry_blocks=3)
        assert list(ledger.usable("a", GPU, 5)) == [2, 3, 4]
        assert list(ledger.usable("a", GPU, 1)) == [1, 2, 3, 4]
        assert list(ledger.usable("a", GPU, 8)) == []

    def test_the_earliest_free_block_comes_first(self) -> None:
        """`b` has less available, but its block 1 is free; `a` has spent block 1."""
        ledger = stocked(counts={"a": {GPU: 2}, "b": {GPU: 1}})
        ledger.spend(ledger.reserve("a", GPU, 1.0, 5, NOW).reservation_id, NOW)
        found = ledger.find_miners(1.0, GPU, 5, NOW)
        assert found == [
            Candidate("b", available_ns=24 * S, total_ns=24 * S, earliest_block=1),
            Candidate("a", available_ns=36 * S, total_ns=48 * S, earliest_block=2),
        ]

    def test_then_come_larger_share_larger_amount_and_name(self) -> None:
        """All have block 1: `c` and `d` have all of 24 s available, `b` all of 48 s, `a` 3/4 of 24 s."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 1}, "b": {GPU: 2}, "c": {GPU: 1}, "d": {GPU: 1}}, NOW)
        record_blocks(ledger, range(1, 6), miners=["d", "c", "b", "a"])
        released = ledger.reserve("a", GPU, 12.0, 5, NOW)
        ledger.spend(ledger.reserve("a", GPU, 6.0, 5, NOW).reservation_id, NOW)
        ledger.release(released.reservation_id, NOW)
        found = ledger.find_miners(1.0, GPU, 5, NOW)
        assert [each.hotkey for each in found] == ["b", "c", "d", "a"]
        assert [each.share for each in found] == [10**9, 10**9, 10**9, 750_000_000]

    def test_the_amount_is_compared_to_the_nanosecond(self) -> None:
        """24 s are available: a request for 24 s succeeds, and one for a nanosecond more is refused."""
        ledger = stocked()
        assert len(ledger.find_miners(24.0, GPU, 5, NOW)) == 1
        refused = refusal(ledger.find_miners, 24.000000001, GPU, 5, NOW)
        assert refused.fields == {
            "highest_available_allowance": 24.0,
            "highest_available_allowance_ss58": "a",
            "highest_unspent_allowance": 24.0,
            "highest_unspent_allowance_ss58": "a",
        }

    def test_a_refusal_names_the_highest_and_the_lower_name_of_equals(self) -> None:
        """Both had 24 s. `a` reserved 6 s, so `b` has most available; nothing is spent, so `a` has most unspent."""
        ledger = stocked(counts={"b": {GPU: 1}, "a": {GPU: 1}})
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        fields = refusal(ledger.find_miners, 30.0, GPU, 5, NOW).fields
        assert list(fields.values()) == [24.0, "b", 24.0, "a"]
        ledger.spend(1, NOW)
        fields = refusal(ledger.find_miners, 30.0, GPU, 5, NOW).fields
        assert list(fields.values()) == [24.0, "b", 24.0, "b"]

    def test_without_allowance_a_refusal_names_nobody(self) -> None:
        """For an empty ledger and an unknown class, the highest allowance is 0.0, of nobody."""
        for ledger, name in [(new_ledger(), GPU), (stocked(), "tpu")]:
            assert list(refusal(ledger.find_miners, 1.0, name, 5, NOW).fields.values()) == [0.0, "", 0.0, ""]

    def test_only_miners_registered_at_the_newest_block_are_found(self) -> None:
        """`a` is absent from block 5 on, but its earlier grants can still be reserved by name."""
        ledger = stocked(range(1, 5))
        record_blocks(ledger, [5], miners=["b"])
        assert refusal(ledger.find_miners, 1.0, GPU, 5, NOW).error == "NotEnoughAllowanceException"
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (1,)

    def test_queries_count_overdue_blocks_as_free_without_expiring_them(self) -> None:
        """Reserved for 6 s and due after 106 s: the block is taken before that time, and free from then on.

        A clock that goes back makes it taken again.
        """
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        due = NOW + 106 * S
        assert ledger.find_miners(1.0, GPU, 5, due - 1)[0].earliest_block == 2
        assert ledger.find_miners(1.0, GPU, 5, due)[0].earliest_block == 1
        assert ledger.find_miners(1.0, GPU, 5, due - 1)[0].earliest_block == 2
        assert ledger.reservation(1).status == "reserved"

    @pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 3600.000000001])
    def test_an_amount_must_be_positive_and_at_most_the_longest_job(self, amount: float) -> None:
        """Zero, negative, NaN, infinite amounts and more than 3600 s are invalid."""
        ledger = stocked()
        assert refusal(ledger.find_miners, amount, GPU, 5, NOW).error == "InvalidInput"
        assert refusal(ledger.reserve, "a", GPU, amount, 5, NOW).error == "InvalidInput"

    def test_a_refusal_of_a_long_job_names_the_limit(self) -> None:
        """The message contains the value of the setting."""
        says = refusal(stocked().find_miners, 3601, GPU, 5, NOW).says
        assert says == "Required allowance cannot be greater than 3600.0 seconds"

    def test_jobs_start_at_block_one_or_later(self) -> None:
        """Block 0 is invalid."""
        assert refusal(stocked().find_miners, 1.0, GPU, 0, NOW).error == "InvalidInput"
        assert refusal(stocked().reserve, "a", GPU, 1.0, 0, NOW).error == "InvalidInput"


class TestReserving:
    """Reservations consist of whole free blocks, the earliest first, each block once."""

    def test_blocks_are_taken_whole_from_the_earliest_on(self) -> None:
        """7 s need two blocks of 6 s; the next 6 s need the third."""
        ledger = stocked()
        first = ledger.reserve("a", GPU, 7.0, 5, NOW)
        assert first.blocks == (1, 2)
        assert (first.reserved_at_ns, first.expires_at_ns) == (NOW, NOW + 107 * S)
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (3,)

    def test_a_refused_reservation_changes_nothing(self) -> None:
        """18 of 24 s are reserved, so 6 s are free: 6.5 s are refused, and 6 s are not."""
        ledger = stocked()
        ledger.reserve("a", GPU, 18.0, 5, NOW)
        refused = refusal(ledger.reserve, "a", GPU, 6.5, 5, NOW + 5)
        assert refused.error == "CannotReserveAllowanceException"
        assert list(refused.fields.values()) == ["a", 6.5, 6.0]
        assert (len(ledger.reservations), ledger.recorded_ns) == (1, NOW)
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (4,)

    def test_a_claim_expires_exactly_the_overdue_reservations_of_its_blocks(self) -> None:
        """1, 2+3 and 4 are in overdue reservations: 10 s need 1 and 2, so the first two expire, and 3 becomes free."""
        ledger = stocked()
        for amount in (6.0, 12.0, 6.0):
            ledger.reserve("a", GPU, amount, 5, NOW)
        later = NOW + 112 * S
        assert ledger.reserve("a", GPU, 10.0, 5, later).blocks == (1, 2)
        assert [each.status for each in ledger.reservations] == ["expired", "expired", "reserved", "reserved"]
        assert ledger.reservation(1).settled_at_ns == later
        assert list(ledger.free("a", GPU, 5, NOW)) == [3]

    def test_a_refused_claim_expires_nothing(self) -> None:
        """25 s are not available, even with the overdue blocks."""
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        refusal(ledger.reserve, "a", GPU, 25.0, 5, NOW + 200 * S)
        assert ledger.reservation(1).status == "reserved"

    def test_accounts_do_not_share_blocks(self) -> None:
        """Two miners and two classes are four accounts."""
        both = {GPU: 1, CPU: 1}
        ledger = stocked(counts={"a": both, "b": both})
        for miner in ("a", "b"):
            for name in (GPU, CPU):
                assert ledger.reserve(miner, name, 6.0, 5, NOW).blocks == (1,)

    def test_a_job_has_one_active_reservation(self) -> None:
        """The same request returns it, at any start block and even when overdue; another request is refused."""
        ledger = stocked(counts={"a": {GPU: 1, CPU: 1}, "b": {GPU: 1}})
        first = ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job")
        assert ledger.reserve("a", GPU, 6.0, 4, NOW + 200 * S, job_uuid="job") == first
        for other in [("b", GPU, 6.0), ("a", CPU, 6.0), ("a", GPU, 7.0)]:
            assert refusal(ledger.reserve, *other, 5, NOW, job_uuid="job").error == "JobRequestConflict"
        assert len(ledger.reservations) == 1

    def test_a_job_is_reserved_again_after_a_release_or_an_expiry_but_not_after_a_spend(self) -> None:
        """The first is released, the second expires, the third is spent, and the fourth is refused."""
        ledger = stocked()
        ledger.release(ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job").reservation_id, NOW)
        ledger.reserve("a", GPU, 7.0, 5, NOW, job_uuid="job")
        ledger.expire_due(NOW + 107 * S)
        ledger.spend(ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job").reservation_id, NOW)
        assert [each.status for each in ledger.reservations] == ["released", "expired", "spent"]
        assert refusal(ledger.reserve, "a", GPU, 6.0, 5, NOW, job_uuid="job").error == "JobAlreadySpent"
        assert ledger.reservation_for_job("job").reservation_id == 3

    def test_an_overdue_job_is_reserved_again_only_after_its_expiry(self) -> None:
        """While overdue it is still active; after another job has taken its block, it is reserved again."""
        ledger = stocked()
        first = ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job")
        later = NOW + 106 * S
        assert ledger.reserve("a", GPU, 6.0, 5, later, job_uuid="job") == first
        assert ledger.reserve("a", GPU, 6.0, 5, later, job_uuid="rival").blocks == (1,)
        assert ledger.reserve("a", GPU, 6.0, 5, later, job_uuid="job").blocks == (2,)

    def test_changed_margins_apply_to_later_claims(self) -> None:
        """The margin is 100 s before the change, and 5 s after it."""
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        ledger.change_rules(replace(ledger.rules, reservation_margin_seconds=5.0), NOW)
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        assert [each.expires_at_ns - NOW for each in ledger.reservations] == [106 * S, 11 * S]


class TestSettling:
    """A reservation is spent, released or expired once, and that is final."""

    def test_released_blocks_are_free_again(self) -> None:
        """The next claim takes block 1 again."""
        ledger = stocked()
        assert ledger.release(ledger.reserve("a", GPU, 6.0, 5, NOW).reservation_id, NOW).status == "released"
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (1,)

    def test_spent_blocks_are_never_free_again(self) -> None:
        """They stay taken long after the due time."""
        ledger = stocked()
        ledger.spend(ledger.reserve("a", GPU, 6.0, 5, NOW).reservation_id, NOW)
        assert ledger.reserve("a", GPU, 6.0, 5, NOW + 10**6 * S).blocks == (2,)

    def test_an_overdue_reservation_can_be_settled_until_its_expiry_is_recorded(self) -> None:
        """A late job can still be spent or released; after the expiry it cannot."""
        ledger = stocked()
        for _ in range(3):
            ledger.reserve("a", GPU, 6.0, 5, NOW)
        later = NOW + 500 * S
        assert ledger.spend(1, later).settled_at_ns == later
        assert ledger.release(2, later).status == "released"
        assert [each.reservation_id for each in ledger.expire_due(later)] == [3]
        assert refusal(ledger.spend, 3, later).error == "ReservationExpired"

    def test_a_refused_settlement_names_the_status(self) -> None:
        """Spent, released, expired and unknown reservations have different errors, in spend and release alike."""
        ledger = stocked()
        for _ in range(3):
            ledger.reserve("a", GPU, 6.0, 5, NOW)
        ledger.spend(1, NOW)
        ledger.release(2, NOW)
        ledger.expire_due(NOW + 106 * S)
        for settle in (ledger.spend, ledger.release):
            errors = [refusal(settle, reservation_id, NOW).error for reservation_id in (1, 2, 3, 4)]
            assert errors == [
                "ReservationAlreadySpent",
                "ReservationAlreadyReleased",
                "ReservationExpired",
                "ReservationNotFound",
            ]

    def test_due_reservations_expire_by_due_time(self) -> None:
        """They are due after 112, 101 and 106 s: at 111 s the last two are overdue, and the shorter expires first."""
        ledger = stocked(counts={"a": {GPU: 2}})
        for amount in (12.0, 1.0, 6.0):
            ledger.reserve("a", GPU, amount, 5, NOW)
        assert [each.reservation_id for each in ledger.expire_due(NOW + 111 * S)] == [2, 3]
        assert ledger.expire_due(NOW + 111 * S) == []

    def test_invalidated_blocks_stay_in_their_reservation_and_are_not_free_after_it(self) -> None:
        """A drop at 3 leaves 1 and 2 in their reservation; after its release they are not usable, and 3 is."""
        ledger = stocked(counts={"a": {GPU: 2}})
        reserved = ledger.reserve("a", GPU, 20.0, 5, NOW)
        assert reserved.blocks == (1, 2)
        ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert ledger.reservation(1).blocks == (1, 2)
        assert [ledger.state_of("a", GPU, number) for number in (1, 2, 3)] == ["reserved", "reserved", "free"]
        ledger.release(1, NOW)
        assert [ledger.state_of("a", GPU, number) for number in (1, 2, 3)] == [
            "invalidated",
            "invalidated",
            "free",
        ]
        assert list(ledger.free("a", GPU, 5, NOW)) == [3, 4]

    def test_a_spent_block_stays_spent_when_it_is_invalidated(self) -> None:
        """A spent block does not become invalidated, and counts neither as total nor as unspent."""
        ledger = stocked(counts={"a": {GPU: 2}})
        ledger.spend(ledger.reserve("a", GPU, 12.0, 5, NOW).reservation_id, NOW)
        ledger.record_manifests(2, {"a": {GPU: 1}}, NOW)
        assert ledger.state_of("a", GPU, 1) == "spent"
        assert ledger.unspent_ns("a", GPU, 5) == 36 * S
        assert sum(ledger.usable("a", GPU, 5).values()) == 36 * S

    def test_recorded_times_never_go_back(self) -> None:
        """Reserved at +50 s, then the clock goes back to 0: settled at +50 s, but due by the clock."""
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW + 50 * S)
        assert ledger.release(1, NOW).settled_at_ns == NOW + 50 * S
        again = ledger.reserve("a", GPU, 6.0, 5, NOW)
        assert again.reserved_at_ns == NOW + 50 * S
        assert again.expires_at_ns == NOW + 106 * S

    def test_a_key_repeats_the_first_outcome(self) -> None:
        """The same request returns the same result; another request with the key is refused."""
        ledger = stocked()
        first = ledger.reserve("a", GPU, 6.0, 5, NOW, key="k1")
        assert ledger.reserve("a", GPU, 6.0, 5, NOW, key="k1") == first
        assert refusal(ledger.reserve, "a", GPU, 7.0, 5, NOW, key="k1").error == "IdempotencyConflict"
        assert ledger.spend(1, NOW, key="k2") == ledger.spend(1, NOW, key="k2")
        assert refusal(ledger.spend, 1, NOW, key="k1").error == "IdempotencyConflict"
        assert refusal(ledger.spend, 1, NOW, key="k3").error == "ReservationAlreadySpent"
        assert len(ledger.reservations) == 1


class TestRouting:
    """The best miner that is not busy; one active route per job."""

    def test_the_limits_are_summed_after_rounding(self) -> None:
        """Two limits of 0.5 ns count as 0 + 0, so that with 1 s the sum is exactly 1 s."""
        choices = stocked().route_choices("job", GPU, [5e-10, 5e-10, 1.0], NOW)
        assert choices.amount_ns == S

    def test_all_equally_good_miners_are_choices(self) -> None:
        """`a`, `b` and `d` have the same earliest block and share, with different amounts; `c` has spent a block."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 1}, "b": {GPU: 2}, "c": {GPU: 1}, "d": {GPU: 1}}, NOW)
        record_blocks(ledger, range(1, 6), miners=["a", "b", "c", "d"])
        ledger.spend(ledger.reserve("c", GPU, 6.0, 5, NOW).reservation_id, NOW)
        choices = ledger.route_choices("job", GPU, [1.0, 2.0, 3.0], NOW)
        assert (choices.miners, choices.active) == (("b", "a", "d"), None)
        claimed = ledger.claim_route(choices, "d", "job", GPU, NOW)
        assert (claimed.blocks, claimed.job_start_block, claimed.axon) == ((1,), 5, axon("d"))

    def test_equals_are_tried_from_the_seed_on(self) -> None:
        """The seeds are what `b2sum -l 128` prints for the uuid, and for the uuid, a zero byte and the hash."""
        ledger = new_ledger()
        ledger.record_manifests(1, {each: {GPU: 1} for each in "abc"}, NOW)
        record_blocks(ledger, range(1, 5), miners="abc")
        ledger.record_block(5, 60 * S, [axon(each) for each in "abc"], HALVES, NOW, block_hash="2c" * 32)
        by_uuid, by_both = 0x084EDFFCADB9344536F3759CBDF80E9D, 0xF8A15E1610BBD5C848A92C738C1115D4
        assert (by_uuid % 3, by_both % 3) == (1, 2)
        assert ledger.route_choices("job", GPU, [1.0], NOW).first == "c"
        ledger.change_rules(replace(ledger.rules, tie_break="uuid"), NOW)
        assert ledger.route_choices("job", GPU, [1.0], NOW).first == "b"

    def test_busy_miners_are_skipped(self) -> None:
        """`a` has one executor and one job, so `b` is next although its blocks are later; then all are busy."""
        ledger = stocked(counts={"a": {GPU: 1}, "b": {GPU: 1}})
        ledger.spend(ledger.reserve("b", GPU, 1.0, 5, NOW).reservation_id, NOW)
        ledger.release(ledger.reserve("a", GPU, 1.0, 5, NOW).reservation_id, NOW)
        assert ledger.route_choices("j1", GPU, [1.0], NOW).miners == ("a",)
        ledger.claim_route(ledger.route_choices("j1", GPU, [1.0], NOW), "a", "j1", GPU, NOW)
        ledger.spend(ledger.reserve("b", GPU, 1.0, 5, NOW).reservation_id, NOW)
        choices = ledger.route_choices("j2", GPU, [1.0], NOW)
        assert choices.miners == ("b",)
        ledger.claim_route(choices, "b", "j2", GPU, NOW)
        assert refusal(ledger.route_choices, "j3", GPU, [1.0], NOW).error == "AllMinersBusy"
        ledger.change_rules(replace(ledger.rules, respect_executor_count=False), NOW)
        assert ledger.route_choices("j3", GPU, [1.0], NOW).miners == ("a",)

    def test_busyness_follows_the_newest_sync_and_the_current_cap(self) -> None:
        """Two executors with one job are not busy; with a cap of 1 they are; overdue jobs do not count."""
        ledger = stocked(counts={"a": {GPU: 2}})
        ledger.reserve("a", GPU, 1.0, 5, NOW)
        assert not ledger.is_busy("a", GPU, NOW)
        ledger.change_rules(replace(ledger.rules, executors_max_per_class={GPU: 1}), NOW)
        assert ledger.is_busy("a", GPU, NOW)
        assert not ledger.is_busy("a", GPU, NOW + 101 * S)

    def test_missing_allowance_is_not_the_same_as_all_busy(self) -> None:
        """Without candidates the allowance is missing; with busy candidates only, all are busy."""
        ledger = stocked()
        ledger.reserve("a", GPU, 1.0, 5, NOW)
        assert refusal(ledger.route_choices, "j", GPU, [19.0], NOW).error == "NotEnoughAllowanceException"
        assert refusal(ledger.route_choices, "j", GPU, [18.0], NOW).error == "AllMinersBusy"
        assert refusal(new_ledger().route_choices, "j", GPU, [1.0], NOW).error == "NotEnoughAllowanceException"

    def test_a_route_stays_as_it_was_claimed(self) -> None:
        """The axon changes and the due time passes: the same request gets the same route, and another is refused."""
        ledger = stocked()
        claimed = ledger.claim_route(ledger.route_choices("j", GPU, [2.0, 2.0, 2.0], NOW), "a", "j", GPU, NOW)
        ledger.record_block(6, 72 * S, [axon("a", 9999)], HALVES, NOW)
        later = NOW + 1000 * S
        again = ledger.route_choices("j", GPU, [1.0, 2.0, 3.0], later)
        assert again.active == claimed
        assert claimed.axon == axon("a", 8000)
        assert refusal(ledger.route_choices, "j", GPU, [6.5], later).error == "JobRequestConflict"
        assert refusal(ledger.route_choices, "j", CPU, [6.0], later).error == "JobRequestConflict"
        ledger.spend(1, later)
        assert refusal(ledger.route_choices, "j", GPU, [6.0], later).error == "JobAlreadySpent"

    def test_a_stale_chain_feed_refuses_new_routes(self) -> None:
        """Block 5 is at second 60; with a limit of 30 s, second 90 is the last at which a job is routed."""
        ledger = stocked(newest_block_max_age_seconds=30.0)
        assert ledger.route_choices("j", GPU, [1.0], 90 * S).miners == ("a",)
        assert refusal(ledger.route_choices, "j", GPU, [1.0], 90 * S + 1).error == "ChainFeedStale"


class TestBookkeeping:
    """Receipts of other validators are checked block by block."""

    def receive(self, ledger: Bookkeeper, at_s: float, amount_s: float, offered: Iterable[int]) -> ReceiptOutcome:
        return ledger.receive((OTHER, "a", GPU), nanoseconds(at_s), nanoseconds(amount_s), offered)

    def test_a_receipt_spends_exactly_its_spendable_blocks_once(self) -> None:
        """2 and 3 have 12 s for 10 s. Offered again with 4, they are spent already, and 4 alone has 6 s, not 7 s."""
        ledger = Bookkeeper(stocked())
        assert self.receive(ledger, 48.0, 10.0, [3, 2, 3]) == ReceiptOutcome(True, spendable=(2, 3))
        refused = ReceiptOutcome(False, double_spent=(2, 3), spendable=(4,))
        assert self.receive(ledger, 48.0, 7.0, [2, 3, 4]) == refused
        assert self.receive(ledger, 48.0, 6.0, [2, 3, 4]) == replace(refused, accepted=True)

    def test_accounts_are_separate(self) -> None:
        """The other validator's blocks are not ours, and our reservations do not matter to the bookkeeper."""
        ours = stocked()
        ours.spend(ours.reserve("a", GPU, 24.0, 5, NOW).reservation_id, NOW)
        ledger = Bookkeeper(ours)
        assert self.receive(ledger, 48.0, 6.0, [1]).accepted
        assert ledger.receive((ME, "a", GPU), 48 * S, 6 * S, [1]).accepted

    def test_blocks_outside_of_the_range_are_named(self) -> None:
        """A job at block 4 with an expiry of 2 blocks and a leeway of 1 may use 1 to 4."""
        ledger = Bookkeeper(stocked(range(1, 8), block_expiry_blocks=2, validation_leeway_lower_blocks=1))
        outcome = self.receive(ledger, 59.999, 1.0, range(8))
        assert outcome == ReceiptOutcome(True, outside_range=(0, 5, 6, 7), spendable=(1, 2, 3, 4))

    def test_drops_up_to_the_block_of_the_job_count(self) -> None:
        """A drop at 4 does not affect a job at block 3, and invalidates 1 to 3 for a job at block 4."""
        ours = stocked(counts={"a": {GPU: 2}})
        ours.record_manifests(4, {"a": {GPU: 1}}, NOW)
        assert self.receive(Bookkeeper(ours), 47.0, 6.0, [2, 3]) == ReceiptOutcome(True, spendable=(2, 3))
        assert self.receive(Bookkeeper(ours), 48.0, 6.0, [3, 4]) == ReceiptOutcome(
            True, invalidated=(3,), spendable=(4,)
        )

    def test_a_block_without_a_grant_is_named(self) -> None:
        """`b` offers nothing: its blocks grant nothing."""
        outcome = Bookkeeper(stocked()).receive((OTHER, "b", GPU), 48 * S, 6 * S, [3])
        assert outcome == ReceiptOutcome(False, without_grant=(3,))

    @pytest.mark.parametrize(("at_s", "known"), [(11.9, False), (12.0, True), (59.9, True), (60.0, False)])
    def test_a_time_must_be_within_the_known_blocks(self, at_s: float, known: bool) -> None:
        """Blocks 1 to 5 cover the time from second 12 until before second 60."""
        ledger = Bookkeeper(stocked())
        if known:
            assert self.receive(ledger, at_s, 1.0, []).accepted is False
        else:
            assert refusal(self.receive, ledger, at_s, 1.0, []).error == "TimeOutOfRange"
        assert refusal(self.receive, Bookkeeper(new_ledger()), 1.0, 1.0, []).error == "TimeOutOfRange"


class TestRules:
    """Changed settings apply from the change on."""

    def test_unchanged_rules_are_not_recorded(self) -> None:
        """Only a difference is recorded, and only a recording changes the recorded time."""
        ledger = new_ledger()
        assert not ledger.change_rules(Rules(), NOW + 1)
        assert ledger.recorded_ns == NOW
        assert ledger.change_rules(Rules(block_expiry_blocks=9), NOW + 1)
        assert ledger.recorded_ns == NOW + 1

    def test_the_window_follows_the_current_setting(self) -> None:
        """At block 5, all of 1 to 4 are within 722 blocks, and 2 to 4 are within 3."""
        ledger = stocked()
        ledger.change_rules(replace(ledger.rules, block_expiry_blocks=3), NOW)
        assert list(ledger.usable("a", GPU, 5)) == [2, 3, 4]

    def test_a_copy_does_not_change(self) -> None:
        """A copy does not contain what is recorded after it."""
        ledger = stocked()
        before = ledger.copy()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        record_blocks(ledger, [6])
        assert (len(before.reservations), before.newest_block()) == (0, ledger.block(5))
        assert isinstance(before.block(5), Block)
