"""`BittensorSource`: a `ChainSource` over the `AsyncSubtensor` of the `bittensor` package, versions 9 and 10.

This module does not import `bittensor`: it calls methods of the object that it is given.

    async with bittensor.AsyncSubtensor("finney") as subtensor:
        source = BittensorSource(subtensor, netuid=12, ask=ask_for_manifest)
        await Feeder(ledger, source).run()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ledger import BlockFact
from ledger.values import NANOSECONDS, Miner, billionths, integer

LEAST_VALIDATOR_STAKE = 1000.0
"""A neuron with this stake is a validator. Source: ComputeHorde's validator (`list_validators`)."""
UNSERVED = ("", "0.0.0.0", "::")
"""The addresses of a neuron that has announced none."""

Ask = Callable[[Miner], Awaitable[Mapping[str, int] | None]]
"""Asks one miner for its manifest, `{executor_class: executor_count}`; None if it does not answer."""

log: logging.Logger = logging.getLogger("allowance.feed")


class BittensorSource:
    """Reads blocks through a subtensor, and manifests from the miners themselves, with `ask`.

    It reads only blocks that the chain has made final (GRANDPA), since a recorded block stays. A miner is a neuron that
    serves an axon; a validator is one with a stake of at least `LEAST_VALIDATOR_STAKE`. A miner that raises, or does
    not answer within `ask_seconds`, offers nothing, as with ComputeHorde's validators. Raises `InvalidInput`.
    """

    def __init__(self, subtensor: Any, *, netuid: int, ask: Ask, ask_seconds: float = 30.0) -> None:
        self._subtensor = subtensor
        self._netuid = integer(netuid, "netuid", 0, 2**16 - 1)
        self._ask = ask
        self._ask_seconds = billionths(ask_seconds, "ask_seconds", least=1) / NANOSECONDS

    async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
        """Return these blocks, or the newest final one. One that cannot be read is left out; raises if none can."""
        if first is None or last is None:
            substrate = self._subtensor.substrate
            block_hash = await substrate.get_chain_finalised_head()
            return [await self._block(await substrate.get_block_number(block_hash), block_hash)]
        blocks: list[BlockFact] = []
        error: Exception | None = None
        # One after the other: public nodes limit how many requests may be under way.
        for number in range(first, last + 1):
            try:
                blocks.append(await self._block(number, await self._subtensor.get_block_hash(number)))
            except Exception as unreadable:  # The classes are those of the user's package: a pruned node, for one.
                error = unreadable
        if error is not None and not blocks:
            raise error
        return blocks

    async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
        """Ask all miners of the block at the same time; return the manifests of those that answer."""
        miners = list(block.miners)
        answers = await asyncio.gather(*map(self._manifest, miners))
        return {miner.hotkey_ss58: answer for miner, answer in zip(miners, answers, strict=True) if answer is not None}

    async def _block(self, number: int, block_hash: str) -> BlockFact:
        if not block_hash:
            raise LookupError(f"the node has no block {number}")
        subtensor = self._subtensor
        now, neurons = await asyncio.gather(
            subtensor.substrate.query("Timestamp", "Now", block_hash=block_hash),
            subtensor.neurons_lite(self._netuid, block_hash=block_hash),
        )
        created_at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(getattr(now, "value", now)))
        return BlockFact(number, created_at, _miners(neurons), _stakes(neurons), block_hash)

    async def _manifest(self, miner: Miner) -> Mapping[str, int] | None:
        try:
            async with asyncio.timeout(self._ask_seconds):
                return await self._ask(miner)
        except Exception as error:
            log.debug("miner %s does not say what it offers: %r", miner.hotkey_ss58, error)
            return None


def _miners(neurons: Iterable[Any]) -> list[Miner]:
    axons = [(neuron.hotkey, neuron.axon_info) for neuron in neurons]
    return [
        Miner(str(axon.ip), int(axon.ip_type), int(axon.port), hotkey)
        for hotkey, axon in axons
        if axon is not None and axon.port and str(axon.ip) not in UNSERVED
    ]


def _stakes(neurons: Iterable[Any]) -> dict[str, float]:
    # `stake` is a Balance, whose float is in TAO (or in the subnet's alpha).
    stakes = {neuron.hotkey: float(neuron.stake) for neuron in neurons}
    return {hotkey: stake for hotkey, stake in stakes.items() if stake >= LEAST_VALIDATOR_STAKE}
