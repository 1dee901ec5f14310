"""`allowance expire`: expire the overdue reservations."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the idempotency key."""
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="retrying with the same key is safe: the change happens once"
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Expire every overdue reservation, and list those that this call expired."""
    from routing.cli.connection import ledger_connection
    from routing.documents import reservation_document

    with ledger_connection(arguments) as connection:
        expired = connection.run(connection.ledger.expire_due(idempotency_key=arguments.idempotency_key))
    if out.json_wanted:
        for each in expired:
            out.document(reservation_document(each))
    elif not expired:
        out.note("no reservation is overdue")
    else:
        out.table(
            ("reservation", "due at", "miner", "executor class", "seconds", "job"),
            [
                (
                    each.reservation_id,
                    each.expires_at,
                    each.miner_ss58,
                    each.executor_class,
                    each.allowance_seconds,
                    each.job_uuid,
                )
                for each in expired
            ],
            ("job", "reservation", "miner", "due at"),
        )
        out.next_step(f"{next_command(arguments, 'history', '--status', 'expired')} lists all that ever expired")
    return 0


COMMAND = CliCommand(
    details=(
        "A reservation is overdue if nobody has spent or released it by its due time. Its blocks count as free from\n"
        "then on, and a claim that takes them expires it. This command expires all that are overdue, so that the\n"
        "history says so; afterwards they can be neither spent nor released. `allowance history --status overdue`\n"
        "lists them before."
    ),
    examples=("allowance expire", "allowance expire --idempotency-key nightly-2024-01-01 --json"),
    add_arguments=add_arguments,
    run=run,
)
