"""The audit's own state: the chain's facts, and for each account the taken blocks and the active reservations.

Independence is the point: the audit never reads the live state, so it can find decisions that a wrong live state
caused. It shares the fold `Chain` with the ledger, because the facts define which ledger is audited, and another fold
of them would audit another ledger. `GrantCheck` recomputes what that fold grants, so a mistake in it is found too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

from ledger import END, Account, BlockSet, Chain, Row
from ledger.codec import reservation_id
from ledger.events import AllowanceReserved, Run, account_of

from .chances import NO_CHANCES
from .prefix_sums import AuditPrefixSums

RankKey = tuple[int, int, str, "AccountState"]
"""Sort key of a regular account among those with the same first free block.

In order: the ns per executor that are taken after the first free run; minus the executors; the hotkey; the account,
which is never compared, because hotkeys differ within a class.
"""
RankEntry = tuple[int, int, int, RankKey | None]
"""How an account is ranked: first free block, next taken block after it, ns that are taken from there on, sort key.

A regular account counts these ns per executor. An irregular account (see `AuditRanking`) counts them in total and has
no key.
"""


class AuditedReservation:
    """An active reservation."""

    __slots__ = ("account", "due_ns", "event", "own_blocks", "position", "reservation_id", "row", "value_ns")

    def __init__(
        self, row: Row, event: AllowanceReserved, account: AccountState, own_blocks: list[Run], value_ns: int
    ) -> None:
        self.row = row
        self.event = event
        self.position = row.position
        self.reservation_id = reservation_id(row.position, row.hash)
        self.due_ns = event.expires_at_ns
        self.account = account
        self.own_blocks = own_blocks
        """Its blocks without those that were already taken by others; such an overlap is a finding of its own."""
        self.value_ns = value_ns
        """What all its blocks grant, including those that were already taken."""


class AccountState:
    """One account: its taken blocks, its active reservations, and their sums."""

    __slots__ = (
        "active",
        "chain_account",
        "chances",
        "executor_class",
        "held_ns",
        "is_uneven",
        "last_position",
        "miner_ss58",
        "overdue",
        "rank_entry",
        "spent_ns",
        "stale",
        "stream",
        "taken",
    )

    def __init__(self, stream: str, chain_account: Account, stale: set[AccountState]) -> None:
        self.stream = stream
        self.miner_ss58, self.executor_class = account_of(stream)
        self.chain_account = chain_account
        """What the chain's facts say: executor counts, and the block below which blocks are invalidated."""
        self.taken = BlockSet()
        """The blocks of active and spent reservations."""
        self.active: dict[int, AuditedReservation] = {}
        """By the position of the reservation's event."""
        self.overdue: dict[int, AuditedReservation] = {}
        """The active reservations that are overdue at the clock of `DueQueue`."""
        self.held_ns = 0
        self.spent_ns = 0
        self.chances = NO_CHANCES
        """Those in draws among all accounts of a level; the tally of fairness has the others."""
        self.rank_entry: RankEntry | None = None
        """None if the account is not ranked."""
        self.stale = stale
        """The accounts of its class that must be measured before they are ranked, shared by the class."""
        self.last_position = 0
        self.is_uneven = False
        """Whether an imbalance was reported; each account is reported once."""

    def mark_stale(self) -> None:
        """Have the ranking measure the account again, because other blocks of it are free now."""
        self.stale.add(self)

    def occupied(self) -> BlockSet:
        """Return the taken blocks without those of reservations that are overdue at the clock of `DueQueue`."""
        if not self.overdue:
            return self.taken
        occupied = self.taken.copy()
        for reservation in self.overdue.values():
            for first, last in reservation.own_blocks:
                occupied.remove(first, last)
        return occupied


