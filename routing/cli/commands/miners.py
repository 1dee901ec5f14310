"""`allowance miners`: list the registered miners, or the candidates for a job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.inputs import add_moment, at_moment, seconds, whole_number
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.texts import percent_text, seconds_text

if TYPE_CHECKING:
    from routing import Candidate
    from routing.cli.connection import Connection

LEAST_SECONDS = 1e-9
"""One executor-nanosecond: what every miner has that has any allowance."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the job's class, amount and start."""
    parser.add_argument("--executor-class", metavar="CLASS", help="list candidates of this executor class")
    parser.add_argument(
        "--seconds", type=seconds, metavar="S", help="list candidates that have this amount, in executor-seconds"
    )
    parser.add_argument(
        "--block", type=whole_number, metavar="B", help="the block at which the job starts (default: the newest)"
    )
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """List the candidates for the job that is described, or the registered miners if none is."""
    is_job = arguments.executor_class is not None or arguments.seconds is not None
    if not is_job and arguments.block is not None:
        raise WrongUsage("--block is the start of a job; give --executor-class or --seconds, too")
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection:
        (_list_candidates if is_job else _list_registered)(connection, arguments, out)
    return 0


def _list_candidates(connection: Connection, arguments: argparse.Namespace, out: Output) -> None:
    from routing.documents import candidate_document

    ranked = [
        (executor_class, rank, candidate)
        for executor_class, candidates in _candidates(connection, arguments).items()
        for rank, candidate in enumerate(candidates, start=1)
    ]
    if out.json_wanted:
        for executor_class, rank, candidate in ranked:
            out.document({**candidate_document(rank, candidate), "executor_class": executor_class})
        return
    headers = ("rank", "hotkey", "earliest block", "available", "total", "share left", "version", "executor class")
    shown = len(headers) - (arguments.executor_class is not None)  # A class that was named needs no column.
    out.table(
        headers[:shown],
        [(*_candidate_row(rank, candidate), executor_class)[:shown] for executor_class, rank, candidate in ranked],
        ("rank", "hotkey", "executor class", "available", "share left"),
    )
    out.next_step(f"{next_command(arguments, 'pick', 'REQUEST.json')} routes a job")


def _candidates(connection: Connection, arguments: argparse.Namespace) -> dict[str, list[Candidate]]:
    """Return the candidates by class: of the named class, or of every class that has some.

    Raises `NotEnoughAllowanceException` if there is none, that of the class with the most available.
    """
    from routing import NotEnoughAllowanceException
    from routing.cli.known_names import refuse_unknown_names

    ledger = at_moment(connection.ledger, arguments)
    # An empty ledger has no newest block; it has no candidates either, whatever the block.
    block = arguments.block or connection.run(ledger.current_block()) or 1
    amount, named = arguments.seconds or LEAST_SECONDS, arguments.executor_class
    found, refused = {}, []
    for executor_class in [named] if named is not None else connection.run(ledger.executor_classes()):
        try:
            found[executor_class] = connection.run(ledger.find_miners(amount, executor_class, block))
        except NotEnoughAllowanceException as not_enough:
            refused.append(not_enough)
    if not found and refused:
        refuse_unknown_names(connection, executor_class=named)
        raise max(refused, key=lambda each: each.highest_available_allowance)
    return found


def _candidate_row(rank: int, candidate: Candidate) -> tuple[object, ...]:
    return (
        rank,
        candidate.hotkey_ss58,
        candidate.earliest_block,
        seconds_text(candidate.available_seconds),
        seconds_text(candidate.total_seconds),
        percent_text(candidate.available_seconds, candidate.total_seconds),
        candidate.stream_version,
    )


def _list_registered(connection: Connection, arguments: argparse.Namespace, out: Output) -> None:
    from routing.documents import miner_document

    ledger = at_moment(connection.ledger, arguments)
    manifests = connection.run(ledger.manifests())
    miners = sorted(connection.run(ledger.miners()), key=lambda miner: miner.hotkey_ss58)
    if out.json_wanted:
        for miner in miners:
            out.document({**miner_document(miner), "executors": dict(manifests.get(miner.hotkey_ss58, {}))})
        return
    out.table(
        ("hotkey", "address", "port", "executors"),
        [
            (miner.hotkey_ss58, miner.address, miner.port, _executors_text(manifests.get(miner.hotkey_ss58, {})))
            for miner in miners
        ],
        ("hotkey", "executors"),
    )
    out.next_step(f"{next_command(arguments, 'miners', '--seconds', 30)} lists the candidates for a job")


def _executors_text(executors: dict[str, int]) -> str:
    return ", ".join(f"{count} {executor_class}" for executor_class, count in sorted(executors.items())) or "-"


COMMAND = CliCommand(
    details=(
        "With --executor-class, --seconds or both: the candidates for a job, best first. Without --seconds they are\n"
        "all miners that have any allowance left; without --executor-class, those of each class. Their version is\n"
        "that of the account's stream, for `allowance reserve --expected-version`. Without both: the miners that are\n"
        "registered at the newest block, with their network addresses and their executors in the newest sync."
    ),
    examples=(
        "allowance miners",
        "allowance miners --seconds 30",
        "allowance miners --executor-class always_on.gpu-24gb",
        "allowance miners --executor-class always_on.gpu-24gb --seconds 30",
        "allowance miners --executor-class always_on.gpu-24gb --seconds 30 --block 1722 --json",
        "allowance miners --at-time 2024-01-01T12:00:00Z",
    ),
    add_arguments=add_arguments,
    run=run,
)
