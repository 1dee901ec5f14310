"""The reservation history: a read model in SQL, and the log's tail on top of it.

A projector writes the model in the background, checkpoint and rows in one transaction. A reader never waits for
it: it folds the events after the checkpoint itself and lays them over the model, so that a page is true at the
log's head, and opening a ledger for reading writes nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from ledger import (
    PAGE_ROWS,
    AllowanceReserved,
    InvalidInput,
    Reservation,
    Row,
    Run,
    Settlement,
    Status,
    Store,
    account_of,
    decode,
    instant,
    numbers,
    reservation_id,
    seconds,
    status_after,
)

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

PROJECTION = "history"
MODEL_VERSION = 1
BUCKET_BLOCKS = 64
TAIL_ROWS = 1000
"""A reader with write access brings the model up to date first when the tail is longer."""

_runs = msgspec.json.Decoder(list[tuple[int, int]])


class Page(msgspec.Struct, frozen=True):
    """Reservations in the order asked for; `next` is the cursor for the page after, None at the end."""

    items: list[Reservation]
    next: str | None


class Filters(NamedTuple):
    """What a reservation must be to be shown; None lets everything through."""

    miner_ss58: str | None = None
    executor_class: str | None = None
    job_uuid: str | None = None
    status: Status | None = None
    reserved_from_ns: int | None = None
    reserved_until_ns: int | None = None
    block: int | None = None


class Line(NamedTuple):
    """A row of the read model."""

    position: int
    reservation_id: int
    miner_ss58: str
    executor_class: str
    job_uuid: str | None
    amount_ns: int
    blocks: bytes
    job_start_block: int
    reserved_at_ns: int
    expires_at_ns: int
    status: Status
    settled_position: int | None
    settled_at_ns: int | None

    def passes(self, filters: Filters) -> bool:
        """Whether the filters let it through."""
        return (
            filters.miner_ss58 in (None, self.miner_ss58)
            and filters.executor_class in (None, self.executor_class)
            and filters.job_uuid in (None, self.job_uuid)
            and filters.status in (None, self.status)
            and (filters.reserved_from_ns is None or filters.reserved_from_ns <= self.reserved_at_ns)
            and (filters.reserved_until_ns is None or self.reserved_at_ns < filters.reserved_until_ns)
            and (filters.block is None or any(a <= filters.block <= b for a, b in _runs.decode(self.blocks)))
        )

    def reservation(self, validator_ss58: str) -> Reservation:
        """The public form."""
        return Reservation(
            self.reservation_id,
            self.status,
            validator_ss58,
            self.miner_ss58,
            self.executor_class,
            self.job_uuid,
            seconds(self.amount_ns),
            numbers(_runs.decode(self.blocks)),
            self.job_start_block,
            instant(self.reserved_at_ns),
            instant(self.expires_at_ns),
            None if self.settled_at_ns is None else instant(self.settled_at_ns),
        )


class Tail:
    """What the events after a checkpoint make of the model: lines that are new, and ends of older ones."""

    def __init__(self) -> None:
        self.lines: dict[int, Line] = {}
        self.ends: dict[int, tuple[Status, int, int]] = {}

    def fold(self, row: Row) -> None:
        """Takes the next event."""
        event = decode(row.position, row.payload)
        if isinstance(event, AllowanceReserved):
            self.lines[row.position] = _line(row, event)
        elif isinstance(event, Settlement) and row.settles is not None:
            end = (status_after(event), row.position, row.recorded_at_ns)
            if row.settles in self.lines:
                self.lines[row.settles] = _ended(self.lines[row.settles], end)
            else:
                self.ends[row.settles] = end


class _View(NamedTuple):
    """What a page shows: the filters, the log's tail over the model at `checkpoint`, true at `head`."""

    filters: Filters
    tail: Tail
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
        if end is not None:
            return _ended(line, end)
        if line.settled_position is not None and line.settled_position > self.head:
            return line._replace(status="reserved", settled_position=None, settled_at_ns=None)
        return line


