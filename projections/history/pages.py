"""The reservation history: pages of a read model in SQL, with the unprojected tail of the log applied to them.

A projector writes the model in the background, checkpoint and rows in one transaction. A reader never waits for it:
it folds the events after the checkpoint itself and applies them to the model's rows. So a page is always true at the
log's head, and opening a ledger for reading writes nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import msgspec

from ledger import (
    DerivedTablesUnavailable,
    Lookup,
    Origin,
    RecoveryConflict,
    Reservation,
    Row,
    Status,
    Store,
    yield_to_writers,
)
from ledger.errors import HistoryDamaged, InvalidInput, ProjectionStopped
from ledger.results import Result

from .garbage import delete_unreferenced_rows
from .model import LIVE, NO_CHECKPOINT, Checkpoint, HistoryModel, in_batches
from .projector import Projector, rows_per_transaction
from .queries import HistoryQueries, PageQuery
from .rows import (
    HistoryFilters,
    HistoryRow,
    UnprojectedTail,
    differing_fields,
    fold_tail,
    history_row_of,
    logged_origin,
    missing_event,
)
from .statuses import settled_by_status
from .times import position_bounds

__all__ = ["History", "HistoryFilters", "Page", "cursor", "cursor_position"]

TAIL_ROWS = 1000
"""The longest tail in events that a reader with write access folds for a page; it projects a longer one first.

A reader who only reads folds the whole tail, for each page again.
"""


LEAST_LOOKED_UP = 500
"""Rows whose origins are looked up at a time, if few of them may match."""
LEAST_ROWS_READ = 128
"""Events read from the log at a time for a file of derived tables: the loop cannot do anything else meanwhile."""
Pause = Callable[[int], Awaitable[int]]
"""Awaited before each transaction with the checkpoint's position; returns how many events the transaction may have."""


class Page(Result, msgspec.Struct, frozen=True):
    """Reservations in the order asked for; `next` is the cursor for the page after, None at the end.

    `checked`: whether every item was compared with the log. It says nothing of rows that the read model lacks, or that
    it shows to other filters; a rebuild and the audit compare the whole model. `origins` has the origin of each item:
    who chose its miner.
    """

    items: list[Reservation]
    next: str | None
    checked: bool
    origins: list[Origin] = []


