"""Routing decisions made again: the ranking of a class as it was, and who was first of it and not busy."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from hashlib import blake2b
from math import gcd

from ledger import END, AllowanceReserved, Row, seconds

from ..rules import Findings, Rule
from .books import Book, World

SHARE_UNIT = 10**9

Rank = tuple[int, int]
"""The earliest free block, and less the billionths of the total that are available."""
Member = tuple[int, str, Book]
"""An account of a rank: less what is available in ns, its hotkey, its book; in this order among equals."""

Ranked = tuple[Rank, Member, int]
"""An account's rank, its membership in it, and its total in ns."""


class Ranks:
    """The registered accounts of one class with anything available at the newest block, by rank."""

    __slots__ = ("_executor_class", "_of", "_oldest", "_revision", "_window_ns", "_world", "groups", "order", "stale")

    def __init__(self, world: World, executor_class: str) -> None:
        self._world = world
        self._executor_class = executor_class
        self._revision = -1
        self._oldest = self._window_ns = 0
        self._of: dict[Book, Ranked] = {}
        self.order: list[Rank] = []
        """The ranks that anybody has, best first."""
        self.groups: dict[Rank, list[Member]] = {}
        """Who has each, in order."""
        self.stale: set[Book] = set()
        """Accounts of which something else is free than when they were measured."""

    def bring_up_to_date(self) -> None:
        """Measures again what has changed: after a fact everything, else the accounts that were touched."""
        chain = self._world.chain
        if self._revision != chain.revision:
            self._revision = chain.revision
            self._oldest = chain.blocks.newest - chain.settings.block_expiry_blocks
            self._window_ns = self._world.sums.before_ns(END) - self._world.sums.before_ns(self._oldest)
            self._measure_all()
        while self.stale:
            self._measure_again(self.stale.pop())

    def take(self, book: Book, last: int, worth_ns: int) -> None:
        """Moves an account of which a claim just took the earliest free blocks, without measuring it again."""
        if self._is_plain(book) and self._revision == self._world.chain.revision:
            self.stale.discard(book)
            rank, member, total_ns = self._of.pop(book)
            self._remove(rank, member)
            available_ns = -member[0] - worth_ns
            if available_ns:
                self._insert(book, self._ranked(book, total_ns, available_ns, self._world.first_free(book, last + 1)))

    def available_ns(self, book: Book) -> int:
        """What the account has available; 0 for one that is not ranked."""
        ranked = self._of.get(book)
        return 0 if ranked is None else -ranked[1][0]

    def _measure_all(self) -> None:
        self._of.clear()
        self.groups.clear()
        self.stale.clear()
        members = self._world.chain.metagraph.members
        for hotkey_ss58, account in self._world.chain.classes.get(self._executor_class, {}).items():
            book = self._world.book(account.stream)
            book.ranks = self
            if hotkey_ss58 in members:
                ranked = self._measured(book)
                if ranked is not None:
                    self._of[book] = ranked
                    self.groups.setdefault(ranked[0], []).append(ranked[1])
        for group in self.groups.values():
            group.sort()
        self.order = sorted(self.groups)

    def _measure_again(self, book: Book) -> None:
        old = self._of.pop(book, None)
        if old is not None:
            self._remove(old[0], old[1])
        if book.miner_ss58 in self._world.chain.metagraph.members:
            ranked = self._measured(book)
            if ranked is not None:
                self._insert(book, ranked)

    def _remove(self, rank: Rank, member: Member) -> None:
        group = self.groups[rank]
        if len(group) == 1:
            del self.groups[rank], self.order[bisect_left(self.order, rank)]
        else:
            del group[bisect_left(group, member)]

    def _insert(self, book: Book, ranked: Ranked) -> None:
        self._of[book] = ranked
        rank, member, _ = ranked
        group = self.groups.get(rank)
        if group is None:
            self.groups[rank] = [member]
            insort(self.order, rank)
        else:
            insort(group, member)

    def _is_plain(self, book: Book) -> bool:
        """Whether one count holds in the whole window and nothing is overdue, as it mostly is."""
        account, oldest = book.account, self._oldest
        return not book.overdue and account.floor <= oldest and account.counts.starts[-1] <= oldest

    def _measured(self, book: Book) -> Ranked | None:
        """The account's place at the clock of `Dues`; None where nothing is available."""
        measure = self._measured_at_once if self._is_plain(book) else self._measured_in_steps
        total_ns, available_ns, earliest_block = measure(book)
        return self._ranked(book, total_ns, available_ns, earliest_block) if available_ns else None

    def _ranked(self, book: Book, total_ns: int, available_ns: int, earliest_block: int) -> Ranked:
        minus_share = -(available_ns * SHARE_UNIT // total_ns)
        return (earliest_block, minus_share), (-available_ns, book.miner_ss58, book), total_ns

    def _measured_in_steps(self, book: Book) -> tuple[int, int, int]:
        """Total and available, in ns, and the earliest free block, whatever the counts are."""
        account, world = book.account, self._world
        start = max(self._oldest, account.floor)
        total_ns = available_ns = world.amount_ns(account, start, END)
        for taken_start, taken_end in book.occupied().between(start, END):
            available_ns -= world.amount_ns(account, taken_start, taken_end)
        return total_ns, available_ns, next(self._world.free(book, start))[0] if available_ns else 0

    def _measured_at_once(self, book: Book) -> tuple[int, int, int]:
        """The same for a plain account."""
        count = book.account.counts.values[-1]
        oldest, available_ns = self._oldest, self._window_ns
        sum_before_ns = self._world.sums.before_ns
        starts, ends = book.taken.starts, book.taken.ends
        for at in range(bisect_right(ends, oldest), len(starts)):
            start = starts[at]
            available_ns -= sum_before_ns(ends[at]) - sum_before_ns(start if start > oldest else oldest)
        return self._window_ns * count, available_ns * count, self._world.first_free(book, oldest)


def drawn_places(count: int, job_uuid: str) -> Iterator[int]:
    """The order in which a job tries so many equals: where its digest says, and on in even steps that meet them all.

    Said here once more, so that a router that draws otherwise is found out.
    """
    drawn = int(blake2b(job_uuid.encode(), digest_size=16).hexdigest(), 16)
    first, step = drawn % count, drawn // count % count
    while gcd(step, count) > 1:
        step += 1
    return ((first + tried * step) % count for tried in range(count))


class Routes:
    """Holds routed claims against the ranking at the position just before them."""

    def __init__(self, world: World, findings: Findings) -> None:
        self._world = world
        self._findings = findings
        self._ranks: dict[str, Ranks] = {}

    def check(self, row: Row, event: AllowanceReserved, book: Book, now_ns: int) -> None:
        """Checks a routed claim that is about to stand; `Dues` stand at its clock."""
        chain = self._world.chain
        newest = chain.blocks.newest
        if event.job_start_block != newest:
            message = f"it starts at block {event.job_start_block}, while the newest block was {newest}"
            self._findings.add(row.position, Rule.ROUTING_DECISION, message, newest_block=newest)
        if chain.metagraph.miners.get(book.miner_ss58) != event.axon:
            details = {"axon": event.axon, "expected": chain.metagraph.miners.get(book.miner_ss58)}
            self._findings.add(row.position, Rule.ROUTING_AXON, "the miner listened elsewhere", **details)
        if chain.settings.newest_block_max_age_ns is not None:
            self._check_feed(row.position, newest, now_ns, chain.settings.newest_block_max_age_ns)
        ranks = self._ranks.get(book.executor_class)
        if ranks is None:
            ranks = self._ranks[book.executor_class] = Ranks(self._world, book.executor_class)
        ranks.bring_up_to_date()
        first = self._first(ranks, event.amount_ns, row.job_uuid or "")
        if event.kept:
            self._check_kept(row.position, event, book, ranks.available_ns(book), is_first=first is book)
        elif first is not book:
            self._note_other(row.position, event, book, first)

    def took(self, book: Book, last: int, worth_ns: int) -> None:
        """A routed claim that broke no rule stands now, and reaches up to a block."""
        if book.ranks is not None:
            book.ranks.take(book, last, worth_ns)

    def _note_other(self, position: int, event: AllowanceReserved, book: Book, first: Book | None) -> None:
        expected = None if first is None else first.miner_ss58
        message = "no candidate had the amount and was not busy" if first is None else f"{expected} came first"
        details = {"miner_ss58": book.miner_ss58, "expected": expected, "amount_ns": event.amount_ns}
        self._findings.add(position, Rule.ROUTING_DECISION, message, **details)

    def _first(self, ranks: Ranks, amount_ns: int, job_uuid: str) -> Book | None:
        """The first account with the amount that is not busy, in the order in which the job tries them."""
        for rank in ranks.order:
            group = ranks.groups[rank]
            # Equals are ordered by what is available, so those with enough come first.
            enough = len(group) if -group[-1][0] >= amount_ns else bisect_left(group, (1 - amount_ns,))
            for place in drawn_places(enough, job_uuid) if enough > 1 else range(enough):
                book = group[place][2]
                if not self._is_busy(book):
                    return book
        return None

    def _check_kept(
        self, position: int, event: AllowanceReserved, book: Book, available_ns: int, *, is_first: bool
    ) -> None:
        """A miner that was chosen before the log moved may be kept, but only while it still qualifies."""
        if is_first:
            message = "the miner is said to be kept, while it came first"
        elif available_ns < event.amount_ns or self._is_busy(book):
            message = "the miner was kept although it was busy, or had not the amount any more"
        else:
            return
        details = {"miner_ss58": book.miner_ss58, "available_ns": available_ns, "amount_ns": event.amount_ns}
        self._findings.add(position, Rule.ROUTING_DECISION, message, **details)

    def _check_feed(self, position: int, newest: int, now_ns: int, most_ns: int) -> None:
        age_ns = now_ns - self._world.chain.blocks.created_at_ns(newest)
        if age_ns > most_ns:
            message = f"the newest block was {seconds(age_ns)} s old, more than {seconds(most_ns)} s"
            self._findings.add(position, Rule.ROUTING_FEED, message, newest_block=newest, age_ns=age_ns)

    def _is_busy(self, book: Book) -> bool:
        """Whether the miner runs as many jobs as it has executors for, those overdue not counted."""
        chain = self._world.chain
        running = len(book.standing) - len(book.overdue)
        return chain.settings.respect_executor_count and running >= chain.count_now(book.account)
