"""`allowance health`: show whether the ledger can be read and how current it is."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.output import Output
from routing.cli.io.render import counted, labelled, seconds_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: only the common options apply."""


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Show the ledger's own report."""
    from routing.cli.connection import ledger_connection
    from routing.cli.io.documents import as_fields

    with ledger_connection(arguments, read_only=True) as connection:
        health = connection.run(connection.ledger.health())
    fields = as_fields(health)
    if out.json_wanted:
        out.document(fields)
        return 0
    age_seconds = fields.pop("newest_block_age_seconds")
    facts = {name.replace("_", " "): value for name, value in fields.items()}
    facts["projection lag"] = counted(health.projection_lag, "event")
    facts["projection error"] = health.projection_error or "none"
    facts["newest block"] = f"{health.newest_block}, {seconds_text(age_seconds)} old" if health.newest_block else "none"
    for line in labelled(facts.items()):
        out.line(line)
    return 0


COMMAND = CliCommand(
    examples=(
        "allowance health",
        "allowance health --database sqlite:///allowance.db --validator 5Grwva… --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
