"""The source for `bittensor`, on answers in the shapes of that package; without the package and without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from routing import Allowance, InvalidInput, Miner
from routing.contrib.bittensor import BittensorSource
from routing.feeding import ChainSource, Feeder
from tests.support.small import GPU, VALIDATOR

ANSWERS = json.loads((Path(__file__).parent / "bittensor_answers.json").read_text())


class Balance:
    """Like the package's: an amount in rao, whose float is in TAO."""

    def __init__(self, rao: int) -> None:
        self.rao = rao

    def __float__(self) -> float:
        return self.rao / 10**9


class Subtensor:
    """Like `AsyncSubtensor`, and its `substrate`; blocks below `pruned_below` are gone from the node."""

    def __init__(self, pruned_below: int = 0) -> None:
        self.pruned_below = pruned_below
        self.finalized = ANSWERS["finalized"]
        self.substrate = self
        self.blocks = {int(number): answer for number, answer in ANSWERS["blocks"].items()}

    async def get_chain_finalised_head(self) -> str:
        return str(self.blocks[self.finalized]["hash"])

    async def get_block_number(self, block_hash: str) -> int:
        return next(number for number, answer in self.blocks.items() if answer["hash"] == block_hash)

    async def get_block_hash(self, block: int) -> str | None:
        return self.blocks[block]["hash"] if block in self.blocks else None

    async def query(self, module: str, storage_function: str, *, block_hash: str) -> Any:
        assert (module, storage_function) == ("Timestamp", "Now")
        number = await self.get_block_number(block_hash)
        if number < self.pruned_below:
            raise ConnectionError("State already discarded")
        return SimpleNamespace(value=self.blocks[number]["now_ms"])

    async def neurons_lite(self, netuid: int, *, block_hash: str) -> list[Any]:
        assert netuid == ANSWERS["netuid"]
        return [
            SimpleNamespace(
                hotkey=each["hotkey"],
                stake=Balance(each["stake_rao"]),
                axon_info=None if each["axon_info"] is None else SimpleNamespace(**each["axon_info"]),
            )
            for each in ANSWERS["neurons"]
        ]


async def ask(miner: Miner) -> Mapping[str, int] | None:
    """Anna answers, Bert's executors are broken, and the validator serves an axon but no manifest."""
    if miner.hotkey_ss58 == "5Bert":
        raise ConnectionRefusedError
    return {GPU: 3} if miner.hotkey_ss58 == "5Anna" else None


def source_of(subtensor: Subtensor, **options: Any) -> BittensorSource:
    return BittensorSource(subtensor, netuid=12, **{"ask": ask, **options})


async def test_the_newest_final_block_becomes_a_fact() -> None:
    """Number, time to the millisecond, hash, axons of either IP version, and the stakes of validators alone."""
    source: ChainSource = source_of(Subtensor())
    (block,) = await source.blocks()

    assert (block.number, block.block_hash) == (6000002, ANSWERS["blocks"]["6000002"]["hash"])
    assert block.created_at == datetime(2025, 1, 1, 0, 0, 24, 2000, tzinfo=UTC)
    assert block.miners == [
        Miner("203.0.113.9", 4, 8091, "5Other"),
        Miner("192.0.2.7", 4, 8000, "5Anna"),
        Miner("2001:db8::7", 6, 8000, "5Bert"),
    ]
    assert block.stakes == {"5Validator": 250_000.0, "5Other": 750_000.123456789}


async def test_blocks_that_the_node_has_pruned_are_left_out() -> None:
    """A gap that reaches below a node's state is filled as far as it can be; if no block can be read, that raises."""
    source = source_of(Subtensor(pruned_below=6000001))
    assert [block.number for block in await source.blocks(6000000, 6000003)] == [6000001, 6000002]
    with pytest.raises(ConnectionError, match="discarded"):
        await source.blocks(6000000, 6000000)
    with pytest.raises(LookupError, match="no block 6000008"):
        await source.blocks(6000007, 6000008)


async def test_miners_that_do_not_answer_offer_nothing() -> None:
    """One miner raises, one never answers: neither holds up the others, and neither is in the sync."""

    async def ask_or_hang(miner: Miner) -> Mapping[str, int] | None:
        if miner.hotkey_ss58 == "5Other":
            await asyncio.Event().wait()
        return await ask(miner)

    source = source_of(Subtensor(), ask=ask_or_hang, ask_seconds=0.01)
    (block,) = await source.blocks()
    assert await source.manifests(block) == {"5Anna": {GPU: 3}}


async def test_a_ledger_is_fed_from_answers_of_that_shape() -> None:
    """From the package's answers to a candidate: what block 6000001 grants is a quarter of 12 s, three times."""
    subtensor = Subtensor()
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
        feeder = Feeder(ledger, source_of(subtensor))
        for subtensor.finalized in (6000000, 6000001, 6000002):
            await feeder.follow()
        assert await ledger.missing_blocks(6000000, 6000001) == []
        (candidate,) = await ledger.find_miners(1.0, GPU, 6000002)
        assert candidate.hotkey_ss58 == "5Anna"
        assert candidate.total_seconds == pytest.approx(3 * 24.001 / 4, abs=1e-3)


def test_wrong_arguments_are_refused_by_name() -> None:
    """A mistyped subnet is refused before the first request."""
    with pytest.raises(InvalidInput) as refused:
        BittensorSource(Subtensor(), netuid=-1, ask=ask)
    assert refused.value.field == "netuid"
