"""`allowance reserve`: reserve allowance on one account, without a router."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import seconds, stream_version, whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import reservation_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the account, the amount, and the conditions of the reservation."""
    parser.add_argument("miner_ss58", metavar="MINER", help="the miner's hotkey")
    parser.add_argument("executor_class", metavar="CLASS", help="the executor class")
    parser.add_argument("seconds", type=seconds, metavar="SECONDS", help="the amount, in executor-seconds")
    parser.add_argument(
        "--block", type=whole_number, metavar="N", help="the block at which the job starts (default: the newest)"
    )
    parser.add_argument(
        "--expected-version",
        type=stream_version,
        metavar="V",
        help="reserve only if the account's stream is still at this version, which `miners` showed",
    )
    parser.add_argument("--job-uuid", metavar="UUID", help="the job that the reservation is for")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="retrying with the same key is safe: the change happens once"
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Reserve the account's earliest free blocks and show the reservation."""
    from routing import CannotReserveAllowanceException
    from routing.cli.connection import ledger_connection
    from routing.cli.known_names import refuse_unknown_names
    from routing.documents import reservation_document

    with ledger_connection(arguments) as connection:
        ledger = connection.ledger
        # An empty ledger has no newest block; it has no allowance either, whatever the block.
        block = arguments.block or connection.run(ledger.current_block()) or 1
        reserve = ledger.reserve(
            arguments.miner_ss58,
            arguments.executor_class,
            arguments.seconds,
            block,
            expected_version=arguments.expected_version,
            job_uuid=arguments.job_uuid,
            idempotency_key=arguments.idempotency_key,
        )
        try:
            reservation = connection.run(reserve)
        except CannotReserveAllowanceException as refused:
            if not refused.available_allowance_seconds:
                names = {"miner_ss58": arguments.miner_ss58, "executor_class": arguments.executor_class}
                refuse_unknown_names(connection, **names)
            raise
    if out.json_wanted:
        out.document(reservation_document(reservation))
        return 0
    for line in reservation_lines(reservation):
        out.line(line)
    spend = next_command(arguments, "spend", reservation.reservation_id)
    out.next_step(f"{spend}, or `release` instead of `spend` if the job did not run")
    return 0


COMMAND = CliCommand(
    details=(
        "Takes the earliest free blocks of the account: of one miner in one executor class. It checks neither whether\n"
        "the miner is registered nor whether it is busy. With --expected-version it reserves only if nothing was\n"
        "reserved or settled on the account since `allowance miners` showed that version; otherwise it records\n"
        "nothing, names the actual version (StreamVersionConflict), and exits with 1. Look again, then repeat."
    ),
    examples=(
        "allowance reserve 5FAKKDTp4DdAhkVTrDfR8HW2mRFTY2sStn7ohoFkzK3zfZ6X always_on.gpu-24gb 30",
        "allowance reserve 5FAKKDTp4DdAhkVTrDfR8HW2mRFTY2sStn7ohoFkzK3zfZ6X always_on.gpu-24gb 30 --expected-version 4",
        "allowance reserve 5FAKKDTp4DdAhkVTrDfR8HW2mRFTY2sStn7ohoFkzK3zfZ6X always_on.gpu-24gb 30"
        " --job-uuid job-17 --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
