"""The fold of the chain facts, without a log: units, counts, drops, and the order in which facts arrive."""

from __future__ import annotations

import pytest

from ledger.domain.account import Account
from ledger.domain.block_table import BlockTable
from ledger.domain.chain import Chain, Metagraph, decide_block, decide_manifests
from ledger.errors import ConflictingFact, ImplausibleFact
from ledger.settings import RecordedSettings

SECOND_NS = 10**9
GPU = "gpu"
ME = "5Validator"
AXON = ("192.0.2.7", 4, 8000)


class Facts:
    """A chain of its own, to which facts are given by number, as a caller of the ledger gives them."""

    def __init__(self, **settings: object) -> None:
        self.chain = Chain()
        self.chain.validator_ss58 = ME
        # The keyword values have several types, which mypy cannot match with the fields.
        self.chain.apply_settings(RecordedSettings(**settings))  # type: ignore[arg-type]
        self._position = 0

    @property
    def blocks(self) -> BlockTable:
        return self.chain.blocks

    def block(self, number: int, *, at_s: float | None = None, stake: int = 1, miners: str = "5Anna 5Bert") -> None:
        """Block `n` of a chain with 12 s per block; half the stake is ours."""
        created_at_ns = int((12 * number if at_s is None else at_s) * SECOND_NS)
        metagraph = Metagraph(dict.fromkeys(miners.split(), AXON), {ME: stake, "5Other": 1})
        event = decide_block(self.chain, number, created_at_ns, metagraph, confirm=False)
        assert not isinstance(event, int)
        self._position += 1
        self.chain.apply_block(self._position, event)

    def sync(self, block: int, **counts: int) -> None:
        """A manifest sync: `Anna=2` is 5Anna's count of the one class."""
        manifests = {f"5{name}": {GPU: count} for name, count in counts.items()}
        event = decide_manifests(self.chain, block, manifests, confirm=False)
        assert not isinstance(event, int)
        self._position += 1
        self.chain.apply_manifests(self._position, event)

    def account(self, name: str = "Anna") -> Account:
        return self.chain.classes[GPU][f"5{name}"]

    def count(self, block: int, name: str = "Anna") -> int:
        return self.account(name).counts.at(block)


def test_a_block_is_finalized_by_its_successor() -> None:
    """A block grants nothing while its end is unknown; then half of its 12 s, by stake."""
    facts = Facts()
    facts.block(1)
    assert facts.blocks.unit_ns(1) == 0
    facts.block(2)
    assert (facts.blocks.unit_ns(1), facts.blocks.unit_ns(2)) == (6 * SECOND_NS, 0)


def test_a_block_that_fills_a_gap_finalizes_itself_and_its_predecessor() -> None:
    """Blocks 1 and 3 are recorded; block 2 completes 1, and is completed by 3."""
    facts = Facts()
    facts.block(1)
    facts.block(3)
    assert facts.blocks.last_finalized == 0
    facts.block(2)
    assert [facts.blocks.unit_ns(block) for block in (1, 2, 3)] == [6 * SECOND_NS, 6 * SECOND_NS, 0]


@pytest.mark.parametrize(("lasts_s", "counts_as_s"), [(11.0, 11.0), (12.5, 12.5), (12.5 + 1e-6, 12.0), (700.0, 12.0)])
def test_a_block_above_12_5_s_counts_as_12_s(lasts_s: float, counts_as_s: float) -> None:
    """Up to and including 12.5 s a block counts in full (source: ComputeHorde's validator)."""
    facts = Facts()
    facts.block(1, at_s=0)
    facts.block(2, at_s=lasts_s)
    assert facts.blocks.unit_ns(1) == counts_as_s * SECOND_NS / 2


def test_a_unit_is_rounded_down() -> None:
    """12 s times a third of the multiplier times half the stake, in whole nanoseconds."""
    facts = Facts(allowance_multiplier="1/7")
    facts.block(1)
    facts.block(2)
    assert facts.blocks.unit_ns(1) == 12 * SECOND_NS // 14


def test_without_any_stake_nothing_is_granted() -> None:
    """A sum of stakes of 0 is no division by 0."""
    facts = Facts()
    facts.chain.validator_ss58 = "5Nobody"
    facts.block(1)
    facts.block(2)
    assert (facts.blocks.unit_ns(1), facts.blocks.last_finalized) == (0, 1)


def test_a_count_is_that_of_the_newest_sync_at_or_below_the_block() -> None:
    """A sync counts from its own block on."""
    facts = Facts()
    facts.sync(1, Anna=2)
    facts.sync(3, Anna=5)
    for number in range(1, 6):
        facts.block(number)
    assert [facts.count(block) for block in (1, 2, 3, 4)] == [2, 2, 5, 5]


