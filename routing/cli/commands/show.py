"""`allowance show`: show one reservation."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import add_moment, at_moment, whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import reservation_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the reservation and the moment."""
    parser.add_argument("reservation_id", type=whole_number, metavar="ID", help="the reservation's id, from `pick`")
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Show all fields of the reservation."""
    from routing.cli.connection import ledger_connection
    from routing.documents import reservation_document

    with ledger_connection(arguments, read_only=True) as connection:
        reservation = connection.run(at_moment(connection.ledger, arguments).reservation(arguments.reservation_id))
    if out.json_wanted:
        out.document(reservation_document(reservation))
        return 0
    for line in reservation_lines(reservation):
        out.line(line)
    if reservation.job_uuid is not None:
        out.next_step(f"{next_command(arguments, 'explain', reservation.job_uuid)} says why it went to this miner")
    return 0


COMMAND = CliCommand(
    examples=("allowance show 4711", "allowance show 4711 --json", "allowance show 4711 --at-block 1722"),
    add_arguments=add_arguments,
    run=run,
)
