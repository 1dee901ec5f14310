"""What the chain's facts come to, worked out a second time and plainly, beside the fold that the ledger lives by.

The fold keeps running sums and touches only what a fact changes. Here every grant is what the definitions say, and
where the two differ, the fold is wrong: then everything that was decided on it may be.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from ledger import END, Account, Chain, RecordedSettings
from ledger.events import Axon, BlockRecorded, ManifestsRecorded
from projections.rules import Findings, Rule

Manifests = dict[str, dict[str, int]]


class CountTerms(NamedTuple):
    """What a block's counts were settled by, as it was finalized: a sync, the caps, and who was registered."""

    manifests_at: int | None
    caps: dict[str, int]
    members: frozenset[str]


class GrantCheck:
    """Follows the facts, and compares what they come to with the fold."""

    def __init__(self, chain: Chain, findings: Findings) -> None:
        self._chain = chain
        self._findings = findings
        self._settings = RecordedSettings()
        self._miners: dict[str, Axon] = {}
        self._members: frozenset[str] = frozenset()
        self._stakes: dict[str, int] = {}
        self._newest = 0
        self._created_at_ns: dict[int, int] = {}
        self._waiting: dict[int, tuple[Fraction, frozenset[str]]] = {}
        """Blocks whose end is unknown: our share of the stake, and who was registered."""
        self._terms: dict[int, CountTerms] = {}
        """Of the blocks that grant anything."""
        self._units_ns: dict[int, int] = {}
        """What the same blocks grant an executor."""
        self._manifests: Manifests = {}
        self._syncs: dict[int, Manifests] = {}
        self._sync_blocks: list[int] = []
        self._floors: dict[tuple[str, str], int] = {}

    def take_settings(self, position: int, settings: RecordedSettings) -> None:
        """Other settings apply from here on."""
        self._settings = settings
        self._check_counts_now(position)

    def take_block(self, position: int, event: BlockRecorded, *, is_new: bool) -> None:
        """A block became known; one that was known before only changes what the next one is a difference to."""
        self._patch(event)
        if not is_new:
            return
        number, total = event.number, sum(self._stakes.values())
        share = Fraction(self._stakes.get(self._chain.validator_ss58, 0), total) if total else Fraction(0)
        self._created_at_ns[number] = event.created_at_ns
        self._waiting[number] = share, self._members
        for block in (number - 1, number):
            if block in self._waiting and block + 1 in self._created_at_ns:
                self._finalize(position, block, *self._waiting.pop(block))
        if number > self._newest:
            self._newest = number
            if self._chain.metagraph.miners != self._miners:
                self._note(position, f"other miners than block {number} tells of are registered", block=number)

    def take_sync(self, position: int, event: ManifestsRecorded, *, is_new: bool) -> None:
        """A sync became known; one that was known before only changes what the next one is a difference to."""
        gone = set(event.absent)
        merged = {**self._manifests, **event.offered}
        self._manifests = {miner: counts for miner, counts in merged.items() if miner not in gone}
        if not is_new:
            return
        block = event.block
        at = bisect_left(self._sync_blocks, block)
        if at:
            self._drop(block, self._syncs[self._sync_blocks[at - 1]], self._manifests)
        insort(self._sync_blocks, block)
        self._syncs[block] = self._manifests
        for account in self._chain.accounts.values():
            expected = self._floors.get((account.miner_ss58, account.executor_class), 0)
            if account.invalidated_below != expected:
                message = (
                    f"blocks below {account.invalidated_below} are invalidated, while the drops say below {expected}"
                )
                self._note(position, message, account, found=account.invalidated_below, expected=expected)
        self._check_counts_now(position)

    def end(self, position: int) -> None:
        """Compares every account's counts, block by block, where they may differ."""
        if self._units_ns:
            self._check_sum(position, 0, END, sum(self._units_ns.values()))
        nobody: Manifests = {}
        nothing: dict[str, int] = {}
        spans = [
            (first, last, nobody if terms.manifests_at is None else self._syncs[terms.manifests_at], terms)
            for first, last, terms in self._spans()
        ]
        for account in self._chain.accounts.values():
            miner, executor_class = account.miner_ss58, account.executor_class
            starts, values = account.counts.starts, account.counts.values
            for first, last, manifests, terms in spans:
                offered = manifests.get(miner, nothing).get(executor_class, 0) if miner in terms.members else 0
                expected = min(offered, terms.caps.get(executor_class, offered))
                step = bisect_right(starts, first)
                steps = values[step - 1 : bisect_right(starts, last, step)]
                if steps.count(expected) != len(steps):
                    self._check_counts(position, account, first, last, expected)

    def _patch(self, event: BlockRecorded) -> None:
        if event.registered or event.deregistered:
            gone = set(event.deregistered)
            merged = {**self._miners, **event.registered}
            self._miners = {miner: axon for miner, axon in merged.items() if miner not in gone}
            self._members = frozenset(self._miners)
        if event.staked or event.unstaked:
            gone = set(event.unstaked)
            staked = {**self._stakes, **event.staked}
            self._stakes = {validator: stake for validator, stake in staked.items() if validator not in gone}

    def _finalize(self, position: int, block: int, share: Fraction, members: frozenset[str]) -> None:
        settings = self._settings
        duration_ns = self._created_at_ns[block + 1] - self._created_at_ns[block]
        counted_ns = settings.long_block_counts_as_ns if duration_ns > settings.long_block_ns else duration_ns
        unit_ns = int(counted_ns * Fraction(settings.allowance_multiplier) * share)
        found_ns = self._chain.blocks.unit_ns(block)
        if found_ns != unit_ns:
            message = f"block {block} grants {found_ns} ns an executor, while the facts say {unit_ns} ns"
            self._note(position, message, block=block, found_ns=found_ns, expected_ns=unit_ns)
        if unit_ns:
            at = bisect_right(self._sync_blocks, block)
            synced_at = self._sync_blocks[at - 1] if at else None
            self._terms[block] = CountTerms(synced_at, settings.executors_max_per_class, members)
            self._units_ns[block] = unit_ns
        self._check_sum(position, block, block + 1, unit_ns)

    def _check_sum(self, position: int, start: int, end: int, expected_ns: int) -> None:
        """Compares what the fold's running sums make of the blocks of `[start, end)`."""
        found_ns = self._chain.blocks.sum_before_ns(end) - self._chain.blocks.sum_before_ns(start)
        if found_ns != expected_ns:
            which = "all blocks add up" if end == END else f"block {start} adds"
            message = f"{which} to {found_ns} ns an executor, while the facts say {expected_ns} ns"
            self._note(position, message, found_ns=found_ns, expected_ns=expected_ns)

    def _drop(self, block: int, before: Manifests, after: Manifests) -> None:
        for miner, counts in before.items():
            counts_after = after.get(miner, {})
            for executor_class, count in counts.items():
                if self._capped(executor_class, counts_after.get(executor_class, 0)) < self._capped(
                    executor_class, count
                ):
                    key = miner, executor_class
                    self._floors[key] = max(block, self._floors.get(key, 0))

    def _check_counts_now(self, position: int) -> None:
        if not self._sync_blocks:
            return
        newest = self._syncs[self._sync_blocks[-1]]
        for account in self._chain.accounts.values():
            offered = newest.get(account.miner_ss58, {}).get(account.executor_class, 0)
            expected, found = self._capped(account.executor_class, offered), self._chain.newest_count(account)
            if found != expected:
                message = f"{found} executors count now, while the newest sync says {expected}"
                self._note(position, message, account, found=found, expected=expected)

    def _spans(self) -> Iterator[tuple[int, int, CountTerms]]:
        """Granting blocks under the same terms that follow one another: the first, the last, the terms."""
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
        """Names the first block of a span that counts otherwise; where none grants, a count says nothing."""
        blocks = sorted(self._terms)
        for block in blocks[bisect_left(blocks, first) : bisect_right(blocks, last)]:
            found = account.counts.at(block)
            if found != expected:
                message = f"block {block} counts {found} executors, while the facts say {expected}"
                self._note(position, message, account, block=block, found=found, expected=expected)
                return

    def _capped(self, executor_class: str, count: int) -> int:
        return min(count, self._settings.executors_max_per_class.get(executor_class, count))

    def _note(self, position: int, message: str, account: Account | None = None, **details: object) -> None:
        whose = {} if account is None else {"miner_ss58": account.miner_ss58, "executor_class": account.executor_class}
        self._findings.add(position, Rule.GRANTS_FOLLOW, message, **whose, **details)
