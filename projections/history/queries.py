"""A page's lines out of the read model, with the log's tail laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .model import LOOKUP_VALUES, Checkpoint, HistoryModel, in_batches
from .rows import BUCKET_BLOCKS, HistoryFilters, HistoryRow, UnprojectedTail

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from .model import Columns

LEAST_ROWS_READ = 100
"""Lines read at a time, at least: some of them may turn out not to pass."""


class PageQuery(NamedTuple):
    """What a page shows: the filters, the log's tail over the model at `checkpoint`, true at `head`."""

    filters: HistoryFilters
    tail: UnprojectedTail
    place: Checkpoint
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

    def holds(self, live: Checkpoint) -> bool:
        """Whether what was read is still what was asked for, now that the live generation stands elsewhere."""
        return live.generation == self.generation and (self.is_past or live.position <= self.head)

    def as_of_head(self, line: HistoryRow) -> HistoryRow:
        """A line of the model as it stands at `head`."""
        end = self.tail.ends.get(line.position)
        return line.as_of(self.head) if end is None else line.ended(end)


class PositionBounds(NamedTuple):
    """The filters' times as positions: from the one on, and before the other; None where there is no bound."""

    first: int | None = None
    end: int | None = None


class HistoryQueries:
    """Reads views out of one ledger's read model."""

    def __init__(self, model: HistoryModel) -> None:
        self._model = model

    async def lines(self, connection: AsyncConnection, view: PageQuery, limit: int) -> list[HistoryRow]:
        """The first lines of the model that pass once the tail's ends are laid over them, and perhaps some more."""
        bounds = await self._time_bounds(connection, view)
        if bounds is None:
            return []
        lines = await self._moved_into_status(connection, view, limit)
        read_next = self._next if view.filters.block is None else self._next_with_block
        start, passed = view.start, 0
        while passed < limit:
            read, start = await read_next(connection, view, bounds, start, max(limit, LEAST_ROWS_READ))
            passing = [line for line in map(view.as_of_head, read) if line.passes(view.filters)]
            lines += passing
            passed += len(passing)
            if start is None:
                break
        return lines

    async def _next(
        self, connection: AsyncConnection, view: PageQuery, bounds: PositionBounds, start: int | None, many: int
    ) -> tuple[list[HistoryRow], int | None]:
        """The next lines, and where it goes on after them; None at the end."""
        read = await self._model.lines(
            connection,
            view.generation,
            lambda columns: [*_conditions(columns, view), *_between(columns.position, view, bounds, start)],
            newest_first=view.newest_first,
            limit=many,
            index=_index(view),
        )
        return read, read[-1].position if len(read) == many else None

    async def _next_with_block(
        self, connection: AsyncConnection, view: PageQuery, bounds: PositionBounds, start: int | None, many: int
    ) -> tuple[list[HistoryRow], int | None]:
        """The same of lines that have the block: found first, then read."""
        from sqlalchemy import select

        from projections.tables import reserved_blocks

        columns, block, many = reserved_blocks.c, view.filters.block or 0, min(many, LOOKUP_VALUES)
        query = (
            select(columns.position)
            .distinct()
            .where(
                self._model.in_generation(reserved_blocks, view.generation),
                columns.bucket == block // BUCKET_BLOCKS,
                columns.first_block <= block,
                columns.last_block >= block,
                *_between(columns.position, view, bounds, start),
            )
            .order_by(columns.position.desc() if view.newest_first else columns.position.asc())
            .limit(many)
        )
        found = [int(position) for (position,) in await connection.execute(query)]
        read = await self._model.lines(
            connection,
            view.generation,
            lambda columns: [*_conditions(columns, view), *_at_positions(found, columns)],
            newest_first=view.newest_first,
            limit=many,
        )
        return read, found[-1] if len(found) == many else None

    async def _moved_into_status(self, connection: AsyncConnection, view: PageQuery, limit: int) -> list[HistoryRow]:
        """The first lines of the model whose status only the tail has made the one asked for."""
        ends = view.tail.ends
        moved = [at for at, end in ends.items() if end.status == view.filters.status and view.is_beyond(at)]
        moved.sort(reverse=view.newest_first)
        lines: list[HistoryRow] = []
        for positions in in_batches(moved):
            read = await self._model.lines(
                connection,
                view.generation,
                partial(_at_positions, positions),
                newest_first=view.newest_first,
                limit=len(positions),
            )
            lines += [line for line in map(view.as_of_head, read) if line.passes(view.filters)]
            if len(lines) >= limit:
                break
        return lines

    async def _time_bounds(self, connection: AsyncConnection, view: PageQuery) -> PositionBounds | None:
        """The filters' times as positions, since recorded times never go back; None where nothing is so late."""
        from sqlalchemy import select

        from projections.tables import Indexed

        table = Indexed("reserved_at_ns")

        async def first_since(at_ns: int) -> int | None:
            query = (
                select(table.c.position)
                .where(self._model.in_generation(table, view.generation), table.c.reserved_at_ns >= at_ns)
                .order_by(table.c.reserved_at_ns, table.c.position)
                .limit(1)
            )
            row = (await connection.execute(query)).first()
            return None if row is None else int(row[0])

        filters = view.filters
        first = end = None
        if filters.reserved_from_ns is not None:
            first = await first_since(filters.reserved_from_ns)
            if first is None:
                return None
        if filters.reserved_until_ns is not None:
            end = await first_since(filters.reserved_until_ns)
        return PositionBounds(first, end)


def _index(view: PageQuery) -> str | None:
    """The index that leads to the fewest lines which the other filters then let through; None for their positions."""
    filters = view.filters
    has_status = filters.status is not None and not _was_reserved(view)
    if filters.job_uuid is not None:
        return "job_uuid"
    if has_status and filters.status == "reserved":
        return "status"
    if filters.miner_ss58 is not None:
        return "miner" if filters.executor_class is None else "account"
    if has_status and (filters.status != "spent" or filters.executor_class is None):
        return "status"
    return None if filters.executor_class is None else "executor_class"


def _was_reserved(view: PageQuery) -> bool:
    """Whether those are asked for that stood at a position which the model has gone beyond."""
    return view.filters.status == "reserved" and view.is_past


def _conditions(columns: Columns, view: PageQuery) -> list[ColumnElement[bool]]:
    """What the filters ask of a line's columns, but for the block and the times."""
    from sqlalchemy import or_

    filters = view.filters
    conditions: list[ColumnElement[bool]] = [
        columns[name] == value
        for name in ("miner_ss58", "executor_class", "job_uuid")
        if (value := getattr(filters, name)) is not None
    ]
    if _was_reserved(view):
        conditions.append(or_(columns.status == "reserved", columns.settled_position > view.head))
    elif filters.status is not None:
        conditions.append(columns.status == filters.status)
        conditions += [columns.settled_position <= view.head] if filters.status != "reserved" else []
    return conditions


def _at_positions(positions: Sequence[int], columns: Columns) -> list[ColumnElement[bool]]:
    """That a line stands at one of these positions."""
    return [columns.position.in_(positions)]


def _between(
    position: ColumnElement[int], view: PageQuery, bounds: PositionBounds, start: int | None
) -> list[ColumnElement[bool]]:
    """That a line stands in the model, between the bounds, and after a position in the order asked for."""
    conditions = [position <= view.checkpoint]
    if bounds.first is not None:
        conditions.append(position >= bounds.first)
    if bounds.end is not None:
        conditions.append(position < bounds.end)
    if start is not None:
        conditions.append(position < start if view.newest_first else position > start)
    return conditions
