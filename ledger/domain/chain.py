"""What the chain said: blocks, metagraphs, manifest syncs; and what follows from it for every account.

Pure: a fold of the facts. Two functions decide (`decide_block`, `decide_manifests`), two evolve (`apply_block`,
`apply_manifests`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import msgspec

from ledger.errors import ConflictingFact, ImplausibleFact
from ledger.events import Axon, BlockRecorded, ManifestsRecorded
from ledger.settings import RecordedSettings
from ledger.values import instant

from .account import Account
from .block_table import BlockTable
from .blocks import END

V = TypeVar("V")

PLAUSIBLE_LEAP_BLOCKS = 100_000
PLAUSIBLE_SHRINKAGE = 10
"""A sync with less than this fraction (a tenth) of the executors before it is taken for a failed poll."""

_canonical = msgspec.json.Encoder(order="deterministic")


class Metagraph:
    """Registered miners with their axons, and validators' stakes in billionths; never changed once made."""

    __slots__ = ("digest", "members", "miners", "stakes", "total_stake")

    def __init__(self, miners: dict[str, Axon], stakes: dict[str, int]) -> None:
        self.miners = miners
        self.stakes = stakes
        self.members = frozenset(miners)
        self.total_stake = sum(stakes.values())
        self.digest = blake2b(_canonical.encode((miners, stakes)), digest_size=16).digest()


class RecordedSync(NamedTuple):
    """A recorded manifest sync: where it stands, what it said, how many executors it added up to."""

    position: int
    digest: bytes
    executors: int


class CountInputs(NamedTuple):
    """What a block's counts are made of; equal plans give every account equal counts."""

    sync_block: int
    caps: tuple[tuple[str, int], ...]
    members: frozenset[str]


_EMPTY_METAGRAPH = Metagraph({}, {})


