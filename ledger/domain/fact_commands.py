"""The command that records chain facts, with the checked form of the facts themselves.

Like the other commands, it decides on the state of a unit of work and reads neither a clock nor a database.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple

from ledger.codec import Row, unknown_outcome_key
from ledger.errors import ConflictingFact, IdempotencyConflict, ImplausibleFact
from ledger.events import CHAIN_STREAM, FACT_STREAMS, MANIFESTS_STREAM, BlockRecorded, ManifestsRecorded

from .chain import (
    Chain,
    Metagraph,
    Withdrawal,
    block_digest,
    decide_block,
    decide_manifests,
    manifests_digest,
    same_hash,
)
from .commands import REQUEST_BYTES, look_up_key, refuse_other_content
from .lookup import Lookup
from .state import LedgerState
from .unit_of_work import UnitOfWork


class ValidatedBlock(NamedTuple):
    """A block after validation, in exact integers."""

    number: int
    created_at_ns: int
    metagraph: Metagraph
    block_hash: bytes = b""

    @property
    def stream(self) -> str:
        """The stream in which it is recorded."""
        return CHAIN_STREAM

    @property
    def title(self) -> str:
        """Its name in error messages."""
        return f"block {self.number}"

    def decide(self, chain: Chain, confirm: bool) -> BlockRecorded | int:
        """Return the event that records it, or the position of an equal block; raise if it is refused."""
        return decide_block(chain, self.number, self.created_at_ns, self.metagraph, confirm, self.block_hash)

    def withdrawals(self, chain: Chain) -> list[Withdrawal]:
        """Return the withdrawals of blocks of this number."""
        return chain.withdrawn_blocks.get(self.number, [])

    def position_at(self, chain: Chain, last_position: int) -> int | None:
        """Return the position of the equal block that was recorded as of a position; None if none was."""
        digest, blocks = block_digest(self.created_at_ns, self.metagraph), chain.blocks
        is_equal = self.number in blocks and blocks.digest(self.number) == digest
        if is_equal and same_hash(blocks.block_hash(self.number), self.block_hash):
            position = blocks.position(self.number)
            if position <= last_position:
                return position
        return _position_at(self.withdrawals(chain), digest, last_position, self.block_hash)

    def digest(self) -> bytes:
        """Return bytes that identify it among all facts.

        The hash is a part of them: a call with a key that names another hash, or none, is another call. The bytes of a
        block without a hash are those of earlier releases, whose logs hold digests of them.
        """
        content = self.number.to_bytes(8, "big") + block_digest(self.created_at_ns, self.metagraph)
        return b"hashed block" + content + self.block_hash if self.block_hash else b"block" + content


class ValidatedManifests(NamedTuple):
    """A manifest sync after validation."""

    block: int
    manifests: dict[str, dict[str, int]]

    @property
    def stream(self) -> str:
        """The stream in which it is recorded."""
        return MANIFESTS_STREAM

    @property
    def title(self) -> str:
        """Its name in error messages."""
        return f"the manifest sync at block {self.block}"

    def decide(self, chain: Chain, confirm: bool) -> ManifestsRecorded | int:
        """Return the event that records it, or the position of an equal sync; raise if it is refused."""
        return decide_manifests(chain, self.block, self.manifests, confirm)

    def withdrawals(self, chain: Chain) -> list[Withdrawal]:
        """Return the withdrawals of syncs at this block."""
        return chain.withdrawn_syncs.get(self.block, [])

    def position_at(self, chain: Chain, last_position: int) -> int | None:
        """Return the position of the equal sync that was recorded as of a position; None if none was."""
        digest, recorded = manifests_digest(self.manifests), chain.syncs.get(self.block)
        if recorded is not None and recorded.digest == digest and recorded.position <= last_position:
            return recorded.position
        return _position_at(self.withdrawals(chain), digest, last_position)

    def digest(self) -> bytes:
        """Return bytes that identify it among all facts."""
        return b"sync" + self.block.to_bytes(8, "big") + manifests_digest(self.manifests)


FactsOutcome = tuple[list[int], ConflictingFact | ImplausibleFact | None]
"""The positions of the facts before the first refused one, and the refusal; None if no fact was refused."""


class RecordFacts:
    """Record facts in order up to the first refused one; return their positions and the refusal.

    The refusal is returned, not raised, because the facts before it are recorded: a command that raises appends
    nothing.
    """

    operation = "record_facts"
    # A fold of facts cannot be undone, only repeated from the log. On PostgreSQL, the whole batch that contains such a
    # command therefore goes under the lock, four round trips instead of one. A block
    # comes every 12 s, so few batches do.
    revertible = False
    streams = FACT_STREAMS
    stands = False

    def __init__(
        self, facts: Sequence[ValidatedBlock | ValidatedManifests], confirm: bool, key: str | None = None
    ) -> None:
        self.facts = facts
        self.confirm = confirm
        self.key = key

    @cached_property
    def request(self) -> str:
        """The digest of the call's facts, those included that the chain refuses.

        The validation cuts the list at the first malformed fact, so the facts from there on are not part of it. Nor is
        `confirm`: a retry may confirm what the first call did not, and `_result_of_first_call` refuses it.
        """
        return blake2b(b"".join(fact.digest() for fact in self.facts), digest_size=REQUEST_BYTES).hexdigest()

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row, self.request)

    def decide(self, unit_of_work: UnitOfWork) -> FactsOutcome:
        first = unit_of_work.first_outcome(self.key)
        if first is not None:
            row, event = first
            refuse_other_content(str(self.key), self.request, row, event)
            return self._result_of_first_call(unit_of_work.state.chain, row.position)
        rows_before = len(unit_of_work.rows)
        outcome = self._record(unit_of_work)
        # If every fact was a repeat or refused, no row can carry the key, and it stays free.
        if self.key is not None and len(unit_of_work.rows) > rows_before:
            unit_of_work.attach_key(self.key, self.request)
        return outcome

    def _record(self, unit_of_work: UnitOfWork) -> FactsOutcome:
        positions: list[int] = []
        for fact in self.facts:
            try:
                decided = fact.decide(unit_of_work.state.chain, self.confirm)
            except (ConflictingFact, ImplausibleFact) as refusal:
                refusal.fact_index = len(positions)
                return positions, refusal
            if not isinstance(decided, int):
                decided = unit_of_work.append(fact.stream, decided).position
            positions.append(decided)
        return positions, None

    def _result_of_first_call(self, chain: Chain, last_position: int) -> FactsOutcome:
        """Return the result of the first call with this key, whose last recorded fact is at `last_position`.

        Facts are accepted up to the first refusal, so every accepted fact has a position up to `last_position`, though
        it may have been withdrawn since. Any other fact was refused then.
        """
        positions: list[int] = []
        for fact in self.facts:
            position = fact.position_at(chain, last_position)
            if position is None:
                refusal = self._refusal_of_first_call(chain, fact, last_position)
                refusal.fact_index = len(positions)
                return positions, refusal
            positions.append(position)
        return positions, None

    def _refusal_of_first_call(
        self, chain: Chain, fact: ValidatedBlock | ValidatedManifests, last_position: int
    ) -> ConflictingFact | ImplausibleFact:
        """Return the refusal of a fact that the first call did not accept.

        A conflict goes away only if the other fact is withdrawn. Otherwise, what does not conflict now was implausible.
        """
        other = next((each for each in fact.withdrawals(chain) if each.withdrawn_at > last_position), None)
        try:
            fact.decide(chain, self.confirm)
        except (ConflictingFact, ImplausibleFact) as still_refused:
            return still_refused
        if other is not None:
            return ConflictingFact(fact.title, other.position, {})
        # This call confirms its facts, so none of them is implausible. The first call, whose digest is equal
        # because `confirm` is not part of it, did not confirm them: it was another call.
        if self.confirm:
            raise IdempotencyConflict(str(self.key), last_position)
        return ImplausibleFact(fact.title, "the first call with this key was refused it")


def _position_at(
    withdrawals: Iterable[Withdrawal], digest: bytes, last_position: int, block_hash: bytes = b""
) -> int | None:
    """Return the position of a fact that was in force at a position and has been withdrawn since; None if none was."""
    for each in withdrawals:
        is_equal = each.digest == digest and same_hash(each.block_hash, block_hash)
        if is_equal and each.position <= last_position < each.withdrawn_at:
            return each.position
    return None
