"""`allowance spend` and `allowance release`: settle a reservation."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.texts import counted, seconds_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the reservation and the idempotency key."""
    parser.add_argument("reservation_id", type=whole_number, metavar="ID", help="the reservation's id, from `pick`")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="retrying with the same key is safe: the change happens once"
    )


def spend(arguments: argparse.Namespace, out: Output) -> int:
    """Spend the reservation: the job ran, and its allowance is used for good."""
    return _settle("spend", arguments, out)


def release(arguments: argparse.Namespace, out: Output) -> int:
    """Release the reservation: the job did not run, and its blocks are free again."""
    return _settle("release", arguments, out)


def _settle(how: str, arguments: argparse.Namespace, out: Output) -> int:
    from routing.cli.connection import ledger_connection
    from routing.documents import reservation_document

    with ledger_connection(arguments) as connection:
        ledger = connection.ledger
        settle = ledger.spend if how == "spend" else ledger.release
        reservation = connection.run(settle(arguments.reservation_id, idempotency_key=arguments.idempotency_key))
    if out.json_wanted:
        out.document(reservation_document(reservation))
        return 0
    amount = seconds_text(reservation.allowance_seconds)
    out.line(
        f"reservation {reservation.reservation_id} is {reservation.status}:"
        f" {amount} in {counted(len(reservation.blocks), 'block')}"
        f" of {reservation.miner_ss58}, {reservation.executor_class}"
    )
    out.next_step(f"{next_command(arguments, 'show', reservation.reservation_id)} shows its blocks")
    return 0


SPEND = CliCommand(
    details="This cannot be undone.",
    examples=("allowance spend 4711", "allowance spend 4711 --idempotency-key job-17-spend --json"),
    add_arguments=add_arguments,
    run=spend,
)
RELEASE = CliCommand(
    details="The blocks are then free for other jobs. This cannot be undone.",
    examples=("allowance release 4711", "allowance release 4711 --json"),
    add_arguments=add_arguments,
    run=release,
)
