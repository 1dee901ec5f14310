"""The reference model answers by hand-worked examples, so that it may judge the product.

Unless an example says otherwise: our validator `me` has half of the stake, a block lasts 12 s, so it grants
6 s per executor; block `n` is created `12 n` s after the start.
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
    Refused,
    Rules,
    Sync,
    Verdict,
    nanoseconds,
)

ME, OTHER = "me", "other"
GPU, CPU = "gpu", "cpu"
HALVES = {ME: 1.0, OTHER: 1.0}
NOW = 1_000_000 * SECOND_NS
S = SECOND_NS


def axon(hotkey: str, port: int = 8000) -> Axon:
    return Axon(hotkey, "192.0.2.1", 4, port)


def new_ledger(rules: Rules | None = None) -> Ledger:
    return Ledger(ME, rules or Rules(), NOW)


def add(
    ledger: Ledger,
    numbers: Iterable[int],
    miners: Sequence[str] = ("a", "b"),
    stakes: dict[str, float] | None = None,
    at_s: float | None = None,
) -> None:
    for number in numbers:
        created_at_ns = nanoseconds(12 * number if at_s is None else at_s)
        ledger.record_block(number, created_at_ns, [axon(miner) for miner in miners], stakes or HALVES, NOW)


def stocked(blocks: Iterable[int] = range(1, 6), counts: Counts | None = None, **rules: Any) -> Ledger:
    """Blocks 1 to 5, of which 1 to 4 are finalized: 6 s each on `a`, and nothing on `b`, unless told."""
    ledger = new_ledger(replace(Rules(), **rules))
    ledger.record_manifests(1, {"a": {GPU: 1}} if counts is None else counts, NOW)
    add(ledger, blocks)
    return ledger


def refusal(attempt: object, *arguments: object, **named: object) -> Refused:
    assert callable(attempt)
    with pytest.raises(Refused) as caught:
        attempt(*arguments, **named)
    return caught.value


class TestNumbers:
    """Decimals become whole numbers once, by their shortest spelling."""

    @pytest.mark.parametrize(
        ("given", "whole"),
        [(0.1, 100_000_000), (1e-9, 1), (5e-10, 0), (1.5e-9, 2), (2.5e-9, 2), (1001.0, 1_001_000_000_000)],
    )
    def test_seconds_become_nanoseconds_half_even(self, given: float, whole: int) -> None:
        """0.5 ns rounds to 0 and 1.5 and 2.5 ns to 2; 0.1 s is exactly 10^8 ns."""
        assert nanoseconds(given) == whole


class TestBlocks:
    """A block is recorded once and grants once its end is known."""

    def test_the_newest_block_grants_nothing_yet(self) -> None:
        """Of blocks 1 to 5 the last has no end: 1 to 4 grant 12 s · 1/2 · 1 = 6 s each."""
        assert stocked().granted("a", GPU) == {1: 6 * S, 2: 6 * S, 3: 6 * S, 4: 6 * S}

    def test_a_long_block_counts_as_twelve_seconds(self) -> None:
        """12.5 s is not long: 6.25 s; 12.500001 s is: 6 s; 11 s counts as it is: 5.5 s."""
        ledger = stocked(blocks=[])
        for number, at_s in [(1, 0.0), (2, 12.5), (3, 25.000001), (4, 36.000001)]:
            add(ledger, [number], at_s=at_s)
        assert ledger.granted("a", GPU) == {1: 6_250_000_000, 2: 6 * S, 3: 5_500_000_000}

    def test_a_hole_keeps_the_block_before_it_open(self) -> None:
        """With 3 missing, 2 has no end; once 3 arrives, 2 and 3 are both complete."""
        ledger = stocked(blocks=[1, 2, 4, 5])
        assert list(ledger.granted("a", GPU)) == [1, 4]
        add(ledger, [3])
        assert list(ledger.granted("a", GPU)) == [1, 2, 3, 4]

    def test_a_backfill_gives_the_same_grants(self) -> None:
        """Newest to oldest, after the same manifests: the same as in order."""
        assert stocked(range(5, 0, -1)).granted("a", GPU) == stocked(range(1, 6)).granted("a", GPU)

    def test_a_repeat_is_no_news(self) -> None:
        """The same block with its miners in another order is taken and changes nothing."""
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
        """Another time, axon, set of miners or stake is another block."""
        ledger = new_ledger()
        ledger.record_block(1, 12 * S, [axon("a")], {ME: 1.0}, NOW)
        assert refusal(ledger.record_block, 1, at_ns, axons, stakes, NOW, confirm=True).error == "ConflictingFact"

    @pytest.mark.parametrize(("number", "at_s"), [(2, 36.0), (2, 36.5), (4, 36.0), (4, 35.5)])
    def test_a_block_must_lie_between_its_neighbours(self, number: int, at_s: float) -> None:
        """Block 3 is at 36 s: 2 must be earlier and 4 later; an equal time would make a duration of zero."""
        ledger = new_ledger()
        add(ledger, [3])
        taken = refusal(ledger.record_block, number, nanoseconds(at_s), [], {}, NOW, confirm=True)
        assert taken.error == "ConflictingFact"
        assert [block.number for block in ledger.blocks] == [3]

    def test_far_beyond_the_newest_needs_a_word(self) -> None:
        """100,000 beyond 5 is plausible, one more is not unless confirmed; the first block may be any."""
        ledger = stocked()
        assert refusal(ledger.record_block, 100_006, NOW, [], {}, NOW).error == "ImplausibleFact"
        assert ledger.record_block(100_005, NOW, [], {}, NOW)
        assert ledger.record_block(200_006, NOW + 1, [], {}, NOW, confirm=True)
        assert new_ledger().record_block(7_000_000, NOW, [], {}, NOW)

    def test_numbers_start_at_one(self) -> None:
        """There is no block 0."""
        assert refusal(new_ledger().record_block, 0, NOW, [], {}, NOW).error == "InvalidInput"


class TestGrants:
    """What a block grants is fixed when its end becomes known."""

    def test_the_unit_is_rounded_down_before_it_is_counted(self) -> None:
        """12 s · 1/7 = 1,714,285,714.28… ns; three executors have three times the whole part."""
        ledger = stocked(blocks=[], counts={"a": {GPU: 3}})
        add(ledger, [1, 2], stakes={ME: 1.0, OTHER: 6.0})
        assert ledger.granted("a", GPU) == {1: 3 * 1_714_285_714}

    def test_the_multiplier_is_exact(self) -> None:
        """12 s · 1/3 · 1/2 is 2 s to the nanosecond."""
        assert stocked([1, 2], allowance_multiplier=Fraction(1, 3)).granted("a", GPU) == {1: 2 * S}

    @pytest.mark.parametrize("stakes", [{}, {ME: 0.0, OTHER: 0.0}, {OTHER: 1.0}, {ME: 0.0, OTHER: 1.0}])
    def test_no_stake_is_no_grant(self, stakes: dict[str, float]) -> None:
        """Nobody's stake, our zero stake, and not being listed all grant nothing."""
        ledger = stocked(blocks=[])
        for number in (1, 2):
            ledger.record_block(number, 12 * S * number, [axon("a")], stakes, NOW)
        assert ledger.granted("a", GPU) == {}

    def test_only_miners_registered_at_the_block_are_granted(self) -> None:
        """`a` is away at block 2 and back at 3: 1 and 3 grant."""
        ledger = stocked(blocks=[1])
        add(ledger, [2], miners=["b"])
        add(ledger, [3, 4])
        assert list(ledger.granted("a", GPU)) == [1, 3]

    def test_other_validators_are_granted_by_their_own_stake(self) -> None:
        """With 3 of 4 shares the other has 9 s of 12, and we have 3 s."""
        ledger = stocked(blocks=[])
        add(ledger, [1, 2], stakes={ME: 1.0, OTHER: 3.0})
        assert ledger.granted("a", GPU, OTHER) == {1: 9 * S}
        assert ledger.granted("a", GPU) == {1: 3 * S}

    def test_the_count_is_that_of_the_newest_sync_not_after_the_block(self) -> None:
        """Syncs at 2 and 4: block 1 has no count, 2 and 3 have 1 executor, 4 has 2."""
        ledger = new_ledger()
        ledger.record_manifests(4, {"a": {GPU: 2}}, NOW)
        ledger.record_manifests(2, {"a": {GPU: 1}}, NOW)
        add(ledger, range(1, 6))
        assert ledger.granted("a", GPU) == {2: 6 * S, 3: 6 * S, 4: 12 * S}

    def test_a_late_sync_changes_nothing_that_is_finalized(self) -> None:
        """Blocks 1 and 2 were complete before the sync at 1 came with 5; only 3 gets its 30 s."""
        ledger = new_ledger()
        add(ledger, range(1, 4))
        ledger.record_manifests(1, {"a": {GPU: 5}}, NOW)
        add(ledger, [4])
        assert ledger.granted("a", GPU) == {3: 30 * S}

    def test_a_cap_holds_from_when_it_is_set(self) -> None:
        """Block 1 counts 3 executors; a cap of 2, then of 0, applies to 2 and 3, and is no drop."""
        ledger = stocked([1, 2], counts={"a": {GPU: 3}})
        assert ledger.change_rules(replace(ledger.rules, executors_max_per_class={GPU: 2}), NOW)
        add(ledger, [3])
        ledger.change_rules(replace(ledger.rules, executors_max_per_class={GPU: 0}), NOW)
        add(ledger, [4])
        assert ledger.granted("a", GPU) == {1: 18 * S, 2: 12 * S}
        assert ledger.drops == []

    def test_a_changed_long_block_rule_spares_the_past(self) -> None:
        """Block 1 took 12 s and counts 12; block 2 took 12 s and counts 8 under the new rule."""
        ledger = stocked([1, 2])
        ledger.change_rules(replace(ledger.rules, long_block_seconds=11.0, long_block_counts_as_seconds=8.0), NOW)
        add(ledger, [3])
        assert ledger.granted("a", GPU) == {1: 6 * S, 2: 4 * S}


