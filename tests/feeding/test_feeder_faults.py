"""Whatever a source does, and whenever a feeder is killed, the ledger ends as if it had been fed straight."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import BlockFact
from routing import Allowance
from routing.feeding import Feeder
from tests.feeding.chain import BLOCK_SECONDS, Chain, VirtualClock, contents, fed_straight, open_ledger, recorded_syncs

EXAMPLES = 60
MOST_TICKS = 2000
"""Far more than any script needs; a feeder that does not recover must fail the test instead of hanging it."""
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


async def feed(source: FaultySource, *feeders: Feeder) -> None:
    """Run feeders until one is killed, or all have followed the healthy chain for ten blocks and nothing is missing."""
    source.killed.clear()
    running = [asyncio.create_task(feeder.run()) for feeder in feeders]
    killed = asyncio.create_task(source.killed.wait())
    until = None
    for _ in range(MOST_TICKS):
        # Each feeder has two activities.
        tick = asyncio.create_task(source.clock.tick(2 * len(feeders)))
        await asyncio.wait({tick, killed}, return_when=asyncio.FIRST_COMPLETED)
        tick.cancel()
        with suppress(asyncio.CancelledError):
            await tick
        if until is None and not source.script:
            until = source.head + 10
        if killed.done() or (until and all(is_done(feeder, until) for feeder in feeders)):
            break
    else:
        pytest.fail(f"not done after {MOST_TICKS} ticks: {[feeder.state() for feeder in feeders]}")
    for task in (*running, killed):
        task.cancel()
    await asyncio.gather(*running, killed, return_exceptions=True)


def is_done(feeder: Feeder, until: int) -> bool:
    state = feeder.state()
    return (state.newest_block or 0) >= until and not state.missing_blocks and not state.last_error


def new_feeder(ledger: Allowance, source: FaultySource) -> Feeder:
    return Feeder(ledger, source, sync_every_blocks=4, sleep=source.clock.sleep, clock_ns=source.clock)


async def check_one(script: Sequence[Fault]) -> None:
    clock = VirtualClock()
    source = FaultySource(clock, script)
    async with open_ledger(clock) as ledger:
        while True:
            await feed(source, new_feeder(ledger, source))
            if not source.killed.is_set():
                break
        first, newest = await ends(ledger)
        syncs = await recorded_syncs(ledger)
        assert syncs == sorted(set(syncs))
        assert await contents(ledger) == await fed_straight(source, first, newest, syncs)


async def check_two(script: Sequence[Fault]) -> None:
    clock = VirtualClock()
    source = FaultySource(clock, script)
    async with open_ledger(clock) as ledger:
        await feed(source, new_feeder(ledger, source), new_feeder(ledger, source))
        first, newest = await ends(ledger)
        syncs = await recorded_syncs(ledger)
        found, straight = await contents(ledger), await fed_straight(source, first, newest, syncs)
        for part in ("blocks", "hashes", "manifests", "miners"):
            assert found[part] == straight[part]
        assert (await ledger.audit()).findings == []


async def ends(ledger: Allowance) -> tuple[int, int]:
    """Return the first and the newest block, between which nothing is missing."""
    first, newest = await ledger.first_block(), await ledger.current_block()
    assert first is not None
    assert newest is not None
    assert newest > first
    assert await ledger.missing_blocks(first, newest - 1) == []
    return first, newest


@pytest.mark.slow
@given(faults)
@settings(max_examples=EXAMPLES, deadline=None)
def test_after_any_sequence_of_faults_the_ledger_equals_one_fed_straight(script: list[Fault]) -> None:
    """A source that fails, is late, lags, leaves out or adds blocks, and a feeder that is killed in the middle.

    Every grant of every block equals that of a ledger which got each sync directly after its block: so no sync came
    after the block above its own, no gap stayed, and no content changed. Catches a sync recorded after its poll at a
    block that others have passed, and an answer recorded beyond what was asked for.
    """
    asyncio.run(check_one(script))


@pytest.mark.slow
@given(faults.map(lambda script: [fault for fault in script if fault != "killed"]))
@settings(max_examples=EXAMPLES // 2, deadline=None)
def test_two_feeders_on_one_ledger_miss_nothing_whatever_the_source_does(script: list[Fault]) -> None:
    """Two feeders that pass each other while their answers are late: every block is there once, and the log is valid.

    Which of two polls at the same block is recorded is decided by who comes first.
    """
    asyncio.run(check_two(script))