class AuditState:
    """The chain's facts, the state of every account, and all active reservations."""

    def __init__(self) -> None:
        self.chain = Chain()
        self.granted = BlockSet()
        """The blocks with a unit above 0. The account's executor count decides what they grant to it."""
        self.sums = AuditPrefixSums()
        """Prefix sums of these units."""
        self.accounts: dict[str, AccountState] = {}
        self.unknown_accounts: dict[str, AccountState] = {}
        """Accounts that have events although no fact has named them yet."""
        self.active: dict[int, AuditedReservation] = {}
        """By the position of the reservation's event."""
        self.changed_accounts: set[AccountState] = set()
        """Accounts that changed since their balance was checked last."""
        self.stale: dict[str, set[AccountState]] = defaultdict(set)
        """By class, the accounts whose free blocks changed since the ranking measured them last."""
        self.fact_count = 0
        """How many facts and settings were applied. A ranking compares it to see whether it is up to date."""
        self._executors_as_of = -1
        self._has_accounts_without_executors = False
        self.affected_miners: list[frozenset[str] | None] = []
        """One entry per change of counts, invalidations or registrations: the miners it may affect; None for all."""
        self.ranking_resets = 0
        """How many changes were more than the next block; after such a change a ranking measures every account."""

    @property
    def has_accounts_without_executors(self) -> bool:
        """Whether a sync has taken the executors of any account; such an account is busy although it runs nothing."""
        if self._executors_as_of != len(self.affected_miners):
            self._executors_as_of = len(self.affected_miners)
            self._has_accounts_without_executors = any(
                not each.offered.values[-1] for each in self.chain.accounts.values()
            )
        return self._has_accounts_without_executors

    def record_change(self, *, resets_rankings: bool = False) -> None:
        """Count an applied fact, or an unexpected failure that may have left something half done."""
        self.fact_count += 1
        self.ranking_resets += resets_rankings

    def account(self, stream: str) -> AccountState:
        """Return the account's state; an account that no fact has named gets one that is granted nothing."""
        account = self.accounts.get(stream)
        return self._new_account(stream) if account is None else account

    def _new_account(self, stream: str) -> AccountState:
        chain_account = self.chain.accounts.get(stream)
        if chain_account is None:
            if stream not in self.unknown_accounts:
                self.unknown_accounts[stream] = self._state_of(stream, Account(*account_of(stream)))
            return self.unknown_accounts[stream]
        earlier = self.unknown_accounts.pop(stream, None)
        account = self.accounts[stream] = self._state_of(stream, chain_account) if earlier is None else earlier
        account.chain_account = chain_account
        return account

    def _state_of(self, stream: str, chain_account: Account) -> AccountState:
        _, executor_class = account_of(stream)
        return AccountState(stream, chain_account, self.stale[executor_class])

    def amount_ns(self, chain_account: Account, start: int, end: int) -> int:
        """Return what the blocks of `[start, end)` grant to the account: units times counts."""
        starts, values, sums = chain_account.counts.starts, chain_account.counts.values, self.sums
        amount_ns = 0
        step = bisect_right(starts, start) - 1
        while start < end:
            step_end = min(starts[step + 1], end) if step + 1 < len(starts) else end
            amount_ns += values[step] * (sums[step_end] - sums[start])
            start = step_end
            step += 1
        return amount_ns

    def value_ns(self, account: AccountState, blocks: list[Run]) -> int:
        """Return what the runs of blocks grant to the account."""
        value_ns = 0
        starts, values = account.chain_account.counts.starts, account.chain_account.counts.values
        sums = self.sums
        for first, last in blocks:
            if len(starts) == 1:
                value_ns += values[0] * (sums[last + 1] - sums[first])
            else:
                value_ns += self.amount_ns(account.chain_account, first, last + 1)
        return value_ns

    def free_runs(self, account: AccountState, oldest: int) -> Iterator[tuple[int, int, int]]:
        """Yield the account's free blocks from `oldest` on, ascending, as `(start, end, count)`, all counts above 0."""
        starts, values = account.chain_account.counts.starts, account.chain_account.counts.values
        first_usable = max(oldest, account.chain_account.invalidated_below)
        for gap_start, gap_end in account.occupied().gaps(first_usable, END):
            for granted_start, end in self.granted.between(gap_start, gap_end):
                start = granted_start
                step = bisect_right(starts, start) - 1
                while start < end:
                    step_end = min(starts[step + 1], end) if step + 1 < len(starts) else end
                    if values[step]:
                        yield start, step_end, values[step]
                    start = step_end
                    step += 1

    def all_granted(self, first: int, last: int) -> bool:
        """Return whether every block of the run has a unit above 0."""
        starts, ends = self.granted.starts, self.granted.ends
        run = bisect_right(starts, first) - 1
        return run >= 0 and ends[run] > last

    def first_free(self, taken: BlockSet, start: int) -> tuple[int, int]:
        """Return the first granted block from `start` on that is not taken, and the next taken one; `END` for none."""
        granted = self.granted
        if not granted.starts:
            return END, END
        # Nearly always the block is in the last run of granted blocks, where no search is needed.
        last_start, last_end = granted.starts[-1], granted.ends[-1]
        starts, ends = taken.starts, taken.ends
        block = start if last_start <= start < last_end else self.first_granted(start)
        for run in range(bisect_right(ends, start), len(starts)):
            if starts[run] > block:
                return block, starts[run]
            if ends[run] > block:
                block = ends[run]
                if not last_start <= block < last_end:
                    block = self.first_granted(block)
        return block, END

    def first_granted(self, start: int) -> int:
        """Return the first block from `start` on with a unit above 0; `END` for none."""
        starts, ends = self.granted.starts, self.granted.ends
        run = bisect_right(ends, start)
        return END if run == len(starts) else max(starts[run], start)
