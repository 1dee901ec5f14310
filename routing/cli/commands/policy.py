"""`allowance policy`: make the choices of the log anew under other settings, and compare."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from routing.cli.commands import CliCommand
from routing.cli.io.inputs import add_moment, at_moment
from routing.cli.io.output import Output
from routing.cli.io.progress import Progress
from routing.cli.io.render import labelled
from routing.texts import counted, percent_text, seconds_text

if TYPE_CHECKING:
    from routing import PolicyReport

MOST_MINERS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and the moment."""
    parser.add_argument("assignments", nargs="*", metavar="FIELD=VALUE", help="a setting and its other value")
    add_moment(parser)


def run(arguments: argparse.Namespace, out: Output) -> int:
    """Replay the log under the other settings, and show both sides."""
    from routing.cli.connection import ledger_connection

    from .settings import named_fields

    named = named_fields(arguments.assignments)
    with ledger_connection(arguments, read_only=True) as connection, Progress("policy", "events") as progress:
        ledger = at_moment(connection.ledger, arguments)
        report = connection.run(ledger.under_policy(named, lambda done, total: progress.show(done, total=total)))
    if out.json_wanted:
        out.document(report.to_dict())
        return 0
    for line in labelled(_facts(report)):
        out.line(line)
    rows = _rows(report)
    if rows:
        out.line()
        out.table(("miner", "spent", "under the other policy", "difference"), rows[:MOST_MINERS])
    if len(rows) > MOST_MINERS:
        out.note(f"the {MOST_MINERS} largest differences of {len(rows)} miners; --json has all")
    return 0


def _facts(report: PolicyReport) -> list[tuple[str, object]]:
    refusals = ", ".join(f"{count} {name}" for name, count in sorted(report.refusals.items()))
    recorded, other = report.recorded, report.other
    return [
        ("settings", ", ".join(f"{field}={value}" for field, value in report.settings.items()) or "as recorded"),
        ("jobs", f"{report.jobs:,} in {counted(report.position, 'event')}"),
        ("same miner", f"{report.same_miner:,} ({percent_text(report.same_miner, report.jobs)})"),
        ("another miner", report.other_miner),
        ("refused", f"{report.refused:,}" + (f" ({refusals})" if refusals else "")),
        ("reserved by hand", f"{report.by_hand:,}, {report.by_hand_refused} find too little left"),
        ("spent", f"{_spent(recorded.spent_seconds)}, under the other policy {_spent(other.spent_seconds)}"),
        ("Jain's index", f"{recorded.jain_index:.3f}, under the other policy {other.jain_index:.3f}"),
        ("Gini coefficient", f"{recorded.gini_coefficient:.3f}, under the other policy {other.gini_coefficient:.3f}"),
        ("replayed in", f"{seconds_text(report.elapsed_seconds)}, {report.events_per_second:,.0f} events per second"),
    ]


def _spent(by_miner: dict[str, float]) -> str:
    return seconds_text(sum(by_miner.values()))


def _rows(report: PolicyReport) -> list[tuple[object, ...]]:
    recorded, other = report.recorded.spent_seconds, report.other.spent_seconds
    both = [(miner, recorded.get(miner, 0.0), other.get(miner, 0.0)) for miner in {*recorded, *other}]
    both.sort(key=lambda each: (-abs(each[2] - each[1]), each[0]))
    return [
        (miner, seconds_text(before), seconds_text(after), f"{after - before:+,.3f} s")
        for miner, before, after in both
        if before != after
    ]


COMMAND = CliCommand(
    details=(
        "The recorded facts and the jobs stay; every choice is made again by the router, with these settings from the\n"
        "first event on. Nothing is recorded. Without FIELD=VALUE the settings are those of the log, and every job\n"
        "must go to the same miner. Picks that were refused are in no log, so they are not repeated."
    ),
    examples=(
        "allowance policy routing_order=reliability",
        "allowance policy respect_executor_count=false block_expiry_blocks=500 --json",
        "allowance policy",
    ),
    add_arguments=add_arguments,
    run=run,
)
