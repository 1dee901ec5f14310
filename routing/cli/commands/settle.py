"""`allowance spend` and `allowance release`: how a reservation ends."""

from __future__ import annotations

import argparse

from routing.cli.command import CliCommand
from routing.cli.io.inputs import whole_number
from routing.cli.io.output import Output
from routing.cli.io.render import counted, seconds_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which reservation."""
    parser.add_argument("reservation_id", type=whole_number, metavar="ID", help="the id that `pick` answered with")
    parser.add_argument("--idempotency-key", metavar="KEY", help="repeating the command with the same key does it once")


def spend(arguments: argparse.Namespace, out: Output) -> int:
    """The job ran: its allowance is gone for good."""
    return _settle("spend", arguments, out)


def release(arguments: argparse.Namespace, out: Output) -> int:
    """The job did not run: its allowance is free again."""
    return _settle("release", arguments, out)


def _settle(how: str, arguments: argparse.Namespace, out: Output) -> int:
    from routing.cli.connection import connected
    from routing.cli.io.documents import reservation_document

    with connected(arguments) as connection:
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
    return 0


SPEND = CliCommand(
    name="spend",
    summary="Spend a reservation: its job ran.",
    details="Cannot be taken back.",
    examples=("allowance spend 4711", "allowance spend 4711 --idempotency-key job-17-spend --json"),
    add_arguments=add_arguments,
    run=spend,
)
RELEASE = CliCommand(
    name="release",
    summary="Release a reservation: its job did not run.",
    details="Its blocks are free for other jobs. Cannot be taken back.",
    examples=("allowance release 4711", "allowance release 4711 --json"),
    add_arguments=add_arguments,
    run=release,
)
