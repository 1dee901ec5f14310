"""The whole page: the verdict, the findings, the totals, the charts, and the checked rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from routing.texts import counted, seconds_text, short_hotkey

from .findings import findings_section, rules_section
from routing.web.parts.markup import Markup, element, joined, table, text
from routing.web.parts.style import STYLE
from .totals import totals_section
from .usage import usage_section

if TYPE_CHECKING:
    from routing import AuditReport

PREAMBLE = Markup(
    '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
    # A second defence behind the escaping of texts from the log: the browser loads, runs and sends nothing.
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
)

DOCTYPE = "<!doctype html>\n"
TITLE = "Audit of "
LONGEST_BEFORE_TITLE = 1000
"""The title of every page ends within this many bytes."""


def is_page(path: Path) -> bool:
    """Return whether the file is an audit page of this release or an earlier one, which may be replaced."""
    with path.open("rb") as file:
        start = file.read(LONGEST_BEFORE_TITLE)
    return start.startswith(DOCTYPE.encode()) and f"<title>{TITLE}".encode() in start


def page(report: AuditReport) -> str:
    """Return the page as HTML; it has charts if the report was made with `usage_buckets`."""
    title = element("title", f"{TITLE}{short_hotkey(report.validator_ss58)}, {counted(report.position, 'event')}")
    head = element("head", PREAMBLE, title, element("style", Markup(STYLE)))
    sections = (_summary(report), findings_section(report), totals_section(report), usage_section(report))
    main = element("main", *sections, rules_section(report))
    return f"{DOCTYPE}{element('html', head, element('body', main), lang='en')}\n"


def _summary(report: AuditReport) -> Markup:
    events = counted(report.position, "event")
    if report.findings_count:
        verdict = element("p", f"✗ {counted(report.findings_count, 'finding')} in {events}", class_="verdict bad")
    else:
        verdict = element("p", f"✓ No finding in {events}", class_="verdict good")
    fields = joined(joined((element("dt", name), element("dd", value))) for name, value in _fields(report))
    kinds = [(text(kind), f"{count:,}") for kind, count in report.events.items()]
    events_table = table("Events by type", ("Type", "Events"), kinds, ("", "number"))
    return joined(
        (
            element("h1", "Allowance audit"),
            verdict,
            element("div", element("dl", fields), events_table if kinds else "", class_="columns"),
        )
    )


def _fields(report: AuditReport) -> Iterator[tuple[str, str]]:
    yield "Validator", element("code", text(report.validator_ss58))
    yield "Position", f"{report.position:,}"
    yield "Head hash", element("code", text(report.head_hash))
    yield "History model", _history_text(report)
    yield "Snapshots", f"{counted(report.snapshots, 'snapshot')} compared with the log"
    if report.unproved_choices:
        yield "Choices not proved", f"{counted(report.unproved_choices, 'route')}, whose miner only the claim proves"
    yield "Replayed in", f"{seconds_text(report.elapsed_seconds)}, {report.events_per_second:,.0f} events per second"


def _history_text(report: AuditReport) -> str:
    if report.history_position is None:
        return "none"
    return f"compared with the log up to position {report.history_position:,}"
