"""What each block granted to each validator: a fold of the chain's facts that keeps everybody's stake.

The ledger's own state keeps what its own validator is granted, and no more. Here the same chain is folded, and beside
it three things that it forgets: the stakes as they were at each block, the settings under which each block was
finalized, and every drop.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from ledger import Account, Chain, RecordedSettings, Row, StepFunction
from ledger.codec import decode
from ledger.events import (
    CHAIN_STREAM,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    BlockRecorded,
    LedgerOpened,
    ManifestsRecorded,
    SettingsChanged,
)

FACT_STREAMS = frozenset((SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM))


class BlockTerms(NamedTuple):
    """What a block's duration is worth, as settled when the block was finalized."""

    long_block_ns: int
    long_block_counts_as_ns: int
    multiplier: Fraction

    def unit_ns(self, duration_ns: int, stake: int, total_stake: int) -> int:
        """What a block of that duration grants per executor to a validator with that stake."""
        if not total_stake:
            return 0
        counted_ns = self.long_block_counts_as_ns if duration_ns > self.long_block_ns else duration_ns
        return counted_ns * self.multiplier.numerator * stake // (self.multiplier.denominator * total_stake)


class StakeTable:
    """Stakes by validator and block; each distinct set of stakes that follows another is kept once, as numbers."""

    def __init__(self) -> None:
        self._columns: dict[str, int] = {}
        self._rows: list[array[int]] = [array("q")]
        self._totals = [0]
        self._row_at = StepFunction()
        self._last: Mapping[str, int] = {}

    def record(self, block: int, stakes: Mapping[str, int]) -> None:
        """Keeps the stakes of a block."""
        if stakes is not self._last and stakes != self._last:
            self._rows.append(self._row(stakes))
            self._totals.append(sum(stakes.values()))
        self._last = stakes
        self._row_at.assign(block, block + 1, len(self._rows) - 1)

    def at(self, block: int, validator_ss58: str) -> tuple[int, int]:
        """The validator's stake at a block, and everybody's."""
        number = self._row_at.at(block)
        row, column = self._rows[number], self._columns.get(validator_ss58)
        return row[column] if column is not None and column < len(row) else 0, self._totals[number]

    def _row(self, stakes: Mapping[str, int]) -> array[int]:
        for validator_ss58 in stakes:
            self._columns.setdefault(validator_ss58, len(self._columns))
        row = array("q", bytes(8 * len(self._columns)))
        for validator_ss58, stake in stakes.items():
            row[self._columns[validator_ss58]] = stake
        return row


class _ChainWithDrops(Chain):
    """A chain that keeps every drop."""

    def __init__(self) -> None:
        super().__init__()
        self.drops: dict[str, list[int]] = {}
        """The blocks of the drops, ascending, by account."""

    def drop(self, account: Account, block: int) -> None:
        super().drop(account, block)
        insort(self.drops.setdefault(account.stream, []), block)


class GrantTable:
    """The chain's facts up to `position`, and what they grant to everybody."""

    def __init__(self) -> None:
        self.position = 0
        self._chain = _ChainWithDrops()
        self._stakes = StakeTable()
        self._terms: list[BlockTerms] = []
        self._terms_at = StepFunction()
        self._times: _BlockTimes | None = None

    @property
    def settings(self) -> RecordedSettings:
        """The settings that apply."""
        return self._chain.settings

    def fold(self, row: Row) -> None:
        """Takes the next row of the log; what is no fact is no concern."""
        self.position = row.position
        if row.stream not in FACT_STREAMS:
            return
        match event := decode(row.position, row.payload):
            case BlockRecorded():
                self._record_block(row.position, event)
            case ManifestsRecorded():
                self._chain.apply_manifests(row.position, event)
            case SettingsChanged() | LedgerOpened():
                self._chain.apply_settings(event.settings)
                settings = event.settings
                self._terms.append(
                    BlockTerms(settings.long_block_ns, settings.long_block_counts_as_ns, self._chain.multiplier)
                )

    def granted_ns(self, validator_ss58: str, miner_ss58: str, executor_class: str, block: int) -> int:
        """The allowance of a block in an account; 0 is no grant."""
        account = self._account(miner_ss58, executor_class)
        blocks = self._chain.blocks
        start_ns, end_ns = blocks.created_at_ns(block), blocks.created_at_ns(block + 1)
        if account is None or start_ns < 0 or end_ns < 0:
            return 0
        terms = self._terms[self._terms_at.at(block)]
        stake, total_stake = self._stakes.at(block, validator_ss58)
        return terms.unit_ns(end_ns - start_ns, stake, total_stake) * account.counts.at(block)

    def invalidated_below_at(self, miner_ss58: str, executor_class: str, block: int) -> int:
        """Below this block, the account's blocks are invalidated by drops at that block or before; 0 where none are."""
        account = self._account(miner_ss58, executor_class)
        drops = self._chain.drops.get(account.stream, ()) if account is not None else ()
        at = bisect_right(drops, block)
        return drops[at - 1] if at else 0

    def newest_at(self, at_ns: int) -> int | None:
        """The newest block at a time; None before the first known block, and at or after the last."""
        if self._times is None:
            self._times = _BlockTimes(self._chain)
        return self._times.newest_at(at_ns)

    def span_ns(self) -> tuple[int, int] | None:
        """When the first and the last known block were made."""
        first = next(self._chain.blocks.recorded_blocks(), None)
        if first is None:
            return None
        blocks = self._chain.blocks
        return blocks.created_at_ns(first), blocks.created_at_ns(blocks.newest)

    def _record_block(self, position: int, event: BlockRecorded) -> None:
        chain, number = self._chain, event.number
        chain.apply_block(position, event)
        self._times = None
        self._stakes.record(number, chain.last_metagraph.stakes)
        for block in (number - 1, number):
            if block in chain.blocks and block + 1 in chain.blocks:
                # Each block is finalized once: by the later of the two that make its duration known.
                self._terms_at.assign(block, block + 1, len(self._terms) - 1)

    def _account(self, miner_ss58: str, executor_class: str) -> Account | None:
        return self._chain.classes.get(executor_class, {}).get(miner_ss58)


class _BlockTimes:
    """The known blocks in order, to look a time up in.

    Blocks on both sides of a hole may have times in the wrong order, so that the newest block at a time is not found
    by halving over the times themselves; it is over the earliest time of all blocks from each one on.
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
