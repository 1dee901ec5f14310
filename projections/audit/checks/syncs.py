"""The manifest syncs in force, in plain tables: what each miner offers from each sync on, and what drops invalidate.

The audit repeats these rules on purpose and shares no code with the fold `Chain`. A withdrawn sync is left out, and
everything is worked out again from the others, in the order in which they were recorded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

Manifests = dict[str, dict[str, int]]
Steps = list[tuple[int, int]]
"""A count as a function of the block: (first block, count)."""

NO_MANIFESTS: Manifests = {}
NO_COUNTS: dict[str, int] = {}


class PlainSync(NamedTuple):
    """A sync as recorded: its manifests, the known miners that it does not cover, and the caps of that moment."""

    block: int
    manifests: Manifests
    uncovered: frozenset[str]
    caps: dict[str, int]


class SyncTable:
    """The syncs in force."""

    def __init__(self) -> None:
        self.recorded: list[PlainSync] = []
        """In the order of recording."""
        self.blocks: list[int] = []
        """Ascending."""
        self.syncs: dict[int, PlainSync] = {}
        self.offers: dict[int, Manifests] = {}
        """By block of a sync: what each miner offers from there on. A miner that it does not cover keeps its offer."""
        self.invalidated_below: dict[tuple[str, str], int] = {}
        """By miner and class: the highest block of a drop."""

    @property
    def newest(self) -> Manifests:
        """What each miner offers according to all syncs."""
        return self.offers[self.blocks[-1]] if self.blocks else NO_MANIFESTS

    def offers_at(self, block: int) -> Manifests:
        """Return what each miner offers at a block."""
        at = bisect_right(self.blocks, block)
        return self.offers[self.blocks[at - 1]] if at else NO_MANIFESTS

    def record(self, sync: PlainSync) -> None:
        """Add a sync, compare it with the ones below, and let it count for later ones that do not cover a miner."""
        before = self.offers_at(sync.block)
        self._record_drops(sync, before)
        kept = {miner: before[miner] for miner in sync.uncovered if miner in before}
        offers = {**sync.manifests, **kept} if kept else sync.manifests
        at = bisect_left(self.blocks, sync.block)
        self.recorded.append(sync)
        self.blocks.insert(at, sync.block)
        self.syncs[sync.block] = sync
        # Mostly nothing has changed, and one object for all syncs saves the memory of each.
        self.offers[sync.block] = before if offers == before else offers
        if at + 1 < len(self.blocks):
            self._pass_on(at + 1, before, offers)

    def withdraw(self, block: int) -> None:
        """Work everything out again without one sync."""
        remaining = [each for each in self.recorded if each.block != block]
        self.recorded, self.blocks, self.syncs, self.offers, self.invalidated_below = [], [], {}, {}, {}
        for sync in remaining:
            self.record(sync)

    def steps(self) -> dict[tuple[str, str], Steps]:
        """Return what each miner offers of each class, as a function of the block; without those that offer none."""
        steps: dict[tuple[str, str], Steps] = {}
        before = NO_MANIFESTS
        for block in self.blocks:
            offers = self.offers[block]
            if offers is not before:
                for miner in before.keys() | offers.keys():
                    if offers.get(miner) is not before.get(miner):
                        _add_steps(steps, block, miner, before.get(miner, NO_COUNTS), offers.get(miner, NO_COUNTS))
            before = offers
        return steps

    def _record_drops(self, sync: PlainSync, before: Manifests) -> None:
        """Invalidate the blocks below a sync for each covered miner and class whose count is lower than before.

        Both counts are capped by the settings of now, so settings that lower a cap cause no drop at the next sync.
        """
        for miner, counts in before.items():
            if miner in sync.uncovered:
                continue
            after = sync.manifests.get(miner, NO_COUNTS)
            for executor_class, count in counts.items():
                cap = sync.caps.get(executor_class, count)
                if min(after.get(executor_class, 0), cap) < min(count, cap):
                    key = miner, executor_class
                    self.invalidated_below[key] = max(sync.block, self.invalidated_below.get(key, 0))

    def _pass_on(self, at: int, before: Manifests, offers: Manifests) -> None:
        """Let a late sync count at the later ones, for each miner up to the first of them that covers it."""
        miners = before.keys() | offers.keys()
        changed = {each for each in miners if before.get(each, NO_COUNTS) != offers.get(each, NO_COUNTS)}
        for block in self.blocks[at:]:
            changed &= self.syncs[block].uncovered
            if not changed:
                return
            # A new object: finalized blocks refer to the old one.
            passed_on = {miner: offers.get(miner, NO_COUNTS) for miner in changed}
            self.offers[block] = {**self.offers[block], **passed_on}


def _add_steps(
    steps: dict[tuple[str, str], Steps], block: int, miner: str, before: dict[str, int], after: dict[str, int]
) -> None:
    for executor_class in before.keys() | after.keys():
        count = after.get(executor_class, 0)
        if count != before.get(executor_class, 0):
            steps.setdefault((miner, executor_class), [(0, 0)]).append((block, count))
