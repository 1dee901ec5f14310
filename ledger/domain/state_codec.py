"""Encode a ledger's state as bytes; equal states have equal bytes, however they were folded.

A snapshot holds these bytes, so that opening a long ledger folds only the events after it. Tests and audits compare a
live state with a rebuilt one by them.

Everything that follows from the stored parts is not stored but computed again: prefix sums, digests of metagraphs, the
multiplier, the indexes of accounts by class and miner, the due queue, active reservations by job, and each account's
first due time. `Chain.revision`, `Chain.changed_accounts` and `LedgerState.sealed_position` are not stored either: the
first two only tell the changes since a state was loaded, and the third follows from the events after the snapshot, its
seal among them.

Arrays are stored little-endian, so machines of either byte order read each other's snapshots.
"""

from __future__ import annotations

from array import array

import msgspec

from ledger.events import Axon, Run, account_stream
from ledger.settings import RecordedSettings

from .account import Account, ActiveReservation
from .block_table import Chunk
from .blocks import BlockSet, StepFunction
from .byte_order import little_endian, little_endian_runs
from .chain import Chain, CountInputs, Metagraph, RecordedSync, Withdrawal
from .miner_facts import Collateral, Exclusion, JobElsewhere, MinerFacts
from .miner_sets import MinerSets
from .state import LedgerState

SNAPSHOT_VERSION = 5
"""Increase it whenever these structs or the folding rules change; snapshots of other versions are ignored."""


