"""`allowance export`: write a whole ledger to a file."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import IO, TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import STORAGE_UNAVAILABLE, UnwritableOutput, WrongUsage
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.texts import counted

if TYPE_CHECKING:
    from routing import ExportReport

STANDARD_OUTPUT = "standard output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the file."""
    parser.add_argument("file", metavar="FILE", help="a new file; `-` writes to standard output")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Export, and report the head, which users note elsewhere and later pass to `verify --head`."""
    if arguments.file == "-":
        out.note(_summary(_export_to_stdout(arguments, out)))
        return 0
    from routing.cli.io.output_file import FOR_OWNER, OutputFile
    from routing.documents import as_fields

    with OutputFile(arguments.file, expected="a new file", mode=FOR_OWNER) as file:
        report = _export(arguments, file.stream)
        file.put_in_place()
    if out.json_wanted:
        out.document({**as_fields(report), "file": arguments.file, "head": _head(report)})
    else:
        out.line(_summary(report))
        out.next_step(f"`allowance verify {shlex.quote(arguments.file)}` checks the file")
    return 0


def _export_to_stdout(arguments: argparse.Namespace, out: Output) -> ExportReport:
    from routing.cli.io.output_file import raising_unwritable_output

    try:
        report = _export(arguments, _stdout(out))
        with raising_unwritable_output(STANDARD_OUTPUT):
            # Before reporting success: bytes in Python's own buffer are not exported yet.
            sys.stdout.flush()
        return report
    except UnwritableOutput as error:
        if isinstance(error.__cause__, BrokenPipeError):
            # The reader has stopped reading; `main` ends the command quietly.
            raise error.__cause__ from None
        # The same exit code as for any other output that does not fit on the disk.
        error.exit_code = STORAGE_UNAVAILABLE
        raise


def _export(arguments: argparse.Namespace, stream: IO[bytes]) -> ExportReport:
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection, Progress("export", "events") as progress:
        return connection.run(connection.ledger.export(stream, lambda done, total: progress.show(done, total=total)))


def _summary(report: ExportReport) -> str:
    return f"exported {counted(report.position, 'event')} of {report.validator_ss58}; head {_head(report)}"


def _head(report: ExportReport) -> str:
    return f"{report.position}:{report.hash}"


def _stdout(out: Output) -> IO[bytes]:
    from routing.cli.io.output_file import output_stream

    if out.json_wanted:
        raise WrongUsage("with --json, FILE cannot be -: standard output is either the export or the document")
    if sys.stdout is None or sys.stdout.isatty():
        raise WrongUsage("an export is binary and not for a terminal; name a file, or redirect standard output")
    return output_stream(sys.stdout.buffer, STANDARD_OUTPUT)


COMMAND = CliCommand(
    details=(
        "Others may read and write during the export; the file has the events of its start. The format is JSON, one\n"
        "line per event, compressed by gzip. `allowance verify FILE` checks the file, and `allowance restore FILE`\n"
        "restores the ledger. Note the head that is shown, and pass it to `allowance verify --head` later."
    ),
    examples=(
        "allowance export backup.jsonl.gz",
        "allowance export - --validator 5Grwva… | ssh elsewhere 'cat > backup.jsonl.gz'",
    ),
    add_arguments=add_arguments,
    run=run,
)
