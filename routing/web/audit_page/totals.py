"""The totals of each class: the granted allowance and its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import fsum
from typing import TYPE_CHECKING

from routing.web.parts.markup import NUMBER, STACKED, Markup, element, table, text

if TYPE_CHECKING:
    from routing import AccountTotals, AuditReport

AMOUNTS = ("granted", "spent", "held", "invalidated", "available", "aged")
AMOUNT_HEADERS = tuple(f"{name.capitalize()}, s" for name in AMOUNTS)


def totals_section(report: AuditReport) -> Markup:
    """Return a table with a row for each class and one for all; nothing if there is no account."""
    if not report.totals:
        return Markup()
    by_class: dict[str, list[AccountTotals]] = defaultdict(list)
    for each in report.totals:
        by_class[each.executor_class].append(each)
    rows: list[Sequence[str]] = [(text(name), *_row(accounts)) for name, accounts in sorted(by_class.items())]
    rows.append(("All classes", *_row(report.totals)))
    headers = ("Executor class", "Accounts", *AMOUNT_HEADERS)
    explanation = (
        "All amounts are executor-seconds. The allowance that the finalized blocks granted is spent; or held by a"
        " reservation that no event has settled; or invalidated by a drop; or available, which means free for a job"
        " that starts at the newest block; or aged, which means free but too old for such a job."
    )
    totals = table("Totals by executor class", headers, rows, ("name", *[NUMBER] * 7), of=STACKED)
    return element(
        "section", element("h2", "Totals"), element("p", explanation), element("div", totals, class_="summed")
    )


def amounts(totals: Sequence[AccountTotals]) -> list[str]:
    """Return the sums over the accounts as texts, in the order of `AMOUNTS`."""
    return [f"{fsum(getattr(each, f'{name}_seconds') for each in totals):,.3f}" for name in AMOUNTS]


def _row(totals: Sequence[AccountTotals]) -> list[str]:
    return [f"{len(totals):,}", *amounts(totals)]
