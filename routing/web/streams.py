"""Server-sent events: the overview, the events of the log, and the progress of an audit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from routing.documents import as_json_bytes

from .pages import audit, events, overview
from .parameters import Parameters
from .parts.markup import Markup
from .visit import Visit

if TYPE_CHECKING:
    from routing import StoredEvent

OVERVIEW_SECONDS = 1.0
AUDIT_SECONDS = 0.3
LAST_EVENT_ID = "Last-Event-ID"


async def overview_stream(visit: Visit) -> AsyncIterator[bytes]:
    """Return the parts of the overview each time that they change, at most once a second."""

    async def stream() -> AsyncIterator[bytes]:
        shown: dict[str, Markup] = {}
        while not visit.source.live.closed:
            parts = await _overview_parts(visit)
            changed = {name: markup for name, markup in parts.items() if shown.get(name) != markup}
            shown = parts
            yield _message(as_json_bytes(changed), event="parts") if changed else b":\n\n"
            await asyncio.sleep(OVERVIEW_SECONDS)

    return stream()


async def _overview_parts(visit: Visit) -> dict[str, Markup]:
    """Return the parts, which all connections share for a second."""
    source = visit.source
    now = int(time.monotonic() / OVERVIEW_SECONDS)
    if source.overview is None or source.overview[0] != now:
        found, health = await overview.read(visit)
        source.overview = (now, overview.parts(visit, found, health))
    return source.overview[1]


async def events_stream(visit: Visit) -> AsyncIterator[bytes]:
    """Return every event after a position, each once; `Last-Event-ID` is the position that a browser saw last.

    The data is the document of the event, or with `rows` its row of the table in a string.
    """
    after = _last_event_id(visit)
    if after is None:
        after = visit.parameters.whole("after", 0)
    if after is None:
        after = (await visit.source.ledger.head()).position
    as_rows = visit.parameters.choice("rows", ("1",)) is not None
    batches = await visit.source.live.join(after)

    async def stream() -> AsyncIterator[bytes]:
        yield b":\n\n"  # The response begins now, and not with the first event.
        async for batch in batches:
            yield b"".join(_event_message(visit, each, as_row=as_rows) for each in batch) or b":\n\n"

    return stream()


async def audit_stream(visit: Visit) -> AsyncIterator[bytes]:
    """Return the progress of the running audit, and `end` when none runs."""
    audits = visit.source.audits

    async def stream() -> AsyncIterator[bytes]:
        while audits.progress is not None and not visit.source.live.closed:
            yield _message(as_json_bytes({"progress": audit.progress_part(audits)}), event="parts")
            await asyncio.sleep(AUDIT_SECONDS)
        yield _message(b"{}", event="end")

    return stream()


def _last_event_id(visit: Visit) -> int | None:
    header = visit.request.headers.get(LAST_EVENT_ID, "")
    return Parameters([(LAST_EVENT_ID, header)], (LAST_EVENT_ID,)).whole(LAST_EVENT_ID, 0)


def _event_message(visit: Visit, stored: StoredEvent, *, as_row: bool) -> bytes:
    if as_row:
        return _message(as_json_bytes(events.event_row(visit, stored)), event="row", id=stored.position)
    return _message(as_json_bytes(stored.to_dict()), id=stored.position)


def _message(data: bytes, *, event: str | None = None, id: int | None = None) -> bytes:
    """Return a message; `data` is one line, as JSON is."""
    lines = [b"data: " + data]
    if event is not None:
        lines.insert(0, f"event: {event}".encode())
    if id is not None:
        lines.insert(0, f"id: {id}".encode())
    return b"\n".join(lines) + b"\n\n"
