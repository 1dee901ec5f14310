"""Fact validation: check chain facts at the public edge and convert them to exact values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import attrgetter, eq, is_

import msgspec

from ledger.errors import InvalidInput
from ledger.events import Axon
from ledger.values import Miner, billionths, executor_counts, instant_ns, integer, is_finite, name

from .canonical import EntryCache
from .chain import Metagraph
from .fact_commands import ValidatedBlock, ValidatedManifests

_HASH = re.compile("(0x)?[0-9a-fA-F]{64}")
_MINER_FIELDS = tuple(map(attrgetter, ("hotkey_ss58", "address", "ip_version", "port")))

LONGEST_ADDRESS = 253
"""In characters: the longest host name that DNS allows."""


class BlockFact(msgspec.Struct, frozen=True):
    """A block and its metagraph: number, aware creation time, registered miners, and stakes by validator.

    `block_hash` is the chain's hash of the block: 64 hexadecimal digits, with or without `0x`; None if it is unknown.
    """

    number: int
    created_at: datetime
    miners: Iterable[Miner]
    stakes: Mapping[str, float]
    block_hash: str | None = None


class ManifestsFact(msgspec.Struct, frozen=True):
    """A manifest sync at a block: `{miner_ss58: {executor_class: executor_count}}`."""

    block: int
    manifests: Mapping[str, Mapping[str, int]]


class FactValidator:
    """Validates facts, in any thread. It caches the last metagraph: blocks repeat it, and each digests all miners."""

    def __init__(self) -> None:
        self._free_caches: list[_MetagraphCache] = []
        """The caches that no thread uses: usually one. No lock guards them, as a forked child would inherit it held."""

    def contents(
        self, facts: Iterable[BlockFact | ManifestsFact]
    ) -> tuple[list[ValidatedBlock | ValidatedManifests], InvalidInput | None]:
        """Return the validated facts before the first malformed one, and the error about it; None if all are valid.

        The error is returned because the facts before it are still to be recorded. Consecutive blocks with the same
        `miners` and `stakes` objects are validated once, so `miners` may also be an iterator that they share.
        """
        contents: list[ValidatedBlock | ValidatedManifests] = []
        shared: BlockFact | None = None
        metagraph: Metagraph | None = None
        if not isinstance(facts, Iterable):
            raise InvalidInput("facts", facts, "a sequence of BlockFact and ManifestsFact")
        for index, fact in enumerate(facts):
            try:
                if isinstance(fact, ManifestsFact):
                    contents.append(validated_manifests(fact))
                    continue
                if not isinstance(fact, BlockFact):
                    raise InvalidInput("facts", fact, "a sequence of BlockFact and ManifestsFact")
                number = integer(fact.number, "number", 1)
                created_at_ns = instant_ns(fact.created_at, "created_at")
                if (
                    metagraph is None
                    or shared is None
                    or fact.miners is not shared.miners
                    or fact.stakes is not shared.stakes
                ):
                    metagraph, shared = self.metagraph(fact.miners, fact.stakes), fact
                contents.append(ValidatedBlock(number, created_at_ns, metagraph, validated_hash(fact.block_hash)))
            except InvalidInput as refused:
                refused.fact_index = index
                return contents, refused
        return contents, None

    def metagraph(self, miners: Iterable[Miner], stakes: Mapping[str, float]) -> Metagraph:
        """Return validated miners and stakes as one exact value, the same object as before if they are equal."""
        if isinstance(miners, (str, bytes, Mapping)) or not isinstance(miners, Iterable):
            raise InvalidInput("miners", miners, "an iterable of Miner")
        given = miners if isinstance(miners, (list, tuple)) else list(miners)
        try:
            cache = self._free_caches.pop()
        except IndexError:
            cache = _MetagraphCache()
        metagraph = cache.metagraph(given, stakes)
        # Only now: a cache in which an exception has interrupted a change is not used again.
        self._free_caches.append(cache)
        return metagraph


class _MetagraphCache:
    """The last metagraph of a feed; of one thread at a time, since its parts must belong together."""

    def __init__(self) -> None:
        self._last: Metagraph | None = None
        self._last_columns: list[list[object]] = []
        """The fields of the last metagraph's miners in the given order, a list for each field."""
        self._encoded_miners = EntryCache()

    def metagraph(self, given: Sequence[Miner], stakes: Mapping[str, float]) -> Metagraph:
        """Return validated miners and stakes as one exact value, the same object as before if they are equal."""
        last = self._last
        # A feed mostly makes new objects of the same miners for each block.
        same_miners = last is not None and self._are_last_miners(given)
        axons = last.miners if last is not None and same_miners else _axons(given)
        exact = _stakes(stakes)
        if last is None or last.miners != axons or last.stakes != exact:
            last = self._last = Metagraph(axons, exact, self._encoded_miners)
        if not same_miners:
            self._last_columns = [list(map(field, given)) for field in _MINER_FIELDS]
        return last

    def _are_last_miners(self, miners: Sequence[Miner]) -> bool:
        """Return whether these are the last metagraph's miners, in the same order: equal values of equal types.

        Without the types, a port of 8000.0 would be accepted after 8000 was. Each pass is one call for all miners and
        makes no list of them, which is five times as fast as a loop (measured).
        """
        if len(miners) != len(self._last_columns[0]) or set(map(type, miners)) - {Miner}:
            return False
        return all(
            _are_same(field, miners, last) for field, last in zip(_MINER_FIELDS, self._last_columns, strict=True)
        )


