"""Grants and invalidations, computed a second time from the facts and compared with the fold `Chain`.

The audit repeats these rules on purpose. The fold keeps prefix sums and updates only what a fact changes; this module
follows the definitions, block by block, and shares no code with it. If both differ, one of them is wrong; if it is the
fold, every decision on it may be wrong too.

The other checks use the fold, not the tables of this module. They need sums and counts at every event, which the fold
has at hand, while these tables would have to be summed block by block. If both agree, a check has the same result with
either; if not, one finding names the block, instead of one for each decision that used it.

Known limits:

- Logs of earlier releases do not say whom a sync covers. So the coverage of syncs is checked only from the first event
  that shows a newer release (`Replay`).
- The counts at finalized blocks are compared once, at the end, because comparing all of them after each event would
  take too long. A count that the fold had wrong for a while and then corrected is missed.

Rules (source: ComputeHorde's validator; for facts that arrive late, and for changed caps, this project's own rules):

- A block is finalized once the next block is known, and keeps its amounts from then on.
- A finalized block grants `floor(duration * multiplier * share of the stake)` ns per executor. A block that is longer
  than a limit (12.5 s by default) counts as a fixed duration (12.0 s by default).
- The count of a miner that is registered at the block is that of the sync at the highest block that is not above it
  and covers the miner, among the syncs that were recorded when the block was finalized; capped as configured at that
  moment. The count of a miner that is not registered is 0.
- A sync covers the miners that it names, and those registered at the newest recorded block that is not above it; all if
  there is none. Logs of earlier releases do not say whom a sync covers; it then covers all.
- A drop: if a sync counts fewer executors of a miner and class than the next lower sync that covers the miner, all
  blocks below the sync are invalidated. Both counts are capped as configured when the sync is recorded. A late sync is
  compared with those below it only; the sync above it is not compared again. A lowered cap is no drop.
- A withdrawn block or sync counts as never recorded. A finalized block keeps its amounts, unless it or its successor is
  withdrawn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, TypeVar

from ledger import END, Account, Chain, RecordedSettings
from ledger.events import Axon, BlockRecorded, BlockWithdrawn, ManifestsRecorded, ManifestsWithdrawn, account_stream
from projections.rules import Findings, Rule

from .syncs import NO_COUNTS, NO_MANIFESTS, Manifests, PlainSync, Steps, SyncTable

V = TypeVar("V")


class Graph(NamedTuple):
    """A metagraph, and the validator's share of the stake in it."""

    miners: dict[str, Axon]
    stakes: dict[str, int]
    members: frozenset[str]
    share: Fraction


NO_GRAPH = Graph({}, {}, frozenset(), Fraction(0))


class CountTerms(NamedTuple):
    """Everything that determines a block's executor counts, fixed when it was finalized.

    It is the audit's own counterpart of `CountInputs` in the fold. `BlockTerms` in `projections/grants.py` is about
    something else: the settings that determine what a block's duration is worth.
    """

    offers: Manifests
    caps: dict[str, int]
    members: frozenset[str]


