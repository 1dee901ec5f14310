"""What a block granted every validator, and the executors that routing counts."""

from __future__ import annotations

import asyncio

import pytest

from routing import Allowance, BlockNotFinalized, InvalidInput, Settings, sync
from tests.support.small import GPU, VALIDATOR, record_blocks, small_ledger

STAKES = {VALIDATOR: 1.0, "5Other": 2.0, "5Poor": 0.0}
OFFERS = {"5Anna": 2, "5Bert": 1, "5Carl": 0}


async def test_every_validator_has_its_share_of_every_miner(any_url: str) -> None:
    """12 s: a third and two thirds per executor; a stake, a count or a class of none is no grant."""
    async with small_ledger(url=any_url, offers=OFFERS, stakes=STAKES) as ledger:
        expected = {
            (VALIDATOR, "5Anna", GPU): 8.0,
            ("5Other", "5Anna", GPU): 16.0,
            (VALIDATOR, "5Bert", GPU): 4.0,
            ("5Other", "5Bert", GPU): 8.0,
        }
        assert await ledger.grants(5) == expected
        assert await ledger.grants(5, executor_class=GPU) == expected
        assert await ledger.grants(5, executor_class="cpu") == {}


async def test_our_own_grants_are_those_of_the_ranking() -> None:
    """The sum over all finalized blocks is what a miner has in total."""
    async with small_ledger(offers=OFFERS, stakes=STAKES) as ledger:
        grants = [await ledger.grants(block) for block in range(1, 11)]
        (anna,) = [each for each in await ledger.find_miners(0.1, GPU, 11) if each.hotkey_ss58 == "5Anna"]
        assert sum(each[(VALIDATOR, "5Anna", GPU)] for each in grants) == anna.total_seconds == 80.0


async def test_a_block_that_is_not_finalized_is_refused() -> None:
    """The newest block, one that is not recorded, and both blocks at a withdrawn one."""
    async with small_ledger() as ledger:
        for block in (11, 12):
            with pytest.raises(BlockNotFinalized) as refused:
                await ledger.grants(block)
            assert refused.value.block == block
        with pytest.raises(InvalidInput):
            await ledger.grants(0)
        assert await ledger.grants(10)
        await ledger.withdraw_block(11, "a mistake")
        with pytest.raises(BlockNotFinalized):
            await ledger.grants(10)


async def test_a_repeated_question_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call reads no row of the log, and two at once read it once. Catches: a fold for each call."""
    async with small_ledger() as ledger:
        reads: list[int] = []
        store = (await ledger._lifecycle.handle()).store
        read = store.read

        async def counted(after: int, *arguments: object) -> object:
            reads.append(after)
            return await read(after, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "read", counted)
        one, two = await asyncio.gather(ledger.grants(5), ledger.grants(6))
        assert (one, reads) == (two, [0])
        assert await ledger.grants(5) == one
        assert reads == [0]
        head = (await ledger.head()).position
        await record_blocks(ledger, 12, 12, ["5Anna", "5Bert", "5Carl"])
        assert await ledger.grants(11)
        assert reads == [0, head]


async def test_the_past_has_the_grants_of_its_moment() -> None:
    """A view before the block was finalized refuses it."""
    async with small_ledger() as ledger:
        position = (await ledger.head()).position
        await record_blocks(ledger, 12, 12, ["5Anna", "5Bert", "5Carl"])
        assert await ledger.grants(11)
        with pytest.raises(BlockNotFinalized):
            await ledger.at(position=position).grants(11)
        assert await ledger.at(position=position).grants(10) == await ledger.grants(10)


def test_blocking_code_has_it_too() -> None:
    """`routing.sync` has the same calls."""
    with sync.Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
        with pytest.raises(BlockNotFinalized):
            ledger.grants(1)
        assert ledger.manifests(capped=True) == {}


async def test_capped_manifests_are_those_that_routing_counts() -> None:
    """Capped, filled with zeros for every class and every registered miner; as given, only what the sync says."""
    async with Allowance.open(
        "sqlite://", validator_ss58=VALIDATOR, settings=Settings(executors_max_per_class={GPU: 3})
    ) as ledger:
        await ledger.record_manifests(1, {"5Anna": {GPU: 5, "cpu": 1}, "5Bert": {GPU: 1}})
        await record_blocks(ledger, 1, 3, ["5Anna", "5Carl"])
        assert await ledger.manifests() == {"5Anna": {GPU: 5, "cpu": 1}, "5Bert": {GPU: 1}}
        assert await ledger.manifests(capped=True) == {
            "5Anna": {GPU: 3, "cpu": 1},
            "5Bert": {GPU: 1, "cpu": 0},
            "5Carl": {GPU: 0, "cpu": 0},
        }


async def test_a_miner_that_the_newest_sync_does_not_cover_keeps_its_count() -> None:
    """Off the metagraph for the sync's block and then back, `5Bert` counts 2 executors, as for its busyness."""
    async with small_ledger() as ledger:
        await record_blocks(ledger, 12, 12, ["5Anna", "5Carl"])
        await ledger.record_manifests(12, {"5Anna": {GPU: 1}})
        await record_blocks(ledger, 13, 14, ["5Anna", "5Bert", "5Carl"])
        counted = await ledger.manifests(capped=True)
        assert counted == {"5Anna": {GPU: 1}, "5Bert": {GPU: 2}, "5Carl": {GPU: 0}}