def test_a_late_sync_changes_no_finalized_block() -> None:
    """Blocks 1 and 2 keep their count; block 3, finalized after the sync, has the new one."""
    facts = Facts()
    facts.sync(1, Anna=2)
    for number in (1, 2, 3):
        facts.block(number)
    facts.sync(2, Anna=5)
    facts.block(4)
    assert [facts.count(block) for block in (1, 2, 3)] == [2, 2, 5]


def test_a_late_sync_counts_only_up_to_the_next_one() -> None:
    """A sync at block 2 that is recorded after the one at block 4 does not replace it."""
    facts = Facts()
    facts.sync(4, Anna=3)
    facts.sync(2, Anna=5)
    for number in range(1, 6):
        facts.block(number)
    assert [facts.count(block) for block in (1, 2, 3, 4)] == [0, 5, 5, 3]


def test_a_miner_counts_only_while_it_is_registered() -> None:
    """Bert is missing from the metagraph of block 2 alone; Anna does not notice."""
    facts = Facts()
    facts.sync(1, Anna=2, Bert=2)
    for number in (1, 2, 3, 4):
        facts.block(number, miners="5Anna" if number == 2 else "5Anna 5Bert")
    assert [facts.count(block, "Bert") for block in (1, 2, 3)] == [2, 0, 2]
    assert [facts.count(block, "Anna") for block in (1, 2, 3)] == [2, 2, 2]


def test_counts_are_capped_and_a_lower_cap_is_no_drop() -> None:
    """The cap holds for blocks finalized after it; nothing is invalidated by it."""
    facts = Facts()
    facts.sync(1, Anna=5)
    facts.block(1)
    facts.block(2)
    facts.chain.apply_settings(RecordedSettings(executors_max_per_class={GPU: 3}))
    facts.block(3)
    assert [facts.count(block) for block in (1, 2)] == [5, 3]
    assert facts.account().invalidated_below == 0


def test_a_lower_count_invalidates_the_blocks_below_the_sync() -> None:
    """The drop concerns the account whose count fell; a rise invalidates nothing."""
    facts = Facts()
    facts.sync(1, Anna=2, Bert=2)
    facts.sync(5, Anna=1, Bert=3)
    assert facts.account("Anna").invalidated_below == 5
    assert facts.account("Bert").invalidated_below == 0


def test_a_miner_that_a_sync_does_not_name_drops_to_zero() -> None:
    """A sync covers all miners."""
    facts = Facts()
    facts.sync(1, Anna=2, Bert=2)
    facts.sync(5, Anna=2)
    assert (facts.account("Bert").invalidated_below, facts.account("Bert").offered.at(5)) == (5, 0)


def test_a_fall_above_the_cap_is_no_drop() -> None:
    """Counts are compared after capping: from 5 to 4 with a cap of 3 is no change, to 2 is one."""
    facts = Facts(executors_max_per_class={GPU: 3})
    facts.sync(1, Anna=5)
    facts.sync(2, Anna=4)
    assert facts.account().invalidated_below == 0
    facts.sync(3, Anna=2)
    assert facts.account().invalidated_below == 3


def test_a_late_drop_never_lowers_what_is_invalidated() -> None:
    """After a drop at block 9, one at block 5 that is recorded later changes nothing."""
    facts = Facts()
    facts.sync(1, Anna=4)
    facts.sync(9, Anna=1)
    facts.sync(5, Anna=3)
    assert facts.account().invalidated_below == 9


def test_a_repeated_fact_is_its_first_position() -> None:
    """Equal content is no second event."""
    facts = Facts()
    facts.sync(1, Anna=2)
    assert decide_manifests(facts.chain, 1, {"5Anna": {GPU: 2}}, confirm=False) == 1
    with pytest.raises(ConflictingFact):
        decide_manifests(facts.chain, 1, {"5Anna": {GPU: 3}}, confirm=True)


def test_a_sync_with_less_than_a_tenth_of_the_executors_needs_confirmation() -> None:
    """Two of twenty are plausible, one is not (this project's limit)."""
    facts = Facts()
    facts.sync(1, Anna=20)
    assert not isinstance(decide_manifests(facts.chain, 2, {"5Anna": {GPU: 2}}, confirm=False), int)
    with pytest.raises(ImplausibleFact):
        decide_manifests(facts.chain, 2, {"5Anna": {GPU: 1}}, confirm=False)


@pytest.mark.parametrize(("number", "at_s"), [(2, 12), (4, 36), (2, 11.9), (4, 37)])
def test_a_block_of_no_duration_is_refused(number: int, at_s: float) -> None:
    """Block 2 must be after block 1 (12 s), block 4 before block 5 (36 s)."""
    facts = Facts()
    facts.block(1)
    facts.block(5, at_s=36)
    with pytest.raises(ConflictingFact):
        facts.block(number, at_s=at_s)
