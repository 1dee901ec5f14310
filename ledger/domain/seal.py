"""The digest of a ledger's state that a seal records: of everything that decides, in a canonical encoding.

The encoding belongs to the log, because the log holds its digests. So it is frozen for each `SEAL_VERSION`, and it is
independent of the snapshots' bytes (`state_codec`), whose layout may change at any time.

Every list begins with its length, and the parts have a fixed order. So no two states are encoded alike, except by what
follows from the encoded parts: prefix sums, the indexes of accounts and reservations, the due queue, and each account's
first due time. Numbers are 8 bytes, little-endian. Values that belong together are encoded column by column, because
one call for a whole column costs much less than one for each value.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from hashlib import blake2b
from itertools import chain as flat

import msgspec

from ledger.settings import RecordedSettings

from .account import Account, ActiveReservation
from .block_table import BlockTable
from .blocks import StepFunction
from .byte_order import little_endian, little_endian_runs
from .chain import Chain, CountInputs, Metagraph, Withdrawal
from .miner_facts import MinerFacts
from .state import SEAL_VERSION, LedgerState

DIGEST_BYTES = 32

_settings_encoder = msgspec.json.Encoder(order="deterministic")
_DEFAULTS = RecordedSettings()

Manifests = dict[str, dict[str, int]]


def state_digest(state: LedgerState) -> bytes:
    """Return BLAKE2b of 32 bytes over the canonical encoding of the state. Equal states have equal digests."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    for part in _parts(state):
        digest.update(part)
    return digest.digest()


def _parts(state: LedgerState) -> Iterator[bytes]:
    """Yield the encoding in parts. To seal another part of the state, add it here, with another `SEAL_VERSION`."""
    chain = state.chain
    accounts = sorted(chain.accounts.values(), key=lambda account: account.stream)
    yield _numbers((SEAL_VERSION, state.position, state.recorded_at_ns))
    yield _strings((state.hash, chain.validator_ss58.encode(), _settings(chain.settings)))
    yield _texts(sorted(state.versions)) + _numbers(state.versions[stream] for stream in sorted(state.versions))
    yield from _blocks(chain.blocks)
    metagraph = _metagraph(chain.metagraph)
    yield metagraph
    yield metagraph if chain.last_metagraph is chain.metagraph else _metagraph(chain.last_metagraph)
    yield from _members(chain)
    yield _numbers(flat.from_iterable((block, *chain.syncs[block][::2]) for block in chain.sync_blocks))
    yield _strings([chain.syncs[block].digest for block in chain.sync_blocks])
    yield _manifests(chain.manifests) + _manifests(chain.last_manifests)
    yield from _coverage(chain)
    for withdrawn in (chain.withdrawn_blocks, chain.withdrawn_syncs):
        yield _withdrawals(withdrawn)
    yield from _accounts(accounts)
    yield from _active([active for _, active in sorted(state.active.items())], accounts)
    # Nothing for a state without miner facts, whose digest is that of releases that had none.
    if state.miner_facts:
        yield from _miner_facts(state.miner_facts)


def _settings(settings: RecordedSettings) -> bytes:
    # Without the fields that have their default: a field that is added later then changes no digest.
    fields = msgspec.structs.asdict(settings)
    return _settings_encoder.encode({name: fields[name] for name in fields if fields[name] != getattr(_DEFAULTS, name)})


def _blocks(blocks: BlockTable) -> Iterator[bytes]:
    # Without a finalized block the first one is a number that does not fit into 8 bytes.
    finalized = (blocks.first_finalized, blocks.last_finalized) if blocks.last_finalized else (0, 0)
    yield _numbers((blocks.newest, *finalized)) + _numbers(blocks.chunk_numbers)
    for number in blocks.chunk_numbers:
        chunk = blocks.chunks[number]
        for column in (chunk.created_at_ns, chunk.positions, chunk.units_ns):
            yield _numbers(column)
        yield _strings((chunk.digests, chunk.hashes))


def _metagraph(metagraph: Metagraph) -> bytes:
    miners, validators = sorted(metagraph.miners), sorted(metagraph.stakes)
    axons = [metagraph.miners[miner_ss58] for miner_ss58 in miners]
    return b"".join(
        (
            _texts(miners),
            _texts([address for address, _, _ in axons]),
            _numbers(flat.from_iterable(axon[1:] for axon in axons)),
            _texts(validators),
            _integers(metagraph.stakes[validator_ss58] for validator_ss58 in validators),
        )
    )


def _members(chain: Chain) -> Iterator[bytes]:
    """Encode what names sets of registered miners: the blocks without a successor, and the counts' inputs."""
    # Most of these sets are equal, so each is encoded once, in the order in which the blocks and inputs refer to it.
    sets: dict[frozenset[str], int] = {}
    unfinalized = sorted(chain.unfinalized.items())
    yield _numbers(block for block, _ in unfinalized)
    yield _integers(flat.from_iterable((own, total) for _, (own, total, _) in unfinalized))
    yield _numbers(sets.setdefault(members, len(sets)) for _, (_, _, members) in unfinalized)
    for inputs in (chain.oldest_inputs, chain.newest_inputs):
        yield _inputs(inputs, sets)
    for members in sets:
        yield _texts(sorted(members))


