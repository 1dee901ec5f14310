"""SQL of a history page: rows of the read model that match filters once the unprojected tail is applied to them."""

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
"""The smallest number of rows read at a time: a short page whose filters reject many rows would need many queries."""


class PositionBounds(NamedTuple):
    """Positions in `[first, end)`, to which the filters' times limit a page; None is no bound."""

    first: int | None = None
    end: int | None = None


class PageQuery(NamedTuple):
    """A page to be read: rows as they were at `head`, from the model up to `model_until` and from the tail after it.

    `model` is the live generation's checkpoint when the query was made; `model_until` is its position, or `head` if
    the model is already beyond that. `after` is the position of the last row shown before this page; None begins.
    """

    filters: HistoryFilters
    tail: UnprojectedTail
    model: Checkpoint
    model_until: int
    head: int
    after: int | None
    newest_first: bool
    bounds: PositionBounds = PositionBounds()

    def is_after(self, position: int) -> bool:
        """Return True if a row comes after those that were shown."""
        if self.after is None:
            return True
        return position < self.after if self.newest_first else position > self.after

    @property
    def generation(self) -> int:
        """The generation to read."""
        return self.model.generation

    @property
    def model_is_ahead(self) -> bool:
        """True if the model is beyond `head`: a row that it shows as settled may have been active at `head`."""
        return self.model.position > self.head

    def is_valid_with(self, live: Checkpoint) -> bool:
        """Return True if rows read in a transaction with this live checkpoint are rows of this query.

        They are not if a rebuild has replaced the generation, or if the model has gone beyond `head` since the query
        was made: its conditions on the status then no longer fit.
        """
        return live.generation == self.generation and (self.model_is_ahead or live.position <= self.head)

    def as_of_head(self, row: HistoryRow) -> HistoryRow:
        """Return a row of the model as it was at `head`."""
        settlement = self.tail.settlements.get(row.position)
        return row.as_of(self.head) if settlement is None else row.settled(settlement)


class HistoryQueries:
    """Reads the rows of pages from one ledger's read model."""

    def __init__(self, model: HistoryModel) -> None:
        self._model = model

    async def rows(self, connection: AsyncConnection, page_query: PageQuery, limit: int) -> list[HistoryRow]:
        """Return the model's first `limit` rows that match at `head`, unordered, and perhaps some more."""
        bounds = page_query.bounds
        # SQL filters by the stored status, so the rows whose status the tail has changed to the one wanted are read
        # by their positions; rows whose status it has changed to another one are rejected below.
        rows = await self._settled_by_tail(connection, page_query, limit)
        read_next = self._next if page_query.filters.block is None else self._next_with_block
        after, matched = page_query.after, 0
        while matched < limit:
            read, after = await read_next(connection, page_query, bounds, after, max(limit, LEAST_ROWS_READ))
            matching = [row for row in map(page_query.as_of_head, read) if row.matches(page_query.filters)]
            rows += matching
            matched += len(matching)
            if after is None:
                break
        return rows

    async def _next(
        self,
        connection: AsyncConnection,
        page_query: PageQuery,
        bounds: PositionBounds,
        after: int | None,
        count: int,
    ) -> tuple[list[HistoryRow], int | None]:
        """Read rows after a position; return them and the position to go on after, None at the end."""
        read = await self._model.rows(
            connection,
            page_query.generation,
            lambda columns: [*_conditions(columns, page_query), *_between(columns.position, page_query, bounds, after)],
            newest_first=page_query.newest_first,
            limit=count,
            index=_index(page_query),
        )
        return read, read[-1].position if len(read) == count else None

    async def _next_with_block(
        self,
        connection: AsyncConnection,
        page_query: PageQuery,
        bounds: PositionBounds,
        after: int | None,
        count: int,
    ) -> tuple[list[HistoryRow], int | None]:
        """Read rows that have the filters' block: first their positions by bucket, then the rows.

        In two statements, because SQLite, which expects a ledger to have few rows, plans a join badly.
        """
        from sqlalchemy import select

        from projections.tables import reserved_blocks

        columns, block, count = reserved_blocks.c, page_query.filters.block or 0, min(count, LOOKUP_VALUES)
        statement = (
            select(columns.position)
            .distinct()
            .where(
                self._model.in_generation(reserved_blocks, page_query.generation),
                columns.bucket == block // BUCKET_BLOCKS,
                columns.first_block <= block,
                columns.last_block >= block,
                *_between(columns.position, page_query, bounds, after),
            )
            .order_by(columns.position.desc() if page_query.newest_first else columns.position.asc())
            .limit(count)
        )
        found = [int(position) for (position,) in await connection.execute(statement)]
        read = await self._model.rows(
            connection,
            page_query.generation,
            lambda columns: [*_conditions(columns, page_query), *_at_positions(found, columns)],
            newest_first=page_query.newest_first,
            limit=count,
        )
        return read, found[-1] if len(found) == count else None

    async def _settled_by_tail(
        self, connection: AsyncConnection, page_query: PageQuery, limit: int
    ) -> list[HistoryRow]:
        """Return the model's first rows that have the filters' status only because of the tail."""
        settlements, status = page_query.tail.settlements, page_query.filters.status
        settled = [
            position
            for position, each in settlements.items()
            if each.status == status and page_query.is_after(position)
        ]
        settled.sort(reverse=page_query.newest_first)
        rows: list[HistoryRow] = []
        for positions in in_batches(settled):
            read = await self._model.rows(
                connection,
                page_query.generation,
                partial(_at_positions, positions),
                newest_first=page_query.newest_first,
                limit=len(positions),
            )
            rows += [row for row in map(page_query.as_of_head, read) if row.matches(page_query.filters)]
            if len(rows) >= limit:
                break
        return rows