class History:
    """Pages of one ledger's reservations."""

    def __init__(self, store: Store, validator_ss58: str, *, read_only: bool) -> None:
        self._store = store
        self._validator_ss58 = validator_ss58
        self._read_only = read_only
        self.projected = 0
        """The model's checkpoint as it was last seen here."""

    async def page(self, filters: Filters, *, after: str | None, limit: int, newest_first: bool, head: int) -> Page:
        """A page as it stands at position `head`."""
        start = None if after is None else cursor_position(after, newest_first)
        if not self._read_only:
            await self.project(head - TAIL_ROWS)
        checkpoint = min(await self.checkpoint(), head)
        tail = await self._tail(checkpoint, head)
        view = _View(filters, tail, checkpoint, head, start, newest_first)
        async with self._store.reading() as connection:
            lines = await self._model_lines(connection, view, limit + 1)
        for line in tail.lines.values():
            if view.is_beyond(line.position) and line.passes(filters):
                lines.append(line)
        lines.sort(key=lambda line: line.position, reverse=newest_first)
        items = [line.reservation(self._validator_ss58) for line in lines[:limit]]
        more = len(lines) > limit
        return Page(items, cursor(lines[limit - 1].position, newest_first) if more else None)

    async def lag(self, head: int) -> int:
        """How many events the read model is behind a position."""
        return max(0, head - await self.checkpoint())

    async def project(self, until: int) -> None:
        """Brings the read model up to a position at least, a page of events in each transaction."""
        if until <= 0:
            return
        checkpoint = await self.checkpoint()
        while checkpoint < until:
            rows = await self._store.read(checkpoint)
            tail = Tail()
            for row in rows:
                tail.fold(row)
            async with self._store.writing() as connection:
                now_at = await self._checkpoint(connection)
                if now_at == checkpoint:
                    await self._write(connection, tail, rows[-1].position)
            # Where another process has moved the checkpoint, its pages stand and ours is left unwritten.
            checkpoint = rows[-1].position if now_at == checkpoint else now_at

    async def checkpoint(self) -> int:
        """The position up to which the model has taken the log."""
        async with self._store.reading() as connection:
            return await self._checkpoint(connection)

    async def _checkpoint(self, connection: AsyncConnection) -> int:
        from sqlalchemy import select

        from .tables import checkpoints

        row = (
            await connection.execute(
                select(checkpoints.c.position).where(
                    checkpoints.c.ledger == self._store.ledger, checkpoints.c.projection == PROJECTION
                )
            )
        ).first()
        self.projected = 0 if row is None else int(row[0])
        return self.projected

    async def _tail(self, checkpoint: int, head: int) -> Tail:
        tail = Tail()
        position = checkpoint
        while position < head:
            rows = await self._store.read(position)
            for row in rows:
                if row.position <= head:
                    tail.fold(row)
            if len(rows) < PAGE_ROWS:
                break
            position = rows[-1].position
        return tail

    async def _model_lines(self, connection: AsyncConnection, view: _View, limit: int) -> list[Line]:
        """Lines of the model that pass, with the tail's ends laid over them."""
        from sqlalchemy import select

        from .tables import reservations

        position = reservations.c.position
        bounds = await self._time_bounds(connection, view.filters)
        if bounds is None:
            return []
        first, last = bounds
        conditions = [*self._conditions(view), position <= view.checkpoint]
        conditions += [position >= first] if first is not None else []
        conditions += [position < last] if last is not None else []
        if view.start is not None:
            conditions.append(position < view.start if view.newest_first else position > view.start)
        query = (
            select(*(reservations.c[name] for name in Line._fields))
            .where(reservations.c.ledger == self._store.ledger, *conditions)
            .order_by(position.desc() if view.newest_first else position.asc())
            .limit(limit)
        )
        lines = [view.as_of_head(Line(*row)) for row in await connection.execute(query)]
        lines += await self._moved_into_status(connection, view)
        return [line for line in lines if line.passes(view.filters)]

    async def _moved_into_status(self, connection: AsyncConnection, view: _View) -> list[Line]:
        """Lines of the model whose status only the tail has made the one asked for."""
        from sqlalchemy import select

        from .tables import reservations

        if view.filters.status is None:
            return []
        moved = [at for at, end in view.tail.ends.items() if end[0] == view.filters.status and view.is_beyond(at)]
        query = select(*(reservations.c[name] for name in Line._fields)).where(
            reservations.c.ledger == self._store.ledger, reservations.c.position.in_(moved)
        )
        return [view.as_of_head(Line(*row)) for row in await connection.execute(query)] if moved else []

    def _conditions(self, view: _View) -> list[ColumnElement[bool]]:
        from sqlalchemy import or_, select

        from .tables import reservations, reserved_blocks

        columns, filters = reservations.c, view.filters
        conditions: list[ColumnElement[bool]] = []
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
        if filters.status is not None and view.tail.ends:
            conditions.append(columns.position.not_in(list(view.tail.ends)))
        if filters.block is not None:
            conditions.append(
                columns.position.in_(
                    select(reserved_blocks.c.position).where(
                        reserved_blocks.c.ledger == self._store.ledger,
                        reserved_blocks.c.bucket == filters.block // BUCKET_BLOCKS,
                        reserved_blocks.c.first_block <= filters.block,
                        reserved_blocks.c.last_block >= filters.block,
                    )
                )
            )
        return conditions

    async def _time_bounds(self, connection: AsyncConnection, filters: Filters) -> tuple[int | None, int | None] | None:
        """The filters' times as positions, since recorded times never go back; None where nothing is so late."""
        from sqlalchemy import select

        from .tables import reservations

        async def first_since(at_ns: int) -> int | None:
            query = (
                select(reservations.c.position)
                .where(reservations.c.ledger == self._store.ledger, reservations.c.reserved_at_ns >= at_ns)
                .order_by(reservations.c.reserved_at_ns, reservations.c.position)
                .limit(1)
            )
            row = (await connection.execute(query)).first()
            return None if row is None else int(row[0])

        first = last = None
        if filters.reserved_from_ns is not None:
            first = await first_since(filters.reserved_from_ns)
            if first is None:
                return None
        if filters.reserved_until_ns is not None:
            last = await first_since(filters.reserved_until_ns)
        return first, last

    async def _write(self, connection: AsyncConnection, tail: Tail, position: int) -> None:
        """Writes what a page of events adds to the model, and the checkpoint."""
        from sqlalchemy import bindparam, delete, insert, update

        from .tables import checkpoints, reservations, reserved_blocks

        ledger = self._store.ledger
        if tail.lines:
            await connection.execute(
                insert(reservations), [{"ledger": ledger, **line._asdict()} for line in tail.lines.values()]
            )
            pieces = [piece for line in tail.lines.values() for piece in _pieces(ledger, line)]
            await connection.execute(insert(reserved_blocks), pieces)
        if tail.ends:
            await connection.execute(
                update(reservations)
                .where(reservations.c.ledger == ledger, reservations.c.position == bindparam("at"))
                .values(
                    status=bindparam("ended"),
                    settled_position=bindparam("ended_position"),
                    settled_at_ns=bindparam("ended_at_ns"),
                ),
                [
                    {"at": at, "ended": end[0], "ended_position": end[1], "ended_at_ns": end[2]}
                    for at, end in tail.ends.items()
                ],
            )
        await connection.execute(
            delete(checkpoints).where(checkpoints.c.ledger == ledger, checkpoints.c.projection == PROJECTION)
        )
        await connection.execute(
            insert(checkpoints),
            {"ledger": ledger, "projection": PROJECTION, "model_version": MODEL_VERSION, "position": position},
        )


