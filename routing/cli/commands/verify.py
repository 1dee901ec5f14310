"""`allowance verify`: check that every stored event is as it was written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO, NoSuchLedger, WrongUsage
from routing.cli.io.inputs import noted_head, whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.sources import SOURCES, opened_source
from routing.texts import counted

if TYPE_CHECKING:
    from routing import Head, VerifyReport
    from routing.cli.named_ledger import NamedValue

FROM_THE_LAST = -1
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
    parser.add_argument(
        "--since",
        nargs="?",
        const=FROM_THE_LAST,
        type=_position,
        metavar="POSITION",
        help="check only the events after this position (default: after the last one that was checked and good), and"
        " record the result for `allowance health`; this needs permission to write",
    )


def _position(text: str) -> int:
    """Return a position, 0 for the beginning of the log."""
    return 0 if text == "0" else whole_number(text)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Verify every selected ledger, and report the first bad position of each."""
    from ledger.errors import renamed_fields
    from routing import Head
    from routing.cli.named_ledger import NamedValue, named_database, named_validator
    from routing.service.backup import check_database
    from routing.service.config import configuration_from_environment

    if arguments.source and arguments.database:
        raise WrongUsage("give SOURCE or --database, not both")
    configuration = configuration_from_environment()
    if arguments.source:
        source = NamedValue(arguments.source, "SOURCE")
    else:
        source = named_database(arguments, configuration)
        if not arguments.database:
            with renamed_fields({"database_url": source.name}):
                check_database(source.value)
    heads = [Head(*noted) for noted in arguments.head]
    validator = named_validator(arguments, configuration)
    if arguments.since is None:
        reports = _verify(source, validator, heads)
    else:
        reports = [_verify_since(source, validator, arguments)]
    for report in reports:
        _show(report, out)
    if any(report.findings for report in reports):
        out.next_step("`allowance guide auditing` says what to do about damage")
    else:
        if arguments.source:
            arguments.database = arguments.source
        out.next_step(f"{next_command(arguments, 'audit')} checks that every decision was right")
    return NO if any(report.findings for report in reports) else 0


def _verify(source: NamedValue, validator: NamedValue, heads: list[Head]) -> list[VerifyReport]:
    import routing.sync
    from ledger.errors import renamed_fields
    from routing import LedgerNotFound
    from routing.cli.named_ledger import NamedValue, is_in_environment

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
            if is_in_environment(validator) and not is_in_environment(source):
                # The environment's validator is that of the environment's database; here is another one.
                reports = _verify(source, NamedValue("", validator.name), heads)
                if len(reports) == 1:
                    return reports
            raise NoSuchLedger(source.name, validator.value, validator.name) from absent


def _verify_since(source: NamedValue, validator: NamedValue, arguments: argparse.Namespace) -> VerifyReport:
    from ledger import current_runtime
    from ledger.errors import renamed_fields
    from routing import LedgerNotFound
    from routing.service.backup import verify_since

    if arguments.source or arguments.head:
        raise WrongUsage("give --since with --database, without SOURCE and --head")
    names = {"source": source.name, "database_url": source.name, "validator_ss58": validator.name}
    with renamed_fields(names), Progress("verify", "events") as progress:
        try:
            checking = verify_since(
                source.value,
                validator_ss58=validator.value or None,
                since=None if arguments.since == FROM_THE_LAST else arguments.since,
                progress=lambda done, total: progress.show(done, total=total),
            )
            return current_runtime().run_blocking(checking)
        except LedgerNotFound as absent:
            raise NoSuchLedger(source.name, validator.value, validator.name) from absent


def _show(report: VerifyReport, out: Output) -> None:
    from routing.documents import as_fields

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
        "Without --since the command writes nothing and needs no permission to write.\n"
        f"{SOURCES}\n\n"
        "If neither --validator nor ALLOWANCE_VALIDATOR_SS58 selects one, all ledgers of the source are verified.\n"
        "Hashes alone cannot detect a truncation that also rewrites the head row, or a log that was rewritten as a\n"
        "whole. To detect these, note heads elsewhere from time to time, and pass them with --head.\n"
        "With --since, the log is checked in pieces, and the result is recorded after each. If it is interrupted, the\n"
        "next run goes on after the last piece. So a timer can run `allowance verify --since` often.\n"
        "Exit code 1: at least one event is not as it was written."
    ),
    examples=(
        "allowance verify",
        f"allowance verify ledger.db --head 1234:{'9f2c' * 16}",
        "allowance verify backup.jsonl.gz --json",
        "allowance verify --since --database sqlite:///allowance.db",
        "allowance verify postgresql://auditor@db/allowance --validator 5Grwva…",
    ),
    add_arguments=add_arguments,
    run=run,
)
