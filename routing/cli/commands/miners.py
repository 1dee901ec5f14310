"""`allowance miners`: list the registered miners, or the candidates for a job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.errors import WrongUsage
from routing.cli.io.inputs import add_moment, at_moment, seconds, whole_number
from routing.cli.io.output import Output
from routing.texts import percent_text, seconds_text

if TYPE_CHECKING:
    from routing import Candidate
    from routing.cli.connection import Connection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the job's class, amount and start."""
    parser.add_argument("--executor-class", metavar="CLASS", help="the executor class that the job needs")
    parser.add_argument(
        "--seconds", type=seconds, metavar="S", help="the amount that the job needs, in executor-seconds"
    )
    parser.add_argument(
        "--block", type=whole_number, metavar="B", help="the block at which the job starts (default: the newest)"
    )
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """List the candidates for the job that is described, or the registered miners if none is."""
    job_options = (arguments.executor_class is not None, arguments.seconds is not None)
    if not all(job_options) and (any(job_options) or arguments.block is not None):
        raise WrongUsage(
            "candidates need both --executor-class and --seconds; leave out these and --block for all miners"
        )
    from routing.cli.connection import ledger_connection

    with ledger_connection(arguments, read_only=True) as connection:
        if all(job_options):
            _list_candidates(connection, arguments, out)
        else:
            _list_registered(connection, arguments, out)
    return 0


def _list_candidates(connection: Connection, arguments: argparse.Namespace, out: Output) -> None:
    from routing.cli.io.documents import candidate_document

    ledger = at_moment(connection.ledger, arguments)
    # An empty ledger has no newest block; it has no candidates either, whatever the block.
    block = arguments.block or connection.run(ledger.current_block()) or 1
    candidates = connection.run(ledger.find_miners(arguments.seconds, arguments.executor_class, block))
    ranked = list(enumerate(candidates, start=1))
    if out.json_wanted:
        for rank, candidate in ranked:
            out.document(candidate_document(rank, candidate))
        return
    out.table(
        ("rank", "hotkey", "earliest block", "available", "total", "share left", "version"),
        [_candidate_row(rank, candidate) for rank, candidate in ranked],
    )


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
    from routing.cli.io.documents import miner_document

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
    )


def _executors_text(executors: dict[str, int]) -> str:
    return ", ".join(f"{count} {executor_class}" for executor_class, count in sorted(executors.items())) or "-"


COMMAND = CliCommand(
    details=(
        "With --executor-class and --seconds: the candidates for a job, best first. Their version is that of the\n"
        "account's stream, for `allowance reserve --expected-version`. Without: the miners that are registered at the\n"
        "newest block, with their network addresses and their executors in the newest sync."
    ),
    examples=(
        "allowance miners",
        "allowance miners --executor-class always_on.gpu-24gb --seconds 30",
        "allowance miners --executor-class always_on.gpu-24gb --seconds 30 --block 1722 --json",
        "allowance miners --at-time 2024-01-01T12:00:00Z",
    ),
    add_arguments=add_arguments,
    run=run,
)