def cursor(position: int, newest_first: bool) -> str:
    """An opaque mark of the last line shown."""
    return urlsafe_b64encode(f"{'<' if newest_first else '>'}{position}".encode()).decode()


def cursor_position(text: str, newest_first: bool) -> int:
    """The position that a cursor marks."""
    expected = "the `next` of a page in the same order"
    try:
        mark = urlsafe_b64decode(text.encode()).decode()
        position = int(mark[1:])
    except (ValueError, AttributeError) as cause:
        raise InvalidInput("after", text, expected) from cause
    if mark[0] != ("<" if newest_first else ">") or not 0 < position < 2**63:
        raise InvalidInput("after", text, expected)
    return position


def _line(row: Row, event: AllowanceReserved) -> Line:
    miner_ss58, executor_class = account_of(row.stream)
    return Line(
        row.position,
        reservation_id(row.position, row.hash),
        miner_ss58,
        executor_class,
        row.job_uuid,
        event.amount_ns,
        msgspec.json.encode(event.blocks),
        event.job_start_block,
        row.recorded_at_ns,
        event.expires_at_ns,
        "reserved",
        None,
        None,
    )


def _ended(line: Line, end: tuple[Status, int, int]) -> Line:
    status, position, at_ns = end
    return line._replace(status=status, settled_position=position, settled_at_ns=at_ns)


def _pieces(ledger: int, line: Line) -> Iterator[dict[str, int]]:
    """The reservation's runs, cut at bucket borders."""
    runs: list[Run] = _runs.decode(line.blocks)
    for first, last in runs:
        for bucket in range(first // BUCKET_BLOCKS, last // BUCKET_BLOCKS + 1):
            yield {
                "ledger": ledger,
                "bucket": bucket,
                "position": line.position,
                "first_block": max(first, bucket * BUCKET_BLOCKS),
                "last_block": min(last, bucket * BUCKET_BLOCKS + BUCKET_BLOCKS - 1),
            }
