"""A ledger as it was: the same questions, answered by replay."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple, TypeVar

from ledger import Head, Lookup, Reservation, Row, Store, found_reservation
from ledger.codec import decode, reservation_position
from ledger.errors import PositionOutOfRange
from ledger.events import BlockRecorded, ManifestsRecorded
from ledger.values import instant
from projections import Availability, ProgressReport, state_at

from .queries import Queries, QuerySources

R = TypeVar("R")


class Moment(NamedTuple):
    """Which past is meant: exactly one of the three."""

    position: int | None = None
    block: int | None = None
    at_ns: int | None = None


class Past(Queries):
    """A read-only view of a ledger's past; made by `Allowance.at`, folded at the first question."""

    def __init__(self, sources: Callable[[], Awaitable[QuerySources]], moment: Moment) -> None:
        self._find_sources = sources
        self._moment = moment
        self._folding: asyncio.Task[tuple[Availability, int]] | None = None

    async def fold(self, progress: ProgressReport | None = None) -> None:
        """Goes to that moment now instead of at the first question, and tells how far it has come.

        `progress` is called with (events read, events there are to read), on a thread of the library's.
        """
        sources = await self._sources()
        await sources.runtime.run(self._folded(sources, progress))

    async def _sources(self) -> QuerySources:
        return await self._find_sources()

    async def _query(self, question: Callable[[Availability, int], R], *, short: bool = False) -> R:
        sources = await self._sources()

        async def answer() -> R:
            return question(*await self._folded(sources))

        return await sources.runtime.run(answer())

    async def _stored(self, reservation_id: int) -> Reservation | None:
        sources = await self._sources()
        head = (await self.head()).position
        lookup = Lookup()
        lookup.positions.add(reservation_position(reservation_id))
        known = await sources.runtime.run(sources.store.find(lookup))
        for rows in (known.rows, known.settlements):
            for key in [key for key, row in rows.items() if row.position > head]:
                del rows[key]
        return found_reservation(known, sources.validator_ss58)

    async def _folded(self, sources: QuerySources, progress: ProgressReport | None = None) -> tuple[Availability, int]:
        """The state of that moment and its clock; folded once, on the runtime's loop."""
        if self._folding is None or (self._folding.done() and self._folding.exception() is not None):
            self._folding = asyncio.get_running_loop().create_task(_fold(sources.store, self._moment, progress))
        return await asyncio.shield(self._folding)


async def _fold(store: Store, moment: Moment, progress: ProgressReport | None) -> tuple[Availability, int]:
    head = await store.head()
    if moment.position is not None:
        if not 1 <= moment.position <= head.position:
            raise PositionOutOfRange(f"position {moment.position}", 1, head.position)
        state = await state_at(store, moment.position, progress)
        return state, state.recorded_at_ns
    if moment.at_ns is not None:
        position = await _last_recorded_by(store, head, moment.at_ns)
        return await state_at(store, position, progress), moment.at_ns
    return await _before_higher_block(store, moment.block or 0, head.position, progress)


async def _last_recorded_by(store: Store, head: Head, at_ns: int) -> int:
    """The last position recorded by a time; recorded times never go back, so halving finds it."""

    async def recorded_at_ns(position: int) -> int:
        return (await _row(store, position)).recorded_at_ns

    first_at_ns = await recorded_at_ns(1)
    if at_ns < first_at_ns:
        raise PositionOutOfRange(f"time {instant(at_ns)}", instant(first_at_ns), instant(head.recorded_at_ns))
    low, high = 1, head.position
    while low < high:
        middle = (low + high + 1) // 2
        if await recorded_at_ns(middle) <= at_ns:
            low = middle
        else:
            high = middle - 1
    return low


async def _before_higher_block(
    store: Store, block: int, head: int, progress: ProgressReport | None
) -> tuple[Availability, int]:
    """The state just before the first event about a higher block; its clock stands at the event before that."""
    state = Availability()
    newest = 0
    while rows := await store.read(state.position):
        for row in rows:
            event = decode(row.position, row.payload)
            about = _block_of(event)
            if about > block:
                if state.chain.blocks.newest == 0 and not state.chain.sync_blocks:
                    raise PositionOutOfRange(f"block {block}", about, None)
                return state, state.recorded_at_ns
            newest = max(newest, about)
            state.evolve(row, event)
        if progress is not None:
            progress(state.position, head)
        await asyncio.sleep(0)
    if block > newest:
        raise PositionOutOfRange(f"block {block}", None, newest or None)
    return state, state.recorded_at_ns


def _block_of(event: object) -> int:
    match event:
        case BlockRecorded():
            return event.number
        case ManifestsRecorded():
            return event.block
        case _:
            return 0


async def _row(store: Store, position: int) -> Row:
    lookup = Lookup()
    lookup.positions.add(position)
    return (await store.find(lookup)).rows[position]


def moment_of(position: int | None, block: int | None, time: datetime | None) -> Moment:
    """The one moment that was named."""
    from ledger.errors import InvalidInput
    from ledger.values import instant_ns, integer

    if sum(each is not None for each in (position, block, time)) != 1:
        raise InvalidInput("at", (position, block, time), "exactly one of position, block and time")
    return Moment(
        None if position is None else integer(position, "position", 0),
        None if block is None else integer(block, "block", 0),
        None if time is None else instant_ns(time, "time"),
    )
