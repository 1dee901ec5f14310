"""`allowance rebuild`: rebuild the history and the snapshots from the log."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.texts import counted

if TYPE_CHECKING:
    from routing import Difference, RebuildReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: only the common options apply."""


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Rebuild, and report how the stored data differed from the log."""
    from routing.cli.connection import ledger_connection
    from routing.documents import as_fields

    with ledger_connection(arguments) as connection, Progress("rebuild", "events") as progress:
        report = connection.run(connection.ledger.rebuild(lambda done, total: progress.show(done, total=total)))
    if out.json_wanted:
        out.document(as_fields(report))
    else:
        _show(report, out)
        out.next_step(f"{next_command(arguments, 'health')} shows whether anything else is wrong")
    return NO if report.different or report.remade else 0


def _show(report: RebuildReport, out: Output) -> None:
    out.line(
        f"rebuilt up to position {report.position:,}: {counted(report.reservations, 'reservation')};"
        f" compared up to {report.compared_until:,}, with {counted(report.snapshots, 'snapshot')}"
    )
    for table in report.remade:
        out.line(f"the table {table} was lost or broken, and is made again")
    if not report.different:
        out.line("the stored history and snapshots agreed with the log")
        return
    for difference in report.differences:
        out.line(_difference_text(difference))
    limit = "" if report.different == len(report.differences) else f", the first {len(report.differences)} listed"
    out.line(f"{counted(report.different, 'difference')}{limit}; the stored data is replaced")


def _difference_text(difference: Difference) -> str:
    found, rebuilt = difference.found, difference.rebuilt
    where = f"{difference.what} at position {difference.position}"
    if found is None:
        return f"{where}: was missing"
    if rebuilt is None:
        return f"{where}: is not in the log"
    changes = ", ".join(f"{name} was {found[name]}, is {rebuilt[name]}" for name in rebuilt)
    return f"{where}: {changes}"


COMMAND = CliCommand(
    details=(
        "Others may read and write during the rebuild: the new history is built as a shadow generation, which\n"
        "replaces the old one in one transaction. Derived tables that are lost, or lack a column or index, are made\n"
        "again. Exit code 1: the stored data differed from the log and is replaced."
    ),
    examples=(
        "allowance rebuild",
        "allowance rebuild --database sqlite:///allowance.db --validator 5Grwva… --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
