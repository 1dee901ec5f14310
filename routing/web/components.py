"""Small pieces of pages: links to miners and reservations, amounts, ages, forms, tables of reservations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from routing.texts import short_hotkey, time_text

from .parts.markup import MINOR, NUMBER, STACKED, Markup, element, joined, table, text, void

if TYPE_CHECKING:
    from routing import Reservation
    from routing.web.visit import Visit

SECONDS = len("2024-01-01 12:00:00")
"""Characters of a time text up to its seconds."""
_AGES = ((86_400 * 2, 86_400, "days"), (3600 * 2, 3600, "h"), (60 * 2, 60, "min"))


def age_text(seconds: float) -> str:
    """Return a duration in the unit that people would say: `12 s`, `5.0 min`, `3.2 h`, `4.1 days`."""
    for least, unit, name in _AGES:
        if seconds >= least:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.0f} s"


def amount(seconds: float) -> str:
    """Return executor-seconds for a column whose header has the unit."""
    return f"{seconds:,.3f}"


def anchor(target: str, *children: str, class_: str = "", **attributes: str | bool) -> Markup:
    """Return a link."""
    return element("a", *children, href=target, class_=class_, **attributes)


def miner_link(visit: Visit, hotkey_ss58: str) -> Markup:
    """Return a link to the page of a miner, with its hotkey in full."""
    return element("span", anchor(visit.link("miner", hotkey=hotkey_ss58), text(hotkey_ss58)), class_="hotkey")


def short_miner_link(visit: Visit, hotkey_ss58: str) -> Markup:
    """Return a link to the page of a miner, with the two ends of its hotkey."""
    shown = element("bdi", short_hotkey(hotkey_ss58), title=hotkey_ss58)
    return element("code", anchor(visit.link("miner", hotkey=hotkey_ss58), shown))


def reservation_link(visit: Visit, reservation_id: int) -> Markup:
    """Return a link to the page of a reservation."""
    return anchor(visit.link("reservation", id=reservation_id), str(reservation_id))


def badge(status: str) -> Markup:
    """Return a reservation's status, with the colour of its allowance."""
    return element("span", status, class_=f"badge is-{status}")


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Return names and values below each other."""
    return element(
        "dl", *(joined((element("dt", name), element("dd", value))) for name, value in pairs), class_="facts"
    )


def field(
    label: str, name: str, value: object = None, *, half: bool = False, **attributes: str | float | bool
) -> Markup:
    """Return a labelled input of a form."""
    shown = None if value is None else str(value)
    box = void("input", name=name, value=shown, autocomplete="off", spellcheck="false", **attributes)
    return element("label", label, box, class_="half" if half else "")


def choice(
    label: str, name: str, value: str | None, options: Sequence[tuple[str, str]], *, half: bool = False
) -> Markup:
    """Return a labelled list of options, each a value and a text."""
    listed = (element("option", shown, value=option, selected=option == (value or "")) for option, shown in options)
    return element("label", label, element("select", *listed, name=name), class_="half" if half else "")


def hidden(values: dict[str, str]) -> Markup:
    """Return parameters that a form keeps."""
    return joined(void("input", type="hidden", name=name, value=value) for name, value in values.items())


def form(path: str, *children: str, label: str) -> Markup:
    """Return a form whose fields become the query of a page."""
    return element("form", *children, action=path, method="get", class_="fields", role="search", aria_label=label)


def empty(*children: str) -> Markup:
    """Return the sentence that stands in the place of an empty table, and says what to do."""
    return element("p", *children, class_="soft")


def reservations_table(
    visit: Visit,
    reservations: Sequence[Reservation],
    caption: str,
    *,
    origins: Sequence[str] | None = None,
    with_miner: bool = True,
) -> Markup:
    """Return a table of reservations, with their origins if given; the page of a miner needs no column with it."""
    columns = [each for each in _COLUMNS if with_miner or each.header != "Miner"]
    rows = [[each.cell(visit, reservation) for each in columns] for reservation in reservations]
    headers, classes = [each.header for each in columns], [each.class_ for each in columns]
    if origins is not None:
        headers, classes = [*headers, "Origin"], [*classes, MINOR]
        rows = [[*row, text(origin.replace("_", " "))] for row, origin in zip(rows, origins, strict=True)]
    return table(caption, headers, rows, classes, of=STACKED)


class _Column(NamedTuple):
    header: str
    class_: str
    cell: Callable[[Visit, Reservation], str]


_COLUMNS = (
    _Column("Reservation", "", lambda visit, each: reservation_link(visit, each.reservation_id)),
    _Column("Status", "", lambda _, each: badge(each.status)),
    _Column("Reserved at, UTC", "fixed", lambda _, each: time_text(each.reserved_at)[:SECONDS]),
    _Column("Miner", "fixed", lambda visit, each: short_miner_link(visit, each.miner_ss58)),
    _Column("Executor class", "", lambda _, each: text(each.executor_class)),
    _Column("Amount, s", NUMBER, lambda _, each: amount(each.allowance_seconds)),
    _Column("Blocks", MINOR, lambda _, each: f"{len(each.blocks):,}"),
    _Column("Job", "", lambda _, each: text(each.job_uuid) if each.job_uuid else "-"),
)
