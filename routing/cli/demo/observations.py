"""What the demo learns afterwards through the public API: one account's window, and a check of all taken blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from routing import NotEnoughAllowanceException

from .chart import Column

if TYPE_CHECKING:
    from routing import Allowance, Reservation
    from routing.cli.connection import Connection

TAKING_STATUSES = ("reserved", "spent")
"""A block is taken by a reservation with one of these statuses."""
LEAST_SECONDS = 1e-9
"""The smallest amount, for which every account with any free block is a candidate."""
WINDOW_BLOCKS = 722
"""How many blocks before its start a job may use: the default of `block_expiry_blocks`.

Source: ComputeHorde's validator.
"""
NOTABLE_CHANGE = 0.15
"""The relative change of a column's amount that is visible in the chart."""

Account = tuple[str, str]


@dataclass
class Window:
    """One account's usable blocks, oldest to newest, in columns of `column_blocks` blocks each."""

    miner_ss58: str
    executor_class: str
    first_block: int
    last_block: int
    column_blocks: int
    columns: list[Column] = field(default_factory=list)

    @property
    def granted_seconds(self) -> float:
        """The sum that the account's blocks granted."""
        return sum(column.granted for column in self.columns)

    @property
    def changes(self) -> int:
        """How often the granted amount changes visibly from one column to the next, or the free part begins or ends."""
        return sum(
            abs(after.granted - before.granted) > NOTABLE_CHANGE * max(after.granted, before.granted)
            or (before.left > 0) != (after.left > 0)
            for before, after in pairwise(self.columns[:-1])
        )

    @property
    def left_seconds(self) -> float:
        """The sum that is still free."""
        return sum(column.left for column in self.columns)


@dataclass
class BlockCheck:
    """Counts of taken blocks; `held_twice` counts the blocks that two reservations took, and must be 0."""

    reservations: int = 0
    accounts: int = 0
    blocks: int = 0
    held_twice: int = 0


def all_reservations(connection: Connection) -> list[Reservation]:
    """Return the whole history, oldest first."""
    reservations: list[Reservation] = []
    cursor = None
    while True:
        page = connection.run(connection.ledger.history(after=cursor, limit=500, newest_first=False))
        reservations += page.items
        cursor = page.next
        if cursor is None:
            return reservations


def check_blocks(reservations: Iterable[Reservation]) -> BlockCheck:
    """Count the taken blocks, and those that two reservations of one account took.

    This uses only the public history and none of the ledger's own bookkeeping, so that it is independent of it.
    """
    check = BlockCheck()
    taken: dict[Account, set[int]] = {}
    for reservation in reservations:
        if reservation.status not in TAKING_STATUSES:
            continue
        blocks = taken.setdefault((reservation.miner_ss58, reservation.executor_class), set())
        check.reservations += 1
        check.blocks += len(reservation.blocks)
        check.held_twice += len(blocks.intersection(reservation.blocks))
        blocks.update(reservation.blocks)
    check.accounts = len(taken)
    return check


def busiest_accounts(reservations: Iterable[Reservation], registered: Iterable[str], count: int) -> list[Account]:
    """Return the accounts of registered miners with the most taken blocks, the busiest first."""
    registered_ss58 = set(registered)
    taken: Counter[Account] = Counter()
    for reservation in reservations:
        if reservation.status in TAKING_STATUSES and reservation.miner_ss58 in registered_ss58:
            taken[reservation.miner_ss58, reservation.executor_class] += len(reservation.blocks)
    return sorted(taken, key=lambda account: (-taken[account], account))[:count]


def most_eventful(reservations: Sequence[Reservation]) -> Reservation | None:
    """Return the settled reservation with the most blocks, as the most interesting example; None if there is none."""
    settled = [reservation for reservation in reservations if reservation.settled_at is not None]
    return max(settled, key=lambda reservation: (len(reservation.blocks), -reservation.reservation_id), default=None)


async def liveliest_window(
    ledger: Allowance, accounts: Iterable[Account], *, first_block: int, newest_block: int, columns: int
) -> Window:
    """Return the window of the account whose allowance changed most often, as the most interesting chart."""
    windows = [
        await account_window(ledger, account, first_block=first_block, newest_block=newest_block, columns=columns)
        for account in accounts
    ]
    return max(windows, key=lambda window: window.changes)


async def account_window(
    ledger: Allowance, account: Account, *, first_block: int, newest_block: int, columns: int
) -> Window:
    """Measure how much an account's blocks granted and how much of it is free.

    No public query returns single blocks. But a job that starts later may use fewer old blocks, so the difference
    between two starts is the allowance of the blocks that only the earlier job may use.
    """
    first = max(first_block, newest_block - WINDOW_BLOCKS)
    step = max(1, -(-(newest_block - first) // columns))
    window = Window(*account, first_block=first, last_block=newest_block - 1, column_blocks=step)
    before = await _allowance_at(ledger, account, first + WINDOW_BLOCKS)
    for start in range(first + step, newest_block + step, step):
        after = await _allowance_at(ledger, account, start + WINDOW_BLOCKS)
        window.columns.append(Column(granted=before.granted - after.granted, left=before.left - after.left))
        before = after
    return window


async def _allowance_at(ledger: Allowance, account: Account, job_start_block: int) -> Column:
    """Return the sums of an account for a job that starts at this block."""
    miner_ss58, executor_class = account
    try:
        candidates = await ledger.find_miners(LEAST_SECONDS, executor_class, job_start_block)
    except NotEnoughAllowanceException:
        return Column(0.0, 0.0)
    for candidate in candidates:
        if candidate.hotkey_ss58 == miner_ss58:
            return Column(granted=candidate.total_seconds, left=candidate.available_seconds)
    return Column(0.0, 0.0)
