"""HTML by construction: whatever is not `Markup` is a stranger's text, made printable and escaped where it enters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from routing.cli.io.render import printable

NUMBER = "number"
"""The class of columns of numbers."""
STACKED = "stacked"
"""The class of tables whose cells stand below each other on a narrow screen."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """An element; `class_` and the like stand for Python's own words, `_` in other names for `-`."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for name, value in attributes.items()
        if value != ""
    )
    return Markup(f"<{tag}{named}>{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def text(value: object) -> Markup:
    """A name or value out of the log: whichever way it reads, it turns nothing around it."""
    return element("bdi", str(value))


def table(
    caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = (), *, of: str = ""
) -> Markup:
    """A table, itself of the class `of`; `classes` are the columns', from the first on."""
    of_column = [*classes, *[""] * (len(headers) - len(classes))]
    # Where a narrow screen stacks a row's cells, a number says by itself what it is.
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
    together = zip(columns, cells, strict=True)
    return element("tr", *(element("td", cell, class_=class_, data_label=label) for (class_, label), cell in together))


def _escaped(value: object) -> str:
    return escape(printable(str(value)))
