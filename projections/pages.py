"""A page's lines out of the read model, with the log's tail laid over them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .lines import BUCKET_BLOCKS, Filters, Line, Tail
from .model import HistoryModel, Place, in_portions

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

FEWEST_READ = 100
"""Lines read at a time, at least: some of them may turn out not to pass."""


class View(NamedTuple):
    """What a page shows: the filters, the log's tail over the model at `checkpoint`, true at `head`."""

    filters: Filters
    tail: Tail
    place: Place
    checkpoint: int
    head: int
    start: int | None
    newest_first: bool

    def is_beyond(self, position: int) -> bool:
        """Whether a line comes after those that were shown."""
        if self.start is None:
            return True
        return position < self.start if self.newest_first else position > self.start

    @property
    def generation(self) -> int:
        """The generation that it is read from."""
        return self.place.generation

    @property
    def is_past(self) -> bool:
        """Whether the model has gone beyond `head`, so that what it says has ended may have stood there."""
        return self.place.position > self.head

    def holds(self, live: Place) -> bool:
        """Whether what was read is still what was asked for, now that the live generation stands elsewhere."""
        return live.generation == self.generation and (self.is_past or live.position <= self.head)

    def as_of_head(self, line: Line) -> Line:
        """A line of the model as it stands at `head`."""
        end = self.tail.ends.get(line.position)
        return line.as_of(self.head) if end is None else line.ended(end)


class Pages:
    """Reads views out of one ledger's read model."""

    def __init__(self, model: HistoryModel) -> None:
        self._model = model

    async def lines(self, connection: AsyncConnection, view: View, limit: int) -> list[Line]:
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

    async def _moved_into_status(self, connection: AsyncConnection, view: View, limit: int) -> list[Line]:
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

    def _conditions(self, view: View) -> list[ColumnElement[bool]]:
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
        if filters.status == "reserved" and view.is_past:
            conditions.append(or_(columns.status == "reserved", columns.settled_position > view.head))
        elif filters.status == "reserved":
            conditions.append(columns.status == "reserved")
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

    async def _time_bounds(self, connection: AsyncConnection, view: View) -> list[ColumnElement[bool]] | None:
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
