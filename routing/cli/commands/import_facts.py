"""`allowance import`: records chain facts from a file."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from routing.cli.command import CliCommand
from routing.cli.errors import CommandError
from routing.cli.io.inputs import opened_input
from routing.cli.io.output import Output
from routing.cli.io.render import counted

if TYPE_CHECKING:
    from routing.cli.files.importing import ImportSummary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the facts are, and whether odd ones are right."""
    parser.add_argument("file", metavar="FACTS.jsonl", help="a chain fact per line; `-` reads standard input")
    parser.add_argument("--confirm", action="store_true", help="record facts that look like mistakes, too")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Records the file's facts in order; a bad line stops it, what stands before is recorded."""
    from routing.cli.connection import connected
    from routing.cli.files.importing import ImportSummary, import_facts

    summary = ImportSummary()
    with opened_input(arguments.file) as stream, connected(arguments, creates=True) as connection:
        try:
            import_facts(connection, stream, summary, confirm=arguments.confirm)
        except CommandError as error:
            error.fields["before"] = asdict(summary)
            out.note(f"before it: {summary_text(summary)}" if summary.lines else "nothing stands before it")
            raise
    if out.json_wanted:
        out.document(asdict(summary))
    else:
        out.line(summary_text(summary))
    return 0


def summary_text(summary: ImportSummary) -> str:
    """Tells an import in a sentence."""
    return (
        f"{counted(summary.lines, 'line')} in {summary.seconds:.2f} s ({summary.rate}):"
        f" {counted(summary.blocks_recorded, 'block')} and {counted(summary.syncs_recorded, 'manifest sync')} recorded,"
        f" {summary.blocks_repeated:,} and {summary.syncs_repeated:,} known before;"
        f" the log stands at position {summary.position:,}"
    )


COMMAND = CliCommand(
    name="import",
    summary="Record chain facts, blocks and manifest syncs, from a file.",
    details=(
        "A JSON object per line, in the order in which to record them:\n"
        '  {"type":"manifests","block":1000,"manifests":{"5F…":{"always_on.gpu-24gb":3}}}\n'
        '  {"type":"block","number":1000,"created_at":"2024-01-01T12:00:00.010Z",\n'
        '   "miners":[{"hotkey_ss58":"5F…","address":"192.0.2.7","ip_version":4,"port":8000}],\n'
        '   "stakes":{"5G…":1001.0}}\n'
        '  {"type":"block","number":1001,"created_at":"2024-01-01T12:00:12Z"}\n'
        "miners and stakes left out mean: as in the previous block line of the file. A bad line\n"
        "is named by its number; what stands before it is recorded, it and all after it are not.\n"
        "Importing twice changes nothing."
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