def _index(page_query: PageQuery) -> str | None:
    """Return the index that leaves the fewest rows for the other filters to reject; None is the primary key.

    In order: few reservations are active, and a miner has fewer than a class. Most reservations are spent, so `spent`
    narrows less than a class does.
    """
    filters = page_query.filters
    has_status = filters.status is not None and not _was_active(page_query)
    if has_status and filters.status == "reserved":
        return "status"
    if filters.miner_ss58 is not None:
        return "miner" if filters.executor_class is None else "account"
    if has_status and (filters.status != "spent" or filters.executor_class is None):
        return "status"
    return None if filters.executor_class is None else "executor_class"


def _was_active(page_query: PageQuery) -> bool:
    """Return True if the filters ask for reservations that were active at a position which the model is beyond."""
    return page_query.filters.status == "reserved" and page_query.model_is_ahead


def _conditions(columns: Columns, page_query: PageQuery) -> list[ColumnElement[bool]]:
    """Return the filters' conditions on a row's columns, except the block and the times."""
    from sqlalchemy import or_

    filters = page_query.filters
    conditions: list[ColumnElement[bool]] = [
        columns[name] == value
        for name in ("miner_ss58", "executor_class")
        if (value := getattr(filters, name)) is not None
    ]
    if _was_active(page_query):
        conditions.append(or_(columns.status == "reserved", columns.settled_position > page_query.head))
    elif filters.status is not None:
        conditions.append(columns.status == filters.status)
        conditions += [columns.settled_position <= page_query.head] if filters.status != "reserved" else []
    return conditions


def _at_positions(positions: Sequence[int], columns: Columns) -> list[ColumnElement[bool]]:
    """Return the condition that a row has one of these positions."""
    return [columns.position.in_(positions)]


def _between(
    position: ColumnElement[int], page_query: PageQuery, bounds: PositionBounds, after: int | None
) -> list[ColumnElement[bool]]:
    """Return the conditions that a position is not in the tail, is within the bounds, and comes after another."""
    conditions = [position <= page_query.model_until]
    if bounds.first is not None:
        conditions.append(position >= bounds.first)
    if bounds.end is not None:
        conditions.append(position < bounds.end)
    if after is not None:
        conditions.append(position < after if page_query.newest_first else position > after)
    return conditions
