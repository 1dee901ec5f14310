"""Conservation: what an account was granted is what is spent, held, invalidated and free together."""

from __future__ import annotations

from typing import NamedTuple

from ledger import END

from ..rules import Findings, Rule
from .books import Book, World


class Balance(NamedTuple):
    """An account's allowance by state, in ns; each part summed by a way of its own."""

    granted_ns: int
    spent_ns: int
    held_ns: int
    invalidated_ns: int
    free_ns: int
    taken_ns: int
    """What the blocks that are spent or held grant: once by the blocks, beside once by the reservations."""
    available_ns: int
    """What of the free is in the window of a job that starts at the newest block."""

    @property
    def is_even(self) -> bool:
        """Whether nothing was lost and nothing came from nowhere."""
        parts_ns = self.spent_ns + self.held_ns + self.invalidated_ns + self.free_ns
        return self.granted_ns == parts_ns and self.taken_ns == self.spent_ns + self.held_ns and self.held_ns >= 0


def balance_of(world: World, book: Book) -> Balance:
    """The account's allowance by state, as the log says: an overdue reservation holds until an event ends it."""
    account, floor = book.account, book.account.floor
    oldest = world.chain.blocks.newest - world.chain.settings.block_expiry_blocks
    invalidated_ns = free_ns = available_ns = 0
    for start, end in book.taken.gaps(0, END):
        invalidated_ns += world.amount_ns(account, start, min(end, floor))
        free_ns += world.amount_ns(account, max(start, floor), end)
        available_ns += world.amount_ns(account, max(start, floor, oldest), end)
    return Balance(
        world.amount_ns(account, 0, END),
        book.spent_ns,
        book.held_ns,
        invalidated_ns,
        free_ns,
        _taken_ns(world, book),
        available_ns,
    )


def balance_moved(world: World, findings: Findings) -> None:
    """Checks the accounts that something was done to: what their reservations are worth is what they have taken."""
    for book in world.moved:
        if _taken_ns(world, book) != book.spent_ns + book.held_ns:
            note_uneven(findings, book, balance_of(world, book))
    world.moved.clear()


def note_uneven(findings: Findings, book: Book, balance: Balance) -> None:
    """Notes an account that does not add up; once, since it stays so."""
    if book.is_uneven:
        return
    book.is_uneven = True
    details = {"miner_ss58": book.miner_ss58, "executor_class": book.executor_class, **balance._asdict()}
    message = "what was granted is not what is spent, held, invalidated and free together"
    findings.add(book.last_position, Rule.CONSERVATION, message, **details)


def _taken_ns(world: World, book: Book) -> int:
    return world.worth_ns(
        book, [(start, end - 1) for start, end in zip(book.taken.starts, book.taken.ends, strict=True)]
    )
