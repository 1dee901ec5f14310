"""`allowance import-computehorde`: take over what ComputeHorde's validator has recorded and booked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO, WrongUsage
from routing.cli.io.inputs import whole_number
from routing.cli.io.output import Output
from routing.texts import counted, seconds_text

if TYPE_CHECKING:
    from routing import Allowance
    from routing.computehorde.comparison import AccountDifference
    from routing.computehorde.moving import MoveReport

MOST_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the other database, and where to begin."""
    parser.add_argument("source", metavar="SOURCE", help="the URL of the validator's database, postgresql://…")
    parser.add_argument("--since", type=whole_number, metavar="BLOCK", help="leave out older blocks and bookings")
    parser.add_argument("--confirm", action="store_true", help="import facts although the validator has no bookings")
    parser.add_argument("--new", action="store_true", help="found a ledger even if the database has others")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Import, compare, and report; exit code 1 if a difference is not explained by the rules."""
    from ledger.store.urls import redacted_url
    from routing.cli.connection import ledger_connection

    if not arguments.source.startswith(("postgresql://", "postgres://")):
        raise WrongUsage(f"SOURCE must be postgresql://…, got {redacted_url(arguments.source)}")
    with ledger_connection(arguments, founds=True) as connection:
        report = connection.run(_moved(arguments, connection.ledger))
    if out.json_wanted:
        from routing.documents import as_fields

        out.document(as_fields(report))
    else:
        _write(report, out)
    return 0 if report.comparison.is_explained and not any(each.taken for each in report.left_out) else NO


async def _moved(arguments: argparse.Namespace, ledger: Allowance) -> MoveReport:
    from routing.cli.io.progress import Progress

    try:
        from routing.computehorde.moving import move
        from routing.computehorde.tables import old_tables
    except ModuleNotFoundError as cause:
        if cause.name != "asyncpg":
            raise
        raise WrongUsage("PostgreSQL's driver is missing: pip install 'allowance-ledger[postgres]'") from cause

    async with old_tables(arguments.source) as tables:
        with _command_words(), Progress("import", "blocks and bookings") as progress:
            return await move(
                tables,
                ledger,
                since=arguments.since,
                confirm=arguments.confirm,
                progress=lambda _step, done, total: progress.show(done, total=total),
            )


@contextmanager
def _command_words() -> Iterator[None]:
    """Within the block, name the options of the command instead of the parameters of the Python call."""
    from ledger.errors import ImplausibleFact, renamed_fields
    from routing.cli.io.errors import WrongInput

    try:
        with renamed_fields({"since": "--since", "source": "SOURCE"}):
            yield
    except ImplausibleFact as refused:
        raise WrongInput(f"{refused.fact} is implausible: {refused.reason}; give --confirm if it is right") from refused


def _write(report: MoveReport, out: Output) -> None:
    blocks, syncs = counted(report.blocks_imported, "block"), counted(report.syncs_imported, "manifest sync")
    out.line(
        f"{blocks} and {syncs} imported, of the blocks {report.first_block:,} to {report.last_block:,};"
        f" {counted(report.bookings, 'booking')} taken over: {report.reserved:,} reserved, {report.spent:,} spent"
    )
    for each in report.left_out[:MOST_SHOWN]:
        out.line(
            f"booking {each.booking_id} on {each.miner_ss58} in {each.executor_class}: left out blocks"
            f" that grant nothing here: {each.not_granted}, that are taken: {each.taken}"
        )
    comparison = report.comparison
    out.line(
        f"{comparison.equal:,} of {counted(comparison.accounts, 'account')} have the same allowance available from"
        f" block {comparison.first_block:,} on, within {comparison.tolerance_seconds:g} s"
    )
    for difference in comparison.differences[:MOST_SHOWN]:
        out.line(_difference_text(difference))
    hidden = len(comparison.differences) - MOST_SHOWN
    if hidden > 0:
        out.line(f"… and {hidden:,} more; --json lists all")


def _difference_text(difference: AccountDifference) -> str:
    from routing.computehorde.comparison import EXPLANATIONS

    reasons = "; ".join(f"{seconds_text(part)}: {EXPLANATIONS[reason]}" for reason, part in difference.reasons.items())
    return (
        f"{difference.miner_ss58} in {difference.executor_class}: {seconds_text(difference.here_seconds)} here,"
        f" {seconds_text(difference.there_seconds)} there; {reasons}"
    )


COMMAND = CliCommand(
    details=(
        "Reads blocks, neurons, manifests, block allowances and bookings of ComputeHorde's validator in one read-only\n"
        "transaction, and records those that the ledger does not have yet, so the command may be repeated after an\n"
        "interruption. Stop the old router first, or repeat the command after it has stopped.\n"
        "Then every account's available allowance is compared with the tables, for a job at the newest block.\n"
        "Without bookings, blocks that jobs were paid with would be spent twice: that is refused without --confirm.\n"
        "Exit code 1: an account differs for another reason than that the rules differ."
    ),
    examples=(
        "allowance import-computehorde postgresql://reader@db.example/validator --validator 5Grwva…",
        "allowance import-computehorde postgresql://reader@db.example/validator --since 6120000 --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
