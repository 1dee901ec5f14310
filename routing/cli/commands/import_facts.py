"""`allowance import`: record chain facts from a file."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import CommandError
from routing.cli.io.inputs import opened_input
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.texts import counted

if TYPE_CHECKING:
    from routing.cli.files.importing import ImportSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the file, and whether implausible facts are accepted."""
    parser.add_argument(
        "file", metavar="FACTS.jsonl", help="one chain fact or reservation per line; `-` reads standard input"
    )
    parser.add_argument("--confirm", action="store_true", help="also record implausible facts")
    parser.add_argument("--new", action="store_true", help="found a ledger even if the database has others")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Record the facts of the file in order, up to the first bad line."""
    from routing.cli.connection import ledger_connection
    from routing.cli.files.importing import ImportSummary, import_facts

    summary = ImportSummary()
    with opened_input(arguments.file) as stream, ledger_connection(arguments, founds=True) as connection:
        try:
            import_facts(connection, stream, summary, confirm=arguments.confirm)
        except CommandError as error:
            error.fields["before"] = asdict(summary)
            out.note(f"before it: {summary_text(summary)}" if summary.lines else "there is no fact before it")
            raise
    if out.json_wanted:
        out.document(asdict(summary))
    else:
        out.line(summary_text(summary))
        out.next_step(f"{next_command(arguments, 'miners', '--seconds', 30)} lists the candidates for a job")
    return 0


def summary_text(summary: ImportSummary) -> str:
    """Return the summary as a sentence."""
    return (
        f"{counted(summary.lines, 'line')} in {summary.seconds:.2f} s ({summary.rate}):"
        f" {counted(summary.blocks_recorded, 'block')} and {counted(summary.syncs_recorded, 'manifest sync')} recorded,"
        f" {summary.blocks_repeated:,} and {summary.syncs_repeated:,} known already;{_reservations_text(summary)}"
        f" the log ends at position {summary.position:,}"
    )


def _reservations_text(summary: ImportSummary) -> str:
    """Return the part about reservations; empty for the many files without any."""
    if not summary.reservations_imported and not summary.reservations_repeated:
        return ""
    imported = counted(summary.reservations_imported, "reservation")
    return f" {imported} imported, {summary.reservations_repeated:,} known already;"


COMMAND = CliCommand(
    details=(
        "The file has one JSON object per line, in the order in which to record them:\n"
        '  {"type":"manifests","block":1000,"manifests":{"5F…":{"always_on.gpu-24gb":3}}}\n'
        '  {"type":"block","number":1000,"created_at":"2024-01-01T12:00:00.010Z",\n'
        '   "miners":[{"hotkey_ss58":"5F…","address":"192.0.2.7","ip_version":4,"port":8000}],\n'
        '   "stakes":{"5G…":1001.0}}\n'
        '  {"type":"block","number":1001,"created_at":"2024-01-01T12:00:12Z"}\n'
        "What another system had booked is taken over, exactly these blocks, if all are granted and none is taken:\n"
        '  {"type":"reservation","miner_ss58":"5F…","executor_class":"always_on.gpu-24gb","blocks":[[1000,1003]],\n'
        '   "amount_seconds":15.5,"job_uuid":"…","reserved_at":"2024-01-01T12:00:00Z",\n'
        '   "expires_at":"2024-01-01T12:01:55Z","status":"spent"}\n'
        'The status is "reserved" or "spent"; amount_seconds and job_uuid may be null.\n'
        "If a line leaves out miners or stakes, they are as in the previous block line of the file. A block line\n"
        'may have "block_hash", the chain\'s hash of the block in 64 hexadecimal digits.\n'
        "At a bad line the import stops and names the line's number: all lines before it are recorded,\n"
        "that line and all later ones are not. Importing a file again changes nothing.\n"
        "If the database has no ledger yet, the import founds it."
    ),
    examples=(
        "allowance import facts.jsonl",
        "allowance import facts.jsonl --database sqlite:///allowance.db --validator 5Grwva… --json",
        "watch-the-chain | allowance import -",
        "allowance import backfill.jsonl --confirm",
    ),
    add_arguments=add_arguments,
    run=run,
)