class TestManifests:
    """A sync covers all miners and takes back what is no longer offered."""

    def test_the_same_sync_again_is_no_news(self) -> None:
        """It is taken and changes nothing; another one at that block conflicts, confirmed or not."""
        ledger = new_ledger()
        assert ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert not ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert refusal(ledger.record_manifests, 3, {"a": {GPU: 2}}, NOW, confirm=True).error == "ConflictingFact"

    def test_less_than_a_tenth_needs_a_word(self) -> None:
        """After 20 executors, 1 is less than a tenth and 2 are not; confirmed, even 0 is taken."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 15}, "b": {CPU: 5}}, NOW)
        assert refusal(ledger.record_manifests, 2, {"a": {GPU: 1}}, NOW).error == "ImplausibleFact"
        assert ledger.record_manifests(2, {"a": {GPU: 1}, "b": {CPU: 1}}, NOW)
        assert ledger.record_manifests(3, {}, NOW, confirm=True)

    def test_a_tenth_is_of_the_sync_before_it_in_the_chain(self) -> None:
        """With 20 executors at 1 and 100 at 9, a late sync at 5 is measured by the 20."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 20}}, NOW)
        ledger.record_manifests(9, {"a": {GPU: 100}}, NOW)
        assert refusal(ledger.record_manifests, 5, {"a": {GPU: 1}}, NOW).error == "ImplausibleFact"
        assert ledger.record_manifests(5, {"a": {GPU: 2}}, NOW)

    def test_a_drop_invalidates_all_earlier_blocks_of_the_class(self) -> None:
        """From 2 to 1 at block 3: 1 and 2 are invalid for the class, 3 and 4 and the other class are not."""
        ledger = stocked(counts={"a": {GPU: 2, CPU: 1}}, blocks=range(1, 4))
        ledger.record_manifests(3, {"a": {GPU: 1, CPU: 1}}, NOW)
        add(ledger, [4, 5])
        assert ledger.drops == [Drop(3, "a", GPU)]
        assert list(ledger.usable("a", GPU, 5)) == [3, 4]
        assert list(ledger.usable("a", CPU, 5)) == [1, 2, 3, 4]

    def test_absence_is_a_drop_to_nothing(self) -> None:
        """`a` is not named, `b` no longer names the gpu."""
        ledger = stocked([], counts={"a": {GPU: 1}, "b": {GPU: 1, CPU: 1}})
        ledger.record_manifests(4, {"b": {CPU: 1}}, NOW)
        assert ledger.drops == [Drop(4, "a", GPU), Drop(4, "b", GPU)]

    def test_a_drop_invalidates_blocks_that_are_finalized_later(self) -> None:
        """The hole at 2 is filled after the drop at 4: what 1 and 2 grant then is invalid at once."""
        ledger = stocked([1, 3], counts={"a": {GPU: 2}})
        ledger.record_manifests(4, {"a": {GPU: 1}}, NOW)
        add(ledger, [2])
        assert list(ledger.granted("a", GPU)) == [1, 2]
        assert ledger.usable("a", GPU, 4) == {}

    def test_a_late_sync_is_compared_with_the_one_before_its_block(self) -> None:
        """1 executor at 1 and 3 at 9; a late sync at 5 with 2 is no drop, and none is found at 9 later."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 1}}, NOW)
        ledger.record_manifests(9, {"a": {GPU: 3}}, NOW)
        ledger.record_manifests(5, {"a": {GPU: 4}}, NOW)
        assert ledger.drops == []
        ledger.record_manifests(3, {}, NOW, confirm=True)
        assert ledger.drops == [Drop(3, "a", GPU)]

    def test_counts_above_the_cap_drop_nothing(self) -> None:
        """With a cap of 2, from 5 to 3 is from 2 to 2; from 3 to 1 is a drop."""
        ledger = stocked([], counts={"a": {GPU: 5}}, executors_max_per_class={GPU: 2})
        ledger.record_manifests(2, {"a": {GPU: 3}}, NOW)
        assert ledger.drops == []
        ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert ledger.drops == [Drop(3, "a", GPU)]

    def test_the_newest_sync_is_kept_as_it_was_given(self) -> None:
        """Neither the cap nor the order of arrival shows."""
        ledger = stocked([], counts={"a": {GPU: 5}}, executors_max_per_class={GPU: 2})
        ledger.record_manifests(9, {"a": {GPU: 7, CPU: 0}}, NOW)
        ledger.record_manifests(4, {"a": {GPU: 6}}, NOW)
        assert ledger.newest_sync() == Sync(9, {"a": {GPU: 7, CPU: 0}})


class TestFindingMiners:
    """Miners with enough to spare, the ones whose blocks age first before the others."""

    def test_the_window_is_inclusive_and_open_above(self) -> None:
        """At 5 with an expiry of 3, block 2 is just young enough; at 1 all count, those above too."""
        ledger = stocked(block_expiry_blocks=3)
        assert list(ledger.usable("a", GPU, 5)) == [2, 3, 4]
        assert list(ledger.usable("a", GPU, 1)) == [1, 2, 3, 4]
        assert list(ledger.usable("a", GPU, 8)) == []

    def test_the_earliest_free_block_comes_first(self) -> None:
        """`b` has less left but its block 1; `a` has spent it."""
        ledger = stocked(counts={"a": {GPU: 2}, "b": {GPU: 1}})
        ledger.spend(ledger.reserve("a", GPU, 1.0, 5, NOW).reservation_id, NOW)
        found = ledger.find_miners(1.0, GPU, 5, NOW)
        assert found == [
            Candidate("b", available_ns=24 * S, total_ns=24 * S, earliest_block=1),
            Candidate("a", available_ns=36 * S, total_ns=48 * S, earliest_block=2),
        ]

    def test_then_the_larger_share_then_the_amount_then_the_name(self) -> None:
        """All from block 1 on: `c` and `d` have all of 24 s, `b` all of 48 s, `a` 3/4 of 24 s."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 1}, "b": {GPU: 2}, "c": {GPU: 1}, "d": {GPU: 1}}, NOW)
        add(ledger, range(1, 6), miners=["d", "c", "b", "a"])
        held = ledger.reserve("a", GPU, 12.0, 5, NOW)
        ledger.spend(ledger.reserve("a", GPU, 6.0, 5, NOW).reservation_id, NOW)
        ledger.release(held.reservation_id, NOW)
        found = ledger.find_miners(1.0, GPU, 5, NOW)
        assert [each.hotkey for each in found] == ["b", "c", "d", "a"]
        assert [each.share for each in found] == [10**9, 10**9, 10**9, 750_000_000]

    def test_enough_is_enough_to_the_nanosecond(self) -> None:
        """24 s are there; 24 s are found and a nanosecond more is not."""
        ledger = stocked()
        assert len(ledger.find_miners(24.0, GPU, 5, NOW)) == 1
        refused = refusal(ledger.find_miners, 24.000000001, GPU, 5, NOW)
        assert refused.fields == {
            "highest_available_allowance": 24.0,
            "highest_available_allowance_ss58": "a",
            "highest_unspent_allowance": 24.0,
            "highest_unspent_allowance_ss58": "a",
        }

    def test_the_highest_are_told_and_ties_go_to_the_lower_name(self) -> None:
        """Both had 24 s. `a` holds 6: `b` has the most available. Both have all unspent: `a` is told."""
        ledger = stocked(counts={"b": {GPU: 1}, "a": {GPU: 1}})
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        fields = refusal(ledger.find_miners, 30.0, GPU, 5, NOW).fields
        assert list(fields.values()) == [24.0, "b", 24.0, "a"]
        ledger.spend(1, NOW)
        fields = refusal(ledger.find_miners, 30.0, GPU, 5, NOW).fields
        assert list(fields.values()) == [24.0, "b", 24.0, "b"]

    def test_nothing_at_all_is_told_as_nothing(self) -> None:
        """An empty ledger and an unknown class have 0.0 of nobody."""
        for ledger, name in [(new_ledger(), GPU), (stocked(), "tpu")]:
            assert list(refusal(ledger.find_miners, 1.0, name, 5, NOW).fields.values()) == [0.0, "", 0.0, ""]

    def test_only_miners_registered_at_the_newest_block_are_found(self) -> None:
        """`a` leaves with block 5, but what it was granted can still be reserved by name."""
        ledger = stocked(range(1, 5))
        add(ledger, [5], miners=["b"])
        assert refusal(ledger.find_miners, 1.0, GPU, 5, NOW).error == "NotEnoughAllowanceException"
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (1,)

    def test_reading_does_not_move_overdue_blocks_but_counts_them_free(self) -> None:
        """Reserved for 6 s, due after 106 s: held until then, free from then on, hidden again before."""
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        due = NOW + 106 * S
        assert ledger.find_miners(1.0, GPU, 5, due - 1)[0].earliest_block == 2
        assert ledger.find_miners(1.0, GPU, 5, due)[0].earliest_block == 1
        assert ledger.find_miners(1.0, GPU, 5, due - 1)[0].earliest_block == 2
        assert ledger.reservation(1).status == "reserved"

    @pytest.mark.parametrize("amount", [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 3600.000000001])
    def test_an_amount_must_be_a_jobs(self, amount: float) -> None:
        """Zero, negative, NaN, infinite and more than 3600 s are malformed."""
        ledger = stocked()
        assert refusal(ledger.find_miners, amount, GPU, 5, NOW).error == "InvalidInput"
        assert refusal(ledger.reserve, "a", GPU, amount, 5, NOW).error == "InvalidInput"

    def test_too_long_says_how_long_may_be(self) -> None:
        """The message names the setting's value."""
        says = refusal(stocked().find_miners, 3601, GPU, 5, NOW).says
        assert says == "Required allowance cannot be greater than 3600.0 seconds"

    def test_jobs_start_at_block_one_or_later(self) -> None:
        """Block 0 is malformed."""
        assert refusal(stocked().find_miners, 1.0, GPU, 0, NOW).error == "InvalidInput"
        assert refusal(stocked().reserve, "a", GPU, 1.0, 0, NOW).error == "InvalidInput"


