"""The ranking of one executor class, which measures again only the accounts for which something changed.

After a block those are the accounts for which something ends: free blocks that leave the window, or taken blocks
behind which a new one is granted. Accounts whose executor count changes, or whose blocks are invalidated, within the
window are measured at each block, since their shares change by different amounts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from heapq import heappop, heappush
from operator import attrgetter

from ledger import END, Account, BlockSet, LedgerState
from ledger.settings import BY_RELIABILITY

from .draws import Draws
from .measured import SHARE_UNIT, Candidate, RankedAccount, is_busy, rank_account, unfit
from .rank_levels import Group, RankEntry, RankLevels
from .reliability import weight_of

MOST_STALE_SHARE = 8
"""If more than an eighth of the accounts is stale, measuring all and sorting once is faster (measured)."""

_hotkey = attrgetter("miner_ss58")


class Ranking:
    """The registered accounts of one class that have allowance available at the newest block, best first."""

    def __init__(self) -> None:
        self._levels = RankLevels()
        """The accounts whose miners are candidates."""
        self._unfit_levels = RankLevels()
        """The accounts whose miners are excluded, or below the required collateral."""
        self._draws: Draws | None = None
        """The candidates for draws, if the order is by reliability; None until a pick needs them."""
        self._entry_of: dict[Account, RankEntry] = {}
        self._stale: set[Account] = set()
        """The accounts that are measured when the ranking is next read."""
        self._measured_at_each_block: set[Account] = set()
        self._free_until: dict[int, set[Account]] = {}
        """The accounts by `RankEntry.until`."""
        self._ends: list[int] = []
        """A heap of the keys of `_free_until`."""
        self._revision = -1
        self._blocks = (0, 0)
        """The newest and the highest finalized block that were applied."""
        self._window_start = 0
        self._ranked: list[RankedAccount] | None = None
        """All entries with their amounts, best first; None until they are needed, because picks never need them."""
        self._candidates: list[Candidate] | None = None
        """The public forms of `_ranked`; None until they are needed."""

    def mark_stale(self, account: Account) -> None:
        """Have the account measured again when the ranking is next read."""
        self._stale.add(account)

    def bring_up_to_date(self, state: LedgerState, executor_class: str, now_ns: int) -> None:
        """Apply what changed since the last call."""
        chain = state.chain
        if self._revision != chain.revision:
            self._measure_all(state, executor_class, now_ns)
        elif self._blocks != (chain.blocks.newest, chain.blocks.last_finalized):
            self._advance(state, executor_class, now_ns)
        if self._stale:
            self._measure_stale(state, now_ns)

    def groups(self, amount_ns: int) -> Iterator[Group]:
        """Yield the groups of equal candidates, best first, with the number of those that have the amount."""
        return self._levels.groups(amount_ns)

    def unfit(self, amount_ns: int) -> list[RankEntry]:
        """Return the entries that have the amount and are no candidates."""
        return [each for level, at, size in self._unfit_levels.groups(amount_ns) for each in level[at : at + size]]

    def drawn(self, amount_ns: int, seed: bytes) -> Iterator[RankEntry]:
        """Yield the candidates that have the amount in the order in which they are drawn."""
        if self._draws is None:
            accounts = sorted(self._entry_of, key=_hotkey)
            self._draws = Draws(accounts, map(self._available_and_weight, map(self._entry_of.get, accounts)))
        for account in self._draws.drawn(amount_ns * SHARE_UNIT, seed):
            yield self._entry_of[account]

    def ranked(self) -> list[RankedAccount]:
        """Return all entries with their amounts, best first; the caller must not change the list."""
        if self._ranked is None:
            groups = self._levels.groups(0)
            self._ranked = [self._ranked_account(each) for level, at, size in groups for each in level[at : at + size]]
            if self._unfit_levels:
                self._ranked += [self._ranked_account(each) for each in self.unfit(0)]
                self._ranked.sort()
        return self._ranked

    def candidates(self) -> list[Candidate]:
        """Return the public forms of `ranked`, in the same order; the caller must not change the list."""
        if self._candidates is None:
            self._candidates = [entry.candidate() for entry in self.ranked()]
        return self._candidates

    def _measure_all(self, state: LedgerState, executor_class: str, now_ns: int) -> None:
        """Forget everything, and measure all accounts."""
        chain = state.chain
        self._revision = chain.revision
        for container in (self._entry_of, self._stale, self._measured_at_each_block, self._free_until, self._ends):
            container.clear()
        self._levels, self._unfit_levels = RankLevels(), RankLevels()
        self._ranked = self._candidates = None
        self._set_window(state)
        entries = [self._measure(state, each, now_ns) for each in chain.classes[executor_class].values()]
        measured = [entry for entry in entries if entry is not None]
        self._levels.extend([entry for entry in measured if entry.unfit is None])
        self._unfit_levels.extend([entry for entry in measured if entry.unfit is not None])

    def _advance(self, state: LedgerState, executor_class: str, now_ns: int) -> None:
        """Apply new blocks, none of which is below a finalized one."""
        most_stale = len(state.chain.classes[executor_class]) // MOST_STALE_SHARE
        # While nothing is granted in the window, nothing is ranked.
        if self._levels.first == END or len(self._stale | self._measured_at_each_block) > most_stale:
            self._measure_all(state, executor_class, now_ns)
            return
        self._ranked = self._candidates = None
        for account in self._measured_at_each_block:
            self._remove(account)
        self._stale |= self._measured_at_each_block
        self._set_window(state)
        if self._levels.first == END:
            self._measure_all(state, executor_class, now_ns)
        while self._ends and self._ends[0] <= self._levels.first:
            self._stale |= self._free_until.pop(heappop(self._ends))

    def _set_window(self, state: LedgerState) -> None:
        blocks = state.chain.blocks
        self._blocks = blocks.newest, blocks.last_finalized
        self._window_start = state.window_start(blocks.newest)
        first = blocks.first_granted(self._window_start)
        for levels in (self._levels, self._unfit_levels):
            levels.set_window(first, blocks.sums_before_ns)
        # A new window changes what is available to all.
        self._draws = None

    def _measure_stale(self, state: LedgerState, now_ns: int) -> None:
        while self._stale:
            account = self._stale.pop()
            self._remove(account)
            entry = self._measure(state, account, now_ns)
            if entry is not None:
                self._levels_of(entry).insert(entry)
                self._show(entry)
            if self._draws is not None and not self._draws.change(account, *self._available_and_weight(entry)):
                self._draws = None

    def _remove(self, account: Account) -> None:
        entry = self._entry_of.pop(account, None)
        if entry is None:
            return
        self._levels_of(entry).remove(entry)
        if entry.until != END and entry.until in self._free_until:
            self._free_until[entry.until].discard(account)
        if self._ranked is not None:
            index = bisect_left(self._ranked, self._ranked_account(entry))
            del self._ranked[index]
            if self._candidates is not None:
                del self._candidates[index]

    def _show(self, entry: RankEntry) -> None:
        """Insert an entry into the lists that are kept for `find_miners`, if they are."""
        if self._ranked is not None:
            ranked = self._ranked_account(entry)
            index = bisect_left(self._ranked, ranked)
            self._ranked.insert(index, ranked)
            if self._candidates is not None:
                self._candidates.insert(index, ranked.candidate())

    def _measure(self, state: LedgerState, account: Account, now_ns: int) -> RankEntry | None:
        """Measure an account, and note when that must be repeated; None if it has nothing available."""
        self._measured_at_each_block.discard(account)
        if account.miner_ss58 not in state.chain.metagraph.members:
            return None
        first = self._levels.first
        if account.counts.starts[-1] > first or account.invalidated_below > first:
            entry = self._measure_irregular(state, account, now_ns)
        else:
            entry = self._measure_regular(state, account, now_ns)
        if entry is None:
            return None
        if state.miner_facts or state.chain.settings.has_routing:
            entry = _with_miner_facts(state, entry, now_ns)
        self._entry_of[account] = entry
        return entry

    def _levels_of(self, entry: RankEntry) -> RankLevels:
        return self._levels if entry.unfit is None else self._unfit_levels

    def _available_and_weight(self, entry: RankEntry | None) -> tuple[int, int]:
        """Return what is available, in billionths of a ns, and the weight; both 0 if the miner is no candidate."""
        if entry is None or entry.unfit is not None:
            return 0, 0
        return entry.available_e9(self._levels.free_e9(entry.start) - entry.taken_e9), entry.weight

    def _measure_regular(self, state: LedgerState, account: Account, now_ns: int) -> RankEntry | None:
        """Measure an account that has one executor count in the whole window, and nothing invalidated in it."""
        executors, first = account.counts.values[-1], self._levels.first
        if not executors or first == END:
            return None
        occupied = account.occupied(now_ns)
        start, index = self._first_free(state, occupied)
        if start == END or occupied.ends[-1:] > [state.chain.blocks.last_finalized + 1]:
            # All that is granted is taken; or, in a forged log, also blocks that are not granted yet.
            self._measured_at_each_block.add(account)
        if start == END:
            return None
        until, taken_ns = END, 0
        if index < len(occupied.starts):
            until, sums_before_ns = occupied.starts[index], self._levels.sums_before_ns
            taken_ns = sum(sums_before_ns[each] for each in occupied.ends[index:])
            taken_ns -= sum(sums_before_ns[each] for each in occupied.starts[index:])
            self._note_end(until, account)
        busy = is_busy(state, account, now_ns)
        return RankEntry(taken_ns * SHARE_UNIT, -executors, 0, account.miner_ss58, account, busy, start, until, 0)

    def _first_free(self, state: LedgerState, occupied: BlockSet) -> tuple[int, int]:
        """Return the first free block that grants anything, `END` if none does, and the index of the next taken run."""
        start = self._levels.first
        occupied.unpack_from(start)
        starts, ends, sums_before_ns = occupied.starts, occupied.ends, self._levels.sums_before_ns
        index = bisect_right(ends, start)
        while index < len(starts) and sums_before_ns[starts[index]] <= sums_before_ns[start]:
            start = ends[index]
            index += 1
        before_ns = sums_before_ns[start]
        if before_ns == self._levels.end_ns:
            return END, index
        # Mostly the block behind the taken ones grants something; asking for it is faster than a search.
        if sums_before_ns[start + 1] == before_ns:
            start = state.chain.blocks.end_reaching(before_ns + 1) - 1
        return start, index

    def _measure_irregular(self, state: LedgerState, account: Account, now_ns: int) -> RankEntry | None:
        self._measured_at_each_block.add(account)
        measured = rank_account(state, account, self._window_start, now_ns)
        if measured is None:
            return None
        start, minus_share, minus_available_ns, hotkey_ss58, total_ns, _, busy = measured
        left_e9 = -minus_share * self._levels.window_ns
        available_e9 = -minus_available_ns * SHARE_UNIT
        executors, rest_e9 = divmod(available_e9, left_e9) if left_e9 else (0, available_e9)
        taken_e9 = self._levels.free_e9(start) - left_e9
        return RankEntry(taken_e9, -executors, -rest_e9, hotkey_ss58, account, busy, start, END, total_ns)

    def _note_end(self, until: int, account: Account) -> None:
        accounts = self._free_until.get(until)
        if accounts is None:
            accounts = self._free_until[until] = set()
            heappush(self._ends, until)
        accounts.add(account)

    def _ranked_account(self, entry: RankEntry) -> RankedAccount:
        levels = self._levels
        left_e9 = levels.free_e9(entry.start) - entry.taken_e9
        return RankedAccount(
            max(entry.start, levels.first),
            -(left_e9 // levels.window_ns),
            -(entry.available_e9(left_e9) // SHARE_UNIT),
            entry.hotkey_ss58,
            entry.total_ns or -entry.minus_executors * levels.window_ns,
            entry.account,
            entry.busy,
        )


def _with_miner_facts(state: LedgerState, entry: RankEntry, now_ns: int) -> RankEntry:
    is_drawn = state.chain.settings.routing_order == BY_RELIABILITY
    weight = weight_of(state, entry.account, now_ns) if is_drawn else 0
    return entry._replace(unfit=unfit(state, entry.hotkey_ss58, now_ns), weight=weight)
