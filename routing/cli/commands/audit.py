"""`allowance audit`: every rule checked again, by replaying the log from nothing."""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.errors import NO, WrongUsage
from routing.cli.io.inputs import whole_number
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import counted, labelled, printable, seconds_text, short_hotkey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from routing import AccountTotals, AuditReport
    from routing.cli.io.output_file import OutputFile

PAGE_BUCKETS = 120
"""Columns of the report's charts."""
MOST_LISTED = 50
AMOUNTS = ("granted", "spent", "held", "invalidated", "available", "aged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How far, and what else to show."""
    parser.add_argument("--until", metavar="POSITION", type=whole_number, help="audit only up to this position")
    parser.add_argument("--accounts", action="store_true", help="list every account's totals, not only the classes'")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="also write a report with charts that any browser opens; takes the place of an earlier one only",
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Audits, writes the page where it is asked for, and tells what was found."""
    with ExitStack() as stack:
        # Before the audit, which may take long: what cannot be written should not be found out after it.
        file = stack.enter_context(_page_file(arguments.html)) if arguments.html else None
        report = _audit(arguments)
        try:
            if file is not None:
                _write_page(file, report)
        finally:
            _tell(report, out, accounts=arguments.accounts)
    return NO if report.findings_count else 0


def _page_file(name: str) -> OutputFile:
    from routing.cli.audit_page import is_page
    from routing.cli.io.output_file import OutputFile

    if name == "-":
        raise WrongUsage("--html - : the report goes into a file, such as audit.html; standard output has the answer")
    expected = "a file that is not there yet, or an earlier report of `allowance audit --html`"
    return OutputFile(name, expected=expected, may_replace=is_page)


def _audit(arguments: argparse.Namespace) -> AuditReport:
    from routing.cli.connection import connected

    with connected(arguments, read_only=True) as connection, Progress("audit", "events") as progress:
        return connection.run(
            connection.ledger.audit(
                until_position=arguments.until,
                usage_buckets=PAGE_BUCKETS if arguments.html else 0,
                progress=lambda done, total: progress.show(done, progress.rate(done, "events"), total=total),
            )
        )


def _write_page(file: OutputFile, report: AuditReport) -> None:
    from routing.cli.audit_page import page

    file.stream.write(page(report).encode())
    file.keep()


def _tell(report: AuditReport, out: Output, *, accounts: bool) -> None:
    from routing.cli.io.documents import as_fields

    if out.json_wanted:
        document = as_fields(report)
        del document["usage"]
        out.document(document)
    else:
        _show(report, out, accounts=accounts)


def _show(report: AuditReport, out: Output, *, accounts: bool) -> None:
    for line in labelled(
        [
            ("validator", report.validator_ss58),
            ("head", f"{report.position}:{report.head_hash}"),
            *((kind, f"{count:,}") for kind, count in report.events.items()),
            ("history model", _history_text(report)),
            ("snapshots", f"{report.snapshots} compared"),
        ]
    ):
        out.line(line)
    if report.totals:
        out.line()
        _show_totals(report.totals, out, accounts=accounts)
    out.line()
    if not report.findings_count:
        out.line(f"no finding in {counted(report.position, 'event')}")
    for finding in report.findings[:MOST_LISTED]:
        out.line(
            f"position {finding.position:,}: {finding.rule}: {printable(finding.message)}{_facts(finding.details)}"
        )
    if report.findings_count:
        listed = min(MOST_LISTED, len(report.findings))
        more = f", the first {listed} listed; --json has more" if listed < report.findings_count else ""
        out.line(f"{counted(report.findings_count, 'finding')} in {counted(report.position, 'event')}{more}")
    out.note(f"{report.events_per_second:,.0f} events/s")


def _facts(details: dict[str, object]) -> str:
    facts = ", ".join(f"{name}={value}" for name, value in details.items())
    return f" ({printable(facts)})" if facts else ""


def _history_text(report: AuditReport) -> str:
    if report.history_position is None:
        return "none to compare"
    return f"compared up to position {report.history_position:,}"


def _show_totals(totals: list[AccountTotals], out: Output, *, accounts: bool) -> None:
    if accounts:
        out.table(
            ("miner", "class", *AMOUNTS),
            [(short_hotkey(each.miner_ss58), each.executor_class, *_amounts([each])) for each in totals],
        )
        return
    by_class: dict[str, list[AccountTotals]] = defaultdict(list)
    for each in totals:
        by_class[each.executor_class].append(each)
    out.table(
        ("class", "accounts", *AMOUNTS),
        [(name, len(theirs), *_amounts(theirs)) for name, theirs in sorted(by_class.items())],
    )


def _amounts(totals: Iterable[AccountTotals]) -> list[str]:
    theirs = list(totals)
    return [seconds_text(sum(getattr(each, f"{name}_seconds") for each in theirs)) for name in AMOUNTS]


COMMAND = CliCommand(
    name="audit",
    summary="Check every rule of the ledger again, by replaying its log from nothing.",
    details=(
        "Changes nothing, believes nothing but the log, and works on a damaged one too. Each finding names the\n"
        "position, the rule that is broken, and the numbers. Exit code 1: there are findings."
    ),
    examples=(
        "allowance audit",
        "allowance audit --until 120000 --accounts",
        "allowance audit --html audit.html --json > audit.json",
    ),
    add_arguments=add_arguments,
    run=run,
)
