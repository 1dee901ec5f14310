"""The frame of every page: navigation, breadcrumbs, the moment that is shown, and the form that moves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ledger.values import instant
from routing.texts import time_text

from .components import anchor, field, form, hidden
from .parameters import FORMAT, MOMENT, link
from .parts.markup import Markup, element, text, void

if TYPE_CHECKING:
    from ledger import Head

    from .visit import Answer, Crumb, Visit

NAVIGATION = (
    ("overview", "Overview"),
    ("miners", "Miners"),
    ("reservations", "Reservations"),
    ("events", "Events"),
    ("settings", "Settings"),
    ("audit", "Audit"),
)
DOCTYPE = "<!doctype html>\n"


def page(visit: Visit, path: str, answer: Answer, head: Head) -> str:
    """Return the page of an answer; `head` is that of the log at the moment that is shown."""
    top = element(
        "header",
        element(
            "div", element("a", "Allowance ledger", href=visit.link("./"), class_="brand"), _navigation(visit, path)
        ),
        class_="top",
    )
    main = element(
        "main",
        _crumbs(answer.crumbs, answer.title),
        element("h1", text(answer.title)),
        _past(visit, head),
        answer.body(),
        id="main",
        tabindex="-1",
        data_live=answer.live,
    )
    return document(answer.title, top, main, _bottom(visit, path))


def document(title: str, *body: Markup) -> str:
    """Return a whole HTML document that loads the style and the script of the package."""
    head = element(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} · Allowance ledger"),
        void("link", rel="stylesheet", href="static/style.css"),
        void("link", rel="icon", href="static/icon.svg", type="image/svg+xml"),
        element("script", src="static/live.js", defer=True),
    )
    skip = element("a", "Skip to the content", href="#main", class_="skip")
    return f"{DOCTYPE}{element('html', head, element('body', skip, *body), lang='en')}\n"


def _navigation(visit: Visit, path: str) -> Markup:
    items = (
        element(
            "li",
            element(
                "a",
                title,
                href=visit.link("./" if name == "overview" else name),
                aria_current="page" if name == path else None,
            ),
        )
        for name, title in NAVIGATION
    )
    return element("nav", element("ul", *items), aria_label="Pages")


def _crumbs(crumbs: tuple[Crumb, ...], title: str) -> Markup:
    if not crumbs:
        return Markup()
    items = [element("li", anchor(each.link, each.title)) for each in crumbs]
    here = element("li", element("span", text(title), aria_current="page"))
    return element("nav", element("ol", *items, here), class_="crumbs", aria_label="Breadcrumbs")


def _past(visit: Visit, head: Head) -> Markup:
    if not visit.is_past:
        return Markup()
    ((name, _),) = visit.moment.items()
    asked = "" if name == "position" else f" at {name} {visit.parameters.text(name)}:"
    now = visit.parameters.same(_here(visit), **dict.fromkeys(MOMENT))
    shown = f"the ledger{asked} after event {head.position:,}, recorded at {time_text(instant(head.recorded_at_ns))}. "
    return element("p", element("strong", "The past: "), shown, anchor(now, "Go to now"), class_="past")


def _bottom(visit: Visit, path: str) -> Markup:
    as_json = visit.parameters.same(_here(visit), **{FORMAT: "json"})
    about = element(
        "p",
        "Validator ",
        element("code", text(visit.ledger.validator_ss58)),
        ". Read-only: nothing on these pages changes the ledger. Times are in UTC. Amounts are executor-seconds. ",
        anchor(as_json, "This page as JSON"),
        ". ",
        anchor("healthz", "Health"),
        " and ",
        anchor("metrics", "metrics"),
        " for monitoring.",
    )
    return element("footer", element("div", *_moment_form(visit, path), about), class_="bottom")


def _moment_form(visit: Visit, path: str) -> Iterator[Markup]:
    """Yield the form that shows the same page at another moment."""
    kept = {name: value for name, value in visit.parameters.given().items() if name not in (*MOMENT, "after", "page")}
    value = visit.parameters.text
    fields = form(
        _here(visit),
        hidden(kept),
        field("Log position", "position", value("position"), half=True, inputmode="numeric"),
        field("Block", "block", value("block"), half=True, inputmode="numeric"),
        field("Time", "time", value("time"), placeholder="2024-01-01T12:00:00Z"),
        element("button", "Show that moment"),
        label="Another moment",
    )
    explanation = element(
        "p",
        "Give one: directly after the event at a log position, directly before the first event about a higher block,"
        " or a time in UTC.",
    )
    summary = element("summary", "Show this page at another moment of the log")
    yield element("details", summary, explanation, fields, open=visit.is_past)


def _here(visit: Visit) -> str:
    """Return the relative link to the page that is shown."""
    return visit.request.url.path.rpartition("/")[2] or "./"


def verdict(message: str, *, good: bool) -> Markup:
    """Return the framed sentence that a page begins with."""
    return element("p", f"{'✓' if good else '✗'} {message}", class_=f"verdict {'good' if good else 'bad'}")


def error_page(title: str, error_name: str, message: str) -> str:
    """Return the page of an error, with the product's name for it."""
    main = element(
        "main",
        element("h1", title),
        element("p", element("code", error_name), ": ", text(message)),
        element("p", anchor(link("./"), "To the overview")),
        id="main",
        tabindex="-1",
    )
    top = element("div", element("a", "Allowance ledger", href="./", class_="brand"))
    return document(title, element("header", top, class_="top"), main)