class GrantCheck:
    """Applies the facts to plain tables and compares the fold with them. Call it after the fold has applied a fact."""

    def __init__(self, chain: Chain, findings: Findings) -> None:
        self._chain = chain
        self._findings = findings
        self._settings = RecordedSettings()
        self._graph = NO_GRAPH
        """That of the last event that has a metagraph."""
        self._blocks: dict[int, tuple[int, Graph]] = {}
        """The creation time and metagraph of each recorded block."""
        self._hashes: dict[int, str] = {}
        """The hash of each recorded block that has one."""
        self._numbers: list[int] = []
        """The recorded blocks, ascending."""
        self._terms: dict[int, CountTerms] = {}
        """Of the finalized blocks with a unit above 0."""
        self._units_ns: dict[int, int] = {}
        """What the same blocks grant per executor."""
        self._manifests: Manifests = {}
        """Those of the last event that has manifests."""
        self._uncovered: frozenset[str] = frozenset()
        """The known miners that the sync recorded last does not cover."""
        self._known: set[str] = set()
        """The miners that a block has registered or a sync has named."""
        self.says_coverage = False
        """Whether a sync has said whom it does not cover; from then on every sync must."""
        self._syncs = SyncTable()

    def process_settings(self, position: int, settings: RecordedSettings) -> None:
        """Apply settings, and compare the newest counts, because the caps may have changed."""
        self._settings = settings
        self._check_newest_counts(position)

    def process_block(self, position: int, event: BlockRecorded, *, is_applied: bool) -> None:
        """Apply a block, and compare what it has finalized.

        `is_applied` is False if the replay left the block out, because it is a repeat or has an impossible duration.
        Then only the metagraph is updated: the next block may have been recorded as a difference to it.
        """
        graph_before, self._graph = self._graph, self._changed_graph(event)
        if self._graph is not graph_before:
            self._known |= self._graph.members
        if not is_applied:
            return
        number = event.number
        self._blocks[number] = event.created_at_ns, self._graph
        if event.block_hash:
            self._hashes[number] = event.block_hash
        insort(self._numbers, number)
        for block in (number - 1, number):
            if block in self._blocks and block + 1 in self._blocks:
                self._finalize(position, block)
        if number == self._numbers[-1]:
            self._check_newest_miners(position)

    def process_sync(self, position: int, event: ManifestsRecorded, *, is_applied: bool) -> None:
        """Apply a sync, and compare whom it covers, the invalidated blocks and the newest counts.

        `is_applied` is False if the replay left the sync out, because it is a repeat. Then only the manifests are
        updated: the next sync may have been recorded as a difference to it.
        """
        if event.offered or event.absent:
            self._manifests = _changed(self._manifests, event.offered, event.absent)
        before = self._uncovered
        self._uncovered = before.union(event.uncovered).difference(event.covered)
        if is_applied:
            self._check_coverage(position, event, before)
            caps = self._settings.executors_max_per_class
            self._syncs.record(PlainSync(event.block, self._manifests, self._uncovered, caps))
        self._known.update(self._manifests)
        if is_applied:
            self._check_accounts(position)
            self._check_invalidated(position)
            self._check_newest_counts(position)

    def block_withdrawal(self, event: BlockWithdrawn) -> BlockWithdrawn | None:
        """Return the event as it must be; None if the block is not recorded."""
        number = event.number
        if number not in self._blocks:
            return None
        returns_to = self._returns_to(number)
        if not returns_to:
            return BlockWithdrawn(number, event.reason)
        last, graph = self._graph, self._blocks[returns_to][1]
        fields = *_difference(last.miners, graph.miners), *_difference(last.stakes, graph.stakes)
        return BlockWithdrawn(number, event.reason, returns_to, *fields)

    def withdraw_block(self, position: int, event: BlockWithdrawn) -> None:
        """Apply a withdrawal that is as it must be."""
        number = event.number
        self._graph = self._blocks[event.returns_to][1] if event.returns_to else NO_GRAPH
        del self._blocks[number], self._numbers[bisect_left(self._numbers, number)]
        self._hashes.pop(number, None)
        for block in (number - 1, number):
            self._terms.pop(block, None)
            self._units_ns.pop(block, None)
            self._check_sum(position, block, block + 1, 0)
        self._check_newest_miners(position)

    def manifests_withdrawal(self, event: ManifestsWithdrawn) -> ManifestsWithdrawn | None:
        """Return the event as it must be, and leave the sync out from here on; None if it is not recorded."""
        if event.block not in self._syncs.syncs:
            return None
        self._syncs.withdraw(event.block)
        remaining = self._syncs.syncs[self._syncs.blocks[-1]].manifests if self._syncs.blocks else NO_MANIFESTS
        offered, absent = _difference(self._manifests, remaining)
        self._manifests = remaining
        steps = self._syncs.steps()
        counts: dict[str, Steps] = {}
        invalidated_below: dict[str, int] = {}
        for stream, account in sorted(self._chain.accounts.items()):
            key = account.miner_ss58, account.executor_class
            expected = steps.get(key, [(0, 0)])
            if expected != list(zip(account.offered.starts, account.offered.values, strict=True)):
                counts[stream] = expected
            below = self._syncs.invalidated_below.get(key, 0)
            if below != account.invalidated_below:
                invalidated_below[stream] = below
        return ManifestsWithdrawn(event.block, event.reason, offered, absent, counts, invalidated_below)

    def check_after_withdrawal(self, position: int) -> None:
        """Compare the fold with the syncs that remain, once it has applied the withdrawal of one."""
        self._check_invalidated(position)
        self._check_newest_counts(position)

    def finish(self, position: int) -> None:
        """Compare the sum of all blocks, and every account's count at every block with a unit above 0."""
        if self._units_ns:
            self._check_sum(position, 0, END, sum(self._units_ns.values()))
        spans = list(self._spans())
        for account in self._chain.accounts.values():
            miner, executor_class = account.miner_ss58, account.executor_class
            starts, values = account.counts.starts, account.counts.values
            for first, last, terms in spans:
                offered = terms.offers.get(miner, NO_COUNTS).get(executor_class, 0) if miner in terms.members else 0
                expected = min(offered, terms.caps.get(executor_class, offered))
                # A fast test first: the values of the fold's steps that overlap the span. One of them may differ at
                # blocks that grant nothing, so a difference is only a suspicion, which is checked block by block.
                step = bisect_right(starts, first)
                steps = values[step - 1 : bisect_right(starts, last, step)]
                if steps.count(expected) != len(steps):
                    self._check_counts(position, account, first, last, expected)

    def _changed_graph(self, event: BlockRecorded) -> Graph:
        if not (event.registered or event.deregistered or event.staked or event.unstaked):
            return self._graph
        miners = _changed(self._graph.miners, event.registered, event.deregistered)
        stakes = _changed(self._graph.stakes, event.staked, event.unstaked)
        total = sum(stakes.values())
        share = Fraction(stakes.get(self._chain.validator_ss58, 0), total) if total else Fraction(0)
        return Graph(miners, stakes, frozenset(miners), share)

    def _returns_to(self, number: int) -> int:
        """Return the block whose metagraph a withdrawal must carry: the predecessor, else the newest that remains.

        0 if no block remains.
        """
        if number - 1 in self._blocks:
            return number - 1
        remaining = self._numbers if number != self._numbers[-1] else self._numbers[:-1]
        return remaining[-1] if remaining else 0

    def _finalize(self, position: int, block: int) -> None:
        settings, (created_at_ns, graph) = self._settings, self._blocks[block]
        duration_ns = self._blocks[block + 1][0] - created_at_ns
        counted_ns = settings.long_block_counts_as_ns if duration_ns > settings.long_block_ns else duration_ns
        unit_ns = int(counted_ns * _multiplier(settings.allowance_multiplier) * graph.share)
        found_ns = self._chain.blocks.unit_ns(block)
        if found_ns != unit_ns:
            message = f"the fold grants {found_ns} ns per executor for block {block}, but the facts grant {unit_ns} ns"
            self._report(position, message, block=block, found_ns=found_ns, expected_ns=unit_ns)
        if unit_ns:
            offers = self._syncs.offers_at(block)
            self._terms[block] = CountTerms(offers, settings.executors_max_per_class, graph.members)
            self._units_ns[block] = unit_ns
        self._check_sum(position, block, block + 1, unit_ns)

    def _check_newest_miners(self, position: int) -> None:
        newest = self._numbers[-1] if self._numbers else 0
        miners = self._blocks[newest][1].miners if newest else {}
        if self._chain.metagraph.miners != miners or self._chain.blocks.newest != newest:
            message = f"the fold has other registered miners than block {newest}"
            self._report(position, message, block=newest)
        found, expected = self._chain.blocks.block_hash(newest).hex(), self._hashes.get(newest, "")
        if found != expected:
            message = f"the fold has another hash than block {newest}"
            self._report(position, message, block=newest, found=found, expected=expected)

    def _check_coverage(self, position: int, event: ManifestsRecorded, before: frozenset[str]) -> None:
        self.says_coverage |= bool(event.uncovered or event.covered)
        if not self.says_coverage:
            return
        at = bisect_right(self._numbers, event.block)
        expected: set[str] = set()
        if at:
            expected = self._known - self._blocks[self._numbers[at - 1]][1].members - self._manifests.keys()
        uncovered, covered = sorted(expected - before), sorted(before - expected)
        if (event.uncovered, event.covered) != (uncovered, covered):
            message = f"the sync at block {event.block} covers other miners than it names and than are registered"
            details = {"uncovered": event.uncovered, "covered": event.covered}
            expectation = {"expected_uncovered": uncovered, "expected_covered": covered}
            self._findings.add(position, Rule.COVERAGE_FOLLOWS, message, **details, **expectation)

    def _check_invalidated(self, position: int) -> None:
        for account in self._chain.accounts.values():
            expected = self._syncs.invalidated_below.get((account.miner_ss58, account.executor_class), 0)
            if account.invalidated_below != expected:
                found = account.invalidated_below
                message = f"the fold invalidates the blocks below {found}, but the syncs those below {expected}"
                self._report(position, message, account, found=found, expected=expected)

    def _check_sum(self, position: int, start: int, end: int, expected_ns: int) -> None:
        """Compare the fold's prefix sums over the blocks of `[start, end)` with the expected sum."""
        found_ns = self._chain.blocks.sum_before_ns(end) - self._chain.blocks.sum_before_ns(start)
        if found_ns != expected_ns:
            which = "all blocks" if end == END else f"block {start}"
            message = f"the fold sums {found_ns} ns per executor for {which}, but the facts grant {expected_ns} ns"
            self._report(position, message, found_ns=found_ns, expected_ns=expected_ns)

    def _check_accounts(self, position: int) -> None:
        """Report what a sync offers without an account in the fold; all other comparisons go through its accounts."""
        for miner, counts in self._manifests.items():
            for executor_class, count in counts.items():
                if count and account_stream(miner, executor_class) not in self._chain.accounts:
                    message = "the fold has no account for executors that the sync offers"
                    self._report(position, message, Account(miner, executor_class))

    def _check_newest_counts(self, position: int) -> None:
        newest = self._syncs.newest
        for account in self._chain.accounts.values():
            offered = newest.get(account.miner_ss58, NO_COUNTS).get(account.executor_class, 0)
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


@lru_cache(maxsize=1)
def _multiplier(recorded: str) -> Fraction:
    """Return a recorded multiplier as a number; few settings follow each other, and each holds for many blocks."""
    return Fraction(recorded)


def _changed(last: Mapping[str, V], changed: Mapping[str, V], removed: list[str]) -> dict[str, V]:
    """Return the mapping after the differences of an event."""
    gone = set(removed)
    return {name: value for name, value in {**last, **changed}.items() if name not in gone}


def _difference(last: Mapping[str, V], given: Mapping[str, V]) -> tuple[dict[str, V], list[str]]:
    """Return the new or changed entries, and the names of those that are gone, by name."""
    changed = {name: value for name, value in sorted(given.items()) if last.get(name) != value}
    return changed, sorted(last.keys() - given.keys())
