"""The ranking of a class by the audit's own books: who is tried first for a job at the newest block.

It follows the log instead of being measured after every block. An account's place is told by its first free block and
by what is taken beyond that: neither changes when a block ages that it has taken, nor when one more is granted. So a
block moves only the accounts that something ends for, and what everybody has left is worked out when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import count

from ledger import END, BlockSet
from ledger.events import Run

from .state import AccountState, AuditState, RankMember, RankPlace
from .tie_break import later_places, tie_break_number

SHARE_UNIT = 10**9
AGED = 0
"""The start of the level of all whose first free block is the window's first."""

IrregularMember = tuple[int, int, str, AccountState]
"""Less the billionths of the total that are available, less what is available in ns, hotkey, book."""
Group = tuple[list[RankMember] | list[IrregularMember] | list[tuple[int, str, AccountState]], int, int]
"""Equals, best first, in a list from an index on: how many of them have enough. Each ends with its book."""


class RankLevel:
    """The accounts with the same first free block."""

    __slots__ = ("odd", "plain", "ranked", "ranked_at")

    def __init__(self) -> None:
        self.plain: list[RankMember] = []
        """Accounts with one count in the whole window; the order of `RankMember` is their order by what is left."""
        self.odd: set[AccountState] = set()
        """The others."""
        self.ranked: list[IrregularMember] = []
        """The odd in order, as of a number of facts."""
        self.ranked_at = -1


