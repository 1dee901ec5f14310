"""`allowance spend` and `allowance release`: how a reservation ends."""

from __future__ import annotations

import argparse

from ..command import Command
from ..inputs import whole_number
from ..output import Output
from ..render import counted, seconds_text


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
    from ..connection import connected
    from ..documents import reservation_document

    with connected(arguments) as connection:
        book = connection.book
        settle = book.spend if how == "spend" else book.release
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


SPEND = Command(
    name="spend",
    summary="Spend a reservation: its job ran.",
    details="Cannot be taken back.",
    examples=("allowance spend 4711", "allowance spend 4711 --idempotency-key job-17-spend --json"),
    add_arguments=add_arguments,
    run=spend,
)
RELEASE = Command(
    name="release",
    summary="Release a reservation: its job did not run.",
    details="Its blocks are free for other jobs. Cannot be taken back.",
    examples=("allowance release 4711", "allowance release 4711 --json"),
    add_arguments=add_arguments,
    run=release,
)
