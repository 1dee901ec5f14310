"""Chain facts from ComputeHorde's tables: the same blocks, miners, stakes and counts, so the grants are the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from statistics import median_low

from routing import BlockFact, ManifestsFact, Miner

from .tables import Account, OldBlock, OldTables

STAKES_TOTAL = 1_000_000
"""The tables have no stakes but each validator's share of them; the facts have shares of a million."""
STAKE_DECIMALS = 6
"""Shares are rounded, so that unchanged stakes repeat: floats of equal shares differ in their last digits."""
MULTIPLIER_DECIMALS = 6
MOST_SAMPLES = 50
LONG_BLOCK_SECONDS, LONG_BLOCK_COUNTS_AS_SECONDS = 12.5, 12.0
"""Source: ComputeHorde's validator; its tables hold what it granted by these."""

Fact = BlockFact | ManifestsFact


class FactSource:
    """Turns blocks and syncs of the tables into facts, in the order in which the validator saw them.

    A sync of the tables has rows for the accounts that it counted, and leaves the others as they were. In a ledger a
    sync also covers the registered miners that it does not name. So each fact names those with their last counts.
    """

    def __init__(
        self, addresses: Mapping[str, Miner], offering: Collection[Account], counts: Mapping[Account, int]
    ) -> None:
        self._addresses = addresses
        self._offering = frozenset(offering)
        self._classes: dict[str, list[str]] = {}
        for miner, executor_class in sorted(self._offering):
            self._classes.setdefault(miner, []).append(executor_class)
        self._counts = dict(counts)
        self._registered: list[str] = []
        self._miners: dict[tuple[str, ...], list[Miner]] = {}
        self._stakes: dict[str, float] = {}

    def block(self, block: OldBlock) -> BlockFact:
        """Return a block. One without any grant, such as the newest, has the stakes of the block before it."""
        miners = tuple(sorted(each for each in block.neurons if each in self._addresses or each in self._classes))
        self._registered = [each for each in miners if each in self._classes]
        total = sum(block.shares.values())
        if total:
            stakes = {each: round(STAKES_TOTAL * share / total, STAKE_DECIMALS) for each, share in block.shares.items()}
            self._stakes = self._stakes if stakes == self._stakes else stakes
        if miners not in self._miners:
            self._miners = {miners: [self._miner(each) for each in miners]}
        return BlockFact(block.number, block.created_at, self._miners[miners], self._stakes)

    def sync(self, block: int, changed: Mapping[Account, int]) -> ManifestsFact:
        """Return a sync whose rows are `changed`."""
        self._counts.update(changed)
        named = sorted({*self._registered, *(miner for miner, _ in changed if miner in self._classes)})
        return ManifestsFact(block, {miner: self._counts_of(miner) for miner in named})

    def counts_so_far(self, block: int) -> ManifestsFact:
        """Return the counts from before the first block, as a sync at a block."""
        return ManifestsFact(block, {miner: self._counts_of(miner) for miner in self._classes})

    def most_executors(self) -> int:
        """Return the highest count of a registered miner at the last block: the largest allowances are for it."""
        return max((count for miner in self._registered for count in self._counts_of(miner).values()), default=0)

    def _counts_of(self, miner: str) -> dict[str, int]:
        return {
            executor_class: self._counts[miner, executor_class]
            for executor_class in self._classes[miner]
            if (miner, executor_class) in self._counts
        }

    def _miner(self, hotkey_ss58: str) -> Miner:
        # The tables keep addresses of the newest sync only. A miner that has left has none, and gets no job either.
        return self._addresses.get(hotkey_ss58) or Miner("0.0.0.0", 4, 0, hotkey_ss58)


async def facts_of(tables: OldTables, first: int, last: int, known: int) -> AsyncIterator[list[Fact]]:
    """Yield the facts of a range of blocks in pages; a sync comes after the block at which it was made.

    The counts from below the range come before it, as a sync at the block below. Blocks up to `known`, the highest that
    is recorded, are left out, and so are the syncs below it.
    """
    is_first = known < first
    first = max(first, known)
    counts, offering = await tables.counts_before(first), await tables.offering()
    source = FactSource(await tables.addresses(), offering, counts)
    syncs = await tables.syncs(first, last)
    page: list[Fact] = [source.counts_so_far(first - 1)] if is_first and first > 1 and counts else []
    async for block in tables.blocks(first, last):
        # Syncs of blocks that the tables do not have come before the next block.
        page += [source.sync(each, syncs.pop(each)) for each in sorted(syncs) if each < block.number]
        fact = source.block(block)
        if block.number > known:
            page.append(fact)
        if block.number in syncs:
            page.append(source.sync(block.number, syncs.pop(block.number)))
        if len(page) >= MOST_SAMPLES:
            yield page
            page = []
    yield page + [source.sync(each, rows) for each, rows in sorted(syncs.items())]


async def multiplier_of(tables: OldTables, last: int) -> float | None:
    """Return the factor by which the newest blocks granted more than their duration; None if none granted anything.

    It is a dynamic setting of ComputeHorde that its tables do not have. The median of the blocks is robust against a
    sync that took effect a block later.
    """
    first = max(1, last - MOST_SAMPLES)
    source = FactSource({}, await tables.offering(), await tables.counts_before(first))
    syncs, before, factors = await tables.syncs(first, last), None, []
    async for block in tables.blocks(first, last):
        if before is not None and before.number == block.number - 1 and before.shares and source.most_executors():
            seconds = (block.created_at - before.created_at).total_seconds()
            counted = LONG_BLOCK_COUNTS_AS_SECONDS if seconds > LONG_BLOCK_SECONDS else seconds
            factors.append(sum(before.shares.values()) / (counted * source.most_executors()))
        source.block(block)
        if block.number in syncs:
            source.sync(block.number, syncs[block.number])
        before = block
    return round(median_low(factors), MULTIPLIER_DECIMALS) if factors else None
