"""Whatever a source does, and whenever a feeder is killed, the ledger ends as if it had been fed straight."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import BlockFact
from routing.feeding import Feeder
from tests.feeding.chain import BLOCK_SECONDS, Chain, VirtualClock, contents, fed_straight, open_ledger, recorded_syncs

EXAMPLES = 60
Fault = Literal["none", "raises", "late", "lags", "leaves out", "adds", "killed"]

faults = st.lists(
    st.sampled_from(("none", "none", "raises", "late", "lags", "leaves out", "adds", "killed")), max_size=40
)


class FaultySource(Chain):
    """A chain whose answers go wrong as a list says, one after the other; healthy when the list is used up."""

    def __init__(self, clock: VirtualClock, script: Sequence[Fault]) -> None:
        super().__init__(clock)
        self.script = list(script)
        self.killed = asyncio.Event()

    async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
        answer = list(await super().blocks(first, last))
        match await self.fault():
            case "lags" if first is None:
                return [self.block(max(self.head - 3, answer[0].number - 3))]
            case "leaves out":
                return answer[1::2]
            case "adds":
                return [*answer, self.block(self.head + 2)] if first else answer
        return answer

    async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
        await self.fault()
        return await super().manifests(block)

    async def fault(self) -> Fault:
        fault = self.script.pop(0) if self.script else "none"
        if fault == "raises":
            raise ConnectionError("reset by peer")
        if fault == "late":
            # Blocks come while the answer is under way, and the other activity goes on.
            await self.clock.sleep(2.5 * BLOCK_SECONDS)
        if fault == "killed":
            self.killed.set()
            await asyncio.Event().wait()
        return fault


async def feed(source: FaultySource, feeder: Feeder) -> None:
    """Run the feeder until it is killed, or has followed the healthy chain for ten blocks and nothing is missing."""
    clock = source.clock
    source.killed.clear()
    running = asyncio.create_task(feeder.run())
    killed = asyncio.create_task(source.killed.wait())
    until = None
    while not killed.done():
        tick = asyncio.create_task(clock.tick())
        await asyncio.wait({tick, killed}, return_when=asyncio.FIRST_COMPLETED)
        tick.cancel()
        with suppress(asyncio.CancelledError):
            await tick
        state = feeder.state()
        if until is None and not source.script:
            until = source.head + 10
        if until and (state.newest_block or 0) >= until and not state.missing_blocks and not state.last_error:
            break
    running.cancel()
    killed.cancel()
    await asyncio.gather(running, killed, return_exceptions=True)


async def check(script: Sequence[Fault]) -> None:
    clock = VirtualClock()
    source = FaultySource(clock, script)
    async with open_ledger(clock) as ledger:
        while True:
            await feed(source, Feeder(ledger, source, sync_every_blocks=4, sleep=clock.sleep, clock_ns=clock))
            if not source.killed.is_set():
                break
        first, newest = await ledger.first_block(), await ledger.current_block()
        assert first is not None
        assert newest is not None
        assert newest > first
        assert await ledger.missing_blocks(first, newest - 1) == []
        syncs = await recorded_syncs(ledger)
        assert syncs == sorted(set(syncs))
        assert await contents(ledger) == await fed_straight(source, first, newest, syncs)


@given(faults)
@settings(max_examples=EXAMPLES, deadline=None)
def test_after_any_sequence_of_faults_the_ledger_equals_one_fed_straight(script: list[Fault]) -> None:
    """A source that fails, is late, lags, leaves out or adds blocks, and a feeder that is killed in the middle.

    Every grant of every block equals that of a ledger which got each sync directly after its block: so no sync came
    after the block above its own, no gap stayed, and no content changed. Catches a sync recorded after its poll at a
    block that others have passed, and an answer recorded beyond what was asked for.
    """
    asyncio.run(check(script))
