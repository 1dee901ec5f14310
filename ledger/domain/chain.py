"""The chain facts (blocks, metagraphs, manifest syncs) and the allowance that they grant to every account.

Pure: a fold of the recorded facts and their corrections. Two functions decide about facts (`decide_block`,
`decide_manifests`; `correction_commands.py` decides about corrections), four methods of `Chain` evolve (`apply_block`,
`apply_manifests`, `withdraw_block`, `withdraw_manifests`). Each rule names its source where it stands.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple, TypeVar

from ledger.errors import ConflictingFact, ImplausibleFact
from ledger.events import Axon, BlockRecorded, BlockWithdrawn, ManifestsRecorded, ManifestsWithdrawn
from ledger.settings import UUID_AND_HASH, RecordedSettings
from ledger.values import instant

from .account import Account
from .block_table import HASH_BYTES, BlockTable
from .blocks import END, StepFunction
from .canonical import EntryCache, canonical_json, content_digest
from .miner_sets import MinerSets

V = TypeVar("V")

PLAUSIBLE_LEAP_BLOCKS = 100_000
"""A block further beyond the newest one needs confirmation; two weeks of blocks (this project's own rule).

One mistyped number would otherwise become the newest block, and every older block would be too old to use.
"""
PLAUSIBLE_SHRINKAGE = 10
"""A sync with less than a tenth of the executors of the sync before it needs confirmation (this project's own rule).

It is probably a poll that reached nobody, and would invalidate the allowance of nearly all miners. The same share holds
for a block's miners and validators.
"""
LEAST_TO_COMPARE = 10
"""Fewer miners or validators than this may all leave without a confirmation (this project's own rule)."""
PLAUSIBLE_LEAD_BLOCKS = 7200
"""A sync further beyond the newest block needs confirmation; a day of blocks (this project's own rule).

One with a mistyped number would hold for all blocks that come, and a drop in it would invalidate all of them.
"""


class Metagraph:
    """Registered miners with their axons, and validators' stakes in billionths; immutable by convention.

    Consecutive blocks mostly share one object, since metagraphs repeat; storing them must not. If they differ, they
    mostly share nearly all miners: `encoded` is the cache of whoever makes one after the other.
    """

    __slots__ = ("digest", "members", "miners", "stakes", "total_stake")

    def __init__(self, miners: dict[str, Axon], stakes: dict[str, int], encoded: EntryCache | None = None) -> None:
        self.miners = miners
        self.stakes = stakes
        self.members = frozenset(miners)
        self.total_stake = sum(stakes.values())
        miners_json = [canonical_json(miners)] if encoded is None else encoded.pieces(miners)
        self.digest = content_digest((b"[", *miners_json, b",", canonical_json(stakes), b"]"))


class RecordedSync(NamedTuple):
    """A recorded manifest sync: its log position, its content digest, and its number of executors."""

    position: int
    digest: bytes
    executors: int


class Withdrawal(NamedTuple):
    """A withdrawn fact: its position in the log, its content digest, and the position of the correction.

    `block_hash` is the hash of a withdrawn block; empty if it was recorded without one, and for a sync.
    """

    position: int
    digest: bytes
    withdrawn_at: int
    block_hash: bytes = b""


class CountInputs(NamedTuple):
    """Everything that determines the counts of a block; equal inputs give every account equal counts.

    That holds until something changes what miners offered at `sync_block`, which forgets all inputs. `sync_block` is
    the block of the newest sync at or below the block, -1 if there is none. `caps` are the maxima per class, `members`
    the registered miners.
    """

    sync_block: int
    caps: tuple[tuple[str, int], ...]
    members: frozenset[str]


_EMPTY_METAGRAPH = Metagraph({}, {})


class Chain:
    """The fold of the chain facts, and the accounts to which they grant allowance.

    Rankings follow it: `changed_accounts` are those that facts have changed since a ranking last cleared the set, apart
    from what each new block grants and takes from the window of all. `revision` grows whenever the availability of all
    accounts may have changed otherwise.
    """

    def __init__(self) -> None:
        self.validator_ss58 = ""
        self.settings = RecordedSettings()
        self.multiplier = Fraction(1)
        self.revision = 0
        self.changed_accounts: set[Account] = set()
        self.blocks = BlockTable()
        self.metagraph = _EMPTY_METAGRAPH
        """The metagraph of the newest block."""
        self.last_metagraph = _EMPTY_METAGRAPH
        """The metagraph of the block recorded last; the next event stores the difference to it."""
        self.unfinalized: dict[int, tuple[int, int, frozenset[str]]] = {}
        """The recorded blocks without a recorded successor: own stake, total stake, registered miners."""
        self.sync_blocks: list[int] = []
        """The blocks of all syncs, ascending."""
        self.syncs: dict[int, RecordedSync] = {}
        self.manifests: dict[str, dict[str, int]] = {}
        """The manifests of the sync at the highest block."""
        self.last_manifests: dict[str, dict[str, int]] = {}
        """The manifests of the sync recorded last; the next event stores the difference to them."""
        self.registered = MinerSets()
        """The miners registered at the newest recorded block at or below a block; below the lowest block, as there."""
        self.named: set[str] = set()
        """The miners that any sync has named."""
        self.uncovered = MinerSets()
        """The miners that the newest sync at or below a block does not cover."""
        self.last_uncovered: frozenset[str] = frozenset()
        """The miners that the sync recorded last does not cover; the next event stores the difference to them."""
        self.withdrawn_blocks: dict[int, list[Withdrawal]] = {}
        self.withdrawn_syncs: dict[int, list[Withdrawal]] = {}
        self.classes: dict[str, dict[str, Account]] = {}
        """The accounts by executor class and miner."""
        self.accounts: dict[str, Account] = {}
        """The accounts by stream."""
        self._by_miner: dict[str, list[Account]] = {}
        self.oldest_inputs: CountInputs | None = None
        """The inputs of the lowest finalized block's counts."""
        self.newest_inputs: CountInputs | None = None
        """The inputs of the highest finalized block's counts."""
        self._encoded_miners, self._encoded_manifests = EntryCache(), EntryCache()

    def open_account(self, miner_ss58: str, executor_class: str) -> Account:
        """Create an empty account."""
        account = Account(miner_ss58, executor_class)
        self.accounts[account.stream] = account
        self.classes.setdefault(executor_class, {})[miner_ss58] = account
        self._by_miner.setdefault(miner_ss58, []).append(account)
        return account

    def accounts_of(self, miner_ss58: str) -> Sequence[Account]:
        """Return the accounts of a miner, of all classes."""
        return self._by_miner.get(miner_ss58, ())

    def newest_count(self, account: Account) -> int:
        """Return the account's executors according to the newest sync, capped; the limit of its running jobs."""
        if not self.sync_blocks:
            return 0
        return self._capped(account, account.offered.values[-1])

    @property
    def tie_break_hash(self) -> bytes:
        """The hash of the newest block if the tie-break's seed includes it; else empty.

        The setting `tie_break` decides; the seed includes no hash if the newest block was recorded without one.
        """
        return self.blocks.block_hash(self.blocks.newest) if self.settings.tie_break == UUID_AND_HASH else b""

    def apply_settings(self, settings: RecordedSettings) -> None:
        """Apply these settings to blocks finalized and claims made from now on; finalized blocks keep their amounts."""
        self.settings = settings
        self.multiplier = Fraction(settings.allowance_multiplier)
        self.revision += 1

    def apply_block(self, position: int, event: BlockRecorded) -> None:
        """Record the block, and finalize it or its predecessor if the successor is now recorded.

        A block grants nothing before: its duration, which is part of the grant, is the time to its successor. Source:
        ComputeHorde's allowance module.
        """
        metagraph = self._metagraph_after(event)
        self.last_metagraph = metagraph
        number = event.number
        if number > self.blocks.newest:
            self._set_newest_metagraph(metagraph)
        self._register(number, metagraph.members)
        digest, block_hash = block_digest(event.created_at_ns, metagraph), hash_of_block(event)
        self.blocks.record(number, event.created_at_ns, position, digest, block_hash)
        self._await_successor(number, metagraph)
        for candidate in (number - 1, number):
            if candidate in self.unfinalized and candidate + 1 in self.blocks:
                self._finalize(candidate)

    def apply_manifests(self, position: int, event: ManifestsRecorded) -> None:
        """Record the offered counts of the sync, and invalidate blocks of the accounts whose count it lowers.

        A miner that the sync covers and does not name has 0 from here on (this project's own rule); one that it does
        not cover keeps its last counts (source: ComputeHorde, whose validators count this way). A capped count that is
        lower than in the last sync before that covers the miner is a drop. It invalidates the account's blocks below
        the sync, because the miner no longer has the executors that they were granted for. Source: ComputeHorde's
        allowance module.
        """
        self.read_manifests(event)
        manifests, uncovered, block = self.last_manifests, self.last_uncovered, event.block
        index = bisect_left(self.sync_blocks, block)
        next_sync = self.sync_blocks[index] if index < len(self.sync_blocks) else END
        if next_sync == END:
            self.manifests = manifests
        if not self.sync_blocks:
            # Without a sync, no account counts executors.
            self.revision += 1
        self.uncovered.assign(block, next_sync, uncovered)
        self._open_accounts(manifests)
        for account in self.accounts.values():
            if account.miner_ss58 not in uncovered:
                count = manifests.get(account.miner_ss58, {}).get(account.executor_class, 0)
                self._offer(account, block, next_sync, count)
        self.sync_blocks.insert(index, block)
        digest = content_digest(self._encoded_manifests.pieces(manifests))
        self.syncs[block] = RecordedSync(position, digest, executors(manifests))

    def read_manifests(self, event: ManifestsRecorded) -> None:
        """Apply the differences of a sync to those of the sync recorded before it, and nothing else."""
        self.last_manifests = manifests_after(self.last_manifests, event)
        if event.uncovered or event.covered:
            self.last_uncovered = self.last_uncovered.union(event.uncovered).difference(event.covered)
        self.named.update(self.last_manifests)

    def withdraw_block(self, position: int, event: BlockWithdrawn) -> None:
        """Forget the block; it and its predecessor are no longer finalized, and other content may be recorded.

        When they are finalized again, the syncs and settings recorded by then apply. Raises `KeyError` if the block is
        not recorded, or the event returns to another block than it must.
        """
        number, blocks = event.number, self.blocks
        returns_to = block_to_return_to(self, number)
        if event.returns_to != returns_to:
            raise KeyError(f"the metagraph of block {event.returns_to} instead of {returns_to}")
        self.withdrawn_blocks.setdefault(number, []).append(
            Withdrawal(blocks.position(number), blocks.digest(number), position, blocks.block_hash(number))
        )
        self.last_metagraph = self._metagraph_after(event) if returns_to else _EMPTY_METAGRAPH
        was_newest = number == blocks.newest
        self.unfinalized.pop(number, None)
        self._unregister(number)
        blocks.forget(number)
        if was_newest:
            self.metagraph = self.last_metagraph
        if number - 1 in blocks:
            self._await_successor(number - 1, self.last_metagraph)
        self._cut_counts()
        self.revision += 1

    def withdraw_manifests(self, position: int, event: ManifestsWithdrawn) -> None:
        """Forget the sync: what miners offered, and what is invalidated, is as if it had not been recorded.

        The event carries both, since this fold cannot take one sync out of what it has added up. Finalized blocks keep
        their amounts.
        """
        block = event.block
        for steps in event.counts.values():
            starts = [start for start, _ in steps]
            if starts[:1] != [0] or starts != sorted(set(starts)):
                raise ValueError("the steps of a withdrawal must ascend from block 0")
        withdrawn = self.syncs.pop(block)
        self.withdrawn_syncs.setdefault(block, []).append(Withdrawal(withdrawn.position, withdrawn.digest, position))
        index = bisect_left(self.sync_blocks, block)
        del self.sync_blocks[index]
        next_sync = self.sync_blocks[index] if index < len(self.sync_blocks) else END
        self.uncovered.assign(block, next_sync, self.uncovered.at(block - 1))
        self.read_correction(event)
        self.manifests = self.last_manifests
        for stream, steps in event.counts.items():
            offered = self.accounts[stream].offered
            offered.starts, offered.values = [start for start, _ in steps], [count for _, count in steps]
        for stream, invalidated_below in event.invalidated_below.items():
            self.accounts[stream].invalidated_below = invalidated_below
        self._forget_inputs()
        self.revision += 1

    def read_correction(self, event: ManifestsWithdrawn) -> None:
        """Apply the differences of a withdrawal to the manifests of the event before it, and nothing else."""
        self.last_manifests = manifests_after(self.last_manifests, event)

    def known_miners(self) -> set[str]:
        """Return the miners that a block has registered or a sync has named, withdrawn or not."""
        return self.named.union(self.registered.steps)

    def members_at(self, block: int) -> frozenset[str] | None:
        """Return the miners registered at the newest recorded block at or below a block; None if none is recorded."""
        if block < self.blocks.first:
            return None
        return self.metagraph.members if block >= self.blocks.newest else self.registered.at(block)

    def drop(self, account: Account, block: int) -> None:
        """Invalidate the account's blocks below this one, also those finalized later.

        Without the latter, a block that arrives late would be usable although its neighbours are invalidated.
        The account remembers only the highest drop; a subclass that needs every single one extends this method.
        """
        account.invalidated_below = max(account.invalidated_below, block)

    def _offer(self, account: Account, block: int, next_sync: int, count: int) -> None:
        """Set the account's executors from a sync on, up to the next sync that covers its miner."""
        end = next_sync
        if next_sync != END:
            end = self.uncovered.next_without(account.miner_ss58, next_sync)
        # Before the assignment below, the function still returns the count of the previous sync at this block.
        count_before = account.offered.at(block)
        if count == count_before:
            return
        self.changed_accounts.add(account)
        if count < count_before and self._capped(account, count) < self._capped(account, count_before):
            self.drop(account, block)
        account.offered.assign(block, end, count)
        if end != next_sync:
            # The counts of a later sync's blocks have changed, because that sync does not cover the miner.
            self._forget_inputs()

    def _set_newest_metagraph(self, metagraph: Metagraph) -> None:
        if metagraph.members is not self.metagraph.members:
            for miner_ss58 in metagraph.members ^ self.metagraph.members:
                self.changed_accounts.update(self._by_miner.get(miner_ss58, ()))
        self.metagraph = metagraph

    def _forget_inputs(self) -> None:
        """Have the next finalized block set the counts of all accounts."""
        self.oldest_inputs = self.newest_inputs = None

    def _register(self, number: int, members: frozenset[str]) -> None:
        """Note the registered miners at a block that is about to be recorded, up to the next recorded one."""
        blocks = self.blocks
        start = 0 if number < blocks.first else number
        end = END if number > blocks.newest else blocks.next_recorded(number)
        self.registered.assign(start, end, members)

    def _unregister(self, number: int) -> None:
        """Note, for a block that is about to be forgotten, the registered miners of the next lower recorded block."""
        registered, following = self.registered, self.blocks.next_recorded(number)
        if number != self.blocks.first:
            registered.assign(number, following, registered.at(number - 1))
        else:
            registered.assign(0, following, frozenset() if following == END else registered.at(following))

    def _await_successor(self, number: int, metagraph: Metagraph) -> None:
        """Keep what finalizing a block needs."""
        own_stake = metagraph.stakes.get(self.validator_ss58, 0)
        self.unfinalized[number] = (own_stake, metagraph.total_stake, metagraph.members)

    def _cut_counts(self) -> None:
        """Let the counts of the highest and the lowest finalized block hold for all blocks beyond them again.

        `_set_counts` relies on that. Blocks that are not finalized grant nothing, so their counts mean nothing.
        """
        self._forget_inputs()
        first, last = self.blocks.first_finalized, self.blocks.last_finalized
        for account in self.accounts.values():
            if not last:
                account.counts = StepFunction()
                continue
            account.counts.assign(last + 1, END, account.counts.at(last))
            account.counts.assign(0, first, account.counts.at(first))

    def _metagraph_after(self, event: BlockRecorded | BlockWithdrawn) -> Metagraph:
        last = self.last_metagraph
        # The same object for an unchanged metagraph: making one digests all miners, and nearly no block changes it.
        if not (event.registered or event.deregistered or event.staked or event.unstaked):
            return last
        miners, stakes = last.miners, last.stakes
        if event.registered or event.deregistered:
            miners = _patched(miners, event.registered, event.deregistered)
        if event.staked or event.unstaked:
            stakes = _patched(stakes, event.staked, event.unstaked)
        return Metagraph(miners, stakes, self._encoded_miners)

    def _open_accounts(self, manifests: Mapping[str, Mapping[str, int]]) -> None:
        for miner_ss58, counts in manifests.items():
            for executor_class, count in counts.items():
                accounts = self.classes.get(executor_class)
                if count and (accounts is None or miner_ss58 not in accounts):
                    self.open_account(miner_ss58, executor_class)

    def _finalize(self, block: int) -> None:
        """Set what the block grants to every account, for good: facts that arrive later do not change it.

        The unit is duration × multiplier × own stake / stake of all validators, in ns per executor; 0 if nobody has a
        stake. A duration above 12.5 s counts as 12.0 s. Source: ComputeHorde's validator; the multiplier and rounding
        down to whole ns are this project's own rules.
        """
        own_stake, total_stake, members = self.unfinalized.pop(block)
        duration_ns = self.blocks.created_at_ns(block + 1) - self.blocks.created_at_ns(block)
        if duration_ns > self.settings.long_block_ns:
            duration_ns = self.settings.long_block_counts_as_ns
        # One rounding down at the end, in integers: the unit is the same on every machine.
        numerator = duration_ns * self.multiplier.numerator * own_stake
        denominator = self.multiplier.denominator * total_stake
        index = bisect_right(self.sync_blocks, block)
        sync_block = self.sync_blocks[index - 1] if index else -1
        inputs = CountInputs(sync_block, tuple(self.settings.executors_max_per_class.items()), members)
        if block < self.blocks.last_finalized:
            # A late block changes the sums of all accounts' blocks.
            self.revision += 1
        # Before `finalize`, which moves the first and last finalized block that `_set_counts` compares with.
        self._set_counts(block, inputs)
        self.blocks.finalize(block, numerator // denominator if total_stake else 0)

    def _set_counts(self, block: int, inputs: CountInputs) -> None:
        """Set each account's count at the block.

        Above the highest finalized block (and below the lowest) the count is set for all further blocks, so that the
        next block touches no account if its inputs are equal. Blocks there have no unit yet, so no sum is wrong
        meanwhile. Between finalized blocks the count is set for this block alone.
        """
        blocks = self.blocks
        neighbour: CountInputs | None = None
        start, end = block, block + 1
        if not blocks.last_finalized:
            start, end = 0, END
            self.oldest_inputs = self.newest_inputs = inputs
        elif block > blocks.last_finalized:
            neighbour, self.newest_inputs, end = self.newest_inputs, inputs, END
        elif block < blocks.first_finalized:
            neighbour, self.oldest_inputs, start = self.oldest_inputs, inputs, 0
        if neighbour == inputs:
            return
        for account in self._affected_accounts(neighbour, inputs):
            registered = inputs.sync_block >= 0 and account.miner_ss58 in inputs.members
            count = self._capped(account, account.offered.at(inputs.sync_block)) if registered else 0
            if account.counts.at(block) != count:
                account.counts.assign(start, end, count)
                self.changed_accounts.add(account)

    def _affected_accounts(self, neighbour: CountInputs | None, inputs: CountInputs) -> Iterable[Account]:
        """Return the accounts whose counts may differ between two blocks with these inputs."""
        if neighbour is None or neighbour[:2] != inputs[:2]:
            return self.accounts.values()
        changed = neighbour.members ^ inputs.members
        return (account for miner_ss58 in sorted(changed) for account in self._by_miner.get(miner_ss58, ()))

    def _capped(self, account: Account, count: int) -> int:
        cap = self.settings.executors_max_per_class.get(account.executor_class)
        return count if cap is None or count < cap else cap


def decide_block(
    chain: Chain, number: int, created_at_ns: int, metagraph: Metagraph, confirm: bool, block_hash: bytes = b""
) -> BlockRecorded | int:
    """Return the event that records a block, or the position at which the same content was recorded before.

    Other content for a recorded block is a conflict. So is a block that would give a recorded neighbour a duration of
    zero or less, since one of the two times must be wrong. A leap of more than `PLAUSIBLE_LEAP_BLOCKS`, a metagraph
    that lost nine tenths of its miners or validators since the block recorded before, and content that was withdrawn
    are implausible unless confirmed. A hash that is missing in one of two contents makes no difference, so a recorded
    block never gains one. These are this project's own rules. Raises `ConflictingFact`, `ImplausibleFact`.
    """
    blocks = chain.blocks
    fact = f"block {number}"
    if number in blocks:
        is_equal = blocks.digest(number) == block_digest(created_at_ns, metagraph)
        if is_equal and same_hash(blocks.block_hash(number), block_hash):
            return blocks.position(number)
        # The state has digests only. The caller reads the recorded content from the log and adds the differences.
        raise ConflictingFact(fact, blocks.position(number), {})
    if not confirm:
        _refuse_implausible_block(chain, number, created_at_ns, metagraph, block_hash)
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
        return BlockRecorded(number, created_at_ns, block_hash=block_hash.hex())
    return BlockRecorded(number, created_at_ns, *metagraph_difference(last, metagraph), block_hash=block_hash.hex())


def decide_manifests(
    chain: Chain, block: int, manifests: dict[str, dict[str, int]], confirm: bool
) -> ManifestsRecorded | int:
    """Return the event that records a sync, or the position at which the same content was recorded before.

    Other content for a recorded sync is a conflict. A sync with less than a tenth of the executors of the sync before
    it, by block, one more than `PLAUSIBLE_LEAD_BLOCKS` beyond the newest block, and content that was withdrawn are
    implausible unless confirmed. These are this project's own rules. Raises `ConflictingFact` and `ImplausibleFact`.
    """
    recorded = chain.syncs.get(block)
    if recorded is not None:
        if recorded.digest == manifests_digest(manifests):
            return recorded.position
        raise ConflictingFact(f"the manifest sync at block {block}", recorded.position, {})
    if not confirm:
        _refuse_implausible_sync(chain, block, manifests)
    changed, absent = difference(chain.last_manifests, manifests)
    uncovered, last_uncovered = uncovered_by(chain, block, manifests), chain.last_uncovered
    return ManifestsRecorded(
        block,
        changed,
        absent,
        uncovered=sorted(uncovered - last_uncovered),
        covered=sorted(last_uncovered - uncovered),
    )


def uncovered_by(chain: Chain, block: int, manifests: Mapping[str, object]) -> set[str]:
    """Return the known miners that a sync which is recorded now does not cover.

    A sync covers the miners that it names, and those registered at the newest recorded block at or below its own; all
    if none is recorded. Source: ComputeHorde, whose validators do not poll a miner that is off the metagraph.
    """
    members = chain.members_at(block)
    return set() if members is None else chain.known_miners() - members - manifests.keys()


def _refuse_implausible_block(
    chain: Chain, number: int, created_at_ns: int, metagraph: Metagraph, block_hash: bytes
) -> None:
    fact, newest, last = f"block {number}", chain.blocks.newest, chain.last_metagraph
    if newest and number > newest + PLAUSIBLE_LEAP_BLOCKS:
        raise ImplausibleFact(fact, f"it is {number - newest} blocks beyond the newest, {newest}")
    for what, given, before in (
        ("miners", len(metagraph.miners), len(last.miners)),
        ("validators", len(metagraph.stakes), len(last.stakes)),
    ):
        if before >= LEAST_TO_COMPARE and given * PLAUSIBLE_SHRINKAGE < before:
            raise ImplausibleFact(
                fact, f"it has {given} {what}, less than a tenth of the {before} of the block recorded before it"
            )
    if number in chain.withdrawn_blocks:
        digest = block_digest(created_at_ns, metagraph)
        _refuse_withdrawn(fact, chain.withdrawn_blocks[number], digest, block_hash)


def _refuse_implausible_sync(chain: Chain, block: int, manifests: Mapping[str, Mapping[str, int]]) -> None:
    fact, newest = f"the manifest sync at block {block}", chain.blocks.newest
    if newest and block > newest + PLAUSIBLE_LEAD_BLOCKS:
        raise ImplausibleFact(fact, f"it is {block - newest} blocks beyond the newest block, {newest}")
    index = bisect_left(chain.sync_blocks, block)
    before = chain.syncs[chain.sync_blocks[index - 1]].executors if index else 0
    offered = executors(manifests)
    if offered * PLAUSIBLE_SHRINKAGE < before:
        raise ImplausibleFact(
            fact, f"it has {offered} executors, less than a tenth of the {before} in the sync before it"
        )
    if block in chain.withdrawn_syncs:
        _refuse_withdrawn(fact, chain.withdrawn_syncs[block], manifests_digest(manifests))


def _refuse_withdrawn(fact: str, withdrawals: Iterable[Withdrawal], digest: bytes, block_hash: bytes = b"") -> None:
    """Raise `ImplausibleFact` for content that was withdrawn: repeating an import must not undo a correction."""
    for withdrawal in withdrawals:
        if withdrawal.digest == digest and same_hash(withdrawal.block_hash, block_hash):
            raise ImplausibleFact(fact, f"the same content was withdrawn at position {withdrawal.withdrawn_at}")


def block_to_return_to(chain: Chain, number: int) -> int:
    """Return the block whose metagraph the fold needs if a block is withdrawn; 0 if it needs none.

    The predecessor waits for its successor again. If it is not recorded, the newest block that remains gives the
    registered miners, and the next block is compared with it.
    """
    blocks = chain.blocks
    if number not in blocks:
        raise KeyError(f"block {number} is not recorded")
    if number - 1 in blocks:
        return number - 1
    return blocks.highest_below(number) if number == blocks.newest else blocks.newest


def manifests_after(
    last: dict[str, dict[str, int]], event: ManifestsRecorded | ManifestsWithdrawn
) -> dict[str, dict[str, int]]:
    """Return the complete manifests of a sync, given those of the event with manifests before it."""
    if not (event.offered or event.absent):
        return last
    return _patched(last, event.offered, event.absent)


def block_digest(created_at_ns: int, metagraph: Metagraph) -> bytes:
    """Return 16 bytes that identify a block's content; the order of its miners makes no difference."""
    return blake2b(metagraph.digest + created_at_ns.to_bytes(8, "big"), digest_size=16).digest()


def hash_of_block(event: BlockRecorded) -> bytes:
    """Return the hash in an event, 32 bytes; empty if it has none. Raises `ValueError` if it is malformed."""
    block_hash = bytes.fromhex(event.block_hash)
    if len(block_hash) not in (0, HASH_BYTES) or block_hash.hex() != event.block_hash:
        raise ValueError(f"the hash {event.block_hash!r} is not {2 * HASH_BYTES} lower-case hexadecimal digits")
    return block_hash


def same_hash(recorded: bytes, given: bytes) -> bool:
    """Return whether two hashes of one block agree; a missing one agrees with every other."""
    return not (recorded and given) or recorded == given


def manifests_digest(manifests: Mapping[str, Mapping[str, int]]) -> bytes:
    """Return 16 bytes that identify a sync's content; the order of its miners makes no difference."""
    return content_digest([canonical_json(manifests)])


def executors(manifests: Mapping[str, Mapping[str, int]]) -> int:
    """Return the number of executors in a sync, uncapped."""
    return sum(sum(counts.values()) for counts in manifests.values())


def differences(recorded: Mapping[str, V], given: Mapping[str, V]) -> Iterator[tuple[str, V | None, V | None]]:
    """Yield the differences between two mappings as (key, recorded value, given value), by key."""
    for key in sorted(recorded.keys() | given.keys()):
        if recorded.get(key) != given.get(key):
            yield key, recorded.get(key), given.get(key)


def difference(last: Mapping[str, V], given: Mapping[str, V]) -> tuple[dict[str, V], list[str]]:
    """Return the new or changed entries of `given`, and the removed keys, both by key."""
    changed = sorted(key for key, value in given.items() if last.get(key) != value)
    return {key: given[key] for key in changed}, sorted(last.keys() - given.keys())


def metagraph_difference(
    last: Metagraph, given: Metagraph
) -> tuple[dict[str, Axon], list[str], dict[str, int], list[str]]:
    """Return the fields `registered`, `deregistered`, `staked` and `unstaked` of an event, in this order."""
    return *difference(last.miners, given.miners), *difference(last.stakes, given.stakes)


def _patched(last: Mapping[str, V], changed: Mapping[str, V], removed: Iterable[str]) -> dict[str, V]:
    """Return the mapping after a difference, sorted by key, so that equal mappings have equal bytes.

    Raises `KeyError` if a removed key is missing, since the event then does not belong to this log.
    """
    patched = {**last, **changed}
    for key in removed:
        del patched[key]
    # New values of old keys, and removed keys, keep the order.
    return patched if last.keys() >= changed.keys() else {key: patched[key] for key in sorted(patched)}
