"""What the demo finds out afterwards through the public face: one account's window, the check."""

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

HOLDING = ("reserved", "spent")
LEAST_SECONDS = 1e-9
WINDOW_BLOCKS = 722
MUCH = 0.15

Account = tuple[str, str]


@dataclass
class Window:
    """One account's usable blocks, oldest to newest, drawn together into columns of `column_blocks` blocks."""

    miner_ss58: str
    executor_class: str
    first_block: int
    last_block: int
    column_blocks: int
    columns: list[Column] = field(default_factory=list)

    @property
    def granted_seconds(self) -> float:
        """What the account's blocks add up to."""
        return sum(column.granted for column in self.columns)

    @property
    def changes(self) -> int:
        """How often what a column granted differs much from the column before, or something left follows on nothing."""
        return sum(
            abs(after.granted - before.granted) > MUCH * max(after.granted, before.granted)
            or (before.left > 0) != (after.left > 0)
            for before, after in pairwise(self.columns[:-1])
        )

    @property
    def left_seconds(self) -> float:
        """What of it is free."""
        return sum(column.left for column in self.columns)


@dataclass
class BlockCheck:
    """Whether any block is held twice: counted over reservations that are `reserved` or `spent`."""

    reservations: int = 0
    accounts: int = 0
    blocks: int = 0
    held_twice: int = 0


def all_reservations(connection: Connection) -> list[Reservation]:
    """Pages through the whole history, oldest first."""
    reservations: list[Reservation] = []
    cursor = None
    while True:
        page = connection.run(connection.ledger.history(after=cursor, limit=500, newest_first=False))
        reservations += page.items
        cursor = page.next
        if cursor is None:
            return reservations


def check_blocks(reservations: Iterable[Reservation]) -> BlockCheck:
    """Counts the blocks that two reservations of one account hold at once: there must be none."""
    check = BlockCheck()
    held: dict[Account, set[int]] = {}
    for reservation in reservations:
        if reservation.status not in HOLDING:
            continue
        blocks = held.setdefault((reservation.miner_ss58, reservation.executor_class), set())
        check.reservations += 1
        check.blocks += len(reservation.blocks)
        check.held_twice += len(blocks.intersection(reservation.blocks))
        blocks.update(reservation.blocks)
    check.accounts = len(held)
    return check


def busiest_accounts(reservations: Iterable[Reservation], registered: Iterable[str], count: int) -> list[Account]:
    """The accounts of registered miners from which the most blocks are taken, the busiest first."""
    known = set(registered)
    taken: Counter[Account] = Counter()
    for reservation in reservations:
        if reservation.status in HOLDING and reservation.miner_ss58 in known:
            taken[reservation.miner_ss58, reservation.executor_class] += len(reservation.blocks)
    return sorted(taken, key=lambda account: (-taken[account], account))[:count]


def most_eventful(reservations: Sequence[Reservation]) -> Reservation | None:
    """The settled reservation with the most blocks: the one that has most to tell."""
    settled = [reservation for reservation in reservations if reservation.settled_at is not None]
    return max(settled, key=lambda reservation: (len(reservation.blocks), -reservation.reservation_id), default=None)


async def liveliest_window(
    ledger: Allowance, accounts: Iterable[Account], *, first_block: int, newest_block: int, columns: int
) -> Window:
    """Of several accounts the one whose allowance went up and down the most: it has most to show."""
    windows = [
        await account_window(ledger, account, first_block=first_block, newest_block=newest_block, columns=columns)
        for account in accounts
    ]
    return max(windows, key=lambda window: window.changes)


async def account_window(
    ledger: Allowance, account: Account, *, first_block: int, newest_block: int, columns: int
) -> Window:
    """Measures what an account's blocks granted and what is left of them.

    A job that starts later sees a shorter window, so the difference between two starts is what the blocks
    between the two windows' ends are worth.
    """
    first = max(first_block, newest_block - WINDOW_BLOCKS)
    step = max(1, -(-(newest_block - first) // columns))
    window = Window(*account, first_block=first, last_block=newest_block - 1, column_blocks=step)
    before = await _standing(ledger, account, first + WINDOW_BLOCKS)
    for start in range(first + step, newest_block + step, step):
        after = await _standing(ledger, account, start + WINDOW_BLOCKS)
        window.columns.append(Column(granted=before.granted - after.granted, left=before.left - after.left))
        before = after
    return window


async def _standing(ledger: Allowance, account: Account, job_start_block: int) -> Column:
    miner_ss58, executor_class = account
    try:
        candidates = await ledger.find_miners(LEAST_SECONDS, executor_class, job_start_block)
    except NotEnoughAllowanceException:
        return Column(0.0, 0.0)
    for candidate in candidates:
        if candidate.hotkey_ss58 == miner_ss58:
            return Column(granted=candidate.total_seconds, left=candidate.available_seconds)
    return Column(0.0, 0.0)
