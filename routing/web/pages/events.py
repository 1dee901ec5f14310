"""The events of the log, newest first, and live as they are appended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger.events import account_of
from routing.texts import counted, time_text
from routing.web.components import anchor, empty, reservation_link, short_miner_link
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, row, table, text
from routing.web.visit import Answer, Visit

if TYPE_CHECKING:
    from routing import StoredEvent

PARAMETERS = ("before", "limit")
LIVE = "events-live"
LIVE_PARAMETERS = ("after", "rows")
PAGE_EVENTS, MOST_EVENTS = 50, 1000
_TAB = "\t"
HEADERS = ("Position", "Recorded at, UTC", "Event", "Stream", "Version", "Content")
CLASSES = (NUMBER, "fixed", "fixed", "", NUMBER, "")


async def events(visit: Visit) -> Answer:
    """Return the newest events before a position, newest first; without one, up to the head."""
    head = (await visit.ledger.head()).position
    before = visit.parameters.whole("before") or head + 1
    limit = visit.parameters.whole("limit", 1, MOST_EVENTS) or PAGE_EVENTS
    until = min(before - 1, head)
    found = [each async for each in visit.ledger.events(after=max(0, until - limit), until=until)] if until else []
    found.reverse()
    document = {"items": [each.to_dict() for each in found], "next": found[-1].position if found else None}
    is_live = not visit.is_past and until == head
    return Answer(
        "Events",
        document,
        lambda: _body(visit, found, head, is_live=is_live),
        live=visit.link(LIVE, after=head, rows=1) if is_live else None,
    )


def event_row(visit: Visit, stored: StoredEvent) -> Markup:
    """Return the table row of an event."""
    return row(HEADERS, CLASSES, _cells(visit, stored), of=STACKED)


def _body(visit: Visit, found: list[StoredEvent], head: int, *, is_live: bool) -> Markup:
    if not found:
        return empty("No event yet: the first one is recorded when a validator opens the ledger for writing.")
    sentence = (
        f"{counted(head, 'event')}. Events {found[-1].position:,} to {found[0].position:,}, newest first."
        if not is_live
        else f"The newest of {counted(head, 'event')}, newest first."
    )
    live = element("p", class_="live", id="live", role="status") if is_live else Markup()
    listed = table("Events", HEADERS, (_cells(visit, each) for each in found), CLASSES, of=STACKED, id="rows")
    return joined((element("p", sentence), live, listed, _pages(visit, found, head)))


def _cells(visit: Visit, stored: StoredEvent) -> tuple[str, ...]:
    return (
        f"{stored.position:,}",
        time_text(stored.recorded_at),
        stored.type,
        _stream(visit, stored.stream),
        f"{stored.version:,}",
        _content(visit, stored),
    )


def _stream(visit: Visit, stream: str) -> Markup:
    miner_ss58, executor_class = account_of(stream)
    if not executor_class:
        return text(stream)
    return joined((short_miner_link(visit, miner_ss58), " ", text(executor_class)))


def _content(visit: Visit, stored: StoredEvent) -> Markup:
    if stored.reservation_id is None:
        return text(stored.summary)
    rest = stored.summary.removeprefix(str(stored.reservation_id))
    # The column of the stream has the account already.
    rest = rest.replace(f" on {stored.stream.replace(_TAB, ' ')}", "", 1)
    return joined((reservation_link(visit, stored.reservation_id), text(rest) if rest else ""))


def _pages(visit: Visit, found: list[StoredEvent], head: int) -> Markup:
    links = []
    if found[0].position < head:
        links.append(anchor(visit.parameters.same("events", before=None), "Newest events"))
    if found[-1].position > 1:
        links.append(anchor(visit.parameters.same("events", before=found[-1].position), "Earlier events"))
    items = (element("li", each) for each in links)
    return element("nav", element("ul", *items, class_="links"), aria_label="Pages of the list")
