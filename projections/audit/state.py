"""What an audit keeps of each account while it replays the log, and the chain's facts beside it.

Kept apart from the live state, so that a decision which the live state was led to can be held against what the
log alone says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator

from ledger import END, Account, BlockSet, Chain, Row
from ledger.codec import reservation_id
from ledger.events import AllowanceReserved, Run, account_of

from .prefix_sums import AuditPrefixSums

RankMember = tuple[int, int, str, "AccountState"]
"""What is taken beyond the first free block, in ns an executor; less the executors; the hotkey; the book."""
RankPlace = tuple[int, int, int, RankMember | None]
"""The first free block; the next taken one; what is taken from there on, in ns; the member, where there is one."""


class AuditedReservation:
    """A reservation that nobody has settled."""

    __slots__ = ("account_state", "due_ns", "event", "owned", "position", "reservation_id", "row", "worth_ns")

    def __init__(
        self, row: Row, event: AllowanceReserved, account_state: AccountState, owned: list[Run], worth_ns: int
    ) -> None:
        self.row = row
        self.event = event
        self.position = row.position
        self.reservation_id = reservation_id(row.position, row.hash)
        self.due_ns = event.expires_at_ns
        self.account_state = account_state
        self.owned = owned
        """Its blocks, but for those that another reservation had already, which is a finding of its own."""
        self.worth_ns = worth_ns
        """What all its blocks grant, whoever had them before."""


class AccountState:
    """One account: what of it is taken, by which reservations, and what they add up to."""

    __slots__ = (
        "account",
        "active",
        "executor_class",
        "held_ns",
        "is_uneven",
        "last_position",
        "miner_ss58",
        "overdue",
        "place",
        "spent_ns",
        "stale",
        "stream",
        "taken",
    )

    def __init__(self, stream: str, account: Account, stale: set[AccountState]) -> None:
        self.stream = stream
        self.miner_ss58, self.executor_class = account_of(stream)
        self.account = account
        """What the chain's facts make of it: counts, and the floor below which blocks are invalidated."""
        self.taken = BlockSet()
        """The blocks that are held or spent."""
        self.active: dict[int, AuditedReservation] = {}
        """By the position that made them."""
        self.overdue: dict[int, AuditedReservation] = {}
        """Those of the standing that are due at the clock of `DueQueue`."""
        self.held_ns = 0
        self.spent_ns = 0
        self.place: RankPlace | None = None
        """In the ranking of its class."""
        self.stale = stale
        """The accounts of its class that are to be measured before they are ranked."""
        self.last_position = 0
        self.is_uneven = False
        """Whether it was found not to add up."""

    def touch(self) -> None:
        """What is free of it has changed: it is to be measured again before it is ranked."""
        self.stale.add(self)

    def occupied(self) -> BlockSet:
        """The blocks that nobody else may have at the clock of `DueQueue`."""
        if not self.overdue:
            return self.taken
        occupied = self.taken.copy()
        for active in self.overdue.values():
            for first, last in active.owned:
                occupied.remove(first, last)
        return occupied


