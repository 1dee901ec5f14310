"""The feeder: what it records and when, and what it does if a source or the ledger fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import routing.sync as blocking
from ledger import BlockFact
from routing import Allowance, ConflictingFact, InvalidInput, LedgerClosed, ReadOnlyLedger, Settings
from routing.feeding import Feeder
from routing.feeding.gaps import BATCH_BLOCKS, batches
from tests.feeding.chain import (
    BLOCK_SECONDS,
    GENESIS,
    Chain,
    VirtualClock,
    contents,
    fed_straight,
    many_miners,
    open_ledger,
    recorded_syncs,
)
from tests.support.small import GPU, START, VALIDATOR, hash_of

pytestmark = pytest.mark.compatibility


class Fed:
    """A ledger, its chain, its clock and its feeder."""

    def __init__(self, ledger: Allowance, chain: Chain, **options: Any) -> None:
        self.ledger, self.chain, self.clock = ledger, chain, chain.clock
        self.feeder = Feeder(ledger, chain, sleep=self.clock.sleep, clock_ns=self.clock, **options)


@asynccontextmanager
async def fed(chain_class: type[Chain] = Chain, **options: Any) -> AsyncIterator[Fed]:
    clock = VirtualClock()
    async with open_ledger(clock) as ledger:
        yield Fed(ledger, chain_class(clock), **options)


@asynccontextmanager
async def running(feeder: Feeder) -> AsyncIterator[asyncio.Task[None]]:
    """Run a feeder; the test fails if it ended by itself."""
    task = asyncio.create_task(feeder.run())
    try:
        yield task
        assert not task.done()
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_chain_is_followed_with_a_sync_after_every_so_many_blocks() -> None:
    """The ledger equals one fed block by block, and the state says so.

    Catches a sync that is recorded before its block (its miners would not be covered) or after the next one (its own
    block would count by the sync before).
    """
    async with fed(sync_every_blocks=5) as each:
        async with running(each.feeder):
            while each.chain.head < GENESIS + 23:
                await each.clock.tick()
            await each.clock.tick()

        syncs = await recorded_syncs(each.ledger)
        assert syncs == [GENESIS, GENESIS + 5, GENESIS + 10, GENESIS + 15, GENESIS + 20] == each.chain.polls
        newest = await each.ledger.current_block()
        assert newest is not None
        assert newest >= GENESIS + 22
        assert await contents(each.ledger) == await fed_straight(each.chain, GENESIS, newest, syncs)
        state = each.feeder.state()
        assert (state.newest_block, state.recorded_syncs, state.missing_blocks) == (newest, 5, 0)
        assert (state.retries, state.failures, state.last_error) == (0, 0, None)
        assert state.last_success_at is not None
        assert START < state.last_success_at <= START + timedelta(seconds=each.clock.now)


async def test_a_new_feeder_fills_the_gap_of_an_outage_and_nothing_below_the_first_block() -> None:
    """After an outage the missing blocks are recorded, newest first; the ledger's own beginning is no gap.

    Catches a feeder that reads older blocks again and again, and one that reads a block of a gap one by one.
    """
    async with fed(sync_every_blocks=200) as each:
        await each.feeder.follow()
        each.clock.now += BLOCK_SECONDS * 120
        again = Fed(each.ledger, each.chain, sync_every_blocks=200)
        await again.feeder.follow()
        await again.feeder.fill()

        # The first recorded block is asked for once more: it is not finalized without its successor.
        head = GENESIS + 120
        asked = [(head - 50, head - 1), (head - 100, head - 51), (GENESIS, head - 101)]
        assert [call for call in each.chain.calls if call] == asked
        await again.feeder.fill()
        assert len([call for call in each.chain.calls if call]) == 3
        assert await contents(each.ledger) == await fed_straight(each.chain, GENESIS, head, [GENESIS])
        assert again.feeder.state().recorded_blocks == 121


def test_gaps_are_read_from_newest_to_oldest_in_pieces() -> None:
    """A job uses new blocks longest, so they come first; a gap of days is not read in one answer."""
    assert list(batches([(1, 3), (10, 10 + 2 * BATCH_BLOCKS)])) == [
        (11 + BATCH_BLOCKS, 10 + 2 * BATCH_BLOCKS),
        (11, 10 + BATCH_BLOCKS),
        (10, 10),
        (1, 3),
    ]


async def test_gaps_that_no_job_can_use_are_left_alone() -> None:
    """Without `backfill_blocks` the recorded setting decides, read anew for each pass; with it, the number does."""
    async with fed() as each:
        await each.feeder.follow()
        each.clock.now += BLOCK_SECONDS * 100
        await each.ledger.change_settings(block_expiry_blocks=10)
        await each.feeder.follow()
        await each.feeder.fill()
        assert await each.ledger.missing_blocks(GENESIS, GENESIS + 99) == [(GENESIS, GENESIS + 89)]

        further = Fed(each.ledger, each.chain, backfill_blocks=30)
        await further.feeder.fill()
        assert await each.ledger.missing_blocks(GENESIS, GENESIS + 99) == [(GENESIS, GENESIS + 69)]


async def test_a_failed_sync_does_not_hold_up_the_blocks() -> None:
    """Miners cannot be asked: blocks go on, the sync is tried again after 2, 4, 8 … blocks, and works in the end."""

    class Unreachable(Chain):
        healthy = False

        async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
            offers = await super().manifests(block)
            if not self.healthy:
                raise ConnectionError("no route to host")
            return offers

    async with fed(Unreachable, sync_every_blocks=5) as each:
        for _ in range(12):
            await each.feeder.follow()
            each.clock.now += BLOCK_SECONDS
        assert each.chain.polls == [GENESIS, GENESIS + 2, GENESIS + 6, GENESIS + 11]
        state = each.feeder.state()
        assert (state.recorded_blocks, state.recorded_syncs, state.failures, state.retries) == (12, 0, 4, 3)
        assert state.last_error == "manifests: ConnectionError: no route to host"

        each.chain.healthy = True  # type: ignore[attr-defined]  # of this test's chain
        each.clock.now += BLOCK_SECONDS * 5
        await each.feeder.follow()
        assert await recorded_syncs(each.ledger) == [each.chain.head]
        assert each.feeder.state().last_error is None


async def test_a_failed_sync_is_forgotten_when_another_feeder_has_recorded_one() -> None:
    """One of two feeders cannot reach the miners: once the other's sync is there, nothing is wrong any more.

    Catches a feeder whose `last_error` stays for ever, because it never has to ask again.
    """

    class Unreachable(Chain):
        async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
            raise ConnectionError("no route to host")

    async with fed() as each:
        lonely = Fed(each.ledger, Unreachable(each.clock))
        await lonely.feeder.follow()
        assert lonely.feeder.state().last_error is not None
        each.clock.now += BLOCK_SECONDS * 2
        await each.feeder.follow()
        await lonely.feeder.follow()
        assert lonely.feeder.state().last_error is None


async def test_an_implausible_sync_is_refused_and_tried_again() -> None:
    """A poll that reached nobody must not wipe out the network: the block is recorded, the sync is not."""

    class Silent(Chain):
        async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
            self.polls.append(block.number)
            return self.offers(block) if len(self.polls) == 1 else {}

    async with fed(Silent, sync_every_blocks=3) as each:
        for _ in range(6):
            await each.feeder.follow()
            each.clock.now += BLOCK_SECONDS
        assert each.chain.polls == [GENESIS, GENESIS + 3, GENESIS + 5]
        assert await recorded_syncs(each.ledger) == [GENESIS]
        assert await each.ledger.current_block() == GENESIS + 5
        assert "ImplausibleFact" in (each.feeder.state().last_error or "")


async def test_a_source_that_contradicts_the_ledger_is_counted_and_changes_nothing() -> None:
    """Another block of a recorded number: the recorded one stands, and the blocks after it are recorded.

    Catches a feeder that stops at a fork, withdraws on its own, or repeats the same block for ever.
    """

    class Forked(Chain):
        fork = ""

        def block(self, number: int) -> BlockFact:
            return msgspec.structs.replace(super().block(number), block_hash=hash_of(number, self.fork))

    async with fed(Forked) as each:
        await each.feeder.follow()
        before = await contents(each.ledger)
        each.chain.fork = "other"  # type: ignore[attr-defined]
        with pytest.raises(ConflictingFact):
            await each.feeder.follow()
        assert await contents(each.ledger) == before

        async with running(each.feeder):
            while await each.ledger.current_block() == GENESIS:
                await each.clock.tick()
        state = each.feeder.state()
        assert (state.newest_block, state.failures, state.last_error) == (GENESIS + 2, 2, None)


async def test_one_refused_block_of_a_gap_does_not_keep_out_the_others() -> None:
    """A block whose time is wrong is left out; its neighbours are recorded, and the pass says what was refused."""

    class Wrong(Chain):
        def block(self, number: int) -> BlockFact:
            block = super().block(number)
            wrong = number == GENESIS + 70
            return msgspec.structs.replace(block, created_at=block.created_at - timedelta(days=wrong))

    async with fed(Wrong) as each:
        await each.feeder.follow()
        each.clock.now += BLOCK_SECONDS * 90
        await each.feeder.follow()
        with pytest.raises(ConflictingFact) as refused:
            await each.feeder.fill()
        assert refused.value.fact == f"block {GENESIS + 70}"
        assert await each.ledger.missing_blocks(GENESIS, GENESIS + 89) == [(GENESIS + 69, GENESIS + 70)]


async def test_blocks_that_the_source_leaves_out_are_named_and_asked_for_again() -> None:
    """A node that has pruned old blocks fails the pass by name, without an end of the feed."""

    class Pruned(Chain):
        async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
            return [each for each in await super().blocks(first, last) if not GENESIS < each.number < GENESIS + 4]

    async with fed(Pruned) as each:
        await each.feeder.follow()
        each.clock.now += BLOCK_SECONDS * 9
        await each.feeder.follow()
        with pytest.raises(LookupError, match=f"left out 4 blocks that are missing, such as {GENESIS + 3}"):
            await each.feeder.fill()
        assert each.feeder.state().missing_blocks == 4


async def test_blocks_that_were_not_asked_for_are_not_recorded() -> None:
    """An answer to a gap that holds newer blocks, too: recorded now, they would come before their sync."""

    class Generous(Chain):
        async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
            answer = list(await super().blocks(first, last))
            return answer if first is None else [*answer, self.block(self.head + 1), self.block(GENESIS - 1)]

    async with fed(Generous) as each:
        await each.feeder.follow()
        each.clock.now += BLOCK_SECONDS * 9
        await each.feeder.follow()
        await each.feeder.fill()
        assert sorted((await contents(each.ledger))["blocks"]) == list(range(GENESIS, GENESIS + 10))


async def test_miners_may_come_as_an_iterator() -> None:
    """The miners are read twice, to ask them and to record them; catches a block that is recorded without any."""

    class Lazy(Chain):
        async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
            return [
                msgspec.structs.replace(each, miners=iter(list(each.miners)))
                for each in await super().blocks(first, last)
            ]

    async with fed(Lazy) as each:
        await each.feeder.follow()
        assert await each.ledger.miners() == each.chain.block(GENESIS).miners


async def test_a_node_that_lags_changes_nothing() -> None:
    """An older head than the recorded one is ignored: a sync there would be recorded after later blocks."""
    async with fed(sync_every_blocks=5) as each:
        each.clock.now = BLOCK_SECONDS * 20
        await each.feeder.follow()
        before = (await each.ledger.head()).position
        each.clock.now = BLOCK_SECONDS * 10
        await Fed(each.ledger, each.chain, sync_every_blocks=5).feeder.follow()
        assert (await each.ledger.head()).position == before
        assert each.chain.polls == [GENESIS + 20]


async def test_failures_are_retried_after_growing_waits_up_to_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """A source that is down costs one call a minute and one line in the log; then the wait is short again."""

    class Down(Chain):
        async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
            if self.clock.now < 500:
                raise ConnectionError("down")
            return await super().blocks(first, last)

    caplog.set_level(logging.INFO, logger="allowance.feed")
    async with fed(Down, poll_seconds=4) as each:
        gaps_wait = 4.0
        async with running(each.feeder):
            while await each.ledger.current_block() is None:
                await each.clock.tick()
            await each.clock.tick()
        waits = [wait for wait in each.clock.slept if wait != gaps_wait]
        assert waits == [8.0, 16.0, 32.0, *[60.0] * 8]
        state = each.feeder.state()
        assert (state.failures, state.retries) == (11, 11)
        records = [record for record in caplog.records if record.name == "allowance.feed"]
        assert [record.levelname for record in records] == ["WARNING", "INFO"]
        assert records[0].getMessage() == (
            "the feed of blocks failed and will be tried again: blocks: ConnectionError: down"
        )


async def test_a_source_that_does_not_answer_fails_after_the_timeout() -> None:
    """A call that hangs is given up, so that the next one can succeed."""

    class Hanging(Chain):
        async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
            await asyncio.Event().wait()
            return await super().blocks(first, last)

    async with fed(Hanging, timeout_seconds=0.01) as each:
        with pytest.raises(TimeoutError):
            await each.feeder.follow()


async def test_a_cancelled_poll_records_nothing_and_the_next_feeder_goes_on() -> None:
    """A feeder that is cancelled while miners are asked has recorded neither block nor sync; both come later."""

    class Slow(Chain):
        def __init__(self, clock: VirtualClock) -> None:
            super().__init__(clock)
            self.asked = asyncio.Event()

        async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
            if not self.asked.is_set():
                self.asked.set()
                await asyncio.Event().wait()
            return await super().manifests(block)

    async with fed(Slow) as each:
        async with running(each.feeder):
            await each.chain.asked.wait()  # type: ignore[attr-defined]
        assert await each.ledger.current_block() is None
        await Fed(each.ledger, each.chain).feeder.follow()
        assert await recorded_syncs(each.ledger) == [GENESIS]


async def test_two_feeders_record_every_fact_once() -> None:
    """Two feeders that ask different miners at the same block: one sync is recorded, and neither feeder fails."""

    class Meeting(Chain):
        """Both feeders are asking before either gets an answer, and each answer is another one."""

        barrier = asyncio.Barrier(2)

        async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
            self.polls.append(block.number)
            offers = {**self.offers(block), "5Eve": {GPU: len(self.polls)}}
            await self.barrier.wait()
            return offers

    async with fed(Meeting) as each:
        other = Fed(each.ledger, each.chain)
        await asyncio.gather(each.feeder.follow(), other.feeder.follow())
        assert each.chain.polls == [GENESIS, GENESIS]
        assert await recorded_syncs(each.ledger) == [GENESIS]
        states = [each.feeder.state(), other.feeder.state()]
        assert [(state.failures, state.last_error) for state in states] == [(0, None)] * 2
        assert sum(state.recorded_syncs for state in states) == 1
        head = (await each.ledger.head()).position
        each.clock.now += BLOCK_SECONDS
        await asyncio.gather(each.feeder.follow(), other.feeder.follow())
        assert (await each.ledger.head()).position == head + 1


async def test_an_implausible_block_is_not_recorded_before_somebody_confirms_it() -> None:
    """A metagraph that lost nearly all its miners: the feed reports it and goes on when it is whole again."""

    class Shrunk(Chain):
        def block(self, number: int) -> BlockFact:
            miners = many_miners(1 if number == GENESIS + 1 else 20)
            return msgspec.structs.replace(super().block(number), miners=miners)

        def offers(self, block: BlockFact) -> dict[str, dict[str, int]]:
            return {each.hotkey_ss58: {GPU: 1} for each in block.miners}

    async with fed(Shrunk) as each:
        async with running(each.feeder):
            while (await each.ledger.current_block() or 0) < GENESIS + 2:
                await each.clock.tick()
            await each.clock.tick()
            assert await each.ledger.missing_blocks(GENESIS, GENESIS + 1) == [(GENESIS, GENESIS + 1)]
            assert "ImplausibleFact" in (each.feeder.state().last_error or "")
        wrong = each.chain.block(GENESIS + 1)
        await each.ledger.record_block(
            wrong.number, wrong.created_at, wrong.miners, wrong.stakes, block_hash=wrong.block_hash, confirm=True
        )
        await each.feeder.fill()
        assert await each.ledger.missing_blocks(GENESIS, GENESIS + 1) == []


async def test_a_closed_ledger_ends_the_feed() -> None:
    """Trying again cannot help, so `run` raises instead of waiting for ever."""
    async with fed() as each:
        task = asyncio.create_task(each.feeder.run())
        await each.clock.all_asleep()
        await each.ledger.close()
        await each.clock.tick()
        with pytest.raises(LedgerClosed):
            await task


async def test_a_read_only_ledger_ends_the_feed(url: str) -> None:
    """A feeder on an auditor's ledger says so at once."""
    clock = VirtualClock()
    async with open_ledger(clock, url):
        pass
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        with pytest.raises(ReadOnlyLedger):
            await Feeder(ledger, Chain(clock), sleep=clock.sleep).run()


@pytest.mark.parametrize(
    ("field", "value"),
    [("sync_every_blocks", 0), ("backfill_blocks", -1), ("poll_seconds", 0.0), ("timeout_seconds", float("nan"))],
)
async def test_wrong_arguments_are_refused_by_name(field: str, value: Any) -> None:
    """A mistyped interval is refused when the feeder is made, not at its first wait."""
    async with fed() as each:
        with pytest.raises(InvalidInput) as refused:
            Feeder(each.ledger, each.chain, **{field: value})
        assert refused.value.field == field


def test_a_blocking_ledger_is_refused() -> None:
    """A feeder is asynchronous; the error names the class that it needs."""
    with blocking.Allowance.open("sqlite://", validator_ss58=VALIDATOR, settings=Settings()) as ledger:
        with pytest.raises(InvalidInput) as refused:
            Feeder(ledger, object())  # type: ignore[arg-type]
        assert refused.value.field == "ledger"


def test_the_state_is_ready_for_json() -> None:
    """A metrics page or a health check can print the state as it stands."""
    clock = VirtualClock()
    state = Feeder(open_ledger(clock), Chain(clock)).state()
    assert msgspec.json.encode(state.to_dict())
    assert state.to_dict()["last_success_at"] is None
