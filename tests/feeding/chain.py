"""A chain that grows with virtual time, and what tests need to feed a ledger from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from ledger import BlockFact
from ledger.codec import decode
from ledger.events import ManifestsRecorded
from routing import Allowance, Miner
from tests.support.small import GPU, START, VALIDATOR, hash_of, miner
from tests.support.stories import events_of

GENESIS = 6_000_000
BLOCK_SECONDS = 12
CPU = "always_on.cpu"
HOTKEYS = ("5Anna", "5Bert", "5Carl", "5Dora")


class VirtualClock:
    """Time that moves only when everything that a test waits for sleeps; counts seconds from `START`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._fell_asleep = asyncio.Condition()

    def __call__(self) -> int:
        return int((START.timestamp() + self.now) * 10**9)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        sleeper = (self.now + seconds, len(self.slept), asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        async with self._fell_asleep:
            self._fell_asleep.notify_all()
        try:
            await sleeper[2]
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)

    async def all_asleep(self, sleepers: int = 2) -> None:
        """Wait until so many sleep (a feeder has two activities)."""
        async with self._fell_asleep:
            await self._fell_asleep.wait_for(lambda: len(self._sleepers) == sleepers)

    async def tick(self, sleepers: int = 2) -> None:
        """Wait until so many sleep, and wake the one that is due first."""
        await self.all_asleep(sleepers)
        due, _, future = sleeper = min(self._sleepers)
        self.now = max(self.now, due)
        # Not asleep any more, though it has not run yet.
        self._sleepers.remove(sleeper)
        future.set_result(None)


class Chain:
    """Blocks from `GENESIS` on; miners come and go, and what they offer rises and falls. A healthy source."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.calls: list[tuple[int, int] | None] = []
        self.polls: list[int] = []

    @property
    def head(self) -> int:
        return GENESIS + int(self.clock.now) // BLOCK_SECONDS

    def block(self, number: int) -> BlockFact:
        # Bert is off the metagraph in every seventh block, Dora joins late.
        hotkeys = [each for each in HOTKEYS if not (each == "5Bert" and number % 7 == 0)]
        miners = [miner(hotkey) for hotkey in hotkeys if hotkey != "5Dora" or number > GENESIS + 10]
        stakes = {VALIDATOR: 1.0, "5Other": 1.0 + number % 3}
        at = START + timedelta(seconds=BLOCK_SECONDS * (number - GENESIS))
        return BlockFact(number, at, miners, stakes, hash_of(number))

    def offers(self, block: BlockFact) -> dict[str, dict[str, int]]:
        """What the miners of a block offer; `5Anna` drops and rises."""
        number = block.number
        counts = {"5Anna": 2 + number % 5, "5Bert": 3, "5Carl": 1 + number % 2, "5Dora": 4}
        return {each.hotkey_ss58: {GPU: counts[each.hotkey_ss58], CPU: 2} for each in block.miners}

    async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
        if first is None or last is None:
            self.calls.append(None)
            return [self.block(self.head)]
        self.calls.append((first, last))
        return [self.block(number) for number in range(first, min(last, self.head) + 1)]

    async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
        self.polls.append(block.number)
        return self.offers(block)


async def recorded_syncs(ledger: Allowance) -> list[int]:
    """Return the blocks of all syncs, in the order in which they were recorded."""
    events = [decode(row.position, row.payload) for row in await events_of(ledger)]
    return [event.block for event in events if isinstance(event, ManifestsRecorded)]


async def contents(ledger: Allowance) -> dict[str, Any]:
    """Return everything that the facts add up to, whatever the order in which they were recorded."""

    def read(state: Any, _now_ns: int) -> dict[str, Any]:
        chain = state.chain
        blocks = list(chain.blocks.recorded_blocks())
        return {
            "blocks": {each: (chain.blocks.created_at_ns(each), chain.blocks.digest(each)) for each in blocks},
            "hashes": [chain.blocks.block_hash(each) for each in blocks],
            "manifests": chain.manifests,
            "miners": chain.metagraph.miners,
            "grants": {
                (miner_ss58, executor_class, each): chain.blocks.unit_ns(each) * account.counts.at(each)
                for executor_class, accounts in chain.classes.items()
                for miner_ss58, account in accounts.items()
                for each in blocks
                if chain.blocks.unit_ns(each)
            },
            "invalidated": {stream: account.invalidated_below for stream, account in chain.accounts.items()},
        }

    return await ledger._read_state(read)


async def fed_straight(chain: Chain, first: int, last: int, syncs: Sequence[int]) -> dict[str, Any]:
    """Return the contents of a ledger that got the blocks in order, each sync directly after its block."""
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, clock_ns=chain.clock) as ledger:
        for number in range(first, last + 1):
            block = chain.block(number)
            await ledger.record_block(number, block.created_at, block.miners, block.stakes, block_hash=block.block_hash)
            if number in syncs:
                await ledger.record_manifests(number, chain.offers(block))
        return await contents(ledger)


def open_ledger(clock: VirtualClock, url: str = "sqlite://") -> Allowance:
    """Return the ledger to feed."""
    return Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock)


def many_miners(count: int) -> list[Miner]:
    """Return miners of distinct hotkeys."""
    return [miner(f"5Miner{number}") for number in range(count)]