class AuditState:
    """The chain's facts, every account's book, and the reservations that stand."""

    def __init__(self) -> None:
        self.chain = Chain()
        self.granted = BlockSet()
        """The blocks with a unit above 0; what they grant to an account depends on its count."""
        self.sums = AuditPrefixSums()
        """Of their units."""
        self.account_states: dict[str, AccountState] = {}
        self.strangers: dict[str, AccountState] = {}
        """Books of accounts that no fact knows yet."""
        self.active: dict[int, AuditedReservation] = {}
        """By the position that made them."""
        self.moved: set[AccountState] = set()
        """Books that something was done to since they were last balanced."""
        self.stale: dict[str, set[AccountState]] = defaultdict(set)
        """By class, the books of which something else is free than when they were last measured."""
        self.facts = 0
        """How many facts and settings were taken."""
        self.turns: list[frozenset[str] | None] = []
        """Whose counts, floors or registrations they may have changed from some block on; None for everybody's."""
        self.upheavals = 0
        """How often anything else may have changed than what the next block brings: then all is measured anew."""

    def change(self, *, upheaval: bool = False) -> None:
        """A fact was taken, or something that nobody thought of has happened."""
        self.facts += 1
        self.upheavals += upheaval

    def account_state(self, stream: str) -> AccountState:
        """The account's book; one that is never granted anything where no fact knows the account."""
        account_state = self.account_states.get(stream)
        return self._new_book(stream) if account_state is None else account_state

    def _new_book(self, stream: str) -> AccountState:
        account = self.chain.accounts.get(stream)
        if account is None:
            if stream not in self.strangers:
                self.strangers[stream] = self._open(stream, Account(*account_of(stream)))
            return self.strangers[stream]
        known = self.strangers.pop(stream, None)
        account_state = self.account_states[stream] = self._open(stream, account) if known is None else known
        account_state.account = account
        return account_state

    def _open(self, stream: str, account: Account) -> AccountState:
        _, executor_class = account_of(stream)
        return AccountState(stream, account, self.stale[executor_class])

    def amount_ns(self, account: Account, start: int, end: int) -> int:
        """What the blocks of `[start, end)` grant to the account."""
        starts, values, sums = account.counts.starts, account.counts.values, self.sums
        amount_ns = 0
        at = bisect_right(starts, start) - 1
        while start < end:
            step_end = min(starts[at + 1], end) if at + 1 < len(starts) else end
            amount_ns += values[at] * (sums[step_end] - sums[start])
            start = step_end
            at += 1
        return amount_ns

    def worth_ns(self, account_state: AccountState, blocks: list[Run]) -> int:
        """What the blocks grant to the account."""
        worth_ns = 0
        starts, values = account_state.account.counts.starts, account_state.account.counts.values
        sums = self.sums
        for first, last in blocks:
            if len(starts) == 1:
                worth_ns += values[0] * (sums[last + 1] - sums[first])
            else:
                worth_ns += self.amount_ns(account_state.account, first, last + 1)
        return worth_ns

    def free(self, account_state: AccountState, oldest: int) -> Iterator[tuple[int, int, int]]:
        """The account's free blocks from one on, ascending, as `(start, end, count)` of a count above 0."""
        starts, values = account_state.account.counts.starts, account_state.account.counts.values
        for gap_start, gap_end in account_state.occupied().gaps(
            max(oldest, account_state.account.invalidated_below), END
        ):
            for granted_start, end in self.granted.between(gap_start, gap_end):
                start = granted_start
                at = bisect_right(starts, start) - 1
                while start < end:
                    step_end = min(starts[at + 1], end) if at + 1 < len(starts) else end
                    if values[at]:
                        yield start, step_end, values[at]
                    start = step_end
                    at += 1

    def covers(self, first: int, last: int) -> bool:
        """Whether every block of the run has a unit above 0."""
        starts, ends = self.granted.starts, self.granted.ends
        at = bisect_right(starts, first) - 1
        return at >= 0 and ends[at] > last

    def first_free(self, taken: BlockSet, start: int) -> tuple[int, int]:
        """The first block from one on with a unit above 0 that is not taken, and the next taken one; `END` for none."""
        granted = self.granted
        if not granted.starts:
            return END, END
        # Mostly it is in the last run of granted blocks, which needs no search.
        last_start, last_end = granted.starts[-1], granted.ends[-1]
        starts, ends = taken.starts, taken.ends
        block = start if last_start <= start < last_end else self.first_granted(start)
        for at in range(bisect_right(ends, start), len(starts)):
            if starts[at] > block:
                return block, starts[at]
            if ends[at] > block:
                block = ends[at]
                if not last_start <= block < last_end:
                    block = self.first_granted(block)
        return block, END

    def first_granted(self, start: int) -> int:
        """The first block from one on with a unit above 0; `END` where there is none."""
        starts, ends = self.granted.starts, self.granted.ends
        at = bisect_right(ends, start)
        return END if at == len(starts) else max(starts[at], start)
