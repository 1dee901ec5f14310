"""The ranking of miners per executor class by available allowance, kept up to date while the log grows.

A claim moves one entry of one ranking. A block, a sync or new settings make all rankings stale, and each is computed
again when it is next read. Another time of the clock, later or earlier, affects only the accounts whose reservations
are due between the two times.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import msgspec

from ledger import Account, LedgerState
from ledger.errors import NotEnoughAllowanceException
from ledger.values import seconds

SHARE_UNIT = 10**9
"""Shares are whole billionths, rounded down, so that they compare exactly. This project's own rule."""


class Candidate(msgspec.Struct, frozen=True):
    """A miner with enough allowance. Seconds are executor-seconds.

    `stream_version` is the version of the account's stream. If it is still the same in a later result, the account has
    had no reservation and no settlement in between.
    """

    hotkey_ss58: str
    available_seconds: float
    total_seconds: float
    earliest_block: int
    stream_version: int


class RankedAccount(NamedTuple):
    """One account in a ranking. Entries sort as tuples.

    The first two fields are the rank. The next two put entries of equal rank in an order that is always the same, by
    available amount first, so that the tie-break can bisect for those with enough. Hotkeys are unique in a class, so
    the fields after them never decide the order.
    """

    earliest_block: int
    minus_share: int
    """Minus the share of the total that is available, in `SHARE_UNIT`."""
    minus_available_ns: int
    hotkey_ss58: str
    total_ns: int
    account: Account
    busy: bool
    """The result of `is_busy` when the account was measured."""

    @property
    def available_ns(self) -> int:
        return -self.minus_available_ns

    def candidate(self) -> Candidate:
        """Return the public form."""
        return Candidate(
            self.hotkey_ss58,
            seconds(self.available_ns),
            seconds(self.total_ns),
            self.earliest_block,
            self.account.version,
        )


class Ranking:
    """The registered accounts of one class that have allowance available at the newest block, best first."""

    __slots__ = ("_entries", "_entry_of", "_public_entries", "_revision", "_stale", "_window_start")

    def __init__(self) -> None:
        self._entries: list[RankedAccount] = []
        self._public_entries: list[Candidate] | None = None
        """The entries' public forms in the same order; None until they are needed, because picks never need them."""
        self._entry_of: dict[str, RankedAccount] = {}
        self._revision = -1
        self._window_start = 0
        self._stale: set[str] = set()

    def mark_stale(self, account: Account) -> None:
        """Have the account measured again when the ranking is next read."""
        self._stale.add(account.miner_ss58)

    def at(self, state: LedgerState, executor_class: str, now_ns: int) -> list[RankedAccount]:
        """Bring the entries up to date and return them in order; the caller must not change the list."""
        chain = state.chain
        accounts = chain.classes.get(executor_class, {})
        if self._revision != chain.revision:
            # A new block, sync or setting may change every account; a claim changes only its own.
            self._revision = chain.revision
            self._window_start = state.window_start(chain.blocks.newest)
            self._entries = rank_accounts(state, executor_class, self._window_start, now_ns)
            self._entry_of = {entry.hotkey_ss58: entry for entry in self._entries}
            self._public_entries = None
            self._stale.clear()
        while self._stale:
            self._remeasure(state, accounts[self._stale.pop()], now_ns)
        return self._entries

    def public_entries(self) -> list[Candidate]:
        """Return the public forms of all entries that `at` returned last, in the same order.

        The caller must not change the list.
        """
        if self._public_entries is None:
            self._public_entries = [entry.candidate() for entry in self._entries]
        return self._public_entries

    def _remeasure(self, state: LedgerState, account: Account, now_ns: int) -> None:
        entries, public_entries = self._entries, self._public_entries
        old = self._entry_of.pop(account.miner_ss58, None)
        if old is not None:
            index = bisect_left(entries, old)
            del entries[index]
            if public_entries is not None:
                del public_entries[index]
        if account.miner_ss58 in state.chain.metagraph.members:
            entry = rank_account(state, account, self._window_start, now_ns)
            if entry is not None:
                self._entry_of[account.miner_ss58] = entry
                index = bisect_left(entries, entry)
                entries.insert(index, entry)
                if public_entries is not None:
                    public_entries.insert(index, entry.candidate())


