"""The audit of the log, run on demand in the background, and its report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routing.documents import as_fields
from routing.texts import counted
from routing.web.audit_page import sections
from routing.web.components import anchor, form, hidden
from routing.web.parts.markup import Markup, element, joined, text
from routing.web.visit import Answer, Visit

if TYPE_CHECKING:
    from routing.web.audits import Audits

PARAMETERS = ()
START = "audit-start"
LIVE = "audit-live"


async def audit(visit: Visit) -> Answer:
    """Return the last report, the progress of a running audit, or the button that starts one."""
    audits = visit.source.audits
    return Answer("Audit", document(audits), lambda: _body(visit, audits), live=LIVE if audits.progress else None)


async def start(visit: Visit) -> str:
    """Start an audit up to the visit's moment; return the link to its progress."""
    visit.source.audits.start((await visit.ledger.head()).position)
    return visit.link("audit")


def document(audits: Audits) -> dict[str, object]:
    """Return the `progress` of the running audit, and the `report` of the last one, with the keys of the CLI."""
    report = None if audits.report is None else as_fields(audits.report)
    if report is not None:
        # The numbers of the charts are large and only for the page.
        del report["usage"]
    progress, failure = audits.progress, audits.failure
    return {
        "progress": None if progress is None else {"done": progress.done, "total": progress.total},
        "failure": None if failure is None else {"type": failure.error, "message": failure.message},
        "report": report,
    }


def progress_part(audits: Audits) -> Markup:
    """Return the part of the page that changes while an audit runs."""
    progress = audits.progress
    if progress is None:
        return element("p", "The audit has ended. ", anchor("audit", "Show its report"))
    bar = element("progress", value=progress.done, max=max(1, progress.total), aria_label="Events checked")
    return joined((element("p", f"{progress.done:,} of {counted(progress.total, 'event')} are checked."), bar))


def _body(visit: Visit, audits: Audits) -> Markup:
    if audits.progress is not None:
        reload = element("p", anchor("audit", "Reload"), " to see how far it is, if this page does not move by itself.")
        running = element("div", progress_part(audits), id="progress")
        return joined((running, element("p", class_="live", id="live", role="status"), reload))
    return joined((_introduction(visit, audits), *([] if audits.report is None else sections(audits.report))))


def _introduction(visit: Visit, audits: Audits) -> Markup:
    explanation = (
        "The audit replays the log from its first event and checks every rule again. It runs in a process of its own,"
        " and neither changes the ledger nor keeps picks waiting."
    )
    verb = "Audit the log again" if audits.report is not None else "Audit the log"
    button = element("button", f"{verb} up to this moment" if visit.is_past else verb)
    parts = [element("p", explanation), form(START, hidden(visit.parameters.given()), button, label="Audit")]
    if audits.failure is not None:
        parts.append(element("p", element("strong", "The audit failed: "), text(audits.failure.message), class_="bad"))
    if audits.report is not None:
        parts.append(element("p", anchor("audit.html", "Download the report as one file", download=True)))
    return joined(parts)