class _Struct(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The base of the stored structs: fields by order, not by name, since only the same snapshot version reads them."""


class _Chunk(_Struct):
    number: int
    created_at_ns: bytes
    positions: bytes
    digests: bytes
    # Empty if no block of the chunk has a hash.
    hashes: bytes
    units_ns: bytes


class _Account(_Struct):
    miner_ss58: str
    executor_class: str
    version: int
    invalidated_below: int
    offered: tuple[list[int], list[int]]
    counts: tuple[list[int], list[int]]
    # The bytes of a `BlockSet`, little-endian.
    taken: bytes


class _Active(_Struct):
    reservation_id: int
    position: int
    # The index of the account in `_State.accounts`.
    account: int
    amount_ns: int
    blocks: list[Run]
    job_start_block: int
    reserved_at_ns: int
    expires_at_ns: int
    job_uuid: str | None
    attempt: int | None
    axon: Axon | None


class _Metagraph(_Struct):
    miners: dict[str, Axon]
    stakes: dict[str, int]


class _CountInputs(_Struct):
    sync_block: int
    caps: tuple[tuple[str, int], ...]
    # The index of the set in `_State.members`.
    members: int


class _MinerFacts(_Struct):
    # Miner, and the fields of `Exclusion`.
    exclusions: list[tuple[str, int, str, int]]
    # Miner, position, and the wei as text: an amount may need more than 64 bits.
    collateral: list[tuple[str, int, str]]
    # The account's stream, the job, and the fields of `JobElsewhere`.
    elsewhere: list[tuple[str, str, int, int]]
    # The account's stream, and the times, little-endian.
    incidents: list[tuple[str, bytes]]


class _State(_Struct):
    position: int
    hash: bytes
    recorded_at_ns: int
    validator_ss58: str
    settings: RecordedSettings
    versions: dict[str, int]
    newest: int
    first_finalized: int
    last_finalized: int
    chunks: list[_Chunk]
    metagraph: _Metagraph
    # None if it equals `metagraph`.
    last_metagraph: _Metagraph | None
    members: list[list[str]]
    # Block, own stake, total stake, and the index of the registered miners in `members`.
    unfinalized: list[tuple[int, int, int, int]]
    # Block, log position, content digest, number of executors.
    syncs: list[tuple[int, int, bytes, int]]
    manifests: dict[str, dict[str, int]]
    # None if they equal `manifests`.
    last_manifests: dict[str, dict[str, int]] | None
    # Miner, starts and values of its steps.
    registered: list[tuple[str, list[int], list[int]]]
    uncovered: list[tuple[str, list[int], list[int]]]
    named: list[str]
    last_uncovered: list[str]
    # Block, and the fields of `Withdrawal`.
    withdrawn_blocks: list[tuple[int, int, bytes, int, bytes]]
    withdrawn_syncs: list[tuple[int, int, bytes, int, bytes]]
    oldest_inputs: _CountInputs | None
    newest_inputs: _CountInputs | None
    accounts: list[_Account]
    active: list[_Active]
    miner_facts: _MinerFacts | None = None


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(_State)


class _MemberSets:
    """The sets of registered miners in a snapshot, each stored once: most blocks have the same."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self._indexes: dict[frozenset[str], int] = {}

    def index(self, members: frozenset[str]) -> int:
        if members not in self._indexes:
            self._indexes[members] = len(self.lists)
            self.lists.append(sorted(members))
        return self._indexes[members]


def encode_state(state: LedgerState) -> bytes:
    """Return the state as bytes."""
    chain = state.chain
    members = _MemberSets()
    # Everything is sorted, since a state that was restored from a snapshot has other orders in its dicts.
    accounts = sorted(chain.accounts.values(), key=lambda account: account.stream)
    account_indexes = {account.stream: index for index, account in enumerate(accounts)}
    unfinalized = [
        (block, own, total, members.index(registered))
        for block, (own, total, registered) in sorted(chain.unfinalized.items())
    ]
    oldest_inputs, newest_inputs = (
        _encode_inputs(inputs, members) for inputs in (chain.oldest_inputs, chain.newest_inputs)
    )
    # Compared by content: after a fold the two may be equal without being one object.
    same_metagraph = chain.last_metagraph.digest == chain.metagraph.digest
    same_manifests = chain.last_manifests == chain.manifests
    return _encoder.encode(
        _State(
            position=state.position,
            hash=state.hash,
            recorded_at_ns=state.recorded_at_ns,
            validator_ss58=chain.validator_ss58,
            settings=chain.settings,
            versions=state.versions,
            newest=chain.blocks.newest,
            first_finalized=chain.blocks.first_finalized,
            last_finalized=chain.blocks.last_finalized,
            chunks=[_encode_chunk(number, chain.blocks.chunks[number]) for number in chain.blocks.chunk_numbers],
            metagraph=_Metagraph(chain.metagraph.miners, chain.metagraph.stakes),
            last_metagraph=None
            if same_metagraph
            else _Metagraph(chain.last_metagraph.miners, chain.last_metagraph.stakes),
            members=members.lists,
            unfinalized=unfinalized,
            syncs=[(block, *chain.syncs[block]) for block in chain.sync_blocks],
            manifests=chain.manifests,
            last_manifests=None if same_manifests else chain.last_manifests,
            registered=_encode_miner_sets(chain.registered),
            uncovered=_encode_miner_sets(chain.uncovered),
            named=sorted(chain.named),
            last_uncovered=sorted(chain.last_uncovered),
            withdrawn_blocks=_encode_withdrawals(chain.withdrawn_blocks),
            withdrawn_syncs=_encode_withdrawals(chain.withdrawn_syncs),
            oldest_inputs=oldest_inputs,
            newest_inputs=newest_inputs,
            accounts=[_encode_account(account) for account in accounts],
            active=[_encode_active(active, account_indexes) for _, active in sorted(state.active.items())],
            miner_facts=_encode_miner_facts(state.miner_facts) if state.miner_facts else None,
        )
    )


def decode_state(payload: bytes, state: LedgerState) -> None:
    """Restore an encoded state into `state`, which must be new.

    Bytes that encode no state raise `msgspec.MsgspecError`, or the error of the first step that a wrong value breaks,
    such as `ValueError` for an array or `IndexError` for an index. So callers catch `Exception`.
    """
    stored = _decoder.decode(payload)
    state.position, state.hash, state.recorded_at_ns = stored.position, stored.hash, stored.recorded_at_ns
    state.versions = stored.versions
    chain = state.chain
    chain.validator_ss58 = stored.validator_ss58
    chain.apply_settings(stored.settings)
    members = [frozenset(each) for each in stored.members]
    _decode_blocks(stored, chain)
    chain.metagraph = Metagraph(stored.metagraph.miners, stored.metagraph.stakes)
    last = stored.last_metagraph
    chain.last_metagraph = chain.metagraph if last is None else Metagraph(last.miners, last.stakes)
    chain.unfinalized = {block: (own, total, members[index]) for block, own, total, index in stored.unfinalized}
    chain.sync_blocks = [block for block, *_ in stored.syncs]
    chain.syncs = {block: RecordedSync(position, digest, count) for block, position, digest, count in stored.syncs}
    chain.manifests = stored.manifests
    chain.last_manifests = stored.manifests if stored.last_manifests is None else stored.last_manifests
    _decode_miner_sets(stored.registered, chain.registered)
    _decode_miner_sets(stored.uncovered, chain.uncovered)
    chain.named, chain.last_uncovered = set(stored.named), frozenset(stored.last_uncovered)
    _decode_withdrawals(stored.withdrawn_blocks, chain.withdrawn_blocks)
    _decode_withdrawals(stored.withdrawn_syncs, chain.withdrawn_syncs)
    chain.oldest_inputs, chain.newest_inputs = (
        _decode_inputs(inputs, members) for inputs in (stored.oldest_inputs, stored.newest_inputs)
    )
    accounts = [_decode_account(account, chain) for account in stored.accounts]
    for active in stored.active:
        state.add_active(_decode_active(active, accounts))
    if stored.miner_facts is not None:
        _decode_miner_facts(stored.miner_facts, state.miner_facts)


def _encode_chunk(number: int, chunk: Chunk) -> _Chunk:
    return _Chunk(
        number,
        little_endian("q", chunk.created_at_ns.tobytes()),
        little_endian("q", chunk.positions.tobytes()),
        bytes(chunk.digests),
        bytes(chunk.hashes),
        little_endian("q", chunk.units_ns.tobytes()),
    )


def _decode_blocks(stored: _State, chain: Chain) -> None:
    blocks = chain.blocks
    for each in stored.chunks:
        chunk = Chunk()
        chunk.created_at_ns = array("q", little_endian("q", each.created_at_ns))
        chunk.positions = array("q", little_endian("q", each.positions))
        chunk.digests = bytearray(each.digests)
        chunk.hashes = bytearray(each.hashes)
        chunk.units_ns = array("q", little_endian("q", each.units_ns))
        blocks.load_chunk(each.number, chunk)
    blocks.newest = stored.newest
    blocks.first_finalized, blocks.last_finalized = stored.first_finalized, stored.last_finalized


def _encode_miner_sets(sets: MinerSets) -> list[tuple[str, list[int], list[int]]]:
    return [(miner_ss58, steps.starts, steps.values) for miner_ss58, steps in sorted(sets.steps.items())]


def _decode_miner_sets(stored: list[tuple[str, list[int], list[int]]], sets: MinerSets) -> None:
    for miner_ss58, starts, values in stored:
        steps = StepFunction()
        steps.starts, steps.values = starts, values
        sets.load(miner_ss58, steps)


def _encode_withdrawals(withdrawals: dict[int, list[Withdrawal]]) -> list[tuple[int, int, bytes, int, bytes]]:
    return [(block, *each) for block in sorted(withdrawals) for each in withdrawals[block]]


def _decode_withdrawals(
    stored: list[tuple[int, int, bytes, int, bytes]], withdrawals: dict[int, list[Withdrawal]]
) -> None:
    for block, position, digest, withdrawn_at, block_hash in stored:
        withdrawals.setdefault(block, []).append(Withdrawal(position, digest, withdrawn_at, block_hash))


def _encode_inputs(inputs: CountInputs | None, members: _MemberSets) -> _CountInputs | None:
    return None if inputs is None else _CountInputs(inputs.sync_block, inputs.caps, members.index(inputs.members))


def _decode_inputs(stored: _CountInputs | None, members: list[frozenset[str]]) -> CountInputs | None:
    return None if stored is None else CountInputs(stored.sync_block, stored.caps, members[stored.members])


def _encode_account(account: Account) -> _Account:
    return _Account(
        account.miner_ss58,
        account.executor_class,
        account.version,
        account.invalidated_below,
        (account.offered.starts, account.offered.values),
        (account.counts.starts, account.counts.values),
        little_endian_runs(account.taken.to_bytes()),
    )


def _decode_account(stored: _Account, chain: Chain) -> Account:
    account = chain.open_account(stored.miner_ss58, stored.executor_class)
    account.version, account.invalidated_below = stored.version, stored.invalidated_below
    account.offered.starts, account.offered.values = stored.offered
    account.counts.starts, account.counts.values = stored.counts
    account.taken = BlockSet.from_bytes(little_endian_runs(stored.taken))
    return account


def _encode_active(active: ActiveReservation, account_indexes: dict[str, int]) -> _Active:
    stream = account_stream(active.account.miner_ss58, active.account.executor_class)
    return _Active(
        active.reservation_id,
        active.position,
        account_indexes[stream],
        active.amount_ns,
        active.blocks,
        active.job_start_block,
        active.reserved_at_ns,
        active.expires_at_ns,
        active.job_uuid,
        active.attempt,
        active.axon,
    )


def _decode_active(stored: _Active, accounts: list[Account]) -> ActiveReservation:
    return ActiveReservation(
        stored.reservation_id,
        stored.position,
        accounts[stored.account],
        stored.amount_ns,
        stored.blocks,
        stored.job_start_block,
        stored.reserved_at_ns,
        stored.expires_at_ns,
        stored.job_uuid,
        stored.attempt,
        stored.axon,
    )


def _encode_miner_facts(facts: MinerFacts) -> _MinerFacts:
    return _MinerFacts(
        [(miner_ss58, *exclusion) for miner_ss58, exclusion in sorted(facts.exclusions.items())],
        [(miner_ss58, position, str(wei)) for miner_ss58, (position, wei) in sorted(facts.collateral.items())],
        [
            (stream, job, *times)
            for stream, jobs in sorted(facts.elsewhere.items())
            for job, times in sorted(jobs.items())
        ],
        [(stream, little_endian("q", times.tobytes())) for stream, times in sorted(facts.incidents.items())],
    )


def _decode_miner_facts(stored: _MinerFacts, facts: MinerFacts) -> None:
    for miner_ss58, *exclusion in stored.exclusions:
        facts.set_exclusion(miner_ss58, msgspec.convert(exclusion, Exclusion))
    facts.collateral = {miner_ss58: Collateral(at, int(wei)) for miner_ss58, at, wei in stored.collateral}
    for stream, job_uuid, *times in stored.elsewhere:
        facts.add_job_elsewhere(stream, job_uuid, JobElsewhere(*times))
    for stream, times_ns in stored.incidents:
        facts.incidents[stream] = array("q", little_endian("q", times_ns))
        facts.incident_times += [(at_ns, stream) for at_ns in facts.incidents[stream]]
    facts.incident_times.sort()
