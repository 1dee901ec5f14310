"""Chain facts through the public face: any order, repeats, contradictions, and the allowance that they grant."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest

from ledger import Miner, encode_state
from routing import Allowance, BlockFact, ConflictingFact, ImplausibleFact, ManifestsFact, Settings
from tests.support.small import GPU, START, VALIDATOR, miner, record_blocks, small_ledger
from tests.support.stories import store_of

STAKES = {VALIDATOR: 1.0, "5Other": 1.0}


async def totals(ledger: Allowance, block: int) -> dict[str, float]:
    return {each.hotkey_ss58: each.total_seconds for each in await ledger.find_miners(0.1, GPU, block)}


async def test_a_block_grants_once_its_successor_is_known() -> None:
    """The first of two blocks grants its seconds, the last one nothing yet."""
    async with small_ledger(offers={"5Anna": 3}, blocks=2) as ledger:
        assert await totals(ledger, 2) == {"5Anna": 18.0}


async def test_a_long_block_counts_as_a_short_one() -> None:
    """Up to 12.5 s a block counts in full, beyond that as 12.0 s (source: ComputeHorde's validator)."""
    async with small_ledger(offers={"5Anna": 2}, blocks=1, stakes={VALIDATOR: 1.0}) as ledger:
        at = START + timedelta(seconds=12 + 12.5)
        await ledger.record_block(2, at, [miner("5Anna")], {VALIDATOR: 1.0})
        assert await totals(ledger, 2) == {"5Anna": 25.0}
        await ledger.record_block(3, at + timedelta(seconds=12.500001), [miner("5Anna")], {VALIDATOR: 1.0})
        assert await totals(ledger, 3) == {"5Anna": 49.0}


async def test_the_order_of_blocks_makes_no_difference() -> None:
    """Every order of five blocks gives the same totals and candidates."""
    seen: list[Any] = []
    for order in permutations(range(1, 6)):
        async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, clock_ns=lambda: 10**18) as ledger:
            await ledger.record_manifests(1, {"5Anna": {GPU: 1}, "5Bert": {GPU: 2}})
            for number in order:
                miners = [miner("5Anna")] if number == 3 else [miner("5Anna"), miner("5Bert")]
                await ledger.record_block(
                    number, START + timedelta(seconds=11 * number), miners, {VALIDATOR: number / 10}
                )
            seen.append((await ledger.find_miners(1.0, GPU, 5), await ledger.miners()))
    assert all(each == seen[0] for each in seen)


async def test_a_contradiction_is_told_although_the_log_cannot_be_read(url: str) -> None:
    """The fact before it is recorded, and the error's index says so; only the differences are missing.

    Catches `StorageUnavailable`, which would tell that nothing was done. SQLite interrupts every statement after the
    commit.
    """
    async with small_ledger(url=url, blocks=3) as ledger:
        connection: Any = store_of(ledger)._connection  # type: ignore[attr-defined]  # SQLite's alone

        def interrupt_after(statement: str) -> None:
            if statement == "COMMIT":
                connection.set_progress_handler(lambda: 1, 1)

        wrong = BlockFact(2, START + timedelta(seconds=25), [miner("5Anna")], STAKES)
        new = BlockFact(4, START + timedelta(seconds=48), [miner("5Anna")], STAKES)
        connection.set_trace_callback(interrupt_after)
        with pytest.raises(ConflictingFact, match="could not be read") as refused:
            await ledger.record_facts([new, wrong])
        connection.set_trace_callback(None)
        connection.set_progress_handler(None, 0)
        assert refused.value.fact_index == 1
        assert await ledger.current_block() == 4


async def test_a_repeated_fact_returns_the_first_position() -> None:
    """Another order of miners, time zone or spelling of floats is the same content; nothing is appended."""
    async with small_ledger(blocks=3) as ledger:
        head = await ledger.head()
        first = await ledger.record_block(
            4, START + timedelta(seconds=48), [miner("5Anna"), miner("5Bert")], {VALIDATOR: 1}
        )
        from datetime import timezone

        elsewhere = (START + timedelta(seconds=48)).astimezone(timezone(timedelta(hours=5)))
        again = await ledger.record_block(4, elsewhere, [miner("5Bert"), miner("5Anna")], {VALIDATOR: 1.0})
        assert again == first == head.position + 1
        manifests = await ledger.record_manifests(4, {"5Anna": {GPU: 2}})
        assert await ledger.record_manifests(4, {"5Anna": {GPU: 2}}) == manifests
        assert (await ledger.head()).position == manifests


async def test_a_conflicting_fact_is_refused_with_its_differences() -> None:
    """Time, miners and stakes are compared; each difference has the recorded and the given value."""
    async with small_ledger(blocks=3) as ledger:
        with pytest.raises(ConflictingFact) as refused:
            await ledger.record_block(2, START, [miner("5Anna", 9), miner("5Bert"), miner("5Carl")], {VALIDATOR: 2.0})
        assert refused.value.differences == {
            "miner 5Anna": (("192.0.2.7", 4, 8000), ("192.0.2.7", 4, 9)),
            "stake 5Other": (1.0, None),
            f"stake {VALIDATOR}": (1.0, 2.0),
            "created_at": (START + timedelta(seconds=24), START),
        }
        with pytest.raises(ConflictingFact) as refused:
            await ledger.record_manifests(1, {"5Anna": {GPU: 2}}, confirm=True)
        assert refused.value.differences == {"manifest 5Bert": ({GPU: 2}, None), "manifest 5Carl": ({GPU: 2}, None)}


