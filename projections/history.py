"""The reservation history: pages of a read model in SQL, with the log's tail on top of it.

A projector writes the model in the background, checkpoint and rows in one transaction. A reader never waits for
it: it folds the events after the checkpoint itself and lays them over the model, so that a page is true at the
log's head, and opening a ledger for reading writes nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ledger import InvalidInput, ProjectionStopped, Reservation, Store

from .lines import BUCKET_BLOCKS, Filters, Line, Tail, absent, folded
from .model import LIVE, NOWHERE, HistoryModel, Place, in_portions

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

__all__ = ["Filters", "History", "Page", "cursor", "cursor_position"]

TAIL_ROWS = 1000
"""A reader with write access brings the model up to date first when the tail is longer."""
FEWEST_READ = 100
"""Lines read at a time, at least: some of them may turn out not to pass."""


class Page(msgspec.Struct, frozen=True):
    """Reservations in the order asked for; `next` is the cursor for the page after, None at the end."""

    items: list[Reservation]
    next: str | None


class _View(NamedTuple):
    """What a page shows: the filters, the log's tail over the model at `checkpoint`, true at `head`."""

    filters: Filters
    tail: Tail
    generation: int
    checkpoint: int
    head: int
    start: int | None
    newest_first: bool

    def is_beyond(self, position: int) -> bool:
        """Whether a line comes after those that were shown."""
        if self.start is None:
            return True
        return position < self.start if self.newest_first else position > self.start

    def as_of_head(self, line: Line) -> Line:
        """A line of the model as it stands at `head`."""
        end = self.tail.ends.get(line.position)
        return line.as_of(self.head) if end is None else line.ended(end)


