"""`allowance replay`: show the ledger's state at a moment, folded from the log."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import add_moment, is_past
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import labelled
from routing.texts import counted, percent_text, seconds_text

if TYPE_CHECKING:
    from routing import ClassTotals, Overview, Past
    from routing.cli.connection import Connection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the moment."""
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Fold the log up to the moment, and show the state at that moment."""
    from routing.cli.connection import ledger_connection
    from routing.documents import as_fields

    with ledger_connection(arguments, read_only=True) as connection, Progress("replay", "events") as progress:
        past = _past(connection, arguments)
        connection.run(past.fold(lambda done, total: progress.show(done, total=total)))
        overview = connection.run(past.overview())
    if out.json_wanted:
        out.document(as_fields(overview))
        return 0
    for line in labelled(_facts(overview)):
        out.line(line)
    out.line()
    out.table(
        ("executor class", "miners", "executors", "granted", "available", "share left", "unspent", "reserved"),
        [_row(totals) for totals in overview.classes],
        ("executor class", "available", "share left", "miners", "granted"),
    )
    history = ("history", "--at-position", overview.position)
    out.next_step(f"{next_command(arguments, *history)} lists the reservations of that moment")
    return 0


def _past(connection: Connection, arguments: argparse.Namespace) -> Past:
    ledger = connection.ledger
    if is_past(arguments):
        return ledger.at(position=arguments.at_position, block=arguments.at_block, time=arguments.at_time)
    return ledger.at(position=connection.run(ledger.head()).position)


def _facts(overview: Overview) -> list[tuple[str, object]]:
    return [
        ("position", overview.position),
        ("recorded at", overview.recorded_at),
        ("clock", overview.at),
        ("newest block", overview.newest_block),
        ("known", f"{counted(overview.blocks, 'block')}, {counted(overview.syncs, 'manifest sync')}"),
        ("registered", counted(overview.miners, "miner")),
        ("accounts", overview.accounts),
        ("reserved", f"{overview.reserved}, {overview.overdue} of them overdue"),
    ]


def _row(totals: ClassTotals) -> tuple[object, ...]:
    return (
        totals.executor_class,
        totals.miners,
        totals.executors,
        seconds_text(totals.total_seconds),
        seconds_text(totals.available_seconds),
        percent_text(totals.available_seconds, totals.total_seconds),
        seconds_text(totals.unspent_seconds),
        totals.reserved,
    )


COMMAND = CliCommand(
    details=(
        "Without a moment, the whole log is replayed. The sums are over the miners that are registered at that\n"
        "moment, for a job that starts at the newest block. Blocks of overdue reservations count as available."
    ),
    examples=(
        "allowance replay",
        "allowance replay --at-position 1000",
        "allowance replay --at-block 1722 --json",
        "allowance replay --at-time 2024-01-01T12:00:00Z",
    ),
    add_arguments=add_arguments,
    run=run,
)
