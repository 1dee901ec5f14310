"""`allowance export`: a whole ledger in a file."""

from __future__ import annotations

import argparse
import sys
from typing import IO, TYPE_CHECKING

from routing.cli.command import CliCommand
from routing.cli.errors import STORAGE_UNAVAILABLE, UnwritableOutput, WrongUsage
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import counted

if TYPE_CHECKING:
    from routing import ExportReport

STANDARD_OUTPUT = "standard output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("file", metavar="FILE", help="a file that is not there yet; - writes to standard output")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Exports, and tells the head to note."""
    if arguments.file == "-":
        out.note(_text(_export_to_stdout(arguments, out)))
        return 0
    from routing.cli.io.documents import as_fields
    from routing.cli.io.output_file import FOR_OWNER, OutputFile

    with OutputFile(arguments.file, expected="a file that is not there yet", mode=FOR_OWNER) as file:
        report = _export(arguments, file.stream)
        file.keep()
    if out.json_wanted:
        out.document({**as_fields(report), "file": arguments.file, "head": _head(report)})
    else:
        out.line(_text(report))
    return 0


def _export_to_stdout(arguments: argparse.Namespace, out: Output) -> ExportReport:
    from routing.cli.io.output_file import named_errors

    try:
        report = _export(arguments, _stdout(out))
        with named_errors(STANDARD_OUTPUT):
            sys.stdout.flush()  # It is not exported before it is out.
        return report
    except UnwritableOutput as refused:
        if isinstance(refused.__cause__, BrokenPipeError):
            # Whoever reads has seen enough: `main` knows what to do then.
            raise refused.__cause__ from None
        # As for every other answer that does not fit on a disk.
        refused.exit_code = STORAGE_UNAVAILABLE
        raise


def _export(arguments: argparse.Namespace, stream: IO[bytes]) -> ExportReport:
    from routing.cli.connection import connected

    with connected(arguments, read_only=True) as connection, Progress("export", "events") as progress:
        return connection.run(connection.ledger.export(stream, lambda done, total: progress.show(done, total=total)))


def _text(report: ExportReport) -> str:
    return f"exported {counted(report.position, 'event')} of {report.validator_ss58}; head {_head(report)}"


def _head(report: ExportReport) -> str:
    return f"{report.position}:{report.hash}"


def _stdout(out: Output) -> IO[bytes]:
    from routing.cli.io.output_file import named_stream

    if out.json_wanted:
        raise WrongUsage("with --json, give a file: standard output takes one or the other")
    if sys.stdout is None or sys.stdout.isatty():
        raise WrongUsage("an export is no text for a terminal: give a file, or send it into one with >")
    return named_stream(sys.stdout.buffer, STANDARD_OUTPUT)


COMMAND = CliCommand(
    name="export",
    summary="Write a whole ledger, events as they are stored, to a compressed file.",
    details=(
        "Others may read and write meanwhile; the file has what was there at the start. It is gzipped JSON, a line\n"
        "per event. `allowance verify FILE` checks it, `allowance restore FILE` makes the ledger anew from it."
    ),
    examples=(
        "allowance export backup.jsonl.gz",
        "allowance export - --validator 5Grwva… | ssh elsewhere 'cat > backup.jsonl.gz'",
    ),
    add_arguments=add_arguments,
    run=run,
)
