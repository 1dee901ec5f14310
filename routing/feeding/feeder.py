"""`Feeder`: follows a chain, fills gaps, records syncs, and tries again after failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from ledger import BlockFact, ManifestsFact
from ledger.errors import (
    AllowanceException,
    ConflictingFact,
    CorruptLedger,
    ImplausibleFact,
    InvalidInput,
    LedgerClosed,
    NewerLedger,
    ReadOnlyLedger,
)
from ledger.values import NANOSECONDS, billionths, instant, integer
from routing.service.allowance import Allowance
from routing.service.queries import MOST_BLOCKS

from .contract import ChainSource, FeedState
from .gaps import batches, gaps_below_newest

R = TypeVar("R")

log: logging.Logger = logging.getLogger("allowance.feed")

LONGEST_WAIT_SECONDS = 60.0
MOST_DOUBLINGS = 10
REFUSALS = (ConflictingFact, ImplausibleFact, InvalidInput)
"""The ledger refuses a fact for good; the next fact may be right."""
FINAL = (CorruptLedger, LedgerClosed, NewerLedger, ReadOnlyLedger)
"""Trying again cannot help."""


class Feeder:
    """Records a chain's blocks and manifests in a ledger, for as long as `run` runs.

        feeder = Feeder(ledger, source)
        feeding = asyncio.create_task(feeder.run())
        ...
        print(feeder.state().last_error)

    The newest block is read every `poll_seconds`. When `sync_every_blocks` have passed since the newest recorded sync,
    the miners are asked first, and block and sync are recorded in one commit: so the sync covers the miners of its own
    block, and counts for this block and all after it. Gaps below the newest block are filled from newest to oldest,
    down to `backfill_blocks` below it (default: the recorded setting `block_expiry_blocks`, since no job can use older
    blocks), but not below the lowest block that was ever recorded.

    A call of the source that takes longer than `timeout_seconds` counts as failed. After a failure the feeder waits
    twice as long as the time before, at most a minute. The recorded facts stand: a fact that contradicts them or is
    implausible is not recorded, and counts as a failure; the feeder never withdraws and never confirms.

    Any number of feeders may feed one ledger. `sleep` and `clock_ns` are arguments for tests. Raises `InvalidInput`.
    """

    def __init__(
        self,
        ledger: Allowance,
        source: ChainSource,
        *,
        sync_every_blocks: int = 25,
        backfill_blocks: int | None = None,
        poll_seconds: float = 4.0,
        timeout_seconds: float = 60.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        if not isinstance(ledger, Allowance):
            raise InvalidInput("ledger", ledger, "an Allowance (not one of routing.sync)")
        self._ledger, self._source = ledger, source
        self._sync_every = integer(sync_every_blocks, "sync_every_blocks", 1)
        if backfill_blocks is not None:
            integer(backfill_blocks, "backfill_blocks", 0, MOST_BLOCKS)
        self._backfill = backfill_blocks
        self._poll_seconds = billionths(poll_seconds, "poll_seconds", least=1) / NANOSECONDS
        self._timeout_seconds = billionths(timeout_seconds, "timeout_seconds", least=1) / NANOSECONDS
        self._sleep, self._clock_ns = sleep, clock_ns
        self._newest: BlockFact | None = None
        self._next_sync = self._failed_syncs = 0
        self._recorded_blocks = self._recorded_syncs = self._retries = self._failures = self._missing = 0
        self._last_success_at: datetime | None = None
        self._errors: dict[str, str] = {}
        """The problems now, by activity: blocks, manifests, gaps."""

    def state(self) -> FeedState:
        """Return what the feeder has done and what is wrong; from any thread, without waiting."""
        return FeedState(
            newest_block=self._newest.number if self._newest else None,
            recorded_blocks=self._recorded_blocks,
            recorded_syncs=self._recorded_syncs,
            retries=self._retries,
            failures=self._failures,
            missing_blocks=self._missing,
            last_success_at=self._last_success_at,
            last_error="; ".join(list(self._errors.values())) or None,
        )

    async def run(self) -> None:
        """Follow the chain until cancelled. Nothing that was recorded is lost, whenever it ends.

        Raises `LedgerClosed`, `ReadOnlyLedger`, `NewerLedger` and `CorruptLedger`, since trying again cannot help then.
        """
        try:
            # Two activities: a gap of days must not hold up the newest block.
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._repeat("blocks", self.follow))
                tasks.create_task(self._repeat("gaps", self.fill))
        except BaseExceptionGroup as stopped:
            raise stopped.exceptions[0] from None

    async def follow(self) -> None:
        """Record the newest block once, with a sync if one is due. Raises whatever the source or the ledger raises.

        A failed sync is not raised: the block is recorded without it, and the next attempt is made some blocks later.
        """
        block = await self._read_newest()
        head = await self._ledger.current_block()
        # An older block comes from a node that lags. Recorded now, a sync there would come after later blocks.
        if (head is None or block.number >= head) and block != self._newest:
            await self._record_newest(block, await self._sync_if_due(block))
            self._newest = block
        self._last_success_at = instant(self._clock_ns())

    async def fill(self) -> None:
        """Record the missing blocks below the newest recorded one, once, from newest to oldest.

        Raises whatever the source or the ledger raises; at the end also the last refusal of a fact, or `LookupError` if
        the source left blocks out. All other blocks are recorded then.
        """
        refusal: AllowanceException | None = None
        for first, last in batches(await self._gaps()):
            answer = await self._in_time(self._source.blocks(first, last))
            # Only the blocks that were asked for: one above the newest would be recorded before its sync.
            wanted = {block.number: block for block in answer if first <= block.number <= last}
            refusal = await self._record_gap([wanted[number] for number in sorted(wanted)]) or refusal
        if refusal is not None:
            raise refusal
        if gaps := await self._gaps():
            raise LookupError(f"the source left out {self._missing} blocks that are missing, such as {gaps[-1][1]}")

    async def _repeat(self, activity: str, step: Callable[[], Awaitable[None]]) -> None:
        failed = 0
        while True:
            self._retries += failed > 0
            try:
                await step()
            except FINAL:
                raise
            except Exception as error:  # The source is the user's code, and may raise anything.
                failed += 1
                self._failed(activity, error)
            else:
                failed = 0
                self._worked(activity)
            longest = max(self._poll_seconds, LONGEST_WAIT_SECONDS)
            await self._sleep(min(self._poll_seconds * 2 ** min(failed, MOST_DOUBLINGS), longest))

    async def _in_time(self, answer: Coroutine[Any, Any, R]) -> R:
        async with asyncio.timeout(self._timeout_seconds):
            return await answer

    async def _read_newest(self) -> BlockFact:
        answer = await self._in_time(self._source.blocks())
        if not answer:
            raise LookupError("the source returned no newest block")
        newest = max(answer, key=lambda block: block.number)
        # The source looks through the miners, too, when it asks them; an iterator would be empty afterwards.
        return msgspec.structs.replace(newest, miners=list(newest.miners))

    async def _sync_if_due(self, block: BlockFact) -> list[ManifestsFact]:
        if block.number < self._next_sync:
            return []
        newest_sync = (await self._ledger.health()).newest_sync
        if newest_sync is not None and newest_sync <= block.number < newest_sync + self._sync_every:
            # Another feeder has recorded it, or an earlier run of this one.
            self._sync_done(newest_sync)
            return []
        self._retries += self._failed_syncs > 0
        try:
            manifests = await self._in_time(self._source.manifests(block))
        except Exception as error:
            self._sync_failed(block, error)
            return []
        return [ManifestsFact(block.number, manifests)]

    async def _record_newest(self, block: BlockFact, syncs: list[ManifestsFact]) -> None:
        try:
            await self._ledger.record_facts([block, *syncs])
        except REFUSALS as refused:
            if refused.fact_index == 0:
                raise
            self._recorded_blocks += 1
            # Other manifests at the same block are those of another feeder, which asked a moment earlier.
            if isinstance(refused, ConflictingFact):
                self._sync_done(block.number)
            else:
                self._sync_failed(block, refused)
            return
        self._recorded_blocks += 1
        if syncs:
            self._recorded_syncs += 1
            self._sync_done(block.number)

    def _sync_done(self, number: int) -> None:
        self._failed_syncs = 0
        self._next_sync = number + self._sync_every
        self._worked("manifests")

    def _sync_failed(self, block: BlockFact, error: Exception) -> None:
        self._failed_syncs = min(self._failed_syncs + 1, MOST_DOUBLINGS)
        self._next_sync = block.number + min(2**self._failed_syncs, self._sync_every)
        self._failed("manifests", error)

    async def _gaps(self) -> list[tuple[int, int]]:
        gaps = await gaps_below_newest(self._ledger, self._backfill)
        self._missing = sum(last - first + 1 for first, last in gaps)
        return gaps

    async def _record_gap(self, blocks: Sequence[BlockFact]) -> AllowanceException | None:
        """Record the blocks that are not refused; return the last refusal."""
        refusal = None
        while blocks:
            try:
                await self._ledger.record_facts(blocks)
            except REFUSALS as refused:
                refusal, count = refused, refused.fact_index
            else:
                count = len(blocks)
            self._recorded_blocks += count
            blocks = blocks[count + 1 :]
        return refusal

    def _failed(self, activity: str, error: Exception) -> None:
        self._failures += 1
        text = f"{activity}: {type(error).__name__}: {error}"
        # Once for each error: a node that is down for a night must not fill the log.
        level = logging.DEBUG if self._errors.get(activity) == text else logging.WARNING
        log.log(
            level, "the feed of %s failed and will be tried again: %s", activity, text, extra={"activity": activity}
        )
        self._errors[activity] = text

    def _worked(self, activity: str) -> None:
        if self._errors.pop(activity, None) is not None:
            log.info("the feed of %s works again", activity, extra={"activity": activity})
