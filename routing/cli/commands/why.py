"""`allowance why`: show what used an account's allowance."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import add_moment, at_moment
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import labelled
from routing.texts import block_ranges, percent_text, seconds_text

if TYPE_CHECKING:
    from routing import Reservation, Usage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the account and the moment."""
    parser.add_argument("miner", metavar="MINER", help="the miner's hotkey")
    parser.add_argument("executor_class", metavar="CLASS", help="the executor class")
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Show the sums of an account, and the reservations that took its blocks."""
    from routing.cli.connection import ledger_connection
    from routing.cli.known_names import refuse_unknown_names
    from routing.documents import as_fields

    with ledger_connection(arguments, read_only=True) as connection:
        ledger = at_moment(connection.ledger, arguments)
        usage = connection.run(ledger.why(arguments.miner, arguments.executor_class))
        if not usage.total_seconds and not usage.reservations:
            refuse_unknown_names(connection, miner_ss58=arguments.miner, executor_class=arguments.executor_class)
    if out.json_wanted:
        out.document(as_fields(usage))
        return 0
    for line in labelled(_sums(usage)):
        out.line(line)
    if not usage.reservations:
        out.note("no reservation has taken blocks of this account")
        return 0
    out.line()
    out.table(
        ("reservation", "status", "reserved at", "seconds", "blocks", "job"),
        [_row(reservation) for reservation in usage.reservations],
        ("job", "reservation", "status", "seconds", "reserved at"),
    )
    newest = usage.reservations[-1].reservation_id
    out.next_step(f"{next_command(arguments, 'show', newest)} shows one of them")
    return 0


def _sums(usage: Usage) -> list[tuple[str, object]]:
    return [
        ("miner", usage.miner_ss58),
        ("executor class", usage.executor_class),
        ("blocks from", usage.first_block),
        ("granted", seconds_text(usage.total_seconds)),
        ("available", f"{seconds_text(usage.available_seconds)} ({_share(usage.available_seconds, usage)})"),
        ("unspent", f"{seconds_text(usage.unspent_seconds)} ({_share(usage.unspent_seconds, usage)})"),
        *_known(usage),
    ]


def _known(usage: Usage) -> Iterator[tuple[str, object]]:
    """Yield the facts about the miner that count now."""
    known = usage.known
    if known is None:
        return
    if known.excluded:
        yield "excluded", f"{known.reason}, until {known.excluded_until or 'it is readmitted'}"
    if known.collateral_wei is not None:
        below = ", below the required collateral" if known.unfit == "collateral" else ""
        yield "collateral", f"{known.collateral_wei:,} wei{below}"
    if usage.executor_class in known.incidents:
        yield "incidents that count", known.incidents[usage.executor_class]
    if usage.executor_class in known.running_elsewhere:
        yield "jobs of other validators", known.running_elsewhere[usage.executor_class]


def _share(part: float, usage: Usage) -> str:
    return percent_text(part, usage.total_seconds)


def _row(reservation: Reservation) -> tuple[object, ...]:
    return (
        reservation.reservation_id,
        reservation.status,
        reservation.reserved_at,
        reservation.allowance_seconds,
        block_ranges(reservation.blocks),
        reservation.job_uuid,
    )


COMMAND = CliCommand(
    details=(
        "Shows the allowance that the account's usable blocks grant to a job that starts at the newest block, how\n"
        "much of it is available and how much is unspent, and the active and spent reservations that took its blocks."
    ),
    examples=(
        "allowance why 5Grwva… always_on.gpu-24gb",
        "allowance why 5Grwva… always_on.gpu-24gb --at-block 1722",
        "allowance why 5Grwva… always_on.gpu-24gb --at-time 2024-01-01T12:00:00Z --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
