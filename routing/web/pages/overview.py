"""The overview: the state of the ledger, its feed, and the allowance of each executor class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from routing.documents import as_fields
from routing.texts import counted, percent_text, time_text
from routing.web.components import SECONDS, age_text, amount, anchor, empty
from routing.web.layout import verdict
from routing.web.parts.markup import MINOR, NUMBER, STACKED, Markup, element, joined, table, text
from routing.web.parts.svg import bar
from routing.web.visit import Answer, Visit

if TYPE_CHECKING:
    from routing import ClassTotals, Health, Overview

PARAMETERS = ()
LIVE = "overview-live"


async def overview(visit: Visit) -> Answer:
    """Return the overview; the health is None in the past, since it is about now."""
    found, health = await read(visit)
    document = {**as_fields(found), "health": None if health is None else as_fields(health)}
    return Answer("Overview", document, lambda: _body(visit, found, health), live=None if visit.is_past else LIVE)


async def read(visit: Visit) -> tuple[Overview, Health | None]:
    """Return the summary of the ledger at the visit's moment, and its health now."""
    return await visit.ledger.overview(), None if visit.is_past else await visit.source.ledger.health()


def parts(visit: Visit, found: Overview, health: Health | None) -> dict[str, Markup]:
    """Return the parts of the page that change while the ledger is used, by element id."""
    return {
        "state": _state(health),
        "tiles": element("dl", *_tiles(found, health), class_="tiles"),
        "classes": _classes(visit, found),
    }


def _body(visit: Visit, found: Overview, health: Health | None) -> Markup:
    changing = parts(visit, found, health)
    explanation = (
        "For a job that starts at the newest block. The usable blocks granted an allowance: it is spent, held by a"
        " reservation, or free."
    )
    return joined(
        (
            element("div", changing["state"], id="state"),
            element("div", changing["tiles"], id="tiles"),
            element("p", class_="live", id="live", role="status"),
            element("h2", "Allowance by executor class"),
            element("p", explanation),
            element("ul", *_key(), class_="key"),
            element("div", changing["classes"], id="classes"),
        )
    )


def _state(health: Health | None) -> Markup:
    if health is None:
        return Markup()
    if not health.problems:
        return verdict("The ledger is well", good=True)
    return joined(verdict(f"{problem[0].upper()}{problem[1:]}", good=False) for problem in health.problems)


def _tiles(found: Overview, health: Health | None) -> Iterator[Markup]:
    block = "none" if found.newest_block is None else f"{found.newest_block:,}"
    age = None if health is None else health.newest_block_age_seconds
    yield _tile(
        "Newest block", block, f"{counted(found.blocks, 'block')} recorded" if age is None else f"{age_text(age)} old"
    )
    if health is not None:
        sync = "none" if health.newest_sync is None else f"{health.newest_sync:,}"
        behind = health.newest_sync_age_blocks
        yield _tile("Newest manifests", sync, "" if behind is None else f"{counted(behind, 'block')} behind")
    yield _tile("Registered miners", f"{found.miners:,}", counted(found.accounts, "account"))
    yield _tile("Reservations held", f"{found.reserved:,}", f"{found.overdue:,} overdue")
    yield _tile("Log position", f"{found.position:,}", f"at {time_text(found.recorded_at)[:SECONDS]}")
    if health is not None:
        yield _tile("History lag", counted(health.projection_lag, "event"), "")
        verified = "never" if health.verified_position is None else f"{health.verified_position:,}"
        yield _tile("Verified up to", verified, time_text(health.verified_at)[:SECONDS] if health.verified_at else "")


def _tile(name: str, value: str, more: str) -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", more)))


def _classes(visit: Visit, found: Overview) -> Markup:
    if not found.classes:
        return empty(
            "No manifests are recorded yet. Record blocks and manifest syncs with ",
            element("code", "allowance import FACTS.jsonl"),
            "; ",
            element("code", "allowance guide feeding-facts"),
            " shows how to feed a live ledger.",
        )
    headers = (
        *("Executor class", "Share", "Granted, s", "Spent, s", "Held, s", "Free, s"),
        *("Free", "Miners", "Executors", "Reserved"),
    )
    rows = (_row(visit, totals) for totals in found.classes)
    return table(
        "Allowance by executor class", headers, rows, ("name", "", *[NUMBER] * 5, MINOR, MINOR, NUMBER), of=STACKED
    )


def _key() -> Iterator[Markup]:
    for state in ("spent", "held", "free"):
        yield element("li", element("i", class_=state), state)


def _row(visit: Visit, totals: ClassTotals) -> tuple[str, ...]:
    free, spent = totals.available_seconds, totals.total_seconds - totals.unspent_seconds
    held = max(0.0, totals.unspent_seconds - free)
    return (
        anchor(visit.link("miners", executor_class=totals.executor_class), text(totals.executor_class)),
        bar(
            [("spent", spent), ("held", held), ("free", free)],
            f"spent {spent:.0f} s, held {held:.0f} s, free {free:.0f} s",
        ),
        amount(totals.total_seconds),
        amount(spent),
        amount(held),
        amount(free),
        percent_text(free, totals.total_seconds),
        f"{totals.miners:,}",
        f"{totals.executors:,}",
        f"{totals.reserved:,}",
    )