class History:
    """The reservation history of one ledger: pages for readers, and the projection of new events."""

    def __init__(self, store: Store, validator_ss58: str, *, read_only: bool) -> None:
        self._store = store
        self._model = HistoryModel(store)
        self._projector = Projector(store)
        self._queries = HistoryQueries(self._model)
        self._validator_ss58 = validator_ss58
        self._read_only = read_only
        self._garbage_deleted = False

    async def page(
        self, filters: HistoryFilters, *, after: str | None, limit: int, newest_first: bool, head: int
    ) -> Page:
        """Return a page as it was at position `head`. `after` is the `next` of the page before.

        Raises `InvalidInput` for a cursor of another order, `ProjectionStopped` at an event of the tail that cannot be
        applied, and `HistoryDamaged` if a row of the read model differs from the log.
        """
        shown_until = None if after is None else cursor_position(after, newest_first)
        read_next = self._rows_of_model if filters.job_uuid is None else self._rows_of_job
        # Of the reservations with the other properties, few may have the origin.
        count = limit + 1 if filters.origin is None else max(limit + 1, LEAST_LOOKED_UP)
        found: list[tuple[HistoryRow, Origin]] = []
        has_next = is_whole = False
        while not has_next and not is_whole:
            rows = await read_next(filters, shown_until, count, head, newest_first=newest_first)
            is_whole = len(rows) < count
            if filters.origin is None:
                has_next = len(rows) > limit
                del rows[limit:]
            origins = await self._checked_origins(rows, head)
            found += [each for each in zip(rows, origins, strict=True) if filters.origin in (None, each[1])]
            has_next = has_next or len(found) > limit
            shown_until = rows[-1].position if rows else None
        del found[limit:]
        items = [row.reservation(self._validator_ss58) for row, _ in found]
        following = cursor(found[-1][0].position, newest_first) if has_next else None
        return Page(items, following, checked=True, origins=[origin for _, origin in found])

    async def lag(self, head: int) -> int:
        """Return the number of events up to `head` that the read model does not contain."""
        return max(0, head - await self.checkpoint())

    async def checkpoint(self) -> int:
        """Return the position of the last event that the read model contains; 0 if there is none."""
        return (await self._model.live()).position

    async def settled(self, head: int) -> dict[Status, int]:
        """Return the number of settled reservations by status at position `head`; empty if it is not known."""
        return await settled_by_status(self._store, self._model, head)

    async def project(self, until: int, pause: Pause | None = None) -> None:
        """Project events up to a position at least, a batch per transaction; `pause` lets others go first.

        Raises `ProjectionStopped` at an event that cannot be applied, after those before it were projected.
        """
        if until <= 0:
            return
        checkpoint = await self._model.live()
        event_rows: list[Row] = []
        while checkpoint.position < until:
            most = await (self._go_on(until - checkpoint.position) if pause is None else pause(checkpoint.position))
            if checkpoint == NO_CHECKPOINT:
                # Another process may have begun the history meanwhile, and be at the head already.
                checkpoint = await self._projector.begin_live_if_missing()
                continue
            if not event_rows or event_rows[0].position != checkpoint.position + 1:
                limit = max(most, LEAST_ROWS_READ) if self._store.keeps_derived_apart else None
                event_rows = await self._store.read(checkpoint.position, limit)
            batch = event_rows[:most]
            tail, stopped = fold_tail(checkpoint.position, batch)
            checkpoint = await self._projector.advance(LIVE, checkpoint, tail)
            event_rows = event_rows[len(batch) :]
            if stopped is not None and checkpoint.position == tail.position:
                raise stopped
        if not self._garbage_deleted:
            # Once per process is enough: what rebuilds leave behind, they delete themselves unless they are killed.
            await delete_unreferenced_rows(
                self._store, yield_to_writers if pause is None else partial(pause, checkpoint.position)
            )
            self._garbage_deleted = True

    async def _go_on(self, behind: int) -> int:
        await yield_to_writers()
        return rows_per_transaction(self._store, behind)

    async def stopped(self) -> ProjectionStopped | None:
        """Return the error that stops the projection of the next events, or None."""
        checkpoint = await self._model.live()
        event_rows = await self._store.read(checkpoint.position)
        if not event_rows:
            return None
        tail, stopped = fold_tail(checkpoint.position, event_rows)
        return await self._projector.refusal(checkpoint, tail) or stopped

    async def _rows_of_job(
        self, filters: HistoryFilters, shown_until: int | None, limit: int, head: int, *, newest_first: bool
    ) -> list[HistoryRow]:
        """Return the first rows of a job: the log itself finds its few reservations, without the read model."""
        positions = [
            position
            for position in sorted(await self._store.attempts_of(filters.job_uuid or ""), reverse=newest_first)
            if position <= head and _is_after(position, shown_until, newest_first)
        ]
        rows: list[HistoryRow] = []
        for batch in in_batches(positions):
            found = await self._store.find(Lookup(batch))
            logged = (history_row_of(found, position, head) for position in batch)
            rows += [row for row in logged if row is not None and row.matches(filters)]
            if len(rows) >= limit:
                break
        return rows[:limit]

    async def _rows_of_model(
        self, filters: HistoryFilters, shown_until: int | None, limit: int, head: int, *, newest_first: bool
    ) -> list[HistoryRow]:
        """Return the first rows of the read model with the unprojected tail, not yet compared with the log.

        One more row than shown is asked for, because it tells whether there is a next page.
        """
        if not self._read_only:
            # If the derived tables cannot be written now, the page folds the tail.
            with suppress(DerivedTablesUnavailable):
                await self.project(head - TAIL_ROWS)
        bounds = await position_bounds(self._store, filters, head)
        rows: list[HistoryRow] | None = None
        while rows is None:
            model = await self._model.live()
            model_until = min(model.position, head)
            tail = await self._tail(model_until, head)
            rows = await self._rows(
                PageQuery(filters, tail, model, model_until, head, shown_until, newest_first, bounds), limit
            )
        return rows

    async def _checked_origins(self, rows: list[HistoryRow], head: int) -> list[Origin]:
        """Compare rows with the log's, at the price of one look-up, and return their origins, which the model lacks.

        Raises `HistoryDamaged` at the first difference. Showing the log's values instead would hide that the model is
        damaged, and which rows it lacks is unknown then.
        """
        if not rows:
            return []
        found = await self._store.find(Lookup([row.position for row in rows]))
        for row in rows:
            logged = history_row_of(found, row.position, head)
            if logged != row:
                raise HistoryDamaged(row.position, [] if logged is None else differing_fields(row, logged))
        return [logged_origin(found, row.position) for row in rows]

    async def _tail(self, after: int, head: int) -> UnprojectedTail:
        """Fold the events after a position, up to the head."""
        tail = UnprojectedTail(after)
        while tail.position < head:
            event_rows = await self._store.read(tail.position)
            if not event_rows:
                raise missing_event(tail.position + 1)
            for event_row in event_rows:
                if event_row.position <= head:
                    tail.evolve(event_row)
        return tail

    async def _rows(self, page_query: PageQuery, limit: int) -> list[HistoryRow] | None:
        """Return the first rows in order; None if the model changed so that the query must be made again."""
        found: dict[int, HistoryRow] = {}
        if page_query.model != NO_CHECKPOINT:
            try:
                stored, live = await self._stored_rows(page_query, limit)
            except DerivedTablesUnavailable:
                return None  # Lost since the query was made; now there is no model, or a new one.
            if not page_query.is_valid_with(live):
                return None
            found = {row.position: row for row in stored}
        for row in page_query.tail.rows.values():
            if page_query.is_after(row.position) and row.matches(page_query.filters):
                found[row.position] = row
        return [found[position] for position in sorted(found, reverse=page_query.newest_first)][:limit]

    async def _stored_rows(
        self, page_query: PageQuery, limit: int, *, may_retry: bool = True
    ) -> tuple[list[HistoryRow], Checkpoint]:
        """Return the model's first rows, and the live generation's checkpoint; retry once what a standby cancels."""
        try:
            async with self._model.connection() as connection:
                rows = await self._queries.rows(connection, page_query, limit)
                # Last, because each statement sees what was committed before it: a rebuild may have replaced the
                # generation, and begun to delete its rows, while they were read.
                return rows, await self._model.live_within(connection)
        except RecoveryConflict:
            if not may_retry:
                raise
        return await self._stored_rows(page_query, limit, may_retry=False)


def _is_after(position: int, shown_until: int | None, newest_first: bool) -> bool:
    """Return whether a row comes after the last one shown."""
    return shown_until is None or (position < shown_until if newest_first else position > shown_until)


def cursor(position: int, newest_first: bool) -> str:
    """Return an opaque text for the position of the last row shown, and the order."""
    return urlsafe_b64encode(f"{'<' if newest_first else '>'}{position}".encode()).decode()


def cursor_position(text: str, newest_first: bool) -> int:
    """Return the position in a cursor. Raises `InvalidInput` for any text that `cursor` does not return."""
    expected = "the `next` of a page in the same order"
    try:
        position = int(urlsafe_b64decode(text.encode())[1:])
    except (ValueError, AttributeError) as cause:
        raise InvalidInput("after", text, expected) from cause
    # The exact text is compared, because both decoders accept more than one text for a position.
    if not 0 < position < 2**63 or cursor(position, newest_first) != text:
        raise InvalidInput("after", text, expected)
    return position
