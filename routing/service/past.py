"""Views of the past: the same queries, on a state that is replayed from the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, TypeVar

from ledger import Head, Lookup, Reservation, Row, Store, found_reservation
from ledger.codec import decode, reservation_position
from ledger.errors import CorruptLedger, InvalidInput, PositionOutOfRange
from ledger.events import BlockRecorded, ManifestsRecorded, decided_at_ns
from ledger.values import instant, instant_ns, integer
from projections import Availability, ProgressReport, SnapshotStore, state_at
from routing.stored_rows import row_at

from .lifecycle import Lifecycle
from .queries import Queries

R = TypeVar("R")


class AsOf(NamedTuple):
    """The moment that a view of the past shows; exactly one field is set."""

    position: int | None = None
    block: int | None = None
    at_ns: int | None = None

    @classmethod
    def checked(cls, position: int | None, block: int | None, time: datetime | None) -> AsOf:
        """Return the moment that a caller asks for. Raises `InvalidInput`."""
        if sum(each is not None for each in (position, block, time)) != 1:
            raise InvalidInput("at", (position, block, time), "exactly one of position, block and time")
        return cls(
            None if position is None else integer(position, "position", 0),
            None if block is None else integer(block, "block", 0),
            None if time is None else instant_ns(time, "time"),
        )


class Past(Queries):
    """A read-only view of a ledger's past. Create it with `Allowance.at`; the first query folds the log up to there."""

    def __init__(self, lifecycle: Lifecycle, as_of: AsOf) -> None:
        super().__init__(lifecycle)
        self._as_of = as_of
        self._folding: asyncio.Task[tuple[Availability, int]] | None = None

    async def fold(self, progress: ProgressReport | None = None) -> None:
        """Fold the log now instead of at the first query, and report the progress.

        `progress` is called with (events read, events to read) on a thread of the library. Raises
        `PositionOutOfRange`.
        """
        handle = await self._lifecycle.handle()
        await handle.runtime.run(self._state_and_clock(handle.store, progress))

    async def _read_state(self, read: Callable[[Availability, int], R], *, short: bool = False) -> R:
        handle = await self._lifecycle.handle()

        async def fold_and_read() -> R:
            return read(*await self._state_and_clock(handle.store))

        return await handle.runtime.run(fold_and_read())

    async def _find_reservation(self, reservation_id: int) -> Reservation | None:
        head = (await self.head()).position
        handle = await self._lifecycle.handle()
        lookup = Lookup(positions=[reservation_position(reservation_id)])
        found = await handle.runtime.run(handle.store.find(lookup))
        # The store looks in the whole log; what was recorded after this moment has not happened in this view.
        for rows in (found.rows, found.settlements):
            for key in [key for key, row in rows.items() if row.position > head]:
                del rows[key]
        return found_reservation(found, handle.validator_ss58)

    async def _state_and_clock(self, store: Store, progress: ProgressReport | None = None) -> tuple[Availability, int]:
        """Return the state and the clock of the moment; on the runtime's loop.

        All queries share one fold, and a cancelled one does not cancel it for the others. A failed fold is repeated.
        """
        if self._folding is None or (self._folding.done() and self._folding.exception() is not None):
            self._folding = asyncio.get_running_loop().create_task(_fold(store, self._as_of, progress))
        return await asyncio.shield(self._folding)


async def _fold(store: Store, as_of: AsOf, progress: ProgressReport | None) -> tuple[Availability, int]:
    head = await store.head()
    if as_of.position is not None:
        if not 1 <= as_of.position <= head.position:
            raise PositionOutOfRange(f"position {as_of.position}", 1, head.position)
        state = await state_at(store, as_of.position, progress)
        return state, await _decided_at_ns(store, as_of.position)
    if as_of.at_ns is not None:
        position = await _last_position_recorded_by(store, head, as_of.at_ns)
        return await state_at(store, position, progress), as_of.at_ns
    return await _fold_before_higher_block(store, as_of.block or 0, head.position, progress)


async def _last_position_recorded_by(store: Store, head: Head, at_ns: int) -> int:
    """Return the last position that was recorded by a time; recorded times never decrease, so bisection finds it."""
    first_at_ns = await _recorded_at_ns(store, 1)
    if at_ns < first_at_ns:
        raise PositionOutOfRange(f"time {instant(at_ns)}", instant(first_at_ns), instant(head.recorded_at_ns))
    low, high = 1, head.position
    while low < high:
        middle = (low + high + 1) // 2
        if await _recorded_at_ns(store, middle) <= at_ns:
            low = middle
        else:
            high = middle - 1
    return low


async def _decided_at_ns(store: Store, position: int) -> int:
    row = await _stored_row(store, position)
    return decided_at_ns(row.recorded_at_ns, decode(position, row.payload))


async def _recorded_at_ns(store: Store, position: int) -> int:
    return (await _stored_row(store, position)).recorded_at_ns


async def _stored_row(store: Store, position: int) -> Row:
    row = await row_at(store, position)
    if row is None:
        raise CorruptLedger(position, "the row is missing")
    return row


async def _fold_before_higher_block(
    store: Store, block: int, head: int, progress: ProgressReport | None
) -> tuple[Availability, int]:
    """Fold up to just before the first event about a higher block; the clock is the one that decided the last event.

    Blocks may be recorded in any order, so bisection cannot find that event: every event after the newest snapshot
    without a higher block is read. Facts that were withdrawn at any time do not count: a mistyped block would otherwise
    hide all that came after it.
    """
    withdrawn = await _withdrawn_positions(store, head)
    state = await _snapshot_without_higher_block(store, block, min(withdrawn, default=head + 1) - 1)
    newest = _newest_fact(state)
    clock_ns = await _decided_at_ns(store, state.position) if state.position else 0
    while rows := await store.read(state.position):
        for row in rows:
            event = decode(row.position, row.payload)
            event_block = 0 if row.position in withdrawn else _block_of(event)
            if event_block > block:
                if state.chain.blocks.newest == 0 and not state.chain.sync_blocks:
                    raise PositionOutOfRange(f"block {block}", event_block, None)
                return state, clock_ns
            newest = max(newest, event_block)
            state.evolve(row, event)
            clock_ns = decided_at_ns(row.recorded_at_ns, event)
        if progress is not None:
            progress(state.position, head)
        # The runtime's loop serves every ledger of the process; a long fold must not block it.
        await asyncio.sleep(0)
    if block > newest:
        raise PositionOutOfRange(f"block {block}", None, newest or None)
    return state, clock_ns


async def _snapshot_without_higher_block(store: Store, block: int, until: int) -> Availability:
    """Return the newest sealed snapshot up to a position that knows no higher block, or the empty state."""
    snapshots = SnapshotStore(store)
    state = await snapshots.load(until)
    while state.position and _newest_fact(state) > block:
        state = await snapshots.load(state.position - 1)
    return state


def _newest_fact(state: Availability) -> int:
    """Return the highest block that a recorded fact is about; 0 without facts."""
    return max(state.chain.blocks.newest, *state.chain.sync_blocks[-1:], 0)


async def _withdrawn_positions(store: Store, head: int) -> set[int]:
    """Return the positions of the facts that the log withdraws."""
    chain = (await state_at(store, head)).chain
    withdrawals = (*chain.withdrawn_blocks.values(), *chain.withdrawn_syncs.values())
    return {each.position for several in withdrawals for each in several}


def _block_of(event: object) -> int:
    """Return the block that an event is about; 0 if it is about none."""
    match event:
        case BlockRecorded():
            return event.number
        case ManifestsRecorded():
            return event.block
        case _:
            return 0
