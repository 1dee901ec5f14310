"""Charts of the allowance by block and state: for all classes together, for each class, and for each miner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import fsum
from typing import TYPE_CHECKING

from routing.texts import counted, seconds_text
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text
from routing.web.parts.svg import Layer, chart, sparkline, stack_height

from .totals import AMOUNT_HEADERS, amounts

if TYPE_CHECKING:
    from routing import AccountTotals, AccountUsage, AuditReport

SPARK_BUCKETS = 40
STATES = ("spent", "held", "invalidated", "free")
"""The states of allowance from the bottom of a chart to its top; together they are the granted allowance."""


def usage_section(report: AuditReport) -> Markup:
    """Return the charts, and for each class a folded table of its miners."""
    heading = element("h2", "Allowance by block")
    usage = report.usage
    if usage is None:
        return element("section", heading, element("p", "The report was made without usage by block.", class_="soft"))
    if len(usage.starts) <= 1 or not usage.accounts:
        return element("section", heading, element("p", "No block has granted anything yet.", class_="soft"))
    width = usage.starts[1] - usage.starts[0]
    step = "Each step is one block." if width == 1 else f"Each step is the average of {width:,} blocks."
    explanation = (
        f"The allowance that each block granted, by its state at the end of the audited log. {step}"
        " The miners of a class share one scale."
    )
    totals = {(each.miner_ss58, each.executor_class): each for each in report.totals}
    by_class: dict[str, list[AccountUsage]] = defaultdict(list)
    for account in usage.accounts:
        by_class[account.executor_class].append(account)
    classes = (_class(usage.starts, name, accounts, totals) for name, accounts in sorted(by_class.items()))
    all_classes = figure(usage.starts, "All classes", usage.accounts)
    return element("section", heading, element("p", explanation), all_classes, *classes)


def _class(
    starts: Sequence[int],
    executor_class: str,
    accounts: list[AccountUsage],
    totals: dict[tuple[str, str], AccountTotals],
) -> Markup:
    coarse = _CoarseBuckets(starts)
    accounts.sort(key=lambda each: (-fsum(each.spent) - fsum(each.held), -fsum(each.granted), each.miner_ss58))
    scale = max(stack_height(coarse.layers(each)) for each in accounts)
    rows = (
        (
            sparkline(coarse.starts, coarse.layers(each), scale, f"{each.miner_ss58}: {_account_text(each)}"),
            element("span", text(each.miner_ss58), class_="hotkey"),
            *amounts([totals[each.miner_ss58, executor_class]]),
        )
        for each in accounts
    )
    caption = f"Miners of {executor_class}, most spent and held first"
    miners = table(
        caption, ("By block", "Miner", *AMOUNT_HEADERS), rows, ("", "", *[NUMBER] * len(AMOUNT_HEADERS)), of=STACKED
    )
    summary = element("summary", counted(len(accounts), "miner"), ", most spent and held first")
    return joined((figure(starts, executor_class, accounts), element("details", summary, miners)))


def figure(starts: Sequence[int], title: str, accounts: Sequence[AccountUsage]) -> Markup:
    """Return a chart of the allowance of some accounts together, with its key."""
    summed = _summed(accounts)
    sums = {name: fsum(values) for name, values in summed.items()}
    key = [
        element("li", element("i", class_=name), f"{name} ", element("b", seconds_text(sums[name])))
        for name in ("granted", *STATES)
    ]
    amounts_text = ", ".join(f"{name} {seconds_text(amount)}" for name, amount in sums.items())
    description = f"Executor-seconds granted by blocks {starts[0]:,} to {starts[-1] - 1:,}: {amounts_text}."
    layers = [Layer(name, _per_block(starts, summed[name])) for name in STATES]
    hints = list(_hints(starts, summed))
    return element(
        "figure",
        element("figcaption", element("h3", text(title)), element("ul", *key, class_="key")),
        chart(starts, layers, hints, title, description),
    )


def _hints(starts: Sequence[int], summed: dict[str, list[float]]) -> Iterator[str]:
    """Yield a tooltip for each step of a chart."""
    for bucket, (start, end) in enumerate(pairwise(starts)):
        blocks = f"Block {start:,}" if end - start == 1 else f"Blocks {start:,} to {end - 1:,}"
        amounts_text = ", ".join(f"{name} {seconds_text(values[bucket])}" for name, values in summed.items())
        yield f"{blocks}: {amounts_text}"


def _summed(accounts: Sequence[AccountUsage]) -> dict[str, list[float]]:
    """Return the sums over the accounts for each bucket: granted, and by state."""
    summed = {
        name: [fsum(bucket) for bucket in zip(*(getattr(each, name) for each in accounts), strict=True)]
        for name in ("granted", "spent", "held", "invalidated")
    }
    # Rounding may make the difference slightly negative, which would draw a layer below its neighbour.
    summed["free"] = [
        max(0.0, granted - spent - held - invalidated)
        for granted, spent, held, invalidated in zip(*summed.values(), strict=True)
    ]
    return summed


def _account_text(account: AccountUsage) -> str:
    return f"granted {seconds_text(fsum(account.granted))}, spent {seconds_text(fsum(account.spent))}"


def _per_block(starts: Sequence[int], values: Sequence[float]) -> list[float]:
    return [value / (end - start) for (start, end), value in zip(pairwise(starts), values, strict=True)]


class _CoarseBuckets:
    """Buckets merged until they are few enough for a small chart."""

    def __init__(self, starts: Sequence[int]) -> None:
        buckets = len(starts) - 1
        self._edges = [*range(0, buckets, -(-buckets // SPARK_BUCKETS)), buckets]
        self.starts = [starts[edge] for edge in self._edges]

    def layers(self, account: AccountUsage) -> list[Layer]:
        summed = _summed([account])
        return [
            Layer(name, _per_block(self.starts, [fsum(summed[name][a:b]) for a, b in pairwise(self._edges)]))
            for name in STATES
        ]
