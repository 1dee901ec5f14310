"""HTML elements that escape their texts.

A log contains texts of other parties, so every string that is not `Markup` is made printable and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from routing.texts import printable

NUMBER = "number"
"""CSS class of columns of numbers."""
STACKED = "stacked"
"""CSS class of tables that show the cells of a row below each other on a narrow screen."""


class Markup(str):
    """A string that is HTML and must not be escaped."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """Return an element. Attribute names lose a trailing `_` (as in `class_`), and other `_` become `-`."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for name, value in attributes.items()
        if value != ""
    )
    return Markup(f"<{tag}{named}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Markup:
    """Return the parts concatenated, each escaped unless it is `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def text(value: object) -> Markup:
    """Return a text of the log in a `bdi` element, so that right-to-left text cannot reorder its surroundings."""
    return element("bdi", str(value))


def table(
    caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = (), *, of: str = ""
) -> Markup:
    """Return a table of the CSS class `of`; `classes` are the CSS classes of its first columns."""
    of_column = [*classes, *[""] * (len(headers) - len(classes))]
    # A narrow screen stacks the cells and hides the header, so numbers carry their header as a label.
    labels = [
        header if of == STACKED and class_ == NUMBER else "" for header, class_ in zip(headers, of_column, strict=True)
    ]
    columns = [*zip(of_column, labels, strict=True)]
    head = element(
        "tr",
        *(element("th", header, class_=class_, scope="col") for header, class_ in zip(headers, of_column, strict=True)),
    )
    body = (joined((Markup("\n"), _row(columns, row))) for row in rows)
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", *body), class_=of)
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _row(columns: Sequence[tuple[str, str]], cells: Sequence[str]) -> Markup:
    labelled_cells = zip(columns, cells, strict=True)
    return element(
        "tr", *(element("td", cell, class_=class_, data_label=label) for (class_, label), cell in labelled_cells)
    )


def _escaped(value: object) -> str:
    return escape(printable(str(value)))
