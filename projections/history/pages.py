"""The reservation history: pages of a read model in SQL, with the log's tail on top of it.

A projector writes the model in the background, checkpoint and rows in one transaction. A reader never waits for
it: it folds the events after the checkpoint itself and lays them over the model, so that a page is true at the
log's head, and opening a ledger for reading writes nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec

from ledger import Reservation, Row, Store, yield_to_writers
from ledger.errors import InvalidInput, ProjectionStopped

from .garbage import delete_unreferenced_rows
from .model import LIVE, NO_CHECKPOINT, Checkpoint, HistoryModel
from .projector import Projector, rows_per_transaction
from .queries import HistoryQueries, PageQuery
from .rows import HistoryFilters, HistoryRow, UnprojectedTail, fold_tail, missing_event

__all__ = ["History", "HistoryFilters", "Page", "cursor", "cursor_position"]

TAIL_ROWS = 1000
"""A reader with write access brings the model up to date first when the tail is longer."""


class Page(msgspec.Struct, frozen=True):
    """Reservations in the order asked for; `next` is the cursor for the page after, None at the end."""

    items: list[Reservation]
    next: str | None


class History:
    """Pages of one ledger's reservations."""

    def __init__(self, store: Store, validator_ss58: str, *, read_only: bool) -> None:
        self._store = store
        self._model = HistoryModel(store)
        self._projector = Projector(store)
        self._pages = HistoryQueries(self._model)
        self._validator_ss58 = validator_ss58
        self._read_only = read_only
        self._swept = False
        self.projected = 0
        """The model's checkpoint as it was last seen here."""

    async def page(
        self, filters: HistoryFilters, *, after: str | None, limit: int, newest_first: bool, head: int
    ) -> Page:
        """A page as it stands at position `head`."""
        start = None if after is None else cursor_position(after, newest_first)
        if not self._read_only:
            await self.project(head - TAIL_ROWS)
        lines: list[HistoryRow] | None = None
        while lines is None:
            place = await self._live()
            checkpoint = min(place.position, head)
            tail = await self._tail(checkpoint, head)
            view = PageQuery(filters, tail, place, checkpoint, head, start, newest_first)
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
        """Brings the read model up to a position at least, some events in each transaction.

        Raises `ProjectionStopped` at an event that it cannot take; all before it are taken.
        """
        if until <= 0:
            return
        place = await self._live()
        rows: list[Row] = []
        while place.position < until:
            if place == NO_CHECKPOINT:
                place = await self._projector.live_for_writing()
            if not rows or rows[0].position != place.position + 1:
                rows = await self._store.read(place.position)
            piece = rows[: rows_per_transaction(until - place.position)]
            tail, stopped = fold_tail(place.position, piece)
            place = await self._projector.advance(LIVE, place, tail)
            rows = rows[len(piece) :]
            self.projected = place.position
            if stopped is not None and place.position == tail.position:
                raise stopped
            await yield_to_writers()
        if not self._swept:
            await delete_unreferenced_rows(self._store)
            self._swept = True

    async def stopped(self) -> ProjectionStopped | None:
        """What keeps the model from taking its next events, if anything does."""
        place = await self._live()
        rows = await self._store.read(place.position)
        if not rows:
            return None
        tail, stopped = fold_tail(place.position, rows)
        return await self._projector.refusal(place, tail) or stopped

    async def _live(self) -> Checkpoint:
        place = await self._model.live()
        self.projected = place.position
        return place

    async def _tail(self, checkpoint: int, head: int) -> UnprojectedTail:
        """The events after the checkpoint, up to the head."""
        tail = UnprojectedTail(checkpoint)
        while tail.position < head:
            rows = await self._store.read(tail.position)
            if not rows:
                raise missing_event(tail.position + 1)
            for row in rows:
                if row.position <= head:
                    tail.fold(row)
        return tail

    async def _lines(self, view: PageQuery, limit: int) -> list[HistoryRow] | None:
        """The view's first lines; None where the model was made anew, or went beyond the head, while they were read."""
        async with self._store.read_connection() as connection:
            found = {line.position: line for line in await self._pages.lines(connection, view, limit)}
            live = await self._model.live_within(connection)
        if not view.holds(live):
            return None
        for line in view.tail.lines.values():
            if view.is_beyond(line.position) and line.passes(view.filters):
                found[line.position] = line
        return [found[position] for position in sorted(found, reverse=view.newest_first)][:limit]


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
