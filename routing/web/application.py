"""The ASGI application: routes to the pages, their JSON, streams and downloads, and the pages of errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

from ledger import errors
from ledger.errors import AllowanceException, InvalidInput, JobRoutingException
from routing.documents import as_json_bytes, error_document

from . import streams
from .audit_page import document as audit_document
from .layout import error_page, page
from .monitoring import healthz, metrics
from .pages import audit, events, miner, miners, overview, reservation, reservations, settings
from .parameters import FORMAT
from .parts.style import STYLE
from .security import HEADERS, Guard
from .several import index_page, prefixes
from .visit import Answer, Source, Visit

if TYPE_CHECKING:
    from routing import Allowance

log: logging.Logger = logging.getLogger("allowance.web")

JSON = "application/json"
EVENT_STREAM = "text/event-stream"


class PageRoute(NamedTuple):
    """A page: its path, the function that reads it, and the parameters that it knows."""

    path: str
    show: Callable[[Visit], Awaitable[Answer]]
    parameters: Sequence[str]


class StreamRoute(NamedTuple):
    """Bytes that are sent as they are made: a download, or server-sent events."""

    path: str
    begin: Callable[[Visit], Awaitable[AsyncIterator[bytes]]]
    media_type: str
    parameters: Sequence[str] = ()


PAGES = (
    PageRoute("overview", overview.overview, overview.PARAMETERS),
    PageRoute("miners", miners.miners, miners.PARAMETERS),
    PageRoute("miner", miner.miner, miner.PARAMETERS),
    PageRoute("reservations", reservations.reservations, reservations.PARAMETERS),
    PageRoute("reservation", reservation.reservation, reservation.PARAMETERS),
    PageRoute("events", events.events, events.PARAMETERS),
    PageRoute("settings", settings.settings, settings.PARAMETERS),
    PageRoute("audit", audit.audit, audit.PARAMETERS),
)
STREAMS = (
    StreamRoute("reservations.csv", reservations.as_csv, "text/csv", reservations.FILTERS),
    StreamRoute("reservations.jsonl", reservations.as_json_lines, "application/x-ndjson", reservations.FILTERS),
    StreamRoute(overview.LIVE, streams.overview_stream, EVENT_STREAM),
    StreamRoute(events.LIVE, streams.events_stream, EVENT_STREAM, events.LIVE_PARAMETERS),
    StreamRoute(audit.LIVE, streams.audit_stream, EVENT_STREAM),
)


def app(*ledgers: Allowance, allowed_hosts: Collection[str] | None = None) -> Starlette:
    """Return an ASGI application with read-only pages of one ledger, or of several, each under its own prefix.

        from routing import Allowance
        from routing.web import app

        pages = app(Allowance.open("sqlite:///allowance.db", validator_ss58=HOTKEY, read_only=True))
        fastapi_app.mount("/allowance", pages)

    It never changes a ledger, and whoever can reach it can read everything, so an application that mounts it must ask
    for a password first. The caller closes the ledgers. `allowed_hosts` are the names by which the server may be asked
    for; None allows every name. Raises `InvalidInput` without a ledger.
    """
    if not ledgers:
        raise InvalidInput("ledgers", ledgers, "at least one Allowance")
    sources = [Source(ledger) for ledger in ledgers]
    routes = [*_common_routes(sources), *(_ledger_routes(sources[0]) if len(sources) == 1 else _several(sources))]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        for source in sources:
            source.live.close()
            source.audits.close()

    pages = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, allowed_hosts=allowed_hosts)],
        exception_handlers={
            AllowanceException: _refused,
            JobRoutingException: _refused,
            HTTPException: _refused,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    pages.state.sources = sources
    return pages


def _common_routes(sources: Sequence[Source]) -> Iterator[BaseRoute]:
    allowances = [source.ledger for source in sources]
    yield Route("/healthz", partial(healthz, allowances))
    yield Route("/metrics", partial(metrics, allowances))
    yield from _static_routes()


def _static_routes() -> Iterator[BaseRoute]:
    static = files("routing.web") / "static"
    contents = (
        ("style.css", STYLE.encode(), "text/css"),
        ("live.js", (static / "live.js").read_bytes(), "text/javascript"),
        ("icon.svg", (static / "icon.svg").read_bytes(), "image/svg+xml"),
    )
    for name, content, media_type in contents:
        yield Route(f"/static/{name}", _constant(content, media_type))


def _constant(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=300"})

    return respond


def _several(sources: Sequence[Source]) -> Iterator[BaseRoute]:
    named = prefixes(sources)

    async def index(_: Request) -> Response:
        return HTMLResponse(await index_page(named))

    yield Route("/", index)
    for prefix, source in named.items():
        yield Mount(f"/{prefix}", routes=[*_common_routes([source]), *_ledger_routes(source)])


def _ledger_routes(source: Source) -> Iterator[BaseRoute]:
    for each in PAGES:
        path = "/" if each.path == "overview" else f"/{each.path}"
        yield Route(path, _page_endpoint(source, each))
        yield Route(f"/{each.path}.json", _page_endpoint(source, each))
    for stream in STREAMS:
        yield Route(f"/{stream.path}", _stream_endpoint(source, stream))
    yield Route("/audit.html", _audit_file(source))
    yield Route(f"/{audit.START}", _audit_start(source))


def _page_endpoint(source: Source, route: PageRoute) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        visit = Visit(source, request, route.parameters)
        visit.parameters.choice(FORMAT, ("html", "json"))
        answer = await route.show(visit)
        if _wants_json(request):
            return Response(as_json_bytes(answer.document), media_type=JSON)
        return HTMLResponse(page(visit, route.path, answer, await visit.ledger.head()))

    return respond


def _stream_endpoint(source: Source, route: StreamRoute) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        visit = Visit(source, request, route.parameters)
        chunks = await route.begin(visit)
        headers = {}
        if route.media_type != EVENT_STREAM:
            headers["Content-Disposition"] = f'attachment; filename="{route.path}"'
        if request.method == "HEAD":
            return Response(media_type=route.media_type, headers=headers)
        return StreamingResponse(chunks, media_type=route.media_type, headers=headers)

    return respond


def _audit_file(source: Source) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        report = source.audits.report
        if report is None:
            raise HTTPException(404, "no audit has ended yet; start one on the page of the audit")
        headers = {
            "Content-Disposition": 'attachment; filename="audit.html"',
            "Content-Security-Policy": audit_document.policy(),
        }
        return HTMLResponse(audit_document.page(report), headers=headers)

    return respond


def _audit_start(source: Source) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        visit = Visit(source, request, ())
        # A redirection, so that to load the page again does not start another audit.
        return RedirectResponse(visit.link("audit") if request.method == "HEAD" else await audit.start(visit), 303)

    return respond


def _wants_json(request: Request) -> bool:
    return request.url.path.endswith((".json", ".jsonl")) or request.query_params.get(FORMAT) == "json"


async def _refused(request: Request, error: Exception) -> Response:
    """Return the page, or the document, of an error that has a name."""
    status = _status_of(error)
    message = error.detail if isinstance(error, HTTPException) else str(error)
    if _wants_json(request):
        return Response(as_json_bytes(error_document(error)), status, media_type=JSON)
    return HTMLResponse(error_page(_TITLES.get(status, "The request failed"), type(error).__name__, message), status)


async def _failed(request: Request, error: Exception) -> Response:
    """Return the page of a defect. Starlette raises the error again, so that the server logs it."""
    response = await _refused(request, error)
    response.headers.update(HEADERS)
    return response


_TITLES = {
    400: "This cannot be asked for",
    404: "Not found",
    500: "The ledger cannot be read",
    503: "Not available now",
}


def _status_of(error: Exception) -> int:
    match error:
        case HTTPException():
            return error.status_code
        case errors.CorruptLedger() | errors.HistoryDamaged() | errors.ProjectionStopped():
            return 500
        case errors.ReservationNotFound() | errors.LedgerNotFound() | errors.NotEnoughAllowanceException():
            return 404
        case errors.StorageUnavailable() | errors.LedgerClosed() | errors.NewerLedger() | errors.ClockUnusable():
            return 503
        case errors.AllowanceException() | errors.JobRoutingException():
            return 400
    return 500
