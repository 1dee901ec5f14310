"""The whole page: the verdict, the findings, the totals, the charts, and the checked rules."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from routing.texts import counted, seconds_text, short_hotkey, time_text
from routing.web.parts.markup import NUMBER, Markup, element, joined, table, text, void
from routing.web.parts.style import STYLE

from .fairness import fairness_section
from .findings import findings_section, rules_section
from .totals import totals_section
from .usage import usage_section

if TYPE_CHECKING:
    from routing import AuditReport

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
    head = element("head", _preamble(), title, element("style", Markup(STYLE)))
    main = element("main", element("h1", "Allowance audit"), *sections(report))
    return f"{DOCTYPE}{element('html', head, element('body', main), lang='en')}\n"


def sections(report: AuditReport) -> Iterator[Markup]:
    """Yield the sections of the report, for a page that has its own heading."""
    yield _summary(report)
    yield findings_section(report)
    yield totals_section(report)
    yield usage_section(report)
    yield fairness_section(report)
    yield rules_section(report)


@cache
def policy() -> str:
    """Return the page's content security policy.

    A second defence behind the escaping of texts from the log: the browser loads, runs and sends nothing, and applies
    no other style sheet than this one.
    """
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'"


def _preamble() -> Markup:
    return joined(
        (
            void("meta", charset="utf-8"),
            void("meta", name="viewport", content="width=device-width, initial-scale=1"),
            # Not through `void`: an escaped apostrophe is right, but hard to read in the page's source.
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy()}"/>'),
        )
    )


def _summary(report: AuditReport) -> Markup:
    events = counted(report.position, "event")
    if report.findings_count:
        verdict = element("p", f"✗ {counted(report.findings_count, 'finding')} in {events}", class_="verdict bad")
    else:
        verdict = element("p", f"✓ No finding in {events}", class_="verdict good")
    fields = joined(joined((element("dt", name), element("dd", value))) for name, value in _fields(report))
    kinds = [(text(kind), f"{count:,}") for kind, count in report.events.items()]
    events_table = table("Events by type", ("Type", "Events"), kinds, ("", NUMBER))
    return joined(
        (
            verdict,
            element("div", element("dl", fields), events_table if kinds else "", class_="columns"),
        )
    )


def _fields(report: AuditReport) -> Iterator[tuple[str, str]]:
    from routing import RULES

    yield "Validator", element("code", text(report.validator_ss58))
    if report.first_recorded_at is not None:
        yield "Time range", f"{time_text(report.first_recorded_at)} to {time_text(report.last_recorded_at)}"
    since = f"from the seal of position {report.from_seal:,}" if report.from_seal else "from the first event"
    yield "Position", f"{report.position:,}, audited {since}"
    yield "Head hash", element("code", text(report.head_hash))
    yield "Rules checked", f"{len(RULES)}, at every event to which they apply"
    yield "History model", _history_text(report)
    yield "Snapshots and seals", f"{counted(report.snapshots, 'snapshot')} and {counted(report.seals, 'seal')} compared"
    for each in report.not_proved:
        yield "Not proved", each
    if report.unproved_choices:
        yield "Choices not proved", f"{counted(report.unproved_choices, 'route')}, whose miner only the claim proves"
    if report.strict:
        yield "Strict", "each reservation must have been routed, with a choice that can be repeated"
    yield "Replayed in", f"{seconds_text(report.elapsed_seconds)}, {report.events_per_second:,.0f} events per second"
    yield "Made by", f"allowance-ledger {_release()}"


def _history_text(report: AuditReport) -> str:
    if report.history_position is None:
        return "none"
    return f"compared with the log up to position {report.history_position:,}"


def _release() -> str:
    try:
        return version("allowance-ledger")
    except PackageNotFoundError:
        return "from a source tree that is not installed"
