"""The ranking of a class in the audit: which account a job at the newest block tries first.

The audit repeats this rule on purpose and shares no code with the ledger's ranking, which it checks; `rank_order.py`
orders the candidates, this module keeps them up to date, and `trials.py` tries them.

The ranking follows the log, because measuring every account after every block would dominate the time of an audit.
An account is ranked by its first free block and by what is taken after its first free run. Neither changes when the
next block is granted, nor when a taken block leaves the window. So a block changes the entries only of accounts whose
first free run ends there; what each account has left is computed when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from ledger import END, BlockSet
from ledger.events import Run

from .chances import NO_CHANCES, Chances
from .rank_order import SHARE_UNIT, IrregularKey, equal_groups
from .state import AccountState, AuditState, RankEntry, RankKey

AT_WINDOW_START = 0
"""The level of all accounts that have the window's first granted block free, whichever block that is at the moment."""


class RankLevel:
    """The accounts with the same first free block."""

    __slots__ = ("accounts", "draws", "irregular", "irregular_keys", "joined", "keys_as_of", "regular")

    def __init__(self) -> None:
        self.regular: list[RankKey] = []
        """Accounts with one executor count in the whole window, sorted: their order never depends on the window."""
        self.accounts: list[AccountState] = []
        """The same accounts without their keys: a slice of it costs much less than looking into each key."""
        self.irregular: set[AccountState] = set()
        """Accounts whose count changes, or whose blocks are invalidated, within the window."""
        self.irregular_keys: list[IrregularKey] = []
        """Their sorted keys, valid as of `keys_as_of` facts: every block changes their shares."""
        self.keys_as_of = -1
        self.draws = NO_CHANCES
        """The sums of the draws among all regular accounts: most are, so they are not counted for each account."""
        self.joined: dict[AccountState, Chances] = {}
        """These sums when the account was added."""

    def add_draw(self) -> None:
        """Count a draw among all regular accounts."""
        self.draws += Chances.of_draw(len(self.regular))

    def add(self, key: RankKey) -> None:
        """Add a regular account."""
        at = bisect_left(self.regular, key)
        self.regular.insert(at, key)
        self.accounts.insert(at, key[-1])
        self.joined[key[-1]] = self.draws

    def remove(self, key: RankKey) -> None:
        """Remove a regular account."""
        at = bisect_left(self.regular, key)
        account = self.accounts.pop(at)
        del self.regular[at]
        account.chances += self.draws - self.joined.pop(account)

    def add_all(self, other: RankLevel) -> None:
        """Add all accounts of another level, which is not used any more."""
        other.settle()
        self.joined.update(dict.fromkeys(other.accounts, self.draws))
        self.regular = sorted(self.regular + other.regular)
        self.accounts = [key[-1] for key in self.regular]
        self.irregular |= other.irregular

    def settle(self) -> None:
        """Give every account the draws since it was added."""
        for account, joined in self.joined.items():
            account.chances += self.draws - joined
            self.joined[account] = self.draws


class Equals(NamedTuple):
    """Accounts among which the tie-break decides; `level` if they are all regular accounts of one."""

    accounts: list[AccountState]
    level: RankLevel | None = None


