"""The commands that withdraw facts, and what their callers prepare from the log.

The state has too little to take a fact out again: of old blocks it has digests only, and syncs are added up. The caller
therefore reads the log first and hands in what it found. A command that needs it, or finds that it was prepared on an
older log, appends nothing and returns the request to prepare.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from ledger.codec import Row, unknown_outcome_key
from ledger.errors import BlockInUse, FactNotRecorded, IdempotencyConflict
from ledger.events import (
    CHAIN_STREAM,
    FACT_STREAMS,
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    BlockWithdrawn,
    Correction,
    ManifestsWithdrawn,
    Run,
)

from .account import Account
from .chain import Chain, Metagraph, Withdrawal, block_digest, block_to_return_to, difference, metagraph_difference
from .commands import look_up_key
from .lookup import Lookup
from .state import LedgerState
from .unit_of_work import UnitOfWork

C = TypeVar("C", bound=Correction)


class MetagraphNeeded(NamedTuple):
    """The withdrawal of a block needs the metagraph of the block that was recorded at this position."""

    position: int


class OffersNeeded(NamedTuple):
    """The withdrawal of a sync needs the fold of all syncs up to `until` but those at the positions `without`."""

    until: int
    without: frozenset[int]


class PreparedOffers(NamedTuple):
    """The fold of the syncs but those at the positions `without`.

    It depends on syncs and settings only; `versions` are those of these two streams, as they were read.
    """

    chain: Chain
    without: frozenset[int]
    versions: tuple[int, int]


class WithdrawBlock:
    """Withdraw a block; return the position of the correction, or a request for the metagraph to return to.

    If the block is withdrawn already and was not recorded again, this is a repeat, and the result is the position of
    the first correction, whatever its reason.
    """

    operation = "withdraw_block"
    # A fold of facts cannot be undone. See `RecordFacts.revertible`.
    revertible = False
    streams = FACT_STREAMS
    stands = False

    def __init__(self, number: int, reason: str, key: str | None = None) -> None:
        self.number = number
        self.reason = reason
        self.key = key
        self.prepared: Metagraph | None = None

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> int | MetagraphNeeded:
        position = _first_position(unit_of_work, self.key, BlockWithdrawn, ("number", self.number), self.reason)
        if position is not None:
            return position
        state, number = unit_of_work.state, self.number
        chain = state.chain
        if number not in chain.blocks:
            return _withdrawn_before(f"block {number}", chain.withdrawn_blocks.get(number))
        _refuse_block_in_use(state, number)
        returns_to = block_to_return_to(chain, number)
        if not returns_to:
            return self._append(unit_of_work, BlockWithdrawn(number, self.reason))
        metagraph = self._metagraph(chain, returns_to)
        if metagraph is None:
            return MetagraphNeeded(chain.blocks.position(returns_to))
        fields = metagraph_difference(chain.last_metagraph, metagraph)
        return self._append(unit_of_work, BlockWithdrawn(number, self.reason, returns_to, *fields))

    def _metagraph(self, chain: Chain, number: int) -> Metagraph | None:
        """Return the block's metagraph: mostly one that the state has, since metagraphs repeat; else as prepared."""
        created_at_ns, digest = chain.blocks.created_at_ns(number), chain.blocks.digest(number)
        for metagraph in (chain.last_metagraph, chain.metagraph, self.prepared):
            if metagraph is not None and block_digest(created_at_ns, metagraph) == digest:
                return metagraph
        return None

    def _append(self, unit_of_work: UnitOfWork, event: BlockWithdrawn) -> int:
        return unit_of_work.append(CHAIN_STREAM, event, key=self.key).position


class WithdrawManifests:
    """Withdraw a sync; return the position of the correction, or a request for the fold of the remaining syncs.

    A repeat returns the position of the first correction, as for a block.
    """

    operation = "withdraw_manifests"
    revertible = False
    streams = FACT_STREAMS
    stands = False

    def __init__(self, block: int, reason: str, key: str | None = None) -> None:
        self.block = block
        self.reason = reason
        self.key = key
        self.prepared: PreparedOffers | None = None

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        look_up_key(self.key, lookup)

    def retry_key(self, row: Row) -> str:
        return self.key or unknown_outcome_key(row)

    def decide(self, unit_of_work: UnitOfWork) -> int | OffersNeeded:
        position = _first_position(unit_of_work, self.key, ManifestsWithdrawn, ("block", self.block), self.reason)
        if position is not None:
            return position
        state, chain = unit_of_work.state, unit_of_work.state.chain
        if self.block not in chain.syncs:
            title = f"the manifest sync at block {self.block}"
            return _withdrawn_before(title, chain.withdrawn_syncs.get(self.block))
        needed = self._needed(state)
        versions = state.version(MANIFESTS_STREAM), state.version(SETTINGS_STREAM)
        if self.prepared is None or self.prepared[1:] != (needed.without, versions):
            return needed
        event = self._event(chain, self.prepared.chain)
        return unit_of_work.append(MANIFESTS_STREAM, event, key=self.key).position

    def _needed(self, state: LedgerState) -> OffersNeeded:
        chain = state.chain
        without = {each.position for syncs in chain.withdrawn_syncs.values() for each in syncs}
        without.add(chain.syncs[self.block].position)
        return OffersNeeded(state.position, frozenset(without))

    def _event(self, chain: Chain, remaining: Chain) -> ManifestsWithdrawn:
        offered, absent = difference(chain.last_manifests, remaining.manifests)
        counts: dict[str, list[tuple[int, int]]] = {}
        invalidated_below: dict[str, int] = {}
        for stream, account in sorted(chain.accounts.items()):
            # An account that only withdrawn syncs have named offers nothing.
            correct = remaining.accounts.get(stream) or Account(account.miner_ss58, account.executor_class)
            steps = correct.offered.starts, correct.offered.values
            if steps != (account.offered.starts, account.offered.values):
                counts[stream] = list(zip(*steps, strict=True))
            if correct.invalidated_below != account.invalidated_below:
                invalidated_below[stream] = correct.invalidated_below
        return ManifestsWithdrawn(self.block, self.reason, offered, absent, counts, invalidated_below)


def _first_position(
    unit_of_work: UnitOfWork, key: str | None, kind: type[C], fact: tuple[str, int], reason: str
) -> int | None:
    """Return the position of the correction with this key; None if the key is free."""
    first = unit_of_work.first_outcome(key)
    if first is None:
        return None
    row, event = first
    field, block = fact
    if not isinstance(event, kind) or (getattr(event, field), event.reason) != (block, reason):
        raise IdempotencyConflict(str(key), row.position)
    return row.position


def _withdrawn_before(fact: str, withdrawals: list[Withdrawal] | None) -> int:
    """Return the position of the last withdrawal of a fact that is not recorded; raise if there was none."""
    if not withdrawals:
        raise FactNotRecorded(fact)
    return withdrawals[-1].withdrawn_at


def _refuse_block_in_use(state: LedgerState, number: int) -> None:
    """Raise `BlockInUse` if a reserved or spent reservation holds the block or the one below it.

    Both would lose what they grant. The error names the active reservations; the caller adds the spent ones, which the
    state does not have.
    """
    first = max(number - 1, 1)
    if not any(account.taken.overlaps(first, number) for account in state.chain.accounts.values()):
        return
    active = [each.reservation_id for each in state.active.values() if holds(each.blocks, first, number)]
    raise BlockInUse(number, sorted(active))


def holds(runs: Iterable[Run], first: int, last: int) -> bool:
    """Return whether any of the runs has a block of `first` to `last`."""
    return any(run_first <= last and first <= run_last for run_first, run_last in runs)
