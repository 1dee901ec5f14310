"""The document: the verdict, what was found, what became of the allowance, and which rules were checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from routing.cli.io.render import counted, seconds_text, short_hotkey

from .findings import findings_section, rules_section
from .markup import Markup, element, joined, table, text
from .style import STYLE
from .totals import totals_section
from .usage import usage_section

if TYPE_CHECKING:
    from routing import AuditReport

PREAMBLE = Markup(
    '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
    # A second defence behind the escaping: the page loads nothing, runs nothing, and sends nothing.
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
)

BEGINNING = "<!doctype html>\n"
TITLE = "Audit of "
LONGEST_BEFORE_TITLE = 1000


def is_page(path: Path) -> bool:
    """Whether a file begins as every page does, of this release or an earlier one."""
    with path.open("rb") as file:
        start = file.read(LONGEST_BEFORE_TITLE)
    return start.startswith(BEGINNING.encode()) and f"<title>{TITLE}".encode() in start


def page(report: AuditReport) -> str:
    """The whole document; with charts where the report was made with `usage_buckets`."""
    title = element("title", f"{TITLE}{short_hotkey(report.validator_ss58)}, {counted(report.position, 'event')}")
    head = element("head", PREAMBLE, title, element("style", Markup(STYLE)))
    sections = (_summary(report), findings_section(report), totals_section(report), usage_section(report))
    main = element("main", *sections, rules_section(report))
    return f"{BEGINNING}{element('html', head, element('body', main), lang='en')}\n"


def _summary(report: AuditReport) -> Markup:
    events = counted(report.position, "event")
    if report.findings_count:
        verdict = element("p", f"✗ {counted(report.findings_count, 'finding')} in {events}", class_="verdict bad")
    else:
        verdict = element("p", f"✓ No finding in {events}", class_="verdict good")
    facts = joined(joined((element("dt", name), element("dd", value))) for name, value in _facts(report))
    kinds = [(text(kind), f"{count:,}") for kind, count in report.events.items()]
    events_table = table("Events by type", ("Type", "Events"), kinds, ("", "number"))
    return joined(
        (
            element("h1", "Allowance audit"),
            verdict,
            element("div", element("dl", facts), events_table if kinds else "", class_="columns"),
        )
    )


def _facts(report: AuditReport) -> Iterator[tuple[str, str]]:
    yield "Validator", element("code", text(report.validator_ss58))
    yield "Position", f"{report.position:,}"
    yield "Head hash", element("code", text(report.head_hash))
    yield "History model", _history(report)
    yield "Snapshots", f"{counted(report.snapshots, 'snapshot')} compared with the log"
    yield "Replayed in", f"{seconds_text(report.elapsed_seconds)}, {report.events_per_second:,.0f} events a second"


def _history(report: AuditReport) -> str:
    if report.history_position is None:
        return "none to compare with the log"
    return f"compared with the log up to position {report.history_position:,}"