class AuditRanking:
    """The registered accounts of one class that have anything available at the newest block."""

    def __init__(self, state: AuditState, executor_class: str) -> None:
        self._state = state
        self._executor_class = executor_class
        self._stale = state.stale[executor_class]
        self._fact_count = self._reset_count = -1
        self._affected_count = 0
        """How many entries of `AuditState.affected_miners` were processed."""
        self._first = END
        """The first granted block of the window."""
        self._window_ns = self._end_ns = 0
        """What the window's blocks, and what all blocks, grant per executor."""
        self._granted_start = self._granted_end = 0
        """The last run of granted blocks."""
        self._levels: dict[int, RankLevel] = {}
        self._starts: list[int] = []
        """The levels' first free blocks, ascending; `AT_WINDOW_START` is always included."""
        self._run_ends: list[tuple[int, int, AccountState]] = []
        """A heap: when the window starts at this block or later, the account must be measured again."""
        self._serial = count()
        """Second in the heap's entries, so that accounts are never compared."""
        self._awaiting_next_block: set[AccountState] = set()
        """Accounts whose entry the next granted block may change."""
        self._last_seen: dict[AccountState, tuple[int, int, int, bool]] = {}
        """By account: start and value of its last count, first block not invalidated, whether it is registered."""

    def bring_up_to_date(self) -> None:
        """Apply the facts since the last call, and measure the stale accounts."""
        if self._fact_count != self._state.fact_count:
            self._apply_facts()
        stale = self._stale
        while stale:
            self._measure(stale.pop())

    def settle_chances(self) -> None:
        """Give every account its chances in the draws so far."""
        for level in self._levels.values():
            level.settle()

    def groups(self, amount_ns: int) -> Iterator[Equals]:
        """Yield the accounts with at least the amount available in groups of equals, best group first."""
        self.bring_up_to_date()
        first, sums, end_ns, window_ns = self._first, self._state.sums, self._end_ns, self._window_ns
        if first == END:
            return
        for start in self._starts:
            level = self._levels[start]
            if not level.regular and not level.irregular:
                continue  # Only the level at the window's start is kept while it is empty.
            irregular = self._irregular_keys(level) if level.irregular else []
            free_ns = end_ns - sums[start or first]
            for keys, at, size in equal_groups(level.regular, irregular, free_ns, window_ns, amount_ns):
                if keys is level.regular and size:
                    yield Equals(level.accounts[at : at + size], level if size == len(keys) else None)
                elif size:
                    yield Equals([key[-1] for key in keys[at : at + size]])

    def available_ns(self, account: AccountState) -> int:
        """Return what the account has available; 0 if it is not ranked."""
        entry = account.rank_entry
        if entry is None:
            return 0
        start, _, later_ns, key = entry
        start = max(start, self._first)
        if key is None:
            return self._state.amount_ns(account.chain_account, start, END) - later_ns
        return -key[1] * (self._end_ns - self._state.sums[start] - later_ns)

    def apply_claim(self, account: AccountState, blocks: list[Run]) -> None:
        """Update the account's entry for a claim of these blocks; call it before the blocks are marked as taken."""
        entry = account.rank_entry
        if entry is not None and len(blocks) == 1 and not account.overdue:
            start, until, later_ns, key = entry
            first, last = blocks[0]
            after = last + 1
            is_first = first == (start if start > self._first else self._first)
            if is_first and first < after < until and self._granted_start <= after < self._granted_end and key:
                # The claim takes a part of the first free run, so the taken blocks after it are unchanged, and the
                # account needs no new measurement. This is the case of nearly all claims.
                self._remove(account, entry)
                account.rank_entry = after, until, later_ns, key
                self._level(after).add(key)
                return
            if is_first and first < after == self._granted_end and until == END and key:
                # The claim takes all that is free, so the account has nothing until another block grants something.
                self._remove(account, entry)
                self._awaiting_next_block.add(account)
                return
        account.mark_stale()

    # Irregular accounts

    def _irregular_keys(self, level: RankLevel) -> list[IrregularKey]:
        if level.keys_as_of != self._fact_count:
            level.keys_as_of = self._fact_count
            level.irregular_keys = sorted(map(self._irregular_key, level.irregular))
        return level.irregular_keys

    def _irregular_key(self, account: AccountState) -> IrregularKey:
        available_ns, chain_account = self.available_ns(account), account.chain_account
        total_ns = self._state.amount_ns(chain_account, max(self._first, chain_account.invalidated_below), END)
        return -(available_ns * SHARE_UNIT // total_ns), -available_ns, account.miner_ss58, account

    # Facts

    def _apply_facts(self) -> None:
        state, first_before = self._state, self._first
        chain = state.chain
        self._fact_count = state.fact_count
        self._first = state.first_granted(chain.blocks.newest - chain.settings.block_expiry_blocks)
        self._end_ns = state.sums[END]
        if state.granted.ends:
            self._granted_start, self._granted_end = state.granted.starts[-1], state.granted.ends[-1]
        self._window_ns = self._end_ns - state.sums[self._first]
        if self._reset_count != state.ranking_resets:
            self._reset()
        else:
            if self._first > first_before:
                self._advance_window()
            if self._affected_count < len(state.affected_miners):
                self._mark_affected(state.affected_miners[self._affected_count :])
        self._affected_count = len(state.affected_miners)
        self._stale |= self._awaiting_next_block
        self._awaiting_next_block.clear()

    def _reset(self) -> None:
        """Forget all entries and mark every account as stale."""
        self._reset_count = self._state.ranking_resets
        self.settle_chances()
        self._levels = {AT_WINDOW_START: RankLevel()}
        self._starts = [AT_WINDOW_START]
        self._run_ends.clear()
        self._awaiting_next_block.clear()
        for account in self._last_seen:
            account.rank_entry = None
        self._last_seen.clear()
        self._mark_differing()

    def _advance_window(self) -> None:
        """Move the accounts whose first free block left the window to the level at its start."""
        first, run_ends = self._first, self._run_ends
        # Accounts whose first free run left the window entirely have their first free block elsewhere now.
        while run_ends and run_ends[0][0] <= first:
            self._stale.add(heappop(run_ends)[2])
        passed = bisect_right(self._starts, first)
        at_start = self._levels[AT_WINDOW_START]
        for start in self._starts[1:passed]:
            at_start.add_all(self._levels.pop(start))
        if passed > 1:
            del self._starts[1:passed]

    def _mark_affected(self, affected_miners: list[frozenset[str] | None]) -> None:
        """Mark accounts as stale whose counts, invalidated blocks or registration may have changed."""
        accounts = self._state.chain.classes.get(self._executor_class, {})
        for hotkeys in affected_miners:
            for hotkey_ss58 in hotkeys or ():
                if hotkey_ss58 in accounts:
                    self._stale.add(self._state.account(accounts[hotkey_ss58].stream))
        if None in affected_miners:
            self._mark_differing()

    def _mark_differing(self) -> None:
        """Mark accounts as stale for which the facts differ from when they were last compared."""
        members = self._state.chain.metagraph.members
        for chain_account in self._state.chain.classes.get(self._executor_class, {}).values():
            account, counts = self._state.account(chain_account.stream), chain_account.counts
            is_registered = chain_account.miner_ss58 in members
            seen = counts.starts[-1], counts.values[-1], chain_account.invalidated_below, is_registered
            if self._last_seen.get(account) != seen:
                self._last_seen[account] = seen
                self._stale.add(account)

    # Accounts

    def _measure(self, account: AccountState) -> None:
        """Compute the account's entry from its taken blocks, and put it into its level."""
        if account.rank_entry is not None:
            self._remove(account, account.rank_entry)
        if account.miner_ss58 not in self._state.chain.metagraph.members:
            return
        chain_account, first = account.chain_account, self._first
        occupied = account.occupied() if account.overdue else account.taken
        starts, ends = occupied.starts, occupied.ends
        if ends and ends[-1] > self._granted_end:
            self._awaiting_next_block.add(account)
        if chain_account.counts.starts[-1] > first or chain_account.invalidated_below > first:
            self._rank_irregular(account, occupied)
            return
        executors = chain_account.counts.values[-1]
        start, until = self._state.first_free(occupied, first)
        if start == END or not executors:
            self._awaiting_next_block.add(account)
            return
        later_ns = 0
        if until != END:
            sums = self._state.sums
            heappush(self._run_ends, (until, next(self._serial), account))
            for run in range(bisect_left(starts, until), len(starts)):
                later_ns += sums[ends[run]] - sums[starts[run]]
        key = later_ns, -executors, account.miner_ss58, account
        account.rank_entry = start, until, later_ns, key
        self._level(start).add(key)

    def _rank_irregular(self, account: AccountState, occupied: BlockSet) -> None:
        state, chain_account = self._state, account.chain_account
        start, until, _ = next(state.free_runs(account, self._first), (END, END, 0))
        if start == END:
            self._awaiting_next_block.add(account)
            return
        # It becomes regular when the window has passed the change, so it must be measured again then at the latest.
        until = min(until, max(chain_account.counts.starts[-1], chain_account.invalidated_below))
        later_ns = sum(state.amount_ns(chain_account, *run) for run in occupied.between(start, END))
        heappush(self._run_ends, (until, next(self._serial), account))
        account.rank_entry = start, until, later_ns, None
        level = self._level(start)
        level.irregular.add(account)
        if level.keys_as_of == self._fact_count:
            insort(level.irregular_keys, self._irregular_key(account))

    def _level(self, start: int) -> RankLevel:
        key = start if start > self._first else AT_WINDOW_START
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = RankLevel()
            insort(self._starts, key)
        return level

    def _remove(self, account: AccountState, entry: RankEntry) -> None:
        start, _, _, rank_key = entry
        account.rank_entry = None
        key = start if start > self._first else AT_WINDOW_START
        level = self._levels[key]
        if rank_key is not None:
            level.remove(rank_key)
        else:
            level.irregular.remove(account)
            level.irregular_keys = [each for each in level.irregular_keys if each[3] is not account]
        if not level.regular and not level.irregular and key != AT_WINDOW_START:
            del self._levels[key], self._starts[bisect_left(self._starts, key)]
