"""`allowance rebuild`: the history and the snapshots made anew from the log."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.command import CliCommand
from routing.cli.errors import NO
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import counted

if TYPE_CHECKING:
    from routing import Difference, RebuildReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Rebuild takes no arguments of its own."""


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Rebuilds, and tells in what the old differed from the new."""
    from routing.cli.connection import connected
    from routing.cli.io.documents import as_fields

    with connected(arguments) as connection, Progress("rebuild", "events") as progress:
        report = connection.run(connection.ledger.rebuild(lambda done, total: progress.show(done, total=total)))
    if out.json_wanted:
        out.document(as_fields(report))
    else:
        _show(report, out)
    return NO if report.different else 0


def _show(report: RebuildReport, out: Output) -> None:
    out.line(
        f"rebuilt up to position {report.position:,}: {counted(report.reservations, 'reservation')};"
        f" compared up to {report.compared_until:,}, with {counted(report.snapshots, 'snapshot')}"
    )
    if not report.different:
        out.line("what was there was what the log says")
        return
    for difference in report.differences:
        out.line(_text(difference))
    listed = "" if report.different == len(report.differences) else f", the first {len(report.differences)} listed"
    out.line(f"{counted(report.different, 'difference')}{listed}: what was there is replaced")


def _text(difference: Difference) -> str:
    found, rebuilt = difference.found, difference.rebuilt
    where = f"{difference.what} at position {difference.position}"
    if found is None:
        return f"{where}: was missing"
    if rebuilt is None:
        return f"{where}: should not be there"
    changes = ", ".join(f"{name} was {found[name]}, is {rebuilt[name]}" for name in rebuilt)
    return f"{where}: {changes}"


COMMAND = CliCommand(
    name="rebuild",
    summary="Make the history and the snapshots anew from the log, and compare them with what was there.",
    details=(
        "Others may read and write meanwhile: the new history is made beside the old one, and put in its\n"
        "place in one transaction. Exit code 1: what was there was not what the log says; now it is."
    ),
    examples=(
        "allowance rebuild",
        "allowance rebuild --database sqlite:///allowance.db --validator 5Grwva… --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
