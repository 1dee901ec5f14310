"""HTML elements that escape their texts.

A log contains texts of other parties, so every string that is not `Markup` is made printable and escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from routing.texts import printable

NUMBER = "number"
"""CSS class of columns of numbers."""
MINOR = "number minor"
"""CSS class of columns of numbers that a narrow screen leaves out."""
STACKED = "stacked"
"""CSS class of tables that show the cells of a row below each other on a narrow screen, each beside its header."""


_LEFT_OUT_IF_EMPTY = ("class_", "data_label", "scope")


Attribute = str | float | bool | None


class Markup(str):
    """A string that is HTML and must not be escaped."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: Attribute) -> Markup:
    """Return an element. Attribute names lose a trailing `_` (as in `class_`), and other `_` become `-`.

    An attribute that is None or False is left out, and so is an empty class or label; one that is True has its own name
    as its value.
    """
    return Markup(f"<{tag}{_named(attributes)}>{joined(children)}</{tag}>")


def void(tag: str, **attributes: Attribute) -> Markup:
    """Return an element that has no content, such as `input`; attributes as in `element`."""
    return Markup(f"<{tag}{_named(attributes)}/>")


def joined(parts: Iterable[str]) -> Markup:
    """Return the parts concatenated, each escaped unless it is `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def text(value: object) -> Markup:
    """Return a text of the log in a `bdi` element, so that right-to-left text cannot reorder its surroundings."""
    return element("bdi", str(value))


def table(
    caption: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    classes: Sequence[str] = (),
    *,
    of: str = "",
    id: str | None = None,
) -> Markup:
    """Return a table of the CSS class `of`; `classes` are the CSS classes of its first columns, `id` its body's id."""
    of_column = _of_all_columns(headers, classes)
    head = element(
        "tr",
        *(element("th", header, class_=class_, scope="col") for header, class_ in zip(headers, of_column, strict=True)),
    )
    body = (joined((Markup("\n"), row(headers, of_column, cells, of=of))) for cells in rows)
    parts = (element("caption", caption), element("thead", head), element("tbody", *body, id=id))
    whole = element("table", *parts, class_=of)
    return element("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def row(headers: Sequence[str], classes: Sequence[str], cells: Sequence[str], *, of: str = "") -> Markup:
    """Return one row of a table with these headers; the arguments have the same meaning as those of `table`."""
    columns = zip(headers, _of_all_columns(headers, classes), cells, strict=True)
    # A narrow screen stacks the cells and hides the header, so each cell carries its header as a label.
    return element(
        "tr",
        *(
            element("td", cell, class_=class_, data_label=header if of == STACKED else "")
            for header, class_, cell in columns
        ),
    )


def _of_all_columns(headers: Sequence[str], classes: Sequence[str]) -> list[str]:
    return [*classes, *[""] * (len(headers) - len(classes))]


def _named(attributes: Mapping[str, Attribute]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(name.rstrip("_") if value is True else value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False and not (value == "" and name in _LEFT_OUT_IF_EMPTY)
    )


def _escaped(value: object) -> str:
    return escape(printable(str(value)))
