"""`allowance explain`: why this miner."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.command import CliCommand
from routing.cli.io.output import Output
from routing.cli.io.render import block_ranges, counted, labelled, percent_text, seconds_text

if TYPE_CHECKING:
    from routing import Considered, Explanation

SHOWN_AFTER = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which job."""
    parser.add_argument("job_uuid", metavar="JOB_UUID", help="the uuid of the job's request")
    parser.add_argument("--all", action="store_true", help="all candidates, also those that were never reached")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Makes the routing decision again from the log, and shows it."""
    from routing.cli.connection import connected
    from routing.cli.io.documents import as_fields

    with connected(arguments, read_only=True) as connection:
        explanation = connection.run(connection.ledger.explain(arguments.job_uuid))
    if out.json_wanted:
        out.document(as_fields(explanation))
        return 0
    for line in labelled(_facts(explanation)):
        out.line(line)
    if not explanation.routed:
        out.note("it was reserved by hand: no router chose the miner")
        return 0
    _show_candidates(explanation, out, everything=arguments.all)
    return 0


def _facts(explanation: Explanation) -> list[tuple[str, object]]:
    reservation = explanation.reservation
    return [
        ("job", reservation.job_uuid),
        ("miner", reservation.miner_ss58),
        ("executor class", reservation.executor_class),
        ("amount", seconds_text(explanation.required_seconds)),
        ("reservation", f"{reservation.reservation_id}, {reservation.status}"),
        ("blocks", block_ranges(reservation.blocks)),
        ("job start block", explanation.job_start_block),
        ("decided at", explanation.decided_at),
        ("on the log up to", explanation.position),
    ]


def _show_candidates(explanation: Explanation, out: Output, *, everything: bool) -> None:
    considered = explanation.candidates
    reached = sum(1 for each in considered if each.verdict != "not reached")
    shown = considered if everything else considered[: reached + SHOWN_AFTER]
    out.line()
    out.table(
        ("tried", "hotkey", "verdict", "earliest block", "share left", "available", "running", "executors"),
        [_row(place, each) for place, each in enumerate(shown, start=1)],
    )
    if explanation.kept:
        out.note("the miner was chosen before others moved the log; it still qualified, so the job stayed with it")
    if len(shown) < len(considered):
        out.note(f"{counted(len(considered) - len(shown), 'more candidate')}: repeat with --all")


def _row(place: int, candidate: Considered) -> tuple[object, ...]:
    return (
        place,
        candidate.hotkey_ss58,
        candidate.verdict,
        candidate.earliest_block,
        percent_text(candidate.share, 1.0),
        seconds_text(candidate.available_seconds),
        candidate.running,
        candidate.executors,
    )


COMMAND = CliCommand(
    name="explain",
    summary="Explain why a job went to its miner.",
    details=(
        "The candidates in the order in which the job tried them, as the router saw them, made again from\n"
        "the log alone: claimed; busy (as many jobs as executors); outrun (first only after others had moved\n"
        "the log, when the miner chosen before still qualified); not reached (the claim came before it)."
    ),
    examples=(
        "allowance explain 6f1c0a52-27c3-4d0e-9d3b-5f3f5b1f0c11",
        "allowance explain job-17 --all",
        "allowance explain job-17 --json | jq .candidates[0]",
    ),
    add_arguments=add_arguments,
    run=run,
)
