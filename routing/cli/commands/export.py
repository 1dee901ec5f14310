"""`allowance export`: a whole ledger in a file."""

from __future__ import annotations

import argparse
import sys
from typing import IO

from ..command import Command
from ..failure import WrongUsage
from ..output import Output
from ..progress import Progress
from ..render import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("file", metavar="FILE", help="a file that is not there yet; - writes to standard output")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Exports, and tells the head to note."""
    from ..connection import connected
    from ..documents import as_fields

    to_stdout = arguments.file == "-"
    target = _stdout(out) if to_stdout else arguments.file
    with connected(arguments, read_only=True) as connection, Progress("export", "events") as progress:
        report = connection.run(connection.book.export(target, lambda done, total: progress.show(done, total=total)))
    head = f"{report.position}:{report.hash}"
    text = f"exported {counted(report.position, 'event')} of {report.validator_ss58}; head {head}"
    if to_stdout:
        out.note(text)
    elif out.json_wanted:
        out.document({**as_fields(report), "file": arguments.file, "head": head})
    else:
        out.line(text)
    return 0


def _stdout(out: Output) -> IO[bytes]:
    if out.json_wanted:
        raise WrongUsage("with --json, give a file: standard output takes one or the other")
    if sys.stdout is None or sys.stdout.isatty():
        raise WrongUsage("an export is no text for a terminal: give a file, or send it into one with >")
    return sys.stdout.buffer


COMMAND = Command(
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