class AuditRanking:
    """The registered accounts of one class with anything available at the newest block."""

    def __init__(self, state: AuditState, executor_class: str) -> None:
        self._state = state
        self._executor_class = executor_class
        self._stale = state.stale[executor_class]
        self._facts = self._upheavals = -1
        self._turns = 0
        """How much of what the world counts it has followed."""
        self._first = END
        """The first granted block of the window."""
        self._window_ns = self._end_ns = 0
        """What the window's blocks grant an executor, and what all do."""
        self._granted_start = self._granted_end = 0
        """The last run of blocks that grant anything."""
        self._levels: dict[int, RankLevel] = {}
        self._starts: list[int] = []
        """The levels' first free blocks, ascending; `AGED` is always there."""
        self._ends: list[tuple[int, int, AccountState]] = []
        """At which first block of the window an account is to be measured again, a heap."""
        self._serial = count()
        self._restless: set[AccountState] = set()
        """Accounts that the next granted block may move."""
        self._seen: dict[AccountState, tuple[int, int, int, bool]] = {}
        """What facts say of each account: the last step of its counts, its floor, whether it is registered."""

    def bring_up_to_date(self) -> None:
        """Follows the facts that came since it was last asked for, and measures the accounts that were touched."""
        if self._facts != self._state.facts:
            self._follow()
        stale = self._stale
        while stale:
            self._measure(stale.pop())

    def candidates(self, amount_ns: int, job_uuid: str) -> Iterator[AccountState]:
        """The accounts with the amount, in the order in which a job tries them."""
        self.bring_up_to_date()
        first, sums, end_ns, drawn = self._first, self._state.sums, self._end_ns, -1
        if first == END:
            return
        for start in self._starts:
            level = self._levels[start]
            if not level.plain and not level.odd:
                continue  # As where nobody has the window's first block free.
            for members, at, enough in self._groups(level, end_ns - sums[start or first], amount_ns):
                if enough == 1:
                    yield members[at][-1]
                elif enough:
                    if drawn < 0:
                        drawn = tie_break_number(job_uuid)
                    yield members[at + drawn % enough][-1]
                    for place in later_places(enough, drawn):
                        yield members[at + place][-1]

    def available_ns(self, account_state: AccountState) -> int:
        """What the account has available; 0 for one that is not ranked."""
        place = account_state.place
        if place is None:
            return 0
        start, _, beyond_ns, member = place
        start = max(start, self._first)
        if member is None:
            return self._state.amount_ns(account_state.account, start, END) - beyond_ns
        return -member[1] * (self._end_ns - self._state.sums[start] - beyond_ns)

    def move(self, account_state: AccountState, blocks: list[Run]) -> None:
        """A claim of blocks is about to stand: the account's place is the one that it will have then."""
        place = account_state.place
        if place is not None and len(blocks) == 1 and not account_state.overdue:
            start, until, beyond_ns, member = place
            first, last = blocks[0]
            after = last + 1
            is_first = first == (start if start > self._first else self._first)
            if is_first and first < after < until and self._granted_start <= after < self._granted_end and member:
                # Of its first free run something is left: what is taken beyond it stays as it is.
                self._remove(account_state, place)
                account_state.place = after, until, beyond_ns, member
                insort(self._level(after).plain, member)
                return
        account_state.touch()

    # Order

    def _groups(self, level: RankLevel, free_ns: int, amount_ns: int) -> Iterable[Group]:
        """Equals of a level, best first; `free_ns` is what its blocks grant an executor from the first free one on.

        Equal is who has an equal share, to the billionth; who has the same beyond the first free block always is.
        """
        plain = level.plain
        if level.odd or plain[0][0] != plain[-1][0]:
            return self._told_apart(level, free_ns, amount_ns)
        needed = -(-amount_ns // (free_ns - plain[0][0]))
        return ((plain, 0, len(plain) if needed <= -plain[-1][1] else bisect_left(plain, (plain[0][0], 1 - needed))),)

    def _told_apart(self, level: RankLevel, free_ns: int, amount_ns: int) -> Iterator[Group]:
        """The same of any level."""
        plain, odd = level.plain, self._ranked(level) if level.odd else []
        at, odd_at, end, odd_end = 0, 0, len(plain), len(odd)
        while at < end:
            beyond_ns = plain[at][0]
            left_ns = free_ns - beyond_ns
            next_at = end if plain[-1][0] == beyond_ns else bisect_left(plain, (beyond_ns + 1,), at)
            # Shares that differ by less than the unit are told apart only where they may be equal.
            if odd_at < odd_end or (next_at < end and self._is_near(plain[next_at][0] - beyond_ns)):
                share = self._share(left_ns)
                while odd_at < odd_end and -odd[odd_at][0] > share:
                    group = self._odd_group(odd, odd_at, amount_ns)
                    yield group
                    odd_at = self._odd_end(odd, odd_at)
                equal_end = next_at
                while equal_end < end and self._share(free_ns - plain[equal_end][0]) == share:
                    equal_end += 1
                equal_odd = bisect_right(odd, -share, odd_at, key=_minus_share)
                if equal_end > next_at or equal_odd > odd_at:
                    equals = [(each[1] * (free_ns - each[0]), each[2], each[3]) for each in plain[at:equal_end]]
                    equals += [each[1:] for each in odd[odd_at:equal_odd]]
                    equals.sort()
                    yield equals, 0, bisect_left(equals, (1 - amount_ns,))
                    at, odd_at = equal_end, equal_odd
                    continue
            # Equals are ordered by what is available, so those with enough come first.
            needed = -(-amount_ns // left_ns)
            yield plain, at, bisect_left(plain, (beyond_ns, 1 - needed), at, next_at) - at
            at = next_at
        while odd_at < odd_end:
            yield self._odd_group(odd, odd_at, amount_ns)
            odd_at = self._odd_end(odd, odd_at)

    def _odd_group(self, odd: list[IrregularMember], at: int, amount_ns: int) -> Group:
        end = self._odd_end(odd, at)
        return odd, at, bisect_left(odd, (odd[at][0], 1 - amount_ns), at, end) - at

    def _odd_end(self, odd: list[IrregularMember], at: int) -> int:
        return bisect_right(odd, odd[at][0], at, key=_minus_share)

    def _is_near(self, difference_ns: int) -> bool:
        return difference_ns * SHARE_UNIT <= self._window_ns

    def _share(self, left_ns: int) -> int:
        """Billionths of the window."""
        return left_ns * SHARE_UNIT // self._window_ns

    def _ranked(self, level: RankLevel) -> list[IrregularMember]:
        if level.ranked_at != self._facts:
            level.ranked_at = self._facts
            level.ranked = sorted(map(self._odd, level.odd))
        return level.ranked

    def _odd(self, account_state: AccountState) -> IrregularMember:
        available_ns = self.available_ns(account_state)
        total_ns = self._state.amount_ns(
            account_state.account, max(self._first, account_state.account.invalidated_below), END
        )
        return -(available_ns * SHARE_UNIT // total_ns), -available_ns, account_state.miner_ss58, account_state

    # Facts

    def _follow(self) -> None:
        state, before = self._state, self._first
        chain = state.chain
        self._facts = state.facts
        self._first = state.first_granted(chain.blocks.newest - chain.settings.block_expiry_blocks)
        self._end_ns = state.sums[END]
        if state.granted.ends:
            self._granted_start, self._granted_end = state.granted.starts[-1], state.granted.ends[-1]
        self._window_ns = self._end_ns - state.sums[self._first]
        if self._upheavals != state.upheavals:
            self._begin()
        else:
            if self._first > before:
                self._age()
            if self._turns < len(state.turns):
                self._turn(state.turns[self._turns :])
        self._turns = len(state.turns)
        self._stale |= self._restless
        self._restless.clear()

    def _begin(self) -> None:
        """Forgets everything: all accounts are measured."""
        self._upheavals = self._state.upheavals
        self._levels = {AGED: RankLevel()}
        self._starts = [AGED]
        self._ends.clear()
        self._restless.clear()
        for account_state in self._seen:
            account_state.place = None
        self._seen.clear()
        self._look_over()

    def _age(self) -> None:
        """The window begins at a later block: nobody has an earlier one free, and some had only those."""
        first, ends = self._first, self._ends
        while ends and ends[0][0] <= first:
            self._stale.add(heappop(ends)[2])
        passed = bisect_right(self._starts, first)
        aged = self._levels[AGED]
        for start in self._starts[1:passed]:
            level = self._levels.pop(start)
            aged.plain += level.plain
            aged.odd |= level.odd
        if passed > 1:
            del self._starts[1:passed]
            aged.plain.sort()

    def _turn(self, turns: list[frozenset[str] | None]) -> None:
        """Measures those whose counts, floors or registration may have changed."""
        accounts = self._state.chain.classes.get(self._executor_class, {})
        for movers in turns:
            for hotkey_ss58 in movers or ():
                if hotkey_ss58 in accounts:
                    self._stale.add(self._state.account_state(accounts[hotkey_ss58].stream))
        if None in turns:
            self._look_over()

    def _look_over(self) -> None:
        """Looks for the accounts that facts say something else of than when it looked last."""
        members = self._state.chain.metagraph.members
        for account in self._state.chain.classes.get(self._executor_class, {}).values():
            account_state, counts = self._state.account_state(account.stream), account.counts
            seen = counts.starts[-1], counts.values[-1], account.invalidated_below, account.miner_ss58 in members
            if self._seen.get(account_state) != seen:
                self._seen[account_state] = seen
                self._stale.add(account_state)

    # Accounts

    def _measure(self, account_state: AccountState) -> None:
        """Puts an account where it belongs."""
        if account_state.place is not None:
            self._remove(account_state, account_state.place)
        if account_state.miner_ss58 not in self._state.chain.metagraph.members:
            return
        account, first = account_state.account, self._first
        occupied = account_state.occupied() if account_state.overdue else account_state.taken
        starts, ends = occupied.starts, occupied.ends
        if ends and ends[-1] > self._granted_end:
            self._restless.add(account_state)
        if account.counts.starts[-1] > first or account.invalidated_below > first:
            self._place_odd(account_state, occupied)
            return
        executors = account.counts.values[-1]
        start, until = self._state.first_free(occupied, first)
        if start == END or not executors:
            self._restless.add(account_state)
            return
        beyond_ns = 0
        if until != END:
            sums = self._state.sums
            heappush(self._ends, (until, next(self._serial), account_state))
            for at in range(bisect_left(starts, until), len(starts)):
                beyond_ns += sums[ends[at]] - sums[starts[at]]
        member = beyond_ns, -executors, account_state.miner_ss58, account_state
        account_state.place = start, until, beyond_ns, member
        insort(self._level(start).plain, member)

    def _place_odd(self, account_state: AccountState, occupied: BlockSet) -> None:
        """Places an account whose counts, or floor, change within the window."""
        state, account = self._state, account_state.account
        start, until, _ = next(state.free(account_state, self._first), (END, END, 0))
        if start == END:
            self._restless.add(account_state)
            return
        until = min(until, max(account.counts.starts[-1], account.invalidated_below))
        beyond_ns = sum(state.amount_ns(account, *run) for run in occupied.between(start, END))
        heappush(self._ends, (until, next(self._serial), account_state))
        account_state.place = start, until, beyond_ns, None
        level = self._level(start)
        level.odd.add(account_state)
        if level.ranked_at == self._facts:
            insort(level.ranked, self._odd(account_state))

    def _level(self, start: int) -> RankLevel:
        key = start if start > self._first else AGED
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = RankLevel()
            insort(self._starts, key)
        return level

    def _remove(self, account_state: AccountState, place: RankPlace) -> None:
        start, _, _, member = place
        account_state.place = None
        key = start if start > self._first else AGED
        level = self._levels[key]
        if member is not None:
            del level.plain[bisect_left(level.plain, member)]
        else:
            level.odd.remove(account_state)
            level.ranked = [each for each in level.ranked if each[3] is not account_state]
        if not level.plain and not level.odd and key != AGED:
            del self._levels[key], self._starts[bisect_left(self._starts, key)]


def _minus_share(odd: IrregularMember) -> int:
    return odd[0]
