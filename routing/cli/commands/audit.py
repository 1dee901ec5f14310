"""`allowance audit`: check every rule again by replaying the log from its first event."""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO, WrongUsage
from routing.cli.io.inputs import whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import labelled
from routing.texts import counted, flags_text, percent_text, printable, seconds_text, short_hotkey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routing import AccountTotals, AuditReport, FairnessReport, Finding, MinerFairness
    from routing.cli.io.output_file import OutputFile

PAGE_BUCKETS = 120
"""Steps of the page's charts: as many as are still distinguishable on a narrow screen."""
MOST_LISTED = 50
"""Further findings are only counted in the text output; `--json` lists them."""
ORIGINS = ("routed", "kept", "by_hand", "imported")
AMOUNTS = ("granted", "spent", "held", "invalidated", "available", "aged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `allowance audit`."""
    parser.add_argument("--at-position", metavar="P", type=whole_number, help="audit the log as it was at this one")
    parser.add_argument(
        "--from-seal",
        metavar="POSITION",
        type=whole_number,
        help="begin at this sealed position, and say what is not proved then",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="each reservation whose choice of a miner is not proved is a finding: made by hand, imported, or kept",
    )
    parser.add_argument("--accounts", action="store_true", help="list every account's totals, not only the classes'")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="also write a report with charts for any browser; FILE must be new, or an earlier report to replace",
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Audit the ledger, write the page if requested, and print the report; return `NO` if there are findings."""
    with ExitStack() as stack:
        # An audit may take long, so a file that cannot be written is refused before it.
        file = stack.enter_context(_page_file(arguments.html)) if arguments.html else None
        report = _audit(arguments)
        try:
            if file is not None:
                _write_page(file, report)
        finally:
            # If writing the page fails, the result of the audit is printed nevertheless.
            _print_report(report, out, accounts=arguments.accounts)
    if report.first_cause is not None:
        moment = ("--at-position", report.first_cause.position)
        out.next_step(f"{next_command(arguments, 'replay', *moment)} shows the ledger at the first cause")
    else:
        out.next_step("note the head elsewhere; `allowance verify --head` proves later that the log continues it")
    return NO if report.findings_count else 0


def _page_file(name: str) -> OutputFile:
    from routing.cli.io.output_file import OutputFile
    from routing.web.audit_page import is_page

    if name == "-":
        raise WrongUsage(
            "--html must name a file, such as audit.html, got '-': standard output is for the audit's result"
        )
    expected = "a new file, or an earlier report of `allowance audit --html`"
    return OutputFile(name, expected=expected, may_replace=is_page)


def _audit(arguments: argparse.Namespace) -> AuditReport:
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection, Progress("audit", "events") as progress:
        return connection.run(
            connection.ledger.audit(
                until_position=arguments.at_position,
                from_seal=arguments.from_seal,
                strict=arguments.strict,
                usage_buckets=PAGE_BUCKETS if arguments.html else 0,
                progress=lambda done, total: progress.show(done, progress.rate(done, "events"), total=total),
            )
        )


def _write_page(file: OutputFile, report: AuditReport) -> None:
    from routing.web.audit_page import page

    file.stream.write(page(report).encode())
    file.put_in_place()


def _print_report(report: AuditReport, out: Output, *, accounts: bool) -> None:
    from routing.documents import as_fields

    if out.json_wanted:
        document = as_fields(report)
        # The numbers of the charts are large and only for the page.
        del document["usage"]
        out.document(document)
    else:
        _print_text(report, out, accounts=accounts)


def _print_text(report: AuditReport, out: Output, *, accounts: bool) -> None:
    _print_summary(report, out)
    if report.totals:
        out.line()
        _print_totals(report.totals, out, accounts=accounts)
    if report.fairness is not None and report.fairness.miners:
        out.line()
        _print_fairness(report.fairness, out)
    out.line()
    _print_findings(report, out)
    for each in report.not_proved:
        out.line(f"not proved: {each}")
    if report.unproved_choices:
        out.line(
            f"not proved: the choice of the miner of {counted(report.unproved_choices, 'route')}, whose claim names no"
            " position of it (an earlier release wrote it) or one before the seal"
        )
    out.note(f"{report.events_per_second:,.0f} events/s")


def _print_fairness(fairness: FairnessReport, out: Output) -> None:
    """Print how evenly the miners of each class were used, and the miners for which chance is no explanation."""
    by_class: dict[str, list[MinerFairness]] = defaultdict(list)
    for each in fairness.miners:
        by_class[each.executor_class].append(each)
    out.table(
        ("class", *ORIGINS, "used", "Jain", "Gini", "flagged"),
        [
            (
                each.executor_class,
                *(sum(getattr(one, name) for one in by_class[each.executor_class]) for name in ORIGINS),
                percent_text(each.used_seconds, each.granted_seconds),
                f"{each.jain:.3f}",
                f"{each.gini:.3f}",
                sum(bool(one.flags) for one in by_class[each.executor_class]),
            )
            for each in fairness.classes
        ],
    )
    for text in (*fairness.flags, *map(flags_text, fairness.flagged[:MOST_LISTED])):
        out.line(f"flagged: {text}")


def _print_summary(report: AuditReport, out: Output) -> None:
    for line in labelled(
        [
            ("validator", report.validator_ss58),
            ("head", f"{report.position}:{report.head_hash}"),
            *((kind, f"{count:,}") for kind, count in report.events.items()),
            ("history model", _history_text(report)),
            ("snapshots", f"{report.snapshots} compared"),
            ("seals", f"{report.seals} compared"),
        ]
    ):
        out.line(line)


def _print_findings(report: AuditReport, out: Output) -> None:
    events = counted(report.position - report.from_seal, "event")
    if not report.findings_count:
        out.line(f"no finding in {events}")
    if report.first_cause is not None:
        out.line(f"first cause: {_finding_text(report.first_cause)}")
        for rule, count in report.findings_by_rule.items():
            out.line(f"  {rule}: {counted(count, 'finding')}")
    for finding in report.findings[:MOST_LISTED]:
        follows = " (follows from an earlier one)" if finding.follows else ""
        out.line(f"{_finding_text(finding)}{_details_text(finding.details)}{follows}")
    if report.findings_count:
        listed = min(MOST_LISTED, len(report.findings))
        more = f", the first {listed} are listed; --json lists more" if listed < report.findings_count else ""
        out.line(f"{counted(report.findings_count, 'finding')} in {events}{more}")


def _finding_text(finding: Finding) -> str:
    return f"position {finding.position:,}: {finding.rule}: {printable(finding.message)}"


def _details_text(details: dict[str, object]) -> str:
    text = ", ".join(f"{name}={value}" for name, value in details.items())
    return f" ({printable(text)})" if text else ""


def _history_text(report: AuditReport) -> str:
    if report.history_position is None:
        return "none"
    return f"compared up to position {report.history_position:,}"


def _print_totals(totals: list[AccountTotals], out: Output, *, accounts: bool) -> None:
    if accounts:
        out.table(
            ("miner", "class", *AMOUNTS),
            [(short_hotkey(each.miner_ss58), each.executor_class, *_amounts([each])) for each in totals],
            ("miner", "class", "granted", "spent", "available"),
        )
        return
    by_class: dict[str, list[AccountTotals]] = defaultdict(list)
    for each in totals:
        by_class[each.executor_class].append(each)
    out.table(
        ("class", "accounts", *AMOUNTS),
        [(name, len(of_class), *_amounts(of_class)) for name, of_class in sorted(by_class.items())],
        ("class", "granted", "spent", "available", "held"),
    )


def _amounts(totals: Sequence[AccountTotals]) -> list[str]:
    return [seconds_text(sum(getattr(each, f"{name}_seconds") for each in totals)) for name in AMOUNTS]


COMMAND = CliCommand(
    details=(
        "The audit changes nothing, trusts only the log, and also works on a damaged one. Each finding names the\n"
        "position, the broken rule, and the numbers. The exit code is 1 if there are findings. A flagged miner got\n"
        "more or less than chance explains: no finding, but a question to whoever runs the ledger."
    ),
    examples=(
        "allowance audit",
        "allowance audit --at-position 120000 --accounts",
        "allowance audit --strict",
        "allowance audit --from-seal 110000",
        "allowance audit --html audit.html --json > audit.json",
    ),
    add_arguments=add_arguments,
    run=run,
)
