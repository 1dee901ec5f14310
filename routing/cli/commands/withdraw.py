"""`allowance withdraw`: withdraw a block or a manifest sync that was recorded by mistake."""

from __future__ import annotations

import argparse

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the fact, the reason and the idempotency key."""
    parser.add_argument("fact", choices=("block", "manifests"), help="what was recorded by mistake")
    parser.add_argument("block", type=whole_number, metavar="BLOCK", help="the block's number, or the sync's block")
    parser.add_argument("--reason", required=True, help="why; the log keeps it")
    parser.add_argument(
        "--idempotency-key", metavar="KEY", help="retrying with the same key is safe: the change happens once"
    )


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Withdraw the fact and report the position of the correction."""
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments) as connection:
        ledger = connection.ledger
        withdraw = ledger.withdraw_block if arguments.fact == "block" else ledger.withdraw_manifests
        position = connection.run(
            withdraw(arguments.block, arguments.reason, idempotency_key=arguments.idempotency_key)
        )
    if out.json_wanted:
        document = {"fact": arguments.fact, "block": arguments.block, "reason": arguments.reason}
        out.document({**document, "position": position})
        return 0
    named = f"block {arguments.block}" if arguments.fact == "block" else f"the manifest sync at block {arguments.block}"
    out.line(f"{named} is withdrawn since position {position}")
    out.next_step(f"{next_command(arguments, 'import', 'FACTS.jsonl')} records what is right in its place")
    return 0


COMMAND = CliCommand(
    details=(
        "Nothing is edited: from the correction on, the fact counts as never recorded, and another one may be\n"
        "recorded in its place; the same content only with `import --confirm`. A block stays while a reserved or\n"
        "spent reservation holds it or the block below it. Finalized blocks keep their amounts when a sync is\n"
        "withdrawn."
    ),
    examples=(
        'allowance withdraw block 5000000 --reason "a digit too many"',
        'allowance withdraw manifests 5000000 --reason "a digit too many" --json',
    ),
    add_arguments=add_arguments,
    run=run,
)
