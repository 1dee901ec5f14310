"""Grants and invalidations, computed a second time from the facts and compared with the fold `Chain`.

The audit repeats these rules on purpose. The fold keeps prefix sums and updates only what a fact changes; this module
follows the definitions, block by block, and shares no code with it. If both differ, one of them is wrong; if it is the
fold, every decision on it may be wrong too.

The other checks use the fold, not the tables of this module. They need sums and counts at every event, which the fold
has at hand, while these tables would have to be summed block by block. If both agree, a check has the same result with
either; if not, one finding names the block, instead of one for each decision that used it.

A known limit:

- The counts at finalized blocks are compared once, at the end, because comparing all of them after each event would
  take too long. A count that the fold had wrong for a while and then corrected is missed.

Rules (source: ComputeHorde's validator; for facts that arrive late, and for changed caps, this project's own rules):

- A block is finalized once the next block is known, and keeps its amounts from then on.
- A finalized block grants `floor(duration * multiplier * share of the stake)` ns per executor. A block that is longer
  than a limit (12.5 s by default) counts as a fixed duration (12.0 s by default).
- The count of a miner that is registered at the block is that of the sync at the highest block that is not above it,
  among the syncs that were recorded when the block was finalized; capped as configured at that moment. The count of a
  miner that is not registered is 0.
- A drop: if a sync counts fewer executors of a miner and class than the sync at the next lower recorded block, all
  blocks below the sync are invalidated. Both counts are capped as configured when the sync is recorded. A late sync is
  compared with the sync below it only; the sync above it is not compared again. A lowered cap is no drop.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from ledger import END, Account, Chain, RecordedSettings
from ledger.events import Axon, BlockRecorded, ManifestsRecorded, account_stream
from projections.rules import Findings, Rule

Manifests = dict[str, dict[str, int]]


class CountTerms(NamedTuple):
    """Everything that determines a block's executor counts, fixed when it was finalized.

    It is the audit's own counterpart of `CountInputs` in the fold. `BlockTerms` in `projections/grants.py` is about
    something else: the settings that determine what a block's duration is worth. `sync_block` is None if no sync was
    recorded at or below the block.
    """

    sync_block: int | None
    caps: dict[str, int]
    members: frozenset[str]


class GrantCheck:
    """Applies the facts to plain tables and compares the fold with them. Call it after the fold has applied a fact."""

    def __init__(self, chain: Chain, findings: Findings) -> None:
        self._chain = chain
        self._findings = findings
        self._settings = RecordedSettings()
        self._miners: dict[str, Axon] = {}
        self._members: frozenset[str] = frozenset()
        self._stakes: dict[str, int] = {}
        self._newest = 0
        self._created_at_ns: dict[int, int] = {}
        self._unfinalized: dict[int, tuple[Fraction, frozenset[str]]] = {}
        """Blocks whose successor is unknown: the validator's share of the stake, and the registered miners."""
        self._terms: dict[int, CountTerms] = {}
        """Of the finalized blocks with a unit above 0."""
        self._units_ns: dict[int, int] = {}
        """What the same blocks grant per executor."""
        self._manifests: Manifests = {}
        self._syncs: dict[int, Manifests] = {}
        self._sync_blocks: list[int] = []
        self._invalidated_below: dict[tuple[str, str], int] = {}
        """By miner and class."""

    def process_settings(self, position: int, settings: RecordedSettings) -> None:
        """Apply settings, and compare the newest counts, because the caps may have changed."""
        self._settings = settings
        self._check_newest_counts(position)

    def process_block(self, position: int, event: BlockRecorded, *, is_applied: bool) -> None:
        """Apply a block, and compare what it has finalized.

        `is_applied` is False if the replay left the block out, because it is a repeat or has an impossible duration.
        Then only the metagraph is updated: the next block may have been recorded as a difference to it.
        """
        self._update_metagraph(event)
        if not is_applied:
            return
        number, total = event.number, sum(self._stakes.values())
        share = Fraction(self._stakes.get(self._chain.validator_ss58, 0), total) if total else Fraction(0)
        self._created_at_ns[number] = event.created_at_ns
        self._unfinalized[number] = share, self._members
        for block in (number - 1, number):
            if block in self._unfinalized and block + 1 in self._created_at_ns:
                self._finalize(position, block, *self._unfinalized.pop(block))
        if number > self._newest:
            self._newest = number
            if self._chain.metagraph.miners != self._miners:
                message = f"the fold has other registered miners than block {number}"
                self._report(position, message, block=number)

    def process_sync(self, position: int, event: ManifestsRecorded, *, is_applied: bool) -> None:
        """Apply a sync, and compare the invalidated blocks and the newest counts.

        `is_applied` is False if the replay left the sync out, because it is a repeat. Then only the manifests are
        updated: the next sync may have been recorded as a difference to it.
        """
        removed = set(event.absent)
        merged = {**self._manifests, **event.offered}
        self._manifests = {miner: counts for miner, counts in merged.items() if miner not in removed}
        if not is_applied:
            return
        block = event.block
        at = bisect_left(self._sync_blocks, block)
        if at:
            self._record_drops(block, self._syncs[self._sync_blocks[at - 1]], self._manifests)
        insort(self._sync_blocks, block)
        self._syncs[block] = self._manifests
        for account in self._chain.accounts.values():
            expected = self._invalidated_below.get((account.miner_ss58, account.executor_class), 0)
            if account.invalidated_below != expected:
                found = account.invalidated_below
                message = f"the fold invalidates the blocks below {found}, but the syncs those below {expected}"
                self._report(position, message, account, found=found, expected=expected)
        self._check_accounts(position)
        self._check_newest_counts(position)

    def finish(self, position: int) -> None:
        """Compare the sum of all blocks, and every account's count at every block with a unit above 0."""
        if self._units_ns:
            self._check_sum(position, 0, END, sum(self._units_ns.values()))
        no_manifests: Manifests = {}
        no_offers: dict[str, int] = {}
        spans = [
            (first, last, no_manifests if terms.sync_block is None else self._syncs[terms.sync_block], terms)
            for first, last, terms in self._spans()
        ]
        for account in self._chain.accounts.values():
            miner, executor_class = account.miner_ss58, account.executor_class
            starts, values = account.counts.starts, account.counts.values
            for first, last, manifests, terms in spans:
                offered = manifests.get(miner, no_offers).get(executor_class, 0) if miner in terms.members else 0
                expected = min(offered, terms.caps.get(executor_class, offered))
                # A fast test first: the values of the fold's steps that overlap the span. One of them may differ at
                # blocks that grant nothing, so a difference is only a suspicion, which is checked block by block.
                step = bisect_right(starts, first)
                steps = values[step - 1 : bisect_right(starts, last, step)]
                if steps.count(expected) != len(steps):
                    self._check_counts(position, account, first, last, expected)

    def _update_metagraph(self, event: BlockRecorded) -> None:
        if event.registered or event.deregistered:
            removed = set(event.deregistered)
            merged = {**self._miners, **event.registered}
            self._miners = {miner: axon for miner, axon in merged.items() if miner not in removed}
            self._members = frozenset(self._miners)
        if event.staked or event.unstaked:
            removed = set(event.unstaked)
            staked = {**self._stakes, **event.staked}
            self._stakes = {validator: stake for validator, stake in staked.items() if validator not in removed}

    def _finalize(self, position: int, block: int, share: Fraction, members: frozenset[str]) -> None:
        settings = self._settings
        duration_ns = self._created_at_ns[block + 1] - self._created_at_ns[block]
        counted_ns = settings.long_block_counts_as_ns if duration_ns > settings.long_block_ns else duration_ns
        unit_ns = int(counted_ns * Fraction(settings.allowance_multiplier) * share)
        found_ns = self._chain.blocks.unit_ns(block)
        if found_ns != unit_ns:
            message = f"the fold grants {found_ns} ns per executor for block {block}, but the facts grant {unit_ns} ns"
            self._report(position, message, block=block, found_ns=found_ns, expected_ns=unit_ns)
        if unit_ns:
            at = bisect_right(self._sync_blocks, block)
            sync_block = self._sync_blocks[at - 1] if at else None
            self._terms[block] = CountTerms(sync_block, settings.executors_max_per_class, members)
            self._units_ns[block] = unit_ns
        self._check_sum(position, block, block + 1, unit_ns)

    def _check_sum(self, position: int, start: int, end: int, expected_ns: int) -> None:
        """Compare the fold's prefix sums over the blocks of `[start, end)` with the expected sum."""
        found_ns = self._chain.blocks.sum_before_ns(end) - self._chain.blocks.sum_before_ns(start)
        if found_ns != expected_ns:
            which = "all blocks" if end == END else f"block {start}"
            message = f"the fold sums {found_ns} ns per executor for {which}, but the facts grant {expected_ns} ns"
            self._report(position, message, found_ns=found_ns, expected_ns=expected_ns)

    def _record_drops(self, block: int, before: Manifests, after: Manifests) -> None:
        """Invalidate the blocks below a sync for each miner and class whose count is lower than at the sync before.

        Both counts are capped by the settings of now, so settings that lower a cap cause no drop at the next sync.
        """
        for miner, counts in before.items():
            counts_after = after.get(miner, {})
            for executor_class, count in counts.items():
                count_after = self._capped(executor_class, counts_after.get(executor_class, 0))
                if count_after < self._capped(executor_class, count):
                    key = miner, executor_class
                    self._invalidated_below[key] = max(block, self._invalidated_below.get(key, 0))

    def _check_accounts(self, position: int) -> None:
        """Report what a sync offers without an account in the fold; all other comparisons go through its accounts."""
        for miner, counts in self._manifests.items():
            for executor_class, count in counts.items():
                if count and account_stream(miner, executor_class) not in self._chain.accounts:
                    message = "the fold has no account for executors that the sync offers"
                    self._report(position, message, Account(miner, executor_class))

    def _check_newest_counts(self, position: int) -> None:
        if not self._sync_blocks:
            return
        newest = self._syncs[self._sync_blocks[-1]]
        for account in self._chain.accounts.values():
            offered = newest.get(account.miner_ss58, {}).get(account.executor_class, 0)
            expected, found = self._capped(account.executor_class, offered), self._chain.newest_count(account)
            if found != expected:
                message = f"the fold counts {found} executors now, but the newest sync {expected}"
                self._report(position, message, account, found=found, expected=expected)

    def _spans(self) -> Iterator[tuple[int, int, CountTerms]]:
        """Yield consecutive granting blocks with equal terms as `(first, last, terms)`.

        Few blocks change the terms, so comparing spans instead of blocks makes the check of a long log affordable.
        """
        first = last = 0
        terms: CountTerms | None = None
        for block in sorted(self._terms):
            if self._terms[block] != terms:
                if terms is not None:
                    yield first, last, terms
                first, terms = block, self._terms[block]
            last = block
        if terms is not None:
            yield first, last, terms

    def _check_counts(self, position: int, account: Account, first: int, last: int, expected: int) -> None:
        """Report the span's first block with another count; counts of blocks that grant nothing do not matter."""
        blocks = sorted(self._terms)
        for block in blocks[bisect_left(blocks, first) : bisect_right(blocks, last)]:
            found = account.counts.at(block)
            if found != expected:
                message = f"the fold counts {found} executors at block {block}, but the facts {expected}"
                self._report(position, message, account, block=block, found=found, expected=expected)
                return

    def _capped(self, executor_class: str, count: int) -> int:
        return min(count, self._settings.executors_max_per_class.get(executor_class, count))

    def _report(self, position: int, message: str, account: Account | None = None, **details: object) -> None:
        whose = {} if account is None else {"miner_ss58": account.miner_ss58, "executor_class": account.executor_class}
        self._findings.add(position, Rule.GRANTS_FOLLOW, message, **whose, **details)
