"""Receipts of other validators, checked against the chain facts in this ledger.

A receipt says that a validator ran a job on a miner and paid with certain blocks. The bookkeeper processes receipts in
order and starts with nothing spent; it ignores this ledger's own reservations. Source of the rules and of the range of
blocks: ComputeHorde, whose validators check each other's receipts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from ledger import Store
from ledger.errors import InvalidInput, TimeOutOfRange
from ledger.results import Result
from ledger.values import amount, instant, instant_ns, integer, name, seconds

from .grants import GrantTable

BlockVerdict = Literal["outside_range", "double_spent", "invalidated", "without_grant", "spendable"]


class Receipt(Result, msgspec.Struct, frozen=True):
    """A validator's claim that it ran a job on a miner and paid for it with blocks of its own account.

    `started_at` is aware; `allowance_seconds` are executor-seconds above 0; a block that is listed twice counts once.
    """

    validator_ss58: str
    miner_ss58: str
    executor_class: str
    started_at: datetime
    blocks: list[int]
    allowance_seconds: float


class ReceiptOutcome(Result, msgspec.Struct, frozen=True):
    """The outcome of a receipt. Each offered block is in exactly one of the five lists, ascending.

    `job_start_block` is the newest block at the job's start. If the `spendable` blocks, worth `spendable_seconds`, sum
    to at least the amount, the receipt is `spent` and `blocks` are exactly they. Otherwise it is refused, and `blocks`
    is empty.
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


class PayingAccount(NamedTuple):
    """The account that a receipt is paid from; its validator may be any, not only this ledger's."""

    validator_ss58: str
    miner_ss58: str
    executor_class: str


class Bookkeeper:
    """Processes receipts in order: a block that one has spent is spent for every later one on the same account.

    It knows the facts up to one `position` of the log, until `follow` reads further. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._grants = GrantTable()
        self._spent: dict[PayingAccount, set[int]] = {}

    @property
    def position(self) -> int:
        """The position of the last event that was read."""
        return self._grants.position

    def take(self, receipt: Receipt) -> ReceiptOutcome:
        """Check a receipt; if its spendable blocks are worth its amount, spend exactly those.

        Raises `TimeOutOfRange` if the known blocks do not cover the job's start, and `InvalidInput`; neither spends
        anything.
        """
        payer, started_at_ns, offered, amount_ns = _validated(receipt)
        start = self._grants.newest_at(started_at_ns)
        if start is None:
            raise self._out_of_range(started_at_ns)
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
        blocks = found["spendable"].copy() if spent else []
        if blocks:
            self._spent.setdefault(payer, set()).update(blocks)
        return ReceiptOutcome(receipt, spent, blocks, start, seconds(spendable_ns), **found)

    async def follow(self, store: Store, until: int) -> None:
        """Read the log's facts up to a position."""
        while self.position < until:
            for row in await store.read(self.position):
                if row.position <= until:
                    self._grants.fold(row)
            await asyncio.sleep(0)  # A long fold yields the event loop after each page.
        await self._grants.fold_drops_again(store)

    def _classified(
        self, payer: PayingAccount, start: int, offered: Iterable[int]
    ) -> Iterator[tuple[int, BlockVerdict, int]]:
        """Yield each block with the first verdict that applies, and its worth in ns if it is spendable.

        The range of ages is `block_expiry_blocks` (722) as for reservations, extended by the leeway (15 blocks older,
        0 newer), because validators do not see a new block at the same moment. Source: ComputeHorde's validator.
        """
        settings = self._grants.settings
        first = start - settings.block_expiry_blocks - settings.validation_leeway_lower_blocks
        last = start + settings.validation_leeway_upper_blocks
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
    amount_ns = amount(receipt.allowance_seconds, "allowance_seconds")
    if amount_ns <= 0:
        raise InvalidInput("allowance_seconds", receipt.allowance_seconds, "an amount above 0")
    return payer, started_at_ns, offered, amount_ns
