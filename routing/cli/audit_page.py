"""The audit as a page: one file that any browser opens without a network.

Everything that comes from the log is a stranger's text: it is made printable and escaped where it enters the page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from .audit_style import STYLE
from .render import counted, printable, seconds_text, short_hotkey
from .svg import Area, chart, sparkline

if TYPE_CHECKING:
    from routing import AccountTotals, AccountUsage, AuditReport, Finding

SPARK_BUCKETS = 40
STATES = ("spent", "held", "invalidated", "free")
"""What an account's allowance is, from the bottom of a chart up; together all that was granted."""
TOTALS = ("granted", "spent", "held", "invalidated", "available", "aged")


def page(report: AuditReport) -> str:
    """The whole document; with charts where the report was made with `usage_buckets`."""
    parts = (
        *_head(report),
        *_findings(report.findings, report.findings_count),
        *_charts(report),
        *_rules(report.findings),
        "</body></html>\n",
    )
    return "\n".join(parts)


def _head(report: AuditReport) -> Iterator[str]:
    title = f"Audit of {_text(short_hotkey(report.validator_ss58))}"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title><style>{STYLE}</style></head><body>"
    yield "<h1>Allowance audit</h1>"
    yield f'<p class="mono">{_text(report.validator_ss58)}</p>'
    events = counted(report.position, "event")
    if report.findings_count:
        yield f'<p class="verdict bad">✗ {counted(report.findings_count, "finding")} in {events}</p>'
    else:
        yield f'<p class="verdict good">✓ No finding in {events}</p>'
    facts = [("Head", f"<code>{report.position}:{_text(report.head_hash)}</code>")]
    facts += [(_text(kind), f"{count:,}") for kind, count in report.events.items()]
    facts.append(("History model", _history(report)))
    facts.append(("Replayed in", f"{seconds_text(report.elapsed_seconds)}, {report.events_per_second:,.0f} events/s"))
    yield "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>"


def _history(report: AuditReport) -> str:
    if report.history_position is None:
        return "none to compare"
    return f"compared with the log up to position {report.history_position:,}"


def _findings(findings: Sequence[Finding], count: int) -> Iterator[str]:
    if not count:
        return
    listed = "" if count == len(findings) else f", the first {len(findings):,} of them listed"
    yield f"<h2>Findings</h2><p>{counted(count, 'finding')}{listed}, by position.</p>"
    rows = ((f"{each.position:,}", _rule(each.rule), _text(each.message), _details(each.details)) for each in findings)
    yield _table(("Position", "Rule", "What is wrong", "Facts"), rows, numbers=1)


def _details(details: dict[str, object]) -> str:
    return "<br>".join(f"{_text(name)}: <code>{_text(value)}</code>" for name, value in details.items())


def _charts(report: AuditReport) -> Iterator[str]:
    usage = report.usage
    yield "<h2>Allowance by block</h2>"
    if usage is None or len(usage.starts) <= 1:
        yield '<p class="soft">No finalized block grants anything to show.</p>'
        return
    yield (
        "<p>What the blocks granted, in executor-seconds for each block, by what has become of it."
        " <em>Free</em> is neither spent, held nor invalidated.</p>"
    )
    yield _chart("All classes", usage.starts, usage.accounts)
    totals = {(each.miner_ss58, each.executor_class): each for each in report.totals}
    by_class: dict[str, list[AccountUsage]] = defaultdict(list)
    for account in usage.accounts:
        by_class[account.executor_class].append(account)
    for executor_class, accounts in sorted(by_class.items()):
        yield f"<h3>{_text(executor_class)}</h3>"
        yield _chart(executor_class, usage.starts, accounts)
        yield f"<details><summary>{counted(len(accounts), 'miner')}</summary>"
        accounts.sort(key=lambda each: (-sum(each.spent) - sum(each.held), -sum(each.granted), each.miner_ss58))
        rows = (_account_row(usage.starts, each, totals[each.miner_ss58, executor_class]) for each in accounts)
        headers = ("By block", "Miner", *(f"{name.capitalize()}, s" for name in TOTALS))
        yield _table(headers, rows, numbers=0, numbers_from=2)
        yield "</details>"


def _chart(title: str, starts: Sequence[int], accounts: Iterable[AccountUsage]) -> str:
    summed = {state: [0.0] * (len(starts) - 1) for state in STATES}
    for account in accounts:
        for layer in _layers(account):
            summed[layer.name] = [a + b for a, b in zip(summed[layer.name], layer.values, strict=True)]
    told = ", ".join(f"{state} {seconds_text(sum(values))}" for state, values in summed.items())
    layers = [Area(state, _per_block(starts, values)) for state, values in summed.items()]
    key = "".join(
        f'<li><i class="{state}"></i>{state} {seconds_text(sum(values))}</li>' for state, values in summed.items()
    )
    described = f"Executor-seconds for each block from {starts[0]:,} to {starts[-1] - 1:,}: {told}"
    return f'<ul class="key">{key}</ul>' + chart(starts, layers, printable(title), described)


def _account_row(starts: Sequence[int], usage: AccountUsage, totals: AccountTotals) -> tuple[str, ...]:
    rough = range(0, len(starts) - 1, max(1, -(-(len(starts) - 1) // SPARK_BUCKETS)))
    edges = [*rough, len(starts) - 1]
    spark_starts = [starts[edge] for edge in edges]
    layers = [
        Area(layer.name, _per_block(spark_starts, [sum(layer.values[a:b]) for a, b in pairwise(edges)]))
        for layer in _layers(usage)
    ]
    miner = _text(usage.miner_ss58)
    return (
        sparkline(spark_starts, layers, f"{printable(usage.miner_ss58)} by block"),
        f'<span class="mono" title="{miner}">{_text(short_hotkey(usage.miner_ss58))}</span>',
        *(f"{getattr(totals, f'{name}_seconds'):,.3f}" for name in TOTALS),
    )


def _layers(usage: AccountUsage) -> Iterator[Area]:
    free = [
        max(0.0, granted - spent - held - invalidated)
        for granted, spent, held, invalidated in zip(
            usage.granted, usage.spent, usage.held, usage.invalidated, strict=True
        )
    ]
    yield from map(Area, STATES, (usage.spent, usage.held, usage.invalidated, free))


def _per_block(starts: Sequence[int], values: Sequence[float]) -> list[float]:
    return [value / (end - start) for (start, end), value in zip(pairwise(starts), values, strict=True)]


def _rules(findings: Sequence[Finding]) -> Iterator[str]:
    from routing import RULES

    broken = Counter(finding.rule for finding in findings)
    yield f"<h2>Rules</h2><p>{len(RULES)} rules were checked at every event that they are about.</p>"
    rows = ((_mark(broken[rule.value]), _rule(rule.value), _text(demand)) for rule, demand in RULES.items())
    yield _table(("Holds", "Rule", "What it demands"), rows, numbers=0)


def _rule(name: str) -> str:
    return f'<span class="rule">{_text(name)}</span>'


def _mark(broken: int) -> str:
    return f'<span class="bad">✗ {broken:,}</span>' if broken else '<span class="good">✓</span>'


def _table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int, numbers_from: int | None = None
) -> str:
    """A table of cells that are HTML already; the first `numbers` columns and those from `numbers_from` are numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{cell}</{tag}>'
            if place < numbers or (numbers_from is not None and place >= numbers_from)
            else f"<{tag}>{cell}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = cells("th", headers).replace("<th", '<th scope="col"')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _text(value: object) -> str:
    """A value as text in the page."""
    return escape(printable(str(value)))
