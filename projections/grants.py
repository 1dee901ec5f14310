"""The grants of each block to every validator: a fold of the chain's facts that keeps all stakes.

The ledger's own state keeps only what its own validator is granted. This fold uses the same `Chain` and keeps three
things that the state forgets: all stakes at each block, the settings with which each block was finalized, and every
drop.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from ledger import Account, Chain, RecordedSettings, Row, StepFunction, Store
from ledger.codec import decode
from ledger.errors import BlockNotFinalized
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    BlockRecorded,
    BlockWithdrawn,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    SettingsChanged,
)
from ledger.values import seconds

from .corrections import fold_syncs

FACT_STREAMS = frozenset((SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM))


class BlockTerms(NamedTuple):
    """The settings in force when a block was finalized, which fix the worth of its duration for good.

    The executor counts do not depend on these settings; `CountInputs` in `ledger/domain/chain.py` has what they depend
    on.
    """

    long_block_ns: int
    long_block_counts_as_ns: int
    multiplier: Fraction

    def unit_ns(self, duration_ns: int, stake: int, total_stake: int) -> int:
        """Return the grant of a block per executor to a validator: its share, by stake, of the duration.

        A block above 12.5 s counts as 12.0 s (the settings' defaults). Source: ComputeHorde's validator.
        """
        if not total_stake:
            return 0
        counted_ns = self.long_block_counts_as_ns if duration_ns > self.long_block_ns else duration_ns
        return counted_ns * self.multiplier.numerator * stake // (self.multiplier.denominator * total_stake)


class StakeTable:
    """Stakes in billionths by validator and block.

    Stakes repeat from block to block, so a set of stakes that equals that of the block recorded before is stored once.
    """

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._stakes: list[array[int]] = [array("q")]
        self._totals = [0]
        self._index_at = StepFunction()
        self._last: Mapping[str, int] = {}

    def record(self, block: int, stakes: Mapping[str, int]) -> None:
        """Store the stakes at a block."""
        if stakes is not self._last and stakes != self._last:
            self._stakes.append(self._by_column(stakes))
            self._totals.append(sum(stakes.values()))
        self._last = stakes
        self._index_at.assign(block, block + 1, len(self._stakes) - 1)

    def all_at(self, block: int) -> dict[str, int]:
        """Return the stakes above 0 at a block by validator."""
        stakes = self._stakes[self._index_at.at(block)]
        # Later validators have columns beyond the end of earlier arrays, where `zip` ends.
        return {validator_ss58: stake for validator_ss58, stake in zip(self._columns, stakes, strict=False) if stake}

    def at(self, block: int, validator_ss58: str) -> tuple[int, int]:
        """Return a validator's stake at a block, and the sum of all."""
        index = self._index_at.at(block)
        stakes, column = self._stakes[index], self._columns.get(validator_ss58)
        # A validator that came later has a column beyond the end of earlier arrays.
        return stakes[column] if column is not None and column < len(stakes) else 0, self._totals[index]

    def _by_column(self, stakes: Mapping[str, int]) -> array[int]:
        for validator_ss58 in stakes:
            self._columns.setdefault(validator_ss58, len(self._columns))
        by_column = array("q", bytes(8 * len(self._columns)))
        for validator_ss58, stake in stakes.items():
            by_column[self._columns[validator_ss58]] = stake
        return by_column


class _ChainWithDrops(Chain):
    """A chain that remembers every drop; the state needs only the highest of each account."""

    def __init__(self) -> None:
        super().__init__()
        self.drops: dict[str, list[int]] = {}
        """The blocks of the drops, ascending, by account stream."""

    def drop(self, account: Account, block: int) -> None:
        super().drop(account, block)
        insort(self.drops.setdefault(account.stream, []), block)


class GrantTable:
    """The chain's facts up to `position`, and what they grant to every validator.

    It keeps no stakes of blocks below `first_block`, which count as blocks without a grant.
    """

    def __init__(self, first_block: int = 0) -> None:
        self.position = 0
        self.first_block = first_block
        self._chain = _ChainWithDrops()
        self._stakes = StakeTable()
        self._terms: list[BlockTerms] = []
        self._terms_at = StepFunction()
        self._drops_are_stale = False
        """Whether a sync was withdrawn since the drops were folded."""
        self._block_times: _BlockTimes | None = None
        """Built when it is first needed, and again after each new block."""

    @property
    def settings(self) -> RecordedSettings:
        """The settings at `position`."""
        return self._chain.settings

    def fold(self, row: Row) -> None:
        """Fold the next row of the log; rows that are no facts only move `position`."""
        self.position = row.position
        if row.stream not in FACT_STREAMS:
            return
        match event := decode(row.position, row.payload):
            case BlockRecorded():
                self._record_block(row.position, event)
            case ManifestsRecorded():
                self._chain.apply_manifests(row.position, event)
            case BlockWithdrawn():
                self._chain.withdraw_block(row.position, event)
                self._block_times = None
            case ManifestsWithdrawn():
                self._chain.withdraw_manifests(row.position, event)
                self._drops_are_stale = True
            case SettingsChanged() | LedgerOpened():
                self._chain.apply_settings(event.settings)
                settings = event.settings
                self._terms.append(
                    BlockTerms(settings.long_block_ns, settings.long_block_counts_as_ns, self._chain.multiplier)
                )

    async def follow(self, store: Store, until: int) -> None:
        """Fold the rows of the log up to a position."""
        while self.position < until:
            for row in await store.read(self.position):
                if row.position <= until:
                    self.fold(row)
            await asyncio.sleep(0)  # A long fold yields the event loop after each page.
        await self._fold_drops_again(store)

    async def _fold_drops_again(self, store: Store) -> None:
        """Fold the drops of the remaining syncs, if a sync was withdrawn; after the last row.

        A withdrawal names only the highest drop that remains in each account, which is all that the state needs.
        """
        if not self._drops_are_stale:
            return
        remaining = _ChainWithDrops()
        withdrawn = {each.position for syncs in self._chain.withdrawn_syncs.values() for each in syncs}
        await fold_syncs(store, remaining, self.position, withdrawn)
        self._chain.drops = remaining.drops
        self._drops_are_stale = False

    def granted_ns(self, validator_ss58: str, miner_ss58: str, executor_class: str, block: int) -> int:
        """Return the allowance of a block in an account; 0 is no grant."""
        account = self._account(miner_ss58, executor_class)
        blocks = self._chain.blocks
        start_ns, end_ns = blocks.created_at_ns(block), blocks.created_at_ns(block + 1)
        if account is None or start_ns < 0 or end_ns < 0:
            return 0
        terms = self._terms[self._terms_at.at(block)]
        stake, total_stake = self._stakes.at(block, validator_ss58)
        return terms.unit_ns(end_ns - start_ns, stake, total_stake) * account.counts.at(block)

    def is_finalized(self, block: int) -> bool:
        """Return whether the block and its successor are recorded, so that its grants are fixed."""
        return block in self._chain.blocks and block + 1 in self._chain.blocks

    def grants_of(self, block: int, executor_class: str | None) -> Iterator[tuple[str, str, str, int]]:
        """Yield validator, miner, class and grant in ns of every grant of a finalized block, in one class or in all."""
        blocks, stakes = self._chain.blocks, self._stakes.all_at(block)
        duration_ns = blocks.created_at_ns(block + 1) - blocks.created_at_ns(block)
        terms, total_stake = self._terms[self._terms_at.at(block)], sum(stakes.values())
        units = [(each, terms.unit_ns(duration_ns, stake, total_stake)) for each, stake in stakes.items()]
        for a_class, accounts in self._chain.classes.items():
            if executor_class is not None and a_class != executor_class:
                continue
            for miner_ss58, account in accounts.items():
                count = account.counts.at(block)
                for validator_ss58, unit_ns in units:
                    if unit_ns * count:
                        yield validator_ss58, miner_ss58, a_class, unit_ns * count

    def invalidated_below_at(self, miner_ss58: str, executor_class: str, block: int) -> int:
        """Return the block below which the account's blocks are invalidated by drops at `block` or before; 0: none."""
        account = self._account(miner_ss58, executor_class)
        drops = self._chain.drops.get(account.stream, ()) if account is not None else ()
        at = bisect_right(drops, block)
        return drops[at - 1] if at else 0

    def newest_at(self, at_ns: int) -> int | None:
        """Return the newest block at a time; None before the first known block, and at or after the last.

        At the last block and after it, a newer one may exist that is not recorded yet.
        """
        if self._block_times is None:
            self._block_times = _BlockTimes(self._chain)
        return self._block_times.newest_at(at_ns)

    def span_ns(self) -> tuple[int, int] | None:
        """Return the times of the first and the last known block; None if none is known."""
        first = next(self._chain.blocks.recorded_blocks(), None)
        if first is None:
            return None
        blocks = self._chain.blocks
        return blocks.created_at_ns(first), blocks.created_at_ns(blocks.newest)

    def _record_block(self, position: int, event: BlockRecorded) -> None:
        chain, number = self._chain, event.number
        chain.apply_block(position, event)
        self._block_times = None
        if number >= self.first_block:
            self._stakes.record(number, chain.last_metagraph.stakes)
        for block in (number - 1, number):
            if block in chain.blocks and block + 1 in chain.blocks:
                # Blocks may arrive in any order: a block is finalized by the later of itself and its successor.
                self._terms_at.assign(block, block + 1, len(self._terms) - 1)

    def _account(self, miner_ss58: str, executor_class: str) -> Account | None:
        return self._chain.classes.get(executor_class, {}).get(miner_ss58)


class GrantReader:
    """Answers what blocks granted, and keeps the facts for the next call; its coroutines run on one event loop."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._table = GrantTable()
        self._turn = asyncio.Lock()

    async def grants_at(self, until: int, block: int, executor_class: str | None) -> dict[tuple[str, str, str], float]:
        """Return the grants of a block in seconds, by validator, miner and class, given the log up to a position.

        Raises `BlockNotFinalized`.
        """
        # Two calls that fold the same rows at once would fold them twice.
        async with self._turn:
            if until < self._table.position and (await self.store.head()).position < self._table.position:
                self._table = GrantTable()  # The log went back, so what was read is not what is stored.
            try:
                await self._table.follow(self.store, until)
            except Exception:
                # The fold may have stopped within a row.
                self._table = GrantTable()
                raise
            if not self._table.is_finalized(block):
                raise BlockNotFinalized(block)
            return {
                (validator_ss58, miner_ss58, a_class): seconds(granted_ns)
                for validator_ss58, miner_ss58, a_class, granted_ns in self._table.grants_of(block, executor_class)
            }


class _BlockTimes:
    """An index of the known blocks by time.

    Only neighbours are checked to be in order of time when they are recorded. Blocks on two sides of a hole may be in
    the wrong order, so the times themselves cannot be bisected; the minimum of all times from each block on can.
    """

    def __init__(self, chain: Chain) -> None:
        self._numbers = array("q", chain.blocks.recorded_blocks())
        times_ns = [chain.blocks.created_at_ns(number) for number in self._numbers]
        self._first_ns, self._last_ns = (times_ns[0], times_ns[-1]) if times_ns else (0, 0)
        for at in range(len(times_ns) - 2, -1, -1):
            times_ns[at] = min(times_ns[at], times_ns[at + 1])
        self._earliest_ns = array("q", times_ns)

    def newest_at(self, at_ns: int) -> int | None:
        if not self._first_ns <= at_ns < self._last_ns:
            return None
        return self._numbers[bisect_right(self._earliest_ns, at_ns) - 1]