class Chain:
    """The chain's facts so far, and the accounts that they grant allowance to.

    `revision` moves whenever availability may have moved for more accounts than one.
    """

    def __init__(self) -> None:
        self.validator_ss58 = ""
        self.settings = RecordedSettings()
        self.multiplier = Fraction(1)
        self.revision = 0
        self.blocks = BlockTable()
        self.metagraph = _EMPTY_METAGRAPH
        """As at the newest block."""
        self.last_metagraph = _EMPTY_METAGRAPH
        """As told by the block recorded last, to which the next one is told as a difference."""
        self.unfinalized: dict[int, tuple[int, int, frozenset[str]]] = {}
        """Known blocks without a known successor: own stake, total stake, registered miners."""
        self.sync_blocks: list[int] = []
        self.syncs: dict[int, RecordedSync] = {}
        self.manifests: dict[str, dict[str, int]] = {}
        """As given by the sync at the highest block."""
        self.last_manifests: dict[str, dict[str, int]] = {}
        """As given by the sync recorded last, to which the next one is told as a difference."""
        self.classes: dict[str, dict[str, Account]] = {}
        self.accounts: dict[str, Account] = {}
        self._by_miner: dict[str, list[Account]] = {}
        self.oldest_inputs: CountInputs | None = None
        self.newest_inputs: CountInputs | None = None

    def open_account(self, miner_ss58: str, executor_class: str) -> Account:
        """A new account, with nothing in it."""
        account = Account(miner_ss58, executor_class)
        self.accounts[account.stream] = account
        self.classes.setdefault(executor_class, {})[miner_ss58] = account
        self._by_miner.setdefault(miner_ss58, []).append(account)
        return account

    def newest_count(self, account: Account) -> int:
        """The account's executors by the newest sync, capped."""
        if not self.sync_blocks:
            return 0
        return self._capped(account, account.offered.values[-1])

    def apply_settings(self, settings: RecordedSettings) -> None:
        """From here on these settings apply; what is finalized keeps its amounts."""
        self.settings = settings
        self.multiplier = Fraction(settings.allowance_multiplier)
        self.revision += 1

    def apply_block(self, position: int, event: BlockRecorded) -> None:
        """Makes the block known and finalizes what it completes."""
        metagraph = self._metagraph_after(event)
        self.last_metagraph = metagraph
        number = event.number
        if number > self.blocks.newest:
            self.metagraph = metagraph
        self.blocks.add(number, event.created_at_ns, position, block_digest(event.created_at_ns, metagraph))
        own_stake = metagraph.stakes.get(self.validator_ss58, 0)
        self.unfinalized[number] = (own_stake, metagraph.total_stake, metagraph.members)
        for candidate in (number - 1, number):
            if candidate in self.unfinalized and candidate + 1 in self.blocks:
                self._finalize(candidate)
        self.revision += 1

    def apply_manifests(self, position: int, event: ManifestsRecorded) -> None:
        """Takes the sync's counts, and invalidates what a drop takes away."""
        manifests = manifests_after(self.last_manifests, event)
        self.last_manifests = manifests
        block = event.block
        at = bisect_left(self.sync_blocks, block)
        end = self.sync_blocks[at] if at < len(self.sync_blocks) else END
        if end == END:
            self.manifests = manifests
        self._open_accounts(manifests)
        for account in self.accounts.values():
            count = manifests.get(account.miner_ss58, {}).get(account.executor_class, 0)
            # What the sync before this one offered still holds at this block.
            count_before = account.offered.at(block)
            if count == count_before:
                continue
            if count < count_before and self._capped(account, count) < self._capped(account, count_before):
                self.drop(account, block)
            account.offered.assign(block, end, count)
        self.sync_blocks.insert(at, block)
        self.syncs[block] = RecordedSync(position, manifests_digest(manifests), executors(manifests))
        self.revision += 1

    def drop(self, account: Account, block: int) -> None:
        """Invalidates the account's blocks below this one; who needs each drop, not only the highest, extends it."""
        account.invalidated_below = max(account.invalidated_below, block)

    def _metagraph_after(self, event: BlockRecorded) -> Metagraph:
        last = self.last_metagraph
        if not (event.registered or event.deregistered or event.staked or event.unstaked):
            return last
        miners, stakes = last.miners, last.stakes
        if event.registered or event.deregistered:
            miners = _patched(miners, event.registered, event.deregistered)
        if event.staked or event.unstaked:
            stakes = _patched(stakes, event.staked, event.unstaked)
        return Metagraph(miners, stakes)

    def _open_accounts(self, manifests: Mapping[str, Mapping[str, int]]) -> None:
        for miner_ss58, counts in manifests.items():
            for executor_class, count in counts.items():
                accounts = self.classes.get(executor_class)
                if count and (accounts is None or miner_ss58 not in accounts):
                    self.open_account(miner_ss58, executor_class)

    def _finalize(self, block: int) -> None:
        """Fixes what the block grants, to everybody and for good."""
        own_stake, total_stake, members = self.unfinalized.pop(block)
        duration_ns = self.blocks.created_at_ns(block + 1) - self.blocks.created_at_ns(block)
        if duration_ns > self.settings.long_block_ns:
            duration_ns = self.settings.long_block_counts_as_ns
        numerator = duration_ns * self.multiplier.numerator * own_stake
        denominator = self.multiplier.denominator * total_stake
        at = bisect_right(self.sync_blocks, block)
        sync_block = self.sync_blocks[at - 1] if at else -1
        plan = CountInputs(sync_block, tuple(self.settings.executors_max_per_class.items()), members)
        self._fix_counts(block, plan)
        self.blocks.finalize(block, numerator // denominator if total_stake else 0)

    def _fix_counts(self, block: int, plan: CountInputs) -> None:
        """Sets each account's count at the block.

        Beyond the finalized blocks a count holds until it changes, so that a block which changes nothing costs
        nothing; between them it is set for this block alone.
        """
        blocks = self.blocks
        known: CountInputs | None = None
        start, end = block, block + 1
        if not blocks.last_finalized:
            start, end = 0, END
            self.oldest_inputs = self.newest_inputs = plan
        elif block > blocks.last_finalized:
            known, self.newest_inputs, end = self.newest_inputs, plan, END
        elif block < blocks.first_finalized:
            known, self.oldest_inputs, start = self.oldest_inputs, plan, 0
        if known == plan:
            return
        for account in self._concerned(known, plan):
            registered = plan.sync_block >= 0 and account.miner_ss58 in plan.members
            count = self._capped(account, account.offered.at(plan.sync_block)) if registered else 0
            if account.counts.at(block) != count:
                account.counts.assign(start, end, count)

    def _concerned(self, known: CountInputs | None, plan: CountInputs) -> Iterable[Account]:
        """The accounts whose counts may differ between two plans."""
        if known is None or known[:2] != plan[:2]:
            return self.accounts.values()
        moved = known.members ^ plan.members
        return (account for miner_ss58 in sorted(moved) for account in self._by_miner.get(miner_ss58, ()))

    def _capped(self, account: Account, count: int) -> int:
        cap = self.settings.executors_max_per_class.get(account.executor_class)
        return count if cap is None or count < cap else cap


def decide_block(
    chain: Chain, number: int, created_at_ns: int, metagraph: Metagraph, confirm: bool
) -> BlockRecorded | int:
    """The event that records a block, or the position that recorded the same before; refusals raise."""
    blocks = chain.blocks
    fact = f"block {number}"
    if number in blocks:
        if blocks.digest(number) == block_digest(created_at_ns, metagraph):
            return blocks.position(number)
        raise ConflictingFact(fact, blocks.position(number), {})  # The log is asked for the differences.
    if blocks.newest and number > blocks.newest + PLAUSIBLE_LEAP_BLOCKS and not confirm:
        raise ImplausibleFact(fact, f"it is {number - blocks.newest} blocks beyond the newest, {blocks.newest}")
    for neighbour, sign in ((number - 1, 1), (number + 1, -1)):
        neighbour_ns = blocks.created_at_ns(neighbour)
        if neighbour_ns >= 0 and sign * (created_at_ns - neighbour_ns) <= 0:
            order = "not after" if sign > 0 else "not before"
            raise ConflictingFact(
                fact,
                blocks.position(neighbour),
                {"created_at": f"{instant(created_at_ns)} is {order} block {neighbour}'s {instant(neighbour_ns)}"},
            )
    last = chain.last_metagraph
    if metagraph.digest == last.digest:
        return BlockRecorded(number, created_at_ns)
    registered, deregistered = _difference(last.miners, metagraph.miners)
    staked, unstaked = _difference(last.stakes, metagraph.stakes)
    return BlockRecorded(number, created_at_ns, registered, deregistered, staked, unstaked)


def decide_manifests(
    chain: Chain, block: int, manifests: dict[str, dict[str, int]], confirm: bool
) -> ManifestsRecorded | int:
    """The event that records a sync, or the position that recorded the same before; refusals raise."""
    fact = f"the manifest sync at block {block}"
    known = chain.syncs.get(block)
    if known is not None:
        if known.digest == manifests_digest(manifests):
            return known.position
        raise ConflictingFact(fact, known.position, {})
    at = bisect_left(chain.sync_blocks, block)
    before = chain.syncs[chain.sync_blocks[at - 1]].executors if at else 0
    offered = executors(manifests)
    if offered * PLAUSIBLE_SHRINKAGE < before and not confirm:
        raise ImplausibleFact(fact, f"it adds up to {offered} executors, less than a tenth of the {before} before")
    changed, absent = _difference(chain.last_manifests, manifests)
    return ManifestsRecorded(block, changed, absent)


def manifests_after(last: dict[str, dict[str, int]], event: ManifestsRecorded) -> dict[str, dict[str, int]]:
    """The sync's manifests, given those of the sync recorded before it."""
    if not (event.offered or event.absent):
        return last
    return _patched(last, event.offered, event.absent)


def block_digest(created_at_ns: int, metagraph: Metagraph) -> bytes:
    """Sixteen bytes that tell one block's content from another's, whatever the order of its miners."""
    return blake2b(metagraph.digest + created_at_ns.to_bytes(8, "big"), digest_size=16).digest()


def manifests_digest(manifests: Mapping[str, Mapping[str, int]]) -> bytes:
    """Sixteen bytes that tell one sync's content from another's."""
    return blake2b(_canonical.encode(manifests), digest_size=16).digest()


def executors(manifests: Mapping[str, Mapping[str, int]]) -> int:
    """All executors of a sync, uncapped."""
    return sum(sum(counts.values()) for counts in manifests.values())


def differences(recorded: Mapping[str, V], given: Mapping[str, V]) -> Iterator[tuple[str, V | None, V | None]]:
    """Where two mappings differ: key, value in the first, value in the second, by key."""
    for key in sorted(recorded.keys() | given.keys()):
        if recorded.get(key) != given.get(key):
            yield key, recorded.get(key), given.get(key)


def _difference(last: Mapping[str, V], given: Mapping[str, V]) -> tuple[dict[str, V], list[str]]:
    """What of `given` is new or changed, and which keys are gone, by key."""
    changed = {key: given[key] for key in sorted(given) if last.get(key) != given[key]}
    return changed, sorted(last.keys() - given.keys())


def _patched(last: Mapping[str, V], changed: Mapping[str, V], gone: Iterable[str]) -> dict[str, V]:
    """The mapping after a difference, in the order of its keys, so that equal mappings are equal bytes."""
    patched = {**last, **changed}
    for key in gone:
        del patched[key]
    return dict(sorted(patched.items()))