class History:
    """Pages of one ledger's reservations."""

    def __init__(self, store: Store, validator_ss58: str, *, read_only: bool) -> None:
        self._store = store
        self._model = HistoryModel(store)
        self._validator_ss58 = validator_ss58
        self._read_only = read_only
        self._swept = False
        self.projected = 0
        """The model's checkpoint as it was last seen here."""

    async def page(self, filters: Filters, *, after: str | None, limit: int, newest_first: bool, head: int) -> Page:
        """A page as it stands at position `head`."""
        start = None if after is None else cursor_position(after, newest_first)
        if not self._read_only:
            await self.project(head - TAIL_ROWS)
        lines: list[Line] | None = None
        while lines is None:
            place = await self._live()
            checkpoint = min(place.position, head)
            tail = await self._tail(checkpoint, head)
            view = _View(filters, tail, place.generation, checkpoint, head, start, newest_first)
            lines = await self._lines(view, limit + 1)
        items = [line.reservation(self._validator_ss58) for line in lines[:limit]]
        more = len(lines) > limit
        return Page(items, cursor(lines[limit - 1].position, newest_first) if more else None)

    async def lag(self, head: int) -> int:
        """How many events the read model is behind a position."""
        return max(0, head - await self.checkpoint())

    async def checkpoint(self) -> int:
        """The position up to which the model has taken the log."""
        return (await self._live()).position

    async def project(self, until: int) -> None:
        """Brings the read model up to a position at least, a page of events in each transaction.

        Raises `ProjectionStopped` at an event that it cannot take; all before it are taken.
        """
        if until <= 0:
            return
        place = await self._live()
        while place.position < until:
            if place == NOWHERE:
                place = await self._model.live_for_writing()
            tail, stopped = folded(place.position, await self._store.read(place.position))
            place = await self._model.advance(LIVE, place, tail)
            self.projected = place.position
            if stopped is not None and place.position == tail.position:
                raise stopped
        if not self._swept:
            await self._model.sweep()
            self._swept = True

    async def stopped(self) -> ProjectionStopped | None:
        """What keeps the model from taking its next events, if anything does."""
        place = await self._live()
        rows = await self._store.read(place.position)
        if not rows:
            return None
        tail, stopped = folded(place.position, rows)
        return await self._model.refusal(place, tail) or stopped

    async def _live(self) -> Place:
        place = await self._model.live()
        self.projected = place.position
        return place

    async def _tail(self, checkpoint: int, head: int) -> Tail:
        """The events after the checkpoint, up to the head."""
        tail = Tail(checkpoint)
        while tail.position < head:
            rows = await self._store.read(tail.position)
            if not rows:
                raise absent(tail.position + 1)
            for row in rows:
                if row.position <= head:
                    tail.fold(row)
        return tail

    async def _lines(self, view: _View, limit: int) -> list[Line] | None:
        """The view's first lines; None where the model was made anew while they were read."""
        async with self._store.reading() as connection:
            found = {line.position: line for line in await self._model_lines(connection, view, limit)}
            live = await self._model.place(connection, LIVE) or NOWHERE
        if live.generation != view.generation:
            return None
        for line in view.tail.lines.values():
            if view.is_beyond(line.position) and line.passes(view.filters):
                found[line.position] = line
        return [found[position] for position in sorted(found, reverse=view.newest_first)][:limit]

    async def _model_lines(self, connection: AsyncConnection, view: _View, limit: int) -> list[Line]:
        """The first lines of the model that pass once the tail's ends are laid over them, and perhaps some more."""
        bounds = await self._time_bounds(connection, view)
        if bounds is None:
            return []
        lines = await self._moved_into_status(connection, view, limit)
        conditions = [*self._conditions(view), *bounds]
        many = max(limit, FEWEST_READ)
        start, passed = view.start, 0
        while passed < limit:
            read = await self._model.lines(
                connection,
                view.generation,
                [*conditions, *_after(start, view.newest_first)],
                newest_first=view.newest_first,
                limit=many,
            )
            passing = [line for line in map(view.as_of_head, read) if line.passes(view.filters)]
            lines += passing
            passed += len(passing)
            if len(read) < many:
                break
            start = read[-1].position
        return lines

    async def _moved_into_status(self, connection: AsyncConnection, view: _View, limit: int) -> list[Line]:
        """The first lines of the model whose status only the tail has made the one asked for."""
        from .tables import reservations

        ends = view.tail.ends
        moved = [at for at, end in ends.items() if end.status == view.filters.status and view.is_beyond(at)]
        moved.sort(reverse=view.newest_first)
        lines: list[Line] = []
        for positions in in_portions(moved):
            read = await self._model.lines(
                connection,
                view.generation,
                [reservations.c.position.in_(positions)],
                newest_first=view.newest_first,
                limit=len(positions),
            )
            lines += [line for line in map(view.as_of_head, read) if line.passes(view.filters)]
            if len(lines) >= limit:
                break
        return lines

    def _conditions(self, view: _View) -> list[ColumnElement[bool]]:
        from sqlalchemy import or_, select

        from .tables import reservations, reserved_blocks

        columns, filters = reservations.c, view.filters
        conditions: list[ColumnElement[bool]] = [columns.position <= view.checkpoint]
        if filters.miner_ss58 is not None:
            conditions.append(columns.miner_ss58 == filters.miner_ss58)
        if filters.executor_class is not None:
            conditions.append(columns.executor_class == filters.executor_class)
        if filters.job_uuid is not None:
            conditions.append(columns.job_uuid == filters.job_uuid)
        if filters.status == "reserved":
            conditions.append(or_(columns.status == "reserved", columns.settled_position > view.head))
        elif filters.status is not None:
            conditions += [columns.status == filters.status, columns.settled_position <= view.head]
        if filters.block is not None:
            conditions.append(
                columns.position.in_(
                    select(reserved_blocks.c.position).where(
                        self._model.in_generation(reserved_blocks, view.generation),
                        reserved_blocks.c.bucket == filters.block // BUCKET_BLOCKS,
                        reserved_blocks.c.first_block <= filters.block,
                        reserved_blocks.c.last_block >= filters.block,
                    )
                )
            )
        return conditions

    async def _time_bounds(self, connection: AsyncConnection, view: _View) -> list[ColumnElement[bool]] | None:
        """The filters' times as positions, since recorded times never go back; None where nothing is so late."""
        from sqlalchemy import select

        from .tables import reservations

        async def first_since(at_ns: int) -> int | None:
            query = (
                select(reservations.c.position)
                .where(self._model.in_generation(reservations, view.generation), reservations.c.reserved_at_ns >= at_ns)
                .order_by(reservations.c.reserved_at_ns, reservations.c.position)
                .limit(1)
            )
            row = (await connection.execute(query)).first()
            return None if row is None else int(row[0])

        bounds: list[ColumnElement[bool]] = []
        if view.filters.reserved_from_ns is not None:
            first = await first_since(view.filters.reserved_from_ns)
            if first is None:
                return None
            bounds.append(reservations.c.position >= first)
        if view.filters.reserved_until_ns is not None:
            last = await first_since(view.filters.reserved_until_ns)
            bounds += [reservations.c.position < last] if last is not None else []
        return bounds


def _after(start: int | None, newest_first: bool) -> list[ColumnElement[bool]]:
    """That a line comes after a position, in the order asked for."""
    from .tables import reservations

    if start is None:
        return []
    return [reservations.c.position < start if newest_first else reservations.c.position > start]


def cursor(position: int, newest_first: bool) -> str:
    """An opaque mark of the last line shown."""
    return urlsafe_b64encode(f"{'<' if newest_first else '>'}{position}".encode()).decode()


def cursor_position(text: str, newest_first: bool) -> int:
    """The position that a cursor marks."""
    expected = "the `next` of a page in the same order"
    try:
        position = int(urlsafe_b64decode(text.encode())[1:])
    except (ValueError, AttributeError) as cause:
        raise InvalidInput("after", text, expected) from cause
    if not 0 < position < 2**63 or cursor(position, newest_first) != text:
        raise InvalidInput("after", text, expected)
    return position