@pytest.mark.parametrize(("number", "seconds"), [(4, 36), (4, 35), (5, 84), (5, 85)])
async def test_a_block_without_duration_is_refused(number: int, seconds: int) -> None:
    """A block that gives a recorded neighbour, before or after it, a duration of zero or less is refused."""
    async with small_ledger(blocks=3) as ledger:
        await ledger.record_block(6, START + timedelta(seconds=84), [], {})
        with pytest.raises(ConflictingFact):
            await ledger.record_block(number, START + timedelta(seconds=seconds), [], {})


async def test_a_block_far_beyond_the_newest_needs_confirmation() -> None:
    """100,000 blocks beyond the newest are plausible; one more needs `confirm=True`."""
    async with small_ledger(blocks=3) as ledger:
        at = START + timedelta(days=30)
        with pytest.raises(ImplausibleFact):
            await ledger.record_block(100_004, at, [], {})
        await ledger.record_block(100_003, at, [], {})
        await ledger.record_block(10**12, at + timedelta(days=30), [], {}, confirm=True)
        assert await ledger.current_block() == 10**12


async def test_a_sync_with_far_fewer_executors_needs_confirmation() -> None:
    """Less than a tenth of the executors of the sync before needs `confirm=True`; a tenth is plausible."""
    async with small_ledger(offers={"5Anna": 20}) as ledger:
        with pytest.raises(ImplausibleFact):
            await ledger.record_manifests(5, {"5Anna": {GPU: 1}})
        await ledger.record_manifests(5, {"5Anna": {GPU: 2}})
        await ledger.record_manifests(6, {}, confirm=True)
        assert await ledger.manifests() == {}


async def test_a_drop_invalidates_the_blocks_below_it() -> None:
    """A drop invalidates all blocks below it, also those finalized later; a rise invalidates none."""
    async with small_ledger(offers={"5Anna": 2}, blocks=4) as ledger:
        await ledger.record_manifests(5, {"5Anna": {GPU: 1}})
        await record_blocks(ledger, 5, 8, ["5Anna"])
        assert await totals(ledger, 8) == {"5Anna": 18.0}
        await ledger.record_manifests(7, {"5Anna": {GPU: 4}})
        await record_blocks(ledger, 9, 9, ["5Anna"])
        assert await totals(ledger, 9) == {"5Anna": 18.0 + 24.0}


async def test_a_late_sync_changes_no_finalized_block() -> None:
    """A finalized block keeps its amount; a block that is finalized later has the late sync's count."""
    async with small_ledger(offers={"5Anna": 1}, blocks=4) as ledger:
        await record_blocks(ledger, 6, 7, ["5Anna"])
        await ledger.record_manifests(2, {"5Anna": {GPU: 3}})
        assert await totals(ledger, 7) == {"5Anna": 24.0}
        await record_blocks(ledger, 5, 5, ["5Anna"])
        assert await totals(ledger, 7) == {"5Anna": 24.0 + 2 * 18.0}


async def test_a_cap_applies_to_later_blocks_and_is_no_drop(tmp_path: Any) -> None:
    """A cap applies to blocks finalized after it; opening without settings does not change it."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url, offers={"5Anna": 5}, blocks=3):
        pass
    capped = Settings(executors_max_per_class={GPU: 2})
    async with Allowance.open(url, validator_ss58=VALIDATOR, settings=capped) as ledger:
        await record_blocks(ledger, 4, 4, ["5Anna"])
        assert await totals(ledger, 4) == {"5Anna": 30.0 * 2 + 12.0}
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert await ledger.settings() == capped


async def test_facts_are_recorded_up_to_the_first_refused_one() -> None:
    """The facts before it are recorded, and the error has the index of the refused fact."""
    async with small_ledger(blocks=3) as ledger:
        facts: list[BlockFact | ManifestsFact] = [
            BlockFact(4, START + timedelta(seconds=48), [], {}),
            ManifestsFact(4, {"5Anna": {GPU: 6}}),
            BlockFact(4, START + timedelta(seconds=49), [], {}),
            BlockFact(5, START + timedelta(seconds=60), [], {}),
        ]
        with pytest.raises(ConflictingFact) as refused:
            await ledger.record_facts(facts)
        assert refused.value.fact_index == 2
        assert await ledger.current_block() == 4
        assert await ledger.manifests() == {"5Anna": {GPU: 6}}


async def test_an_unchanged_metagraph_is_not_stored_again() -> None:
    """Blocks with the metagraph of the block before do not make the snapshot larger."""
    async with small_ledger(blocks=3) as ledger:
        size = await ledger._read_state(lambda state, _: len(encode_state(state)))
        await record_blocks(ledger, 4, 40, ["5Anna", "5Bert", "5Carl"])
        assert await ledger._read_state(lambda state, _: len(encode_state(state))) == size
        assert await ledger.miners() == [miner("5Anna"), miner("5Bert"), miner("5Carl")]
        assert isinstance((await ledger.miners())[0], Miner)
