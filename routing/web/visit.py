"""A request to a page: the ledger that it shows, at a moment, and its parameters; and what the page returns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import Request

from .audits import Audits
from .live import Live
from .parameters import Parameters
from .parts.markup import Markup

if TYPE_CHECKING:
    from routing import Allowance, Past

MOST_PASTS = 4
"""Views of the past that are kept, each with a state in memory, so that the next page at that moment is quick."""


class Source:
    """One ledger with what its pages share. It must be used from one event loop."""

    def __init__(self, ledger: Allowance) -> None:
        self.ledger = ledger
        self.live: Live = Live(ledger)
        self.audits: Audits = Audits(ledger)
        self.overview: tuple[int, dict[str, Markup]] | None = None
        """The changing parts of the overview, and the second in which they were made."""
        self._pasts: OrderedDict[tuple[tuple[str, int | datetime], ...], Past] = OrderedDict()

    def at(self, moment: dict[str, Any]) -> Allowance | Past:
        """Return the ledger, or the view of a moment of its past."""
        if not moment:
            return self.ledger
        key = tuple(moment.items())
        past = self._pasts.pop(key, None) or self.ledger.at(**moment)
        self._pasts[key] = past
        while len(self._pasts) > MOST_PASTS:
            self._pasts.popitem(last=False)
        return past


class Visit:
    """One request. Raises `InvalidInput` for a parameter that the page does not know, or a wrong moment."""

    def __init__(self, source: Source, request: Request, known: Collection[str]) -> None:
        self.source = source
        self.request = request
        self.parameters: Parameters = Parameters(request.query_params.multi_items(), known)
        self.moment: dict[str, int | datetime] = self.parameters.moment()
        self.ledger: Allowance | Past = source.at(self.moment)
        self.link: Callable[..., str] = self.parameters.link

    @property
    def is_past(self) -> bool:
        """Whether the page shows a moment of the past."""
        return bool(self.moment)


class Crumb(NamedTuple):
    """A page above this one: its title and a link to it."""

    title: str
    link: str


class Answer(NamedTuple):
    """What a page returns. `document` is ready for JSON; `body` makes the markup if that was asked for.

    `live` is the path of the stream that keeps the page up to date, None for a page that stands still.
    """

    title: str
    document: object
    body: Callable[[], Markup]
    crumbs: tuple[Crumb, ...] = ()
    live: str | None = None