class Availability(LedgerState):
    """The ledger's state with a ranking per executor class."""

    def __init__(self) -> None:
        super().__init__()
        self._rankings: dict[str, Ranking] = {}
        self._ranked_at_ns = 0

    def availability_changed(self, account: Account) -> None:
        ranking = self._rankings.get(account.executor_class)
        if ranking is not None:
            ranking.mark_stale(account)

    def ranking(self, executor_class: str, now_ns: int) -> list[RankedAccount]:
        """Return the class's accounts that have allowance available at the newest block, best first."""
        self._move_clock(now_ns)
        if executor_class not in self.chain.classes:
            return []
        ranking = self._rankings.get(executor_class)
        if ranking is None:
            ranking = self._rankings[executor_class] = Ranking()
        return ranking.at(self, executor_class, now_ns)

    def candidates(self, amount_ns: int, executor_class: str, job_start_block: int, now_ns: int) -> list[Candidate]:
        """Return the accounts with at least the amount, best first. Raises `NotEnoughAllowanceException`.

        Busy miners are included. Candidates of equal rank are in the order of available amount and hotkey; a job tries
        them in an order of its own, see `in_trial_order`.
        """
        # Only the window of the newest block is ranked continuously: every pick uses it, and other starts are rare.
        if job_start_block == self.chain.blocks.newest:
            entries = self.ranking(executor_class, now_ns)
            # An unknown class has no ranking; `ranking` returned no entries then.
            candidates = self._rankings[executor_class].public_entries() if entries else []
        else:
            entries = rank_accounts(self, executor_class, self.window_start(job_start_block), now_ns)
            candidates = [entry.candidate() for entry in entries]
        # Not `available_ns`: a property takes twice as long, and this runs for every miner of the class.
        enough = [
            each for entry, each in zip(entries, candidates, strict=True) if -entry.minus_available_ns >= amount_ns
        ]
        if not enough:
            raise self.not_enough(executor_class, job_start_block, now_ns)
        return enough

    def not_enough(self, executor_class: str, job_start_block: int, now_ns: int) -> NotEnoughAllowanceException:
        """Return the error that names the highest available and the highest unspent amount of a class.

        Each is the highest among the registered miners, with that miner's hotkey, ties to the lower hotkey. It is 0 and
        the hotkey "" if nobody has anything. The amounts are those in the window of `job_start_block`.
        """
        window_start = self.window_start(job_start_block)
        units = self.chain.blocks
        available = unspent = (0, "")
        for hotkey_ss58, account in sorted(self.chain.classes.get(executor_class, {}).items()):
            if hotkey_ss58 not in self.chain.metagraph.members:
                continue
            available_ns = account.measure(units, window_start, now_ns).available_ns
            unspent_ns = account.unspent_ns(units, window_start)
            available = (available_ns, hotkey_ss58) if available_ns > available[0] else available
            unspent = (unspent_ns, hotkey_ss58) if unspent_ns > unspent[0] else unspent
        return NotEnoughAllowanceException(seconds(available[0]), available[1], seconds(unspent[0]), unspent[1])

    def _move_clock(self, now_ns: int) -> None:
        """Mark the accounts as stale whose reservations have become overdue since the last reading.

        A clock that was set back makes overdue reservations no longer overdue, and their accounts stale too.
        """
        if now_ns == self._ranked_at_ns:
            return
        # Ids are below 2**63, so (now, 2**63) sorts after every entry that is due at `now`: a reservation that is due
        # exactly at `now` counts as overdue.
        first = bisect_right(self.due_queue, (min(now_ns, self._ranked_at_ns), 2**63))
        last = bisect_right(self.due_queue, (max(now_ns, self._ranked_at_ns), 2**63))
        for _, active_id in self.due_queue[first:last]:
            self.availability_changed(self.active[active_id].account)
        self._ranked_at_ns = now_ns


def rank_accounts(state: LedgerState, executor_class: str, window_start: int, now_ns: int) -> list[RankedAccount]:
    """Measure the class's registered accounts; return those that have allowance available in a window, best first."""
    members = state.chain.metagraph.members
    entries = []
    for hotkey_ss58, account in state.chain.classes.get(executor_class, {}).items():
        if hotkey_ss58 in members:
            entry = rank_account(state, account, window_start, now_ns)
            if entry is not None:
                entries.append(entry)
    entries.sort()
    return entries


def rank_account(state: LedgerState, account: Account, window_start: int, now_ns: int) -> RankedAccount | None:
    """Measure an account; return its entry, or None if nothing is available."""
    total_ns, available_ns, earliest = account.measure(state.chain.blocks, window_start, now_ns)
    if not available_ns:
        return None
    share = available_ns * SHARE_UNIT // total_ns
    busy = is_busy(state, account, now_ns)
    return RankedAccount(earliest, -share, -available_ns, account.miner_ss58, total_ns, account, busy)


def is_busy(state: LedgerState, account: Account, now_ns: int) -> bool:
    """Return True if the account has at least as many active reservations as the newest sync counts executors.

    Every active reservation counts as a running job, also one that was made without a job, unless it is overdue. The
    setting `respect_executor_count` switches the rule off. Source: ComputeHorde's validator, which skips miners whose
    executors are all in use.
    """
    if not state.chain.settings.respect_executor_count:
        return False
    return len(account.active) - len(account.overdue(now_ns)) >= state.chain.newest_count(account)
