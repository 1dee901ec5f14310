"""Receipts of other validators, checked against the chain facts in this ledger.

A receipt says that a validator ran a job on a miner and paid with certain blocks. The bookkeeper processes receipts in
order and starts with nothing spent; it ignores this ledger's own reservations. Source of the rules and of the range of
blocks: ComputeHorde, whose validators check each other's receipts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from ledger import RecordedSettings, Store, runs_from_numbers
from ledger.errors import InvalidInput, JobOutOfBounds, TimeOutOfRange
from ledger.events import Run
from ledger.results import Result
from ledger.values import amount, instant, instant_ns, integer, name, seconds

from .grants import GrantTable

BlockVerdict = Literal["outside_range", "double_spent", "invalidated", "without_grant", "spendable"]

LONGEST_JOB_BLOCKS = 330
"""The longest job, 3600 s, in blocks of 12 s, and a tenth. Source: ComputeHorde's validator."""


class Receipt(Result, msgspec.Struct, frozen=True):
    """A validator's claim that it ran a job on a miner and paid for it with blocks of its own account.

    `started_at` is aware; `allowance_seconds` are executor-seconds from 0 on; a block that is listed twice counts once.
    """

    validator_ss58: str
    miner_ss58: str
    executor_class: str
    started_at: datetime
    blocks: list[int]
    allowance_seconds: float


class NotSpendable(Result, msgspec.Struct, frozen=True):
    """A run of offered blocks, `first_block` to `last_block`, that cannot be spent for the same reason.

    `distance` is in blocks, from the run to what refuses it. `outside_range`: how far its nearest block is from the
    range that the job may be paid with, below 0 if it is too old. `invalidated`: how far its last block is below the
    drop that counts. For the other reasons it is 0.
    """

    first_block: int
    last_block: int
    reason: Literal["outside_range", "double_spent", "invalidated", "without_grant"]
    distance: int


class ReceiptOutcome(Result, msgspec.Struct, frozen=True):
    """The outcome of a receipt. Each offered block is in exactly one of the five lists, ascending.

    `job_start_block` is the newest block at the job's start. If the `spendable` blocks, worth `spendable_seconds`, sum
    to at least the amount, the receipt is `spent` and `blocks` are exactly they; an amount of 0 spends none. Otherwise
    it is refused, and `blocks` is empty. `not_spendable` says for each run of the other blocks why, ascending.
    """

    receipt: Receipt
    spent: bool
    blocks: list[int]
    job_start_block: int
    spendable_seconds: float
    outside_range: list[int]
    double_spent: list[int]
    invalidated: list[int]
    without_grant: list[int]
    spendable: list[int]
    not_spendable: list[NotSpendable] = []


class PayingAccount(NamedTuple):
    """The account that a receipt is paid from; its validator may be any, not only this ledger's."""

    validator_ss58: str
    miner_ss58: str
    executor_class: str


