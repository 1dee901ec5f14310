"""`allowance demo`: show the whole product on made-up data, in half a minute."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import whole_number
from routing.cli.io.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of the made-up network."""
    for name, default, meaning in (
        ("miners", 250, "miners in the network"),
        ("validators", 6, "validators that share the miners by stake"),
        ("classes", 5, "executor classes"),
        ("blocks", 1100, "blocks of the chain"),
        ("jobs", 3000, "jobs to route"),
        ("callers", 64, "concurrent callers that route jobs"),
        ("seed", 1, "seed of the network and the jobs"),
    ):
        parser.add_argument(
            f"--{name}", type=whole_number, default=default, metavar="N", help=f"{meaning} (default: {default})"
        )
    parser.add_argument("--keep", metavar="DIR", help="keep the facts and the ledger in this new directory")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Run the demo."""
    from routing.cli.demo.run import run_demo

    return run_demo(arguments, out)


COMMAND = CliCommand(
    details=(
        "The demo works in a temporary directory and ignores ALLOWANCE_DATABASE_URL. --database names another\n"
        "database, such as one on a PostgreSQL server. The clock is made up, too: it starts at the newest block."
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