def _inputs(inputs: CountInputs | None, sets: dict[frozenset[str], int]) -> bytes:
    if inputs is None:
        return _numbers(())
    caps = sorted(inputs.caps)
    numbers = (inputs.sync_block, sets.setdefault(inputs.members, len(sets)), *(cap for _, cap in caps))
    return _numbers(numbers) + _texts([executor_class for executor_class, _ in caps])


def _manifests(manifests: Manifests) -> bytes:
    miners = sorted(manifests)
    offers = [sorted(manifests[miner_ss58].items()) for miner_ss58 in miners]
    return b"".join(
        (
            _texts(miners),
            _numbers(map(len, offers)),
            _texts([executor_class for offer in offers for executor_class, _ in offer]),
            _numbers(count for offer in offers for _, count in offer),
        )
    )


def _coverage(chain: Chain) -> Iterator[bytes]:
    """Encode what decides which miners a sync covers: who was registered where, and whom earlier syncs named."""
    for sets in (chain.registered, chain.uncovered):
        miners = sorted(sets.steps)
        yield _texts(miners)
        yield _step_functions([sets.steps[miner_ss58] for miner_ss58 in miners])
    yield _texts(sorted(chain.named))
    yield _texts(sorted(chain.last_uncovered))


def _withdrawals(withdrawn: dict[int, list[Withdrawal]]) -> bytes:
    entries = [(block, each) for block in sorted(withdrawn) for each in withdrawn[block]]
    numbers = _numbers(flat.from_iterable((block, each.position, each.withdrawn_at) for block, each in entries))
    return numbers + _strings([part for _, each in entries for part in (each.digest, each.block_hash)])


def _accounts(accounts: list[Account]) -> Iterator[bytes]:
    yield _texts([account.miner_ss58 for account in accounts])
    yield _texts([account.executor_class for account in accounts])
    yield _numbers(flat.from_iterable((account.version, account.invalidated_below) for account in accounts))
    yield _step_functions([account.offered for account in accounts])
    yield _step_functions([account.counts for account in accounts])
    yield _strings([little_endian_runs(account.taken.to_bytes()) for account in accounts])


def _step_functions(functions: list[StepFunction]) -> bytes:
    return b"".join(
        (
            _numbers(len(each.starts) for each in functions),
            _numbers(flat.from_iterable(each.starts for each in functions)),
            _numbers(flat.from_iterable(each.values for each in functions)),
        )
    )


def _active(reservations: list[ActiveReservation], accounts: list[Account]) -> Iterator[bytes]:
    indexes = {account.stream: index for index, account in enumerate(accounts)}
    # A busy ledger has thousands of active reservations; a list of one attribute is faster than tuples of nine.
    for column in (
        [each.reservation_id for each in reservations],
        [each.position for each in reservations],
        [indexes[each.account.stream] for each in reservations],
        [each.amount_ns for each in reservations],
        [each.job_start_block for each in reservations],
        [each.reserved_at_ns for each in reservations],
        [each.expires_at_ns for each in reservations],
        # Attempts count from 1.
        [each.attempt or 0 for each in reservations],
        [len(each.blocks) for each in reservations],
    ):
        yield _numbers(column)
    yield _numbers(flat.from_iterable(run for each in reservations for run in each.blocks))
    yield _optional_texts([each.job_uuid for each in reservations])
    axons = [each.axon for each in reservations]
    yield _optional_texts([None if axon is None else axon[0] for axon in axons])
    yield _numbers(flat.from_iterable(axon[1:] for axon in axons if axon is not None))


def _miner_facts(facts: MinerFacts) -> Iterator[bytes]:
    exclusions, collateral = sorted(facts.exclusions.items()), sorted(facts.collateral.items())
    yield _texts([miner_ss58 for miner_ss58, _ in exclusions]) + _texts([each.reason for _, each in exclusions])
    yield _integers(flat.from_iterable((each.position, each.until_ns) for _, each in exclusions))
    yield _texts([miner_ss58 for miner_ss58, _ in collateral])
    yield _integers(flat.from_iterable(each for _, each in collateral))
    yield _numbers((len(facts.elsewhere), len(facts.incidents)))
    for stream, jobs in sorted(facts.elsewhere.items()):
        yield _texts([stream, *sorted(jobs)])
        yield _integers(flat.from_iterable(jobs[job_uuid] for job_uuid in sorted(jobs)))
    for stream, times in sorted(facts.incidents.items()):
        yield _texts([stream])
        yield _numbers(times)


def _numbers(values: Iterable[int]) -> bytes:
    """Encode a list of numbers, each of 64 bits with a sign."""
    column = values if isinstance(values, array) else array("q", values)
    return len(column).to_bytes(8, "little") + little_endian("q", column.tobytes())


def _integers(values: Iterable[int]) -> bytes:
    """Encode a list of integers of any size, in decimal digits: a sum of stakes may need more than 64 bits."""
    return _texts([str(value) for value in values])


def _texts(values: Collection[str]) -> bytes:
    return _strings([value.encode() for value in values])


def _optional_texts(values: Collection[str | None]) -> bytes:
    present = [value for value in values if value is not None]
    return _numbers([value is not None for value in values]) + _texts(present)


def _strings(values: Collection[bytes | bytearray]) -> bytes:
    return _numbers(map(len, values)) + b"".join(values)
