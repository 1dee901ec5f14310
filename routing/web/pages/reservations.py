"""The reservations: every filter of `history`, in pages, and whole as CSV or JSON lines."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from ledger import ORIGINS, STATUSES
from routing.documents import as_fields, as_json_bytes
from routing.service.queries import OVERDUE
from routing.web.components import anchor, choice, empty, field, form, hidden, reservations_table
from routing.web.parts.markup import Markup, element, joined, void
from routing.web.visit import Answer, Visit

if TYPE_CHECKING:
    from routing import Page

FILTERS = (
    "miner",
    "executor_class",
    "job",
    "status",
    "reserved_from",
    "reserved_until",
    "took_block",
    "origin",
    "order",
)
STATUS_FILTERS = (*STATUSES, OVERDUE)
PARAMETERS = (*FILTERS, "limit", "after")
ORDERS = ("newest", "oldest")
PAGE_RESERVATIONS, MOST_RESERVATIONS = 50, 1000
DOWNLOADED_AT_ONCE = 500
COLUMNS = (
    *("reservation_id", "status", "validator_ss58", "miner_ss58", "executor_class", "job_uuid", "allowance_seconds"),
    *("blocks", "job_start_block", "reserved_at", "expires_at", "settled_at", "origin"),
)


async def reservations(visit: Visit) -> Answer:
    """Return a page of the reservations that match every filter."""
    limit = visit.parameters.whole("limit", 1, MOST_RESERVATIONS) or PAGE_RESERVATIONS
    after = visit.parameters.text("after")
    page = await visit.ledger.history(**_filters(visit), after=after, limit=limit)
    classes = await visit.ledger.executor_classes()
    document = {"items": _documents(page), "next": page.next, "checked": page.checked}
    return Answer("Reservations", document, lambda: _body(visit, page, classes))


async def as_csv(visit: Visit) -> AsyncIterator[bytes]:
    """Return an iterator over the lines of all matching reservations as CSV, the header first."""
    return _lines(visit, await _first(visit), csv_lines)


async def as_json_lines(visit: Visit) -> AsyncIterator[bytes]:
    """Return an iterator over all matching reservations, each a line of JSON with the keys of `history --json`."""
    return _lines(visit, await _first(visit), json_lines)


def csv_lines(page: Page, *, is_first: bool) -> bytes:
    """Return the lines of a page; blocks are numbers with spaces between."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    if is_first:
        writer.writerow(COLUMNS)
    for values in _documents(page):
        values["blocks"] = " ".join(map(str, values["blocks"]))
        writer.writerow([_cell(values[column]) for column in COLUMNS])
    return stream.getvalue().encode()


def json_lines(page: Page, *, is_first: bool) -> bytes:
    """Return the lines of a page."""
    return b"".join(as_json_bytes({**each, "checked": page.checked}) + b"\n" for each in _documents(page))


def _documents(page: Page) -> list[dict[str, Any]]:
    """Return the reservations of a page, each with its origin."""
    return [{**as_fields(each), "origin": origin} for each, origin in zip(page.items, page.origins, strict=True)]


def _cell(value: object) -> object:
    """Return a cell that a spreadsheet does not read as a formula: a hotkey may be any text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


async def _first(visit: Visit) -> Page:
    """Read the first page, so that a wrong filter is refused before the answer begins."""
    return await visit.ledger.history(**_filters(visit), limit=DOWNLOADED_AT_ONCE)


async def _lines(visit: Visit, page: Page, lines: Any) -> AsyncIterator[bytes]:
    yield lines(page, is_first=True)
    filters = _filters(visit)
    while page.next is not None:
        page = await visit.ledger.history(**filters, after=page.next, limit=DOWNLOADED_AT_ONCE)
        yield lines(page, is_first=False)


def _filters(visit: Visit) -> dict[str, Any]:
    parameters = visit.parameters
    return {
        "miner_ss58": parameters.text("miner"),
        "executor_class": parameters.text("executor_class"),
        "job_uuid": parameters.text("job"),
        "status": parameters.choice("status", STATUS_FILTERS),
        "reserved_from": parameters.time("reserved_from"),
        "reserved_until": parameters.time("reserved_until"),
        "block": parameters.whole("took_block"),
        "origin": parameters.choice("origin", ORIGINS),
        "newest_first": parameters.choice("order", ORDERS) != "oldest",
    }


def _body(visit: Visit, page: Page, classes: list[str]) -> Markup:
    return joined((_form(visit, classes), *_listed(visit, page), _pages(visit, page.next)))


def _listed(visit: Visit, page: Page) -> list[Markup]:
    if page.items:
        return [reservations_table(visit, page.items, "Reservations", origins=page.origins)]
    if set(visit.parameters.given()) & set(PARAMETERS):
        return [empty("No reservation matches. ", anchor(visit.link("reservations"), "Remove all filters"), ".")]
    return [
        empty(
            "No reservation yet. A pick makes one: ",
            element("code", "allowance pick REQUEST.json"),
            ", or ",
            element("code", "routing().pick_miner_for_job_request(request)"),
            " in Python.",
        )
    ]


def _form(visit: Visit, classes: list[str]) -> Markup:
    value = visit.parameters.text
    moment = {name: value for name, value in visit.parameters.given().items() if name not in PARAMETERS}
    statuses = (("", "any"), *((status, status) for status in STATUS_FILTERS))
    time = "2024-01-01T12:00:00Z"
    return form(
        "reservations",
        hidden(moment),
        field("Miner", "miner", value("miner")),
        field("Executor class", "executor_class", value("executor_class"), list="classes"),
        field("Job", "job", value("job")),
        choice("Status", "status", value("status"), statuses, half=True),
        choice("Origin", "origin", value("origin"), (("", "any"), *((each, each) for each in ORIGINS)), half=True),
        field("Took block", "took_block", value("took_block"), half=True, inputmode="numeric"),
        field("Reserved from", "reserved_from", value("reserved_from"), placeholder=time),
        field("Reserved until", "reserved_until", value("reserved_until"), placeholder=time),
        choice("Order", "order", value("order"), (("", "newest first"), ("oldest", "oldest first")), half=True),
        field("Per page", "limit", value("limit"), half=True, inputmode="numeric", placeholder=str(PAGE_RESERVATIONS)),
        element("datalist", *(void("option", value=name) for name in classes), id="classes"),
        element("button", "Show"),
        label="Filters",
    )


def _pages(visit: Visit, following: str | None) -> Markup:
    same = visit.parameters.same
    links = []
    if visit.parameters.text("after") is not None:
        links.append(anchor(same("reservations", after=None), "First page"))
    if following is not None:
        links.append(anchor(same("reservations", after=following), "Next page"))
    downloads = [
        anchor(same(path, after=None, limit=None), title, download=True)
        for path, title in (("reservations.csv", "Download as CSV"), ("reservations.jsonl", "Download as JSON lines"))
    ]
    items = (element("li", each) for each in (*links, *downloads))
    return element("nav", element("ul", *items, class_="links"), aria_label="Pages of the list and downloads")