def _are_same(field: Callable[[Miner], object], miners: Sequence[Miner], last: list[object]) -> bool:
    if all(map(is_, map(field, miners), last)):
        return True
    same_types = all(map(is_, map(type, map(field, miners)), map(type, last)))
    return same_types and all(map(eq, map(field, miners), last))


def validated_manifests(fact: ManifestsFact) -> ValidatedManifests:
    """Return a validated manifest sync; raise `InvalidInput` if it is malformed."""
    block = integer(fact.block, "block", 1)
    if not isinstance(fact.manifests, Mapping):
        raise InvalidInput("manifests", fact.manifests, "a mapping {miner_ss58: {executor_class: executor_count}}")
    manifests = {
        name(miner_ss58, "manifests: miner_ss58"): executor_counts(counts, f"manifests[{miner_ss58!r}]")
        for miner_ss58, counts in fact.manifests.items()
    }
    return ValidatedManifests(block, manifests)


def validated_hash(block_hash: object) -> bytes:
    """Return a block's hash as 32 bytes, empty for None; raise `InvalidInput` if it is malformed."""
    if block_hash is None:
        return b""
    if not isinstance(block_hash, str) or not _HASH.fullmatch(block_hash):
        raise InvalidInput("block_hash", block_hash, '64 hexadecimal digits, with or without "0x", or None')
    return bytes.fromhex(block_hash.removeprefix("0x"))


def _axons(miners: Sequence[Miner]) -> dict[str, Axon]:
    axons: dict[str, Axon] = {}
    for miner in miners:
        if not isinstance(miner, Miner):
            raise InvalidInput("miners", miner, "an iterable of Miner")
        try:
            axon = _axon(miner.hotkey_ss58, miner.address, miner.ip_version, miner.port)
        except TypeError as cause:  # An unhashable field, which the cache below cannot look up.
            raise InvalidInput("miners", miner, "a Miner of plain values") from cause
        hotkey_ss58 = str.__str__(miner.hotkey_ss58)
        if hotkey_ss58 in axons:
            raise InvalidInput("miners", hotkey_ss58, "an iterable that names each hotkey once")
        axons[hotkey_ss58] = axon
    return axons


@lru_cache(maxsize=16_384, typed=True)
def _axon(hotkey_ss58: str, address: str, ip_version: int, port: int) -> Axon:
    """Validate a miner and return its axon; cached, since every block names the same miners again.

    The cache is typed: without that, a port of 8000.0 would be accepted after 8000 was.
    """
    name(hotkey_ss58, "hotkey_ss58")
    if ip_version not in (4, 6):
        raise InvalidInput("ip_version", ip_version, "4 or 6")
    # A float that equals 4 passes the check above, but an event that stores 4.0 could not be decoded.
    plain_version = integer(ip_version, "ip_version", 4, 6)
    return name(address, "address", LONGEST_ADDRESS), plain_version, integer(port, "port", 0, 65_535)


def _stakes(stakes: Mapping[str, float]) -> dict[str, int]:
    if not isinstance(stakes, Mapping):
        raise InvalidInput("stakes", stakes, "a mapping {validator_ss58: stake}")
    exact: dict[str, int] = {}
    for ss58, stake in stakes.items():
        plain = name(ss58, "stakes: validator_ss58")
        if not is_finite(stake):  # Checked before the cached call, because other values may be unhashable.
            raise InvalidInput(f"stakes[{plain!r}]", stake, "a finite number, 0 or more")
        exact[plain] = _stake(plain, stake)
    return exact


@lru_cache(maxsize=4096, typed=True)
def _stake(validator_ss58: str, stake: float) -> int:
    return billionths(stake, f"stakes[{validator_ss58!r}]")