class TestReserving:
    """Whole free blocks, the earliest first, once each."""

    def test_blocks_are_taken_whole_from_the_earliest_on(self) -> None:
        """7 s need two blocks of 6 s; the next 6 s take the third."""
        ledger = stocked()
        first = ledger.reserve("a", GPU, 7.0, 5, NOW)
        assert first.blocks == (1, 2)
        assert (first.reserved_at_ns, first.expires_at_ns) == (NOW, NOW + 107 * S)
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (3,)

    def test_not_enough_changes_nothing(self) -> None:
        """18 of 24 s are held: 6 s are left, 6.5 s are refused and 6 s are given."""
        ledger = stocked()
        ledger.reserve("a", GPU, 18.0, 5, NOW)
        refused = refusal(ledger.reserve, "a", GPU, 6.5, 5, NOW + 5)
        assert refused.error == "CannotReserveAllowanceException"
        assert list(refused.fields.values()) == ["a", 6.5, 6.0]
        assert (len(ledger.reservations), ledger.recorded_ns) == (1, NOW)
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (4,)

    def test_a_claim_expires_exactly_the_overdue_that_it_takes_from(self) -> None:
        """Holding 1, 2+3 and 4, all overdue: 10 s take 1 and 2, expire the first two, and 3 becomes free."""
        ledger = stocked()
        for amount in (6.0, 12.0, 6.0):
            ledger.reserve("a", GPU, amount, 5, NOW)
        later = NOW + 112 * S
        assert ledger.reserve("a", GPU, 10.0, 5, later).blocks == (1, 2)
        assert [each.status for each in ledger.reservations] == ["expired", "expired", "reserved", "reserved"]
        assert ledger.reservation(1).settled_at_ns == later
        assert list(ledger.free("a", GPU, 5, NOW)) == [3]

    def test_a_claim_refused_expires_nothing(self) -> None:
        """25 s are not there, overdue or not."""
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

    def test_a_job_has_one_standing_reservation(self) -> None:
        """The same request answers with it, at any start block and even overdue; another is refused."""
        ledger = stocked(counts={"a": {GPU: 1, CPU: 1}, "b": {GPU: 1}})
        first = ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job")
        assert ledger.reserve("a", GPU, 6.0, 4, NOW + 200 * S, job_uuid="job") == first
        for other in [("b", GPU, 6.0), ("a", CPU, 6.0), ("a", GPU, 7.0)]:
            assert refusal(ledger.reserve, *other, 5, NOW, job_uuid="job").error == "JobRequestConflict"
        assert len(ledger.reservations) == 1

    def test_a_job_is_reserved_anew_after_a_release_or_an_expiry_but_not_after_a_spend(self) -> None:
        """Released, then expired, then spent: three reservations, and the fourth is refused."""
        ledger = stocked()
        ledger.release(ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job").reservation_id, NOW)
        ledger.reserve("a", GPU, 7.0, 5, NOW, job_uuid="job")
        ledger.expire_due(NOW + 107 * S)
        ledger.spend(ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job").reservation_id, NOW)
        assert [each.status for each in ledger.reservations] == ["released", "expired", "spent"]
        assert refusal(ledger.reserve, "a", GPU, 6.0, 5, NOW, job_uuid="job").error == "JobAlreadySpent"
        assert ledger.reservation_for_job("job").reservation_id == 3

    def test_an_expired_job_may_be_claimed_by_its_own_uuid_again_only_after_the_expiry(self) -> None:
        """Overdue, it still stands; once another job has taken its block, it is reserved anew."""
        ledger = stocked()
        first = ledger.reserve("a", GPU, 6.0, 5, NOW, job_uuid="job")
        later = NOW + 106 * S
        assert ledger.reserve("a", GPU, 6.0, 5, later, job_uuid="job") == first
        assert ledger.reserve("a", GPU, 6.0, 5, later, job_uuid="rival").blocks == (1,)
        assert ledger.reserve("a", GPU, 6.0, 5, later, job_uuid="job").blocks == (2,)

    def test_changed_margins_apply_to_later_claims(self) -> None:
        """100 s before, 5 s after."""
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        ledger.change_rules(replace(ledger.rules, reservation_margin_seconds=5.0), NOW)
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        assert [each.expires_at_ns - NOW for each in ledger.reservations] == [106 * S, 11 * S]


class TestSettling:
    """Spent, released or expired, once and for good."""

    def test_released_blocks_are_free_again(self) -> None:
        """The next claim takes block 1 again."""
        ledger = stocked()
        assert ledger.release(ledger.reserve("a", GPU, 6.0, 5, NOW).reservation_id, NOW).status == "released"
        assert ledger.reserve("a", GPU, 6.0, 5, NOW).blocks == (1,)

    def test_spent_blocks_never_are(self) -> None:
        """Not even long after they would have been due."""
        ledger = stocked()
        ledger.spend(ledger.reserve("a", GPU, 6.0, 5, NOW).reservation_id, NOW)
        assert ledger.reserve("a", GPU, 6.0, 5, NOW + 10**6 * S).blocks == (2,)

    def test_an_overdue_reservation_can_still_be_settled_until_its_expiry_stands(self) -> None:
        """A job that ran late is paid; after the expiry it is not."""
        ledger = stocked()
        for _ in range(3):
            ledger.reserve("a", GPU, 6.0, 5, NOW)
        later = NOW + 500 * S
        assert ledger.spend(1, later).settled_at_ns == later
        assert ledger.release(2, later).status == "released"
        assert [each.reservation_id for each in ledger.expire_due(later)] == [3]
        assert refusal(ledger.spend, 3, later).error == "ReservationExpired"

    def test_what_is_settled_says_how(self) -> None:
        """Spent, released, expired and unknown are told apart, for spend and release alike."""
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

    def test_what_is_due_expires_by_due_time(self) -> None:
        """Due after 112, 101 and 106 s: at 111 s the last two are overdue, the shortest first."""
        ledger = stocked(counts={"a": {GPU: 2}})
        for amount in (12.0, 1.0, 6.0):
            ledger.reserve("a", GPU, amount, 5, NOW)
        assert [each.reservation_id for each in ledger.expire_due(NOW + 111 * S)] == [2, 3]
        assert ledger.expire_due(NOW + 111 * S) == []

    def test_invalidated_blocks_stay_with_their_reservation_and_are_not_free_after(self) -> None:
        """A drop at 3 leaves 1 and 2 with the holder; released, they are not usable, and 3 is."""
        ledger = stocked(counts={"a": {GPU: 2}})
        held = ledger.reserve("a", GPU, 20.0, 5, NOW)
        assert held.blocks == (1, 2)
        ledger.record_manifests(3, {"a": {GPU: 1}}, NOW)
        assert ledger.reservation(1).blocks == (1, 2)
        assert [ledger.state_of("a", GPU, number) for number in (1, 2, 3)] == ["held", "held", "free"]
        ledger.release(1, NOW)
        assert [ledger.state_of("a", GPU, number) for number in (1, 2, 3)] == [
            "invalidated",
            "invalidated",
            "free",
        ]
        assert list(ledger.free("a", GPU, 5, NOW)) == [3, 4]

    def test_a_spent_block_stays_spent_when_it_is_invalidated(self) -> None:
        """Spent comes before invalidated, and neither is total nor unspent."""
        ledger = stocked(counts={"a": {GPU: 2}})
        ledger.spend(ledger.reserve("a", GPU, 12.0, 5, NOW).reservation_id, NOW)
        ledger.record_manifests(2, {"a": {GPU: 1}}, NOW)
        assert ledger.state_of("a", GPU, 1) == "spent"
        assert ledger.unspent_ns("a", GPU, 5) == 36 * S
        assert sum(ledger.usable("a", GPU, 5).values()) == 36 * S

    def test_recorded_times_never_go_back(self) -> None:
        """Reserved at +50 s; with the clock back at 0, settled at +50 s, and due counts from +50 s."""
        ledger = stocked()
        ledger.reserve("a", GPU, 6.0, 5, NOW + 50 * S)
        assert ledger.release(1, NOW).settled_at_ns == NOW + 50 * S
        again = ledger.reserve("a", GPU, 6.0, 5, NOW)
        assert again.expires_at_ns == NOW + (50 + 106) * S

    def test_a_key_repeats_the_first_outcome(self) -> None:
        """The same request answers alike, also when settled since; another request is refused."""
        ledger = stocked()
        first = ledger.reserve("a", GPU, 6.0, 5, NOW, key="k1")
        assert ledger.reserve("a", GPU, 6.0, 5, NOW, key="k1") == first
        assert refusal(ledger.reserve, "a", GPU, 7.0, 5, NOW, key="k1").error == "IdempotencyConflict"
        assert ledger.spend(1, NOW, key="k2") == ledger.spend(1, NOW, key="k2")
        assert refusal(ledger.spend, 1, NOW, key="k1").error == "IdempotencyConflict"
        assert refusal(ledger.spend, 1, NOW, key="k3").error == "ReservationAlreadySpent"
        assert len(ledger.reservations) == 1


class TestRouting:
    """The best miner that is not busy; one standing route per job."""

    def test_the_limits_are_summed_after_rounding(self) -> None:
        """Three times 0.5 ns are 0 + 0 + 0, and with a second it is exactly a second."""
        choices = stocked().route_choices("job", GPU, [5e-10, 5e-10, 1.0], NOW)
        assert choices.amount_ns == S

    def test_equals_are_all_good_choices(self) -> None:
        """`a`, `b` and `d` are equal in earliest block and share, whatever they have; `c` has spent."""
        ledger = new_ledger()
        ledger.record_manifests(1, {"a": {GPU: 1}, "b": {GPU: 2}, "c": {GPU: 1}, "d": {GPU: 1}}, NOW)
        add(ledger, range(1, 6), miners=["a", "b", "c", "d"])
        ledger.spend(ledger.reserve("c", GPU, 6.0, 5, NOW).reservation_id, NOW)
        choices = ledger.route_choices("job", GPU, [1.0, 2.0, 3.0], NOW)
        assert (choices.miners, choices.standing) == (("b", "a", "d"), None)
        claimed = ledger.claim_route(choices, "d", "job", GPU, NOW)
        assert (claimed.blocks, claimed.job_start_block, claimed.axon) == ((1,), 5, axon("d"))

    def test_busy_miners_are_passed_over(self) -> None:
        """`a` has one executor and one job; `b` is next though its blocks are later; then nobody is."""
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

    def test_busy_counts_by_the_newest_sync_and_the_cap_of_now(self) -> None:
        """Two executors and one job are not busy; with a cap of 1 they are; the overdue do not count."""
        ledger = stocked(counts={"a": {GPU: 2}})
        ledger.reserve("a", GPU, 1.0, 5, NOW)
        assert not ledger.is_busy("a", GPU, NOW)
        ledger.change_rules(replace(ledger.rules, executors_max_per_class={GPU: 1}), NOW)
        assert ledger.is_busy("a", GPU, NOW)
        assert not ledger.is_busy("a", GPU, NOW + 101 * S)

    def test_nobody_able_is_not_the_same_as_all_busy(self) -> None:
        """Without candidates it is the allowance that is missing."""
        ledger = stocked()
        ledger.reserve("a", GPU, 1.0, 5, NOW)
        assert refusal(ledger.route_choices, "j", GPU, [19.0], NOW).error == "NotEnoughAllowanceException"
        assert refusal(ledger.route_choices, "j", GPU, [18.0], NOW).error == "AllMinersBusy"
        assert refusal(new_ledger().route_choices, "j", GPU, [1.0], NOW).error == "NotEnoughAllowanceException"

    def test_a_route_stands_as_claimed(self) -> None:
        """The axon moves and the due time passes; the same request has the same route, another has none."""
        ledger = stocked()
        claimed = ledger.claim_route(ledger.route_choices("j", GPU, [2.0, 2.0, 2.0], NOW), "a", "j", GPU, NOW)
        ledger.record_block(6, 72 * S, [axon("a", 9999)], HALVES, NOW)
        later = NOW + 1000 * S
        again = ledger.route_choices("j", GPU, [1.0, 2.0, 3.0], later)
        assert again.standing == claimed
        assert claimed.axon == axon("a", 8000)
        assert refusal(ledger.route_choices, "j", GPU, [6.5], later).error == "JobRequestConflict"
        assert refusal(ledger.route_choices, "j", CPU, [6.0], later).error == "JobRequestConflict"
        ledger.spend(1, later)
        assert refusal(ledger.route_choices, "j", GPU, [6.0], later).error == "JobAlreadySpent"

    def test_a_stale_feed_routes_nothing_new(self) -> None:
        """Block 5 is of second 60; with a limit of 30 s, second 90 is the last to route at."""
        ledger = stocked(newest_block_max_age_seconds=30.0)
        assert ledger.route_choices("j", GPU, [1.0], 90 * S).miners == ("a",)
        assert refusal(ledger.route_choices, "j", GPU, [1.0], 90 * S + 1).error == "ChainFeedStale"


class TestBookkeeping:
    """Receipts of other validators, checked block by block."""

    def receive(self, ledger: Bookkeeper, at_s: float, amount_s: float, offered: Iterable[int]) -> Verdict:
        return ledger.receive((OTHER, "a", GPU), nanoseconds(at_s), nanoseconds(amount_s), offered)

    def test_a_receipt_spends_exactly_its_spendable_blocks_once(self) -> None:
        """2 and 3 pay 10 s with 12; offered again with 4, they are spent, and 4 alone pays 6 s, not 7."""
        ledger = Bookkeeper(stocked())
        assert self.receive(ledger, 48.0, 10.0, [3, 2, 3]) == Verdict(True, spendable=(2, 3))
        refused = Verdict(False, double_spent=(2, 3), spendable=(4,))
        assert self.receive(ledger, 48.0, 7.0, [2, 3, 4]) == refused
        assert self.receive(ledger, 48.0, 6.0, [2, 3, 4]) == replace(refused, accepted=True)

    def test_accounts_are_told_apart(self) -> None:
        """The other validator's blocks are not ours, and our reservations are not the bookkeeper's."""
        ours = stocked()
        ours.spend(ours.reserve("a", GPU, 24.0, 5, NOW).reservation_id, NOW)
        ledger = Bookkeeper(ours)
        assert self.receive(ledger, 48.0, 6.0, [1]).accepted
        assert ledger.receive((ME, "a", GPU), 48 * S, 6 * S, [1]).accepted

    def test_blocks_outside_of_the_range_are_named(self) -> None:
        """A job at block 4 with 2 blocks of age and 1 of leeway may use 1 to 4."""
        ledger = Bookkeeper(stocked(range(1, 8), block_expiry_blocks=2, validation_leeway_lower_blocks=1))
        verdict = self.receive(ledger, 59.999, 1.0, range(8))
        assert verdict == Verdict(True, outside_range=(0, 5, 6, 7), spendable=(1, 2, 3, 4))

    def test_drops_count_up_to_the_jobs_block(self) -> None:
        """A drop at 4 does not touch a job at block 3, and takes 1 to 3 from a job at block 4."""
        ours = stocked(counts={"a": {GPU: 2}})
        ours.record_manifests(4, {"a": {GPU: 1}}, NOW)
        assert self.receive(Bookkeeper(ours), 47.0, 6.0, [2, 3]) == Verdict(True, spendable=(2, 3))
        assert self.receive(Bookkeeper(ours), 48.0, 6.0, [3, 4]) == Verdict(True, invalidated=(3,), spendable=(4,))

    def test_a_block_without_a_grant_is_named(self) -> None:
        """`b` offers nothing: its blocks grant nothing."""
        verdict = Bookkeeper(stocked()).receive((OTHER, "b", GPU), 48 * S, 6 * S, [3])
        assert verdict == Verdict(False, without_grant=(3,))

    @pytest.mark.parametrize(("at_s", "known"), [(11.9, False), (12.0, True), (59.9, True), (60.0, False)])
    def test_a_time_must_be_covered_by_the_known_blocks(self, at_s: float, known: bool) -> None:
        """Blocks 1 to 5 cover from second 12 to before second 60."""
        ledger = Bookkeeper(stocked())
        if known:
            assert self.receive(ledger, at_s, 1.0, []).accepted is False
        else:
            assert refusal(self.receive, ledger, at_s, 1.0, []).error == "TimeOutOfRange"
        assert refusal(self.receive, Bookkeeper(new_ledger()), 1.0, 1.0, []).error == "TimeOutOfRange"


class TestRules:
    """Changed settings apply from there on."""

    def test_the_rules_in_force_are_no_event(self) -> None:
        """Only a difference is recorded, and only a record moves the recorded time."""
        ledger = new_ledger()
        assert not ledger.change_rules(Rules(), NOW + 1)
        assert ledger.recorded_ns == NOW
        assert ledger.change_rules(Rules(block_expiry_blocks=9), NOW + 1)
        assert ledger.recorded_ns == NOW + 1

    def test_the_window_is_that_of_now(self) -> None:
        """Blocks 1 to 4 at block 5: all in 722, the last three in 3."""
        ledger = stocked()
        ledger.change_rules(replace(ledger.rules, block_expiry_blocks=3), NOW)
        assert list(ledger.usable("a", GPU, 5)) == [2, 3, 4]

    def test_a_copy_does_not_follow(self) -> None:
        """What is recorded after the copy is not in it."""
        ledger = stocked()
        before = ledger.copy()
        ledger.reserve("a", GPU, 6.0, 5, NOW)
        add(ledger, [6])
        assert (len(before.reservations), before.newest_block()) == (0, ledger.block(5))
        assert isinstance(before.block(5), Block)
