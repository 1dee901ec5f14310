"""`allowance demo`: the whole product on made-up data, in half a minute."""

from __future__ import annotations

import argparse

from routing.cli.command import CliCommand
from routing.cli.io.inputs import whole_number
from routing.cli.io.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How large the made-up world is."""
    for name, default, what in (
        ("miners", 250, "miners in the network"),
        ("validators", 6, "validators that share the miners"),
        ("classes", 5, "executor classes"),
        ("blocks", 1100, "blocks of the chain"),
        ("jobs", 3000, "jobs to route"),
        ("callers", 64, "callers that route at the same time"),
        ("seed", 1, "draws another network and other jobs"),
    ):
        parser.add_argument(
            f"--{name}", type=whole_number, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument("--keep", metavar="DIR", help="keep the facts and the ledger in this directory")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Shows everything."""
    from routing.cli.demo.run import run_demo

    return run_demo(arguments, out)


COMMAND = CliCommand(
    name="demo",
    summary="Show everything on made-up data: import, routing, settling, history, checks.",
    details=(
        "Works in a temporary directory, whatever ALLOWANCE_DATABASE_URL says; --database names another\n"
        "place, such as a PostgreSQL server. The clock is made up too: it starts at the newest block."
    ),
    examples=(
        "allowance demo",
        "allowance demo --miners 50 --jobs 500 --seed 7",
        "allowance demo --keep demo-ledger",
        "allowance demo --json | jq .routing.picks_per_second",
    ),
    add_arguments=add_arguments,
    run=run,
)
