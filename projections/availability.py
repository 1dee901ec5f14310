"""The ledger's state with a ranking of miners per executor class, kept up to date while the log grows.

A claim moves one entry of one ranking. A block moves the entries of accounts for which something ends, a sync those
of accounts that it changes. Corrections, blocks below a finalized one and new settings make all rankings stale.
Another time of the clock, later or earlier, affects only the accounts whose reservations are due between the two
times.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from ledger import Account, LedgerState
from ledger.errors import NotEnoughAllowanceException
from ledger.values import seconds

from .measured import Candidate, RankedAccount, rank_accounts
from .rank_levels import Group, RankEntry
from .ranking import Ranking


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
        ranking = self._up_to_date(executor_class, now_ns)
        return [] if ranking is None else ranking.ranked()

    def groups_of_equals(self, executor_class: str, amount_ns: int, now_ns: int) -> Iterator[Group]:
        """Return the accounts of `ranking` in groups of equal rank, each with the number of those with the amount.

        Without those that are no candidates, whatever they have available (`unfit`).
        """
        ranking = self._up_to_date(executor_class, now_ns)
        return iter(()) if ranking is None else ranking.groups(amount_ns)

    def unfit(self, executor_class: str, amount_ns: int, now_ns: int) -> list[RankEntry]:
        """Return the accounts of `ranking` that have the amount, and are no candidates."""
        ranking = self._up_to_date(executor_class, now_ns)
        return [] if ranking is None else ranking.unfit(amount_ns)

    def drawn(self, executor_class: str, amount_ns: int, seed: bytes, now_ns: int) -> Iterator[RankEntry]:
        """Yield the candidates with the amount in the order in which they are drawn by reliability."""
        ranking = self._up_to_date(executor_class, now_ns)
        return iter(()) if ranking is None else ranking.drawn(amount_ns, seed)

    def _up_to_date(self, executor_class: str, now_ns: int) -> Ranking | None:
        """Return the ranking of a class; None for an unknown class."""
        self._move_clock(now_ns)
        if self.chain.changed_accounts:
            for account in self.chain.changed_accounts:
                self.availability_changed(account)
            self.chain.changed_accounts.clear()
        ranking = self._rankings.get(executor_class)
        if ranking is None:
            if executor_class not in self.chain.classes:
                return None
            ranking = self._rankings[executor_class] = Ranking()
        ranking.bring_up_to_date(self, executor_class, now_ns)
        return ranking

    def candidates(self, amount_ns: int, executor_class: str, job_start_block: int, now_ns: int) -> list[Candidate]:
        """Return the accounts with at least the amount, best first. Raises `NotEnoughAllowanceException`.

        Busy miners are included. Candidates of equal rank are in the order of available amount and hotkey; a job tries
        them in an order of its own, see `in_trial_order`.
        """
        # Only the window of the newest block is ranked continuously: every pick uses it, and other starts are rare.
        if job_start_block == self.chain.blocks.newest:
            ranking = self._up_to_date(executor_class, now_ns)
            entries, candidates = ([], []) if ranking is None else (ranking.ranked(), ranking.candidates())
        else:
            entries = rank_accounts(self, executor_class, self.window_start(job_start_block), now_ns)
            candidates = [entry.candidate() for entry in entries]
        # Not `available_ns`: a property takes twice as long, and this runs for every miner of the class.
        enough = [
            each for entry, each in zip(entries, candidates, strict=True) if -entry.minus_available_ns >= amount_ns
        ]
        if not enough:
            raise self.not_enough(amount_ns, executor_class, job_start_block, now_ns)
        return enough

    def not_enough(
        self, amount_ns: int, executor_class: str, job_start_block: int, now_ns: int
    ) -> NotEnoughAllowanceException:
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
        unknown = "" if executor_class in self.chain.classes else ", a class that no manifest sync has named"
        wanted = f"{seconds(amount_ns)} s of {executor_class}{unknown}"
        return NotEnoughAllowanceException(seconds(available[0]), available[1], seconds(unspent[0]), unspent[1], wanted)

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
        if self.miner_facts:
            self._mark_changed_by_time(min(now_ns, self._ranked_at_ns), max(now_ns, self._ranked_at_ns))
        self._ranked_at_ns = now_ns

    def _mark_changed_by_time(self, first_ns: int, last_ns: int) -> None:
        """Mark the accounts as stale for which a fact about their miner begins or ceases to count between two times."""
        window_ns = self.chain.settings.routing("reliability_window_ns")
        for name in self.miner_facts.changed_between(first_ns, last_ns, window_ns):
            if "\t" in name:
                self.account_changed(name)
            else:
                self.miner_changed(name)
