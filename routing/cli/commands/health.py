"""`allowance health`: show whether the ledger can be read and how current it is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO
from routing.cli.io.inputs import seconds, whole_number_or_zero
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import labelled
from routing.texts import counted, seconds_text, time_text

if TYPE_CHECKING:
    from routing import Health

_SHOWN_TOGETHER = (
    "newest_block_age_seconds",
    "newest_block_hash",
    "newest_sync_age_blocks",
    "newest_sync_age_seconds",
    "log_ahead_seconds",
    "replication_lag_seconds",
    "verified_position",
    "verified_at",
    "problems",
    "failures",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the limits."""
    limits = parser.add_argument_group("limits", "exit with code 1 beyond a limit, too")
    limits.add_argument(
        "--max-block-age",
        type=seconds,
        metavar="SECONDS",
        help="of the newest block (otherwise 600 s, or the setting newest_block_max_age_seconds)",
    )
    limits.add_argument(
        "--max-lag", type=whole_number_or_zero, metavar="EVENTS", help="events that the history has not projected yet"
    )
    limits.add_argument("--max-overdue", type=whole_number_or_zero, metavar="N", help="overdue reservations")
    limits.add_argument(
        "--max-unverified", type=seconds, metavar="SECONDS", help="since the last `allowance verify --since`"
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Show the ledger's own report."""
    from routing.cli.connection import ledger_connection
    from routing.documents import as_fields

    with ledger_connection(arguments, read_only=True) as connection:
        health = connection.run(connection.ledger.health())
    if arguments.database and "://" not in arguments.database:
        # An export is read from a temporary database, whose name helps nobody.
        health = health.named(arguments.database)
    failures = health.failures(
        max_block_age_seconds=arguments.max_block_age,
        max_lag_events=arguments.max_lag,
        max_overdue=arguments.max_overdue,
        max_unverified_seconds=arguments.max_unverified,
    )
    if out.json_wanted:
        out.document({**as_fields(health), "failures": failures})
    else:
        for line in labelled({**_facts(health), "status": "; ".join(failures) or "ok"}.items()):
            out.line(line)
        _suggest(health, arguments, out)
    return NO if failures else 0


def _suggest(health: Health, arguments: argparse.Namespace, out: Output) -> None:
    """Say how to find out more about what is wrong, and otherwise how to keep it from going wrong unnoticed."""
    if health.overdue:
        overdue = ("history", "--status", "overdue")
        out.next_step(f"{next_command(arguments, *overdue)} lists the overdue reservations")
    elif health.problems:
        out.next_step("`allowance guide feeding-facts` and `allowance guide errors` say what to do")
    else:
        out.next_step(f"{next_command(arguments, 'verify')} checks what is stored; a timer can do it with --since")


def _facts(health: Health) -> dict[str, object]:
    """Return the lines to print, by label; an age, or a hash, is on the line of its block or sync."""
    shown = {name: value for name, value in health.to_dict().items() if name not in _SHOWN_TOGETHER}
    facts = {name.replace("_", " "): value for name, value in shown.items()}
    facts["projection lag"] = counted(health.projection_lag, "event")
    facts["projection error"] = health.projection_error or "none"
    facts["newest block"] = _with_age(health.newest_block, health.newest_block_age_seconds)
    if health.newest_block_hash is not None:
        facts["newest block"] = f"{facts['newest block']}, hash {health.newest_block_hash}"
    facts["newest sync"] = _with_age(health.newest_sync, health.newest_sync_age_seconds)
    if health.newest_sync_age_blocks:
        facts["newest sync"] = f"{facts['newest sync']}, {counted(health.newest_sync_age_blocks, 'block')} behind"
    facts["log ahead"] = f"{seconds_text(health.log_ahead_seconds)} of the clock"
    if health.replication_lag_seconds is not None:
        facts["replication lag"] = f"{seconds_text(health.replication_lag_seconds)}; the server is a standby"
    if health.verified_at is None:
        facts["verified"] = "never"
    else:
        facts["verified"] = f"up to position {health.verified_position:,}, at {time_text(health.verified_at)}"
    facts["missing triggers"] = ", ".join(health.missing_triggers) or "none"
    facts["status"] = facts.pop("status")
    return facts


def _with_age(block: int | None, age_seconds: float | None) -> str:
    if block is None:
        return "none"
    return f"{block}" if age_seconds is None else f"{block}, {seconds_text(age_seconds)} old"


COMMAND = CliCommand(
    details=(
        "Exit code 1: the status is not `ok`. It says what is wrong: damage, a feed of blocks or of manifests that\n"
        "stands still, a log whose recorded time is ahead of the clock, a history that cannot be projected, or an\n"
        "exceeded limit. Exit code 3: the database cannot be read."
    ),
    examples=(
        "allowance health",
        "allowance health --max-block-age 120 --max-lag 5000 --max-overdue 0 --max-unverified 86400",
        "allowance health --database sqlite:///allowance.db --validator 5Grwva… --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
