"""What was granted, and what became of it, class by class."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import fsum
from typing import TYPE_CHECKING

from .markup import NUMBER, Markup, element, table, text

if TYPE_CHECKING:
    from routing import AccountTotals, AuditReport

AMOUNTS = ("granted", "spent", "held", "invalidated", "available", "aged")
AMOUNT_HEADERS = tuple(f"{name.capitalize()}, s" for name in AMOUNTS)


def totals_section(report: AuditReport) -> Markup:
    """A row for each class, and all of them together; nothing where there is no account."""
    if not report.totals:
        return Markup()
    by_class: dict[str, list[AccountTotals]] = defaultdict(list)
    for each in report.totals:
        by_class[each.executor_class].append(each)
    rows: list[Sequence[str]] = [(text(name), *_row(theirs)) for name, theirs in sorted(by_class.items())]
    rows.append(("All classes", *_row(report.totals)))
    headers = ("Executor class", "Accounts", *AMOUNT_HEADERS)
    told = (
        "In executor-seconds. What the finalized blocks granted is spent, or held by a reservation that no event has"
        " ended, or invalidated by a drop, or free: available to a job that starts at the newest block, or aged,"
        " that is older than such a job may use."
    )
    totals = table("Totals by executor class", headers, rows, ("name", *[NUMBER] * 7))
    return element("section", element("h2", "Totals"), element("p", told), element("div", totals, class_="summed"))


def amounts(totals: Iterable[AccountTotals]) -> list[str]:
    """The sums of accounts, in the order of `AMOUNTS`."""
    theirs = list(totals)
    return [f"{fsum(getattr(each, f'{name}_seconds') for each in theirs):,.3f}" for name in AMOUNTS]


def _row(totals: Sequence[AccountTotals]) -> list[str]:
    return [f"{len(totals):,}", *amounts(totals)]
