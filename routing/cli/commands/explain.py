"""`allowance explain`: show why the router chose this miner for a job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.cli.io.render import labelled
from routing.texts import block_ranges, counted, percent_text, seconds_text

if TYPE_CHECKING:
    from routing import Considered, Explanation

SHOWN_AFTER = 5
"""How many of the candidates after the claimed one are shown without `--all`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the job."""
    parser.add_argument("job_uuid", metavar="JOB_UUID", help="the uuid of the job's request")
    parser.add_argument("--all", action="store_true", help="show all candidates, also those that the job did not reach")


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Repeat the routing decision from the log, and show it."""
    from routing.cli.connection import ledger_connection
    from routing.documents import as_fields

    with ledger_connection(arguments, read_only=True) as connection:
        explanation = connection.run(connection.ledger.explain(arguments.job_uuid))
    if out.json_wanted:
        out.document(as_fields(explanation))
        return 0
    for line in labelled(_facts(explanation)):
        out.line(line)
    if not explanation.routed:
        out.note("the allowance was reserved without a router, so there was no choice to explain")
        return 0
    _show_candidates(explanation, out, show_all=arguments.all)
    account = (explanation.reservation.miner_ss58, explanation.reservation.executor_class)
    out.next_step(f"{next_command(arguments, 'why', *account)} shows who used this miner's allowance")
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
        ("chosen on the log up to", explanation.position),
    ]


def _show_candidates(explanation: Explanation, out: Output, *, show_all: bool) -> None:
    candidates = explanation.candidates
    reached = sum(1 for each in candidates if each.verdict != "not reached")
    shown = candidates if show_all else candidates[: reached + SHOWN_AFTER]
    out.line()
    out.table(
        ("tried", "hotkey", "verdict", "earliest block", "share left", "available", "running", "executors"),
        [_row(rank, each) for rank, each in enumerate(shown, start=1)],
        ("tried", "hotkey", "verdict", "earliest block", "share left", "running", "executors"),
    )
    if explanation.chosen_at is not None:
        out.note(
            f"the miner was chosen at position {explanation.chosen_at}, as shown, before others appended to the log;"
            " it still qualified at the claim, so the job stayed with it"
        )
    if explanation.kept:
        out.note(
            "the miner was chosen before others appended to the log, at a position that an earlier release did not"
            " record; the candidates are those directly before the claim, and the choice is not proved"
        )
    if len(shown) < len(candidates):
        out.note(f"{counted(len(candidates) - len(shown), 'more candidate')}: repeat with --all")


def _row(rank: int, candidate: Considered) -> tuple[object, ...]:
    return (
        rank,
        candidate.hotkey_ss58,
        candidate.verdict,
        candidate.earliest_block,
        percent_text(candidate.share, 1.0),
        seconds_text(candidate.available_seconds),
        candidate.running,
        candidate.executors,
    )


COMMAND = CliCommand(
    details=(
        "Lists the candidates in the order in which the job tried them, with what the router knew of them.\n"
        "All of it is computed again from the log, at the position of the choice, which a claim names if others\n"
        "appended to the log in between. Verdicts: claimed; busy (it ran as many jobs as it had executors);\n"
        "not reached (an earlier candidate was claimed). In claims of earlier releases also: outrun (it came first at\n"
        "the claim, but the job stayed on a miner chosen at a position that was not recorded)."
    ),
    examples=(
        "allowance explain 6f1c0a52-27c3-4d0e-9d3b-5f3f5b1f0c11",
        "allowance explain job-17 --all",
        "allowance explain job-17 --json | jq .candidates[0]",
    ),
    add_arguments=add_arguments,
    run=run,
)
