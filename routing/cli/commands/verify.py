"""`allowance verify`: check that every stored event is as it was written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.files.sources import SOURCES, noted_head, opened_source
from routing.cli.io.errors import NO, NoSuchLedger, WrongUsage
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import counted

if TYPE_CHECKING:
    from routing import Head, VerifyReport
    from routing.cli.connection import NamedValue

MOST_LISTED = 20
"""How many findings of a ledger are shown as text; the JSON document may have more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source and the heads to compare with."""
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", help="a database or an export (default: the database of --database)"
    )
    parser.add_argument(
        "--head",
        action="append",
        default=[],
        type=noted_head,
        metavar="POSITION:HASH",
        help="a head noted elsewhere at any time, as `allowance health` shows it; may be repeated",
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Verify every selected ledger, and report the first bad position of each."""
    from ledger.errors import renamed_fields
    from routing import Head
    from routing.cli.connection import NamedValue, named_database, named_validator
    from routing.service.backup import check_database
    from routing.service.config import configuration_from_environment

    if arguments.source and arguments.database:
        raise WrongUsage("give SOURCE or --database, not both")
    configuration = configuration_from_environment()
    if arguments.source:
        source = NamedValue(arguments.source, "SOURCE")
    else:
        source = named_database(arguments, configuration)
        with renamed_fields({"database_url": source.name}):
            check_database(source.value)
    heads = [Head(*noted) for noted in arguments.head]
    reports = _verify(source, named_validator(arguments, configuration), heads)
    for report in reports:
        _show(report, out)
    return NO if any(report.findings for report in reports) else 0


def _verify(source: NamedValue, validator: NamedValue, heads: list[Head]) -> list[VerifyReport]:
    import routing.sync
    from ledger.errors import renamed_fields
    from routing import LedgerNotFound

    names = {"source": source.name, "database_url": source.name, "validator_ss58": validator.name}
    with renamed_fields(names), opened_source(source.value) as opened, Progress("verify", "events") as progress:
        try:
            return routing.sync.verify(
                opened,
                validator_ss58=validator.value or None,
                heads=heads,
                progress=lambda done, total: progress.show(done, total=total),
            )
        except LedgerNotFound as absent:
            raise NoSuchLedger(source.name, validator.value, validator.name) from absent


def _show(report: VerifyReport, out: Output) -> None:
    from routing.cli.io.documents import as_fields

    head = f"{report.position}:{report.hash}"
    if out.json_wanted:
        out.document({**as_fields(report), "head": head})
        return
    whose = report.validator_ss58 or "a ledger whose validator is not known"
    rate = f"{counted(report.events, 'event')}, {report.events_per_second:,.0f} events/s"
    if not report.findings:
        out.line(f"{whose}: every stored event is as it was written ({rate})")
    else:
        out.line(f"{whose}: first bad position {report.first_bad_position:,} ({rate})")
    for finding in report.findings[:MOST_LISTED]:
        out.line(f"  {finding.position:,}  {finding.rule}  {finding.message}")
    if report.found > MOST_LISTED:
        out.line(f"  … {counted(report.found, 'finding')} in all")
    out.line(f"  head {head}")
    for position in report.noted:
        out.line(f"  agrees with the head noted at {position:,}")
    for possibility in report.not_excluded:
        out.line(f"  not excluded: {possibility}")


COMMAND = CliCommand(
    details=(
        "The command writes nothing and needs no permission to write.\n"
        f"{SOURCES}\n\n"
        "If neither --validator nor ALLOWANCE_VALIDATOR_SS58 selects one, all ledgers of the source are verified.\n"
        "Hashes alone cannot detect a truncation that also rewrites the head row, or a log that was rewritten as a\n"
        "whole. To detect these, note heads elsewhere from time to time, and pass them with --head.\n"
        "Exit code 1: at least one event is not as it was written."
    ),
    examples=(
        "allowance verify",
        f"allowance verify ledger.db --head 1234:{'9f2c' * 16}",
        "allowance verify backup.jsonl.gz --json",
        "allowance verify postgresql://auditor@db/allowance --validator 5Grwva…",
    ),
    add_arguments=add_arguments,
    run=run,
)