class Bookkeeper:
    """Processes receipts in order: a block that one has spent is spent for every later one on the same account.

    It knows the facts up to one `position` of the log, until `follow` reads further. Not for several threads at once.

    A bounded one accepts jobs that start in `[first_block, end_block)`, as scoring needs it, and keeps no stakes of
    blocks that such a job cannot be paid with.
    """

    def __init__(self, first_block: int | None = None, end_block: int | None = None) -> None:
        if (first_block is None) != (end_block is None):
            raise InvalidInput("end_block", end_block, "given together with `first_block`, or not at all")
        self._bounds: Run | None = None
        if first_block is not None:
            first = integer(first_block, "first_block", 1)
            self._bounds = first, integer(end_block, "end_block", first + 1)
        self._grants = GrantTable(self._oldest_needed(RecordedSettings()))
        self._spent: dict[PayingAccount, set[int]] = {}

    @property
    def position(self) -> int:
        """The position of the last event that was read."""
        return self._grants.position

    @property
    def bounds(self) -> Run | None:
        """The first block at which a job may start, and the one at which it may not any more; None if unbounded."""
        return self._bounds

    def take(self, receipt: Receipt) -> ReceiptOutcome:
        """Check a receipt; if its spendable blocks are worth its amount, spend exactly those.

        Raises `TimeOutOfRange` if the known blocks do not cover the job's start, `JobOutOfBounds`, and `InvalidInput`;
        none of them spends anything.
        """
        payer, started_at_ns, offered, amount_ns = _validated(receipt)
        start = self._job_start(started_at_ns)
        found: dict[BlockVerdict, list[int]] = {
            "outside_range": [],
            "double_spent": [],
            "invalidated": [],
            "without_grant": [],
            "spendable": [],
        }
        spendable_ns = 0
        for block, verdict, granted_ns in self._classified(payer, start, offered):
            found[verdict].append(block)
            spendable_ns += granted_ns
        spent = spendable_ns >= amount_ns
        blocks = found["spendable"].copy() if spent and amount_ns else []
        if blocks:
            self._spent.setdefault(payer, set()).update(blocks)
        explained = self._explained(payer, start, found)
        return ReceiptOutcome(receipt, spent, blocks, start, seconds(spendable_ns), **found, not_spendable=explained)

    async def follow(self, store: Store, until: int) -> None:
        """Read the log's facts up to a position."""
        await self._grants.follow(store, until)
        needed = self._oldest_needed(self._grants.settings)
        if needed < self._grants.first_block:
            # By now the settings let a job use older blocks than those that were kept.
            self._grants = GrantTable(needed)
            await self._grants.follow(store, until)

    def _oldest_needed(self, settings: RecordedSettings) -> int:
        """Return the oldest block that a job within the bounds can be paid with; 0 without bounds."""
        if self._bounds is None:
            return 0
        return max(0, self._bounds[0] - settings.block_expiry_blocks - LONGEST_JOB_BLOCKS)

    def _classified(
        self, payer: PayingAccount, start: int, offered: Iterable[int]
    ) -> Iterator[tuple[int, BlockVerdict, int]]:
        """Yield each block with the first verdict that applies, and its worth in ns if it is spendable.

        The range of ages is `block_expiry_blocks` (722) as for reservations, extended by the leeway (15 blocks older,
        0 newer), because validators do not see a new block at the same moment. Source: ComputeHorde's validator.
        """
        first, last = self._range_of(start)
        invalidated_below = self._grants.invalidated_below_at(payer.miner_ss58, payer.executor_class, start)
        spent = self._spent.get(payer, set())
        for block in offered:
            if not first <= block <= last:
                yield block, "outside_range", 0
            elif block in spent:
                yield block, "double_spent", 0
            elif block < invalidated_below:
                yield block, "invalidated", 0
            else:
                granted_ns = self._grants.granted_ns(*payer, block)
                yield block, "spendable" if granted_ns else "without_grant", granted_ns

    def _job_start(self, started_at_ns: int) -> int:
        """Return the newest block at the job's start; raise if it is not known, or outside of the bounds."""
        start = self._grants.newest_at(started_at_ns)
        if start is None:
            raise self._out_of_range(started_at_ns)
        if self._bounds is not None and not self._bounds[0] <= start < self._bounds[1]:
            raise JobOutOfBounds(start, *self._bounds)
        return start

    def _range_of(self, start: int) -> Run:
        """Return the oldest and the newest block that a job may be paid with."""
        settings = self._grants.settings
        first = start - settings.block_expiry_blocks - settings.validation_leeway_lower_blocks
        return first, start + settings.validation_leeway_upper_blocks

    def _explained(
        self, payer: PayingAccount, start: int, found: Mapping[BlockVerdict, list[int]]
    ) -> list[NotSpendable]:
        """Return the runs of blocks that cannot be spent, with reason and distance, ascending."""
        oldest, newest = self._range_of(start)
        drop = self._grants.invalidated_below_at(payer.miner_ss58, payer.executor_class, start)
        explained = [
            NotSpendable(first, last, "outside_range", last - oldest if last < oldest else first - newest)
            # The range has at least one block, so no run reaches from below it to above it.
            for first, last in runs_from_numbers(found["outside_range"])
        ]
        explained += [
            NotSpendable(first, last, "invalidated", drop - last)
            for first, last in runs_from_numbers(found["invalidated"])
        ]
        reasons: tuple[Literal["double_spent", "without_grant"], ...] = ("double_spent", "without_grant")
        for reason in reasons:
            explained += [NotSpendable(first, last, reason, 0) for first, last in runs_from_numbers(found[reason])]
        return sorted(explained, key=lambda each: each.first_block)

    def _out_of_range(self, at_ns: int) -> TimeOutOfRange:
        span_ns = self._grants.span_ns()
        first, last = (None, None) if span_ns is None else map(instant, span_ns)
        return TimeOutOfRange(instant(at_ns), first, last)


def _validated(receipt: Receipt) -> tuple[PayingAccount, int, list[int], int]:
    """Return account, start in ns, blocks (each once, ascending) and amount in ns. Raises `InvalidInput`."""
    if not isinstance(receipt, Receipt):
        raise InvalidInput("receipt", receipt, "a Receipt")
    payer = PayingAccount(
        name(receipt.validator_ss58, "validator_ss58"),
        name(receipt.miner_ss58, "miner_ss58"),
        name(receipt.executor_class, "executor_class"),
    )
    started_at_ns = instant_ns(receipt.started_at, "started_at")
    blocks: object = receipt.blocks
    # Receipts come from other validators, so the annotated types are not to be relied on; a text would be iterable.
    if not isinstance(blocks, (list, tuple, set, frozenset, range)):
        raise InvalidInput("blocks", blocks, "a list of block numbers")
    offered = sorted({integer(block, "blocks", 0) for block in blocks})
    return payer, started_at_ns, offered, amount(receipt.allowance_seconds, "allowance_seconds")
