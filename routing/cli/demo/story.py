"""The text of the demo at each step, for readers who see the product for the first time."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from routing.cli.files.importing import ImportSummary
from routing.cli.io.output import BOLD, GREEN, RED, Output
from routing.cli.io.render import reservation_lines
from routing.texts import counted, milliseconds_text, percent_text, seconds_text, short_hotkey, size_text

from . import chart
from .observations import BlockCheck, Window
from .traffic import Traffic

if TYPE_CHECKING:
    from routing import AuditReport, Reservation

WIDTH = 88
STATUSES = ("spent", "released", "expired", "reserved")


class Story:
    """The narrator of the demo; it writes nothing if JSON is wanted."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._chapter = 0

    def introduction(self, arguments: argparse.Namespace) -> None:
        """Explain what the ledger does."""
        self._say(
            "A validator may use other people's machines in proportion to its stake: every block of the"
            " chain, about every 12 seconds, grants it some executor-seconds on every miner. This ledger"
            " makes sure that each of them is used at most once. It records the facts of the chain, picks a miner"
            " for each job, reserves the blocks that pay for the job, and records whether they were spent"
            " or released. This demo runs it on a made-up network of"
            f" {counted(arguments.miners, 'miner')} and {counted(arguments.validators, 'validator')}."
        )

    def facts_written(self, validator_ss58: str) -> None:
        """Introduce the validator and its file of facts."""
        self._heading("The facts of the chain are imported")
        self._say(f"The validator is {short_hotkey(validator_ss58)}. Its facts are in a file, one per line:")

    def imported(self, summary: ImportSummary) -> None:
        """Report the import."""
        self._fact(
            f"{counted(summary.lines, 'fact')} imported in {summary.seconds:.2f} s, {summary.rate}:"
            f" {counted(summary.blocks_recorded, 'block')}, {counted(summary.syncs_recorded, 'manifest sync')}"
        )
        self._say(
            "A manifest sync records how many executors of each class each miner offers. Importing the file"
            " again would change nothing."
        )

    def routed(
        self,
        arguments: argparse.Namespace,
        traffic: Traffic,
        statuses: Counter[str],
    ) -> None:
        """Report the routing."""
        self._heading("Jobs are routed and settled")
        self._say(
            f"Jobs are routed by {counted(arguments.callers, 'caller')} at the same time. For each job the router"
            " picks a miner and reserves whole blocks of that miner's allowance, the oldest first. If the job"
            " ran, the caller spends the reservation; if it failed, the caller releases it; if the caller"
            " never returns, the reservation expires."
        )
        self._fact(
            f"{counted(len(traffic.latencies), 'pick')}, {traffic.picks_per_second:,.0f} per second with settling;"
            f" a pick took {milliseconds_text(traffic.latency(0.5))} (median),"
            f" {milliseconds_text(traffic.latency(0.99))} (p99)"
        )
        counts = ", ".join(f"{statuses[status]:,} {status}" for status in STATUSES if statuses[status])
        self._fact(f"{counts or 'no reservation'}, after the demo's clock was moved forward by more than an hour")
        for name, count in sorted(traffic.refused.items()):
            self._fact(f"{counted(count, 'job')} {'was' if count == 1 else 'were'} refused: {name}")
        if traffic.asked_twice:
            same = "the same" if not traffic.answered_differently else "NOT always the same"
            self._fact(
                f"{counted(traffic.asked_twice, 'caller')} retried, as after a lost answer, and got {same} route"
            )

    def window(self, window: Window | None) -> None:
        """Show the chart of one account."""
        if window is None:
            return
        self._heading("One miner's allowance over time")
        self._say(
            f"The chart shows the allowance on {short_hotkey(window.miner_ss58)} in {window.executor_class}, from"
            " the oldest usable block to the newest. Jobs use the oldest blocks first, because these expire"
            " first. A step is a manifest sync with more or fewer executors; a gap is a time when the miner"
            " was not registered."
        )
        characters = chart.UNICODE if self._out.shows_unicode else chart.ASCII
        for line in chart.draw(
            window.columns,
            first_label=f"block {window.first_block}",
            last_label=f"block {window.last_block}",
            characters=characters,
        ):
            self._line("  " + self._coloured_chart(line, characters))
        self._fact(
            f"{characters.used} used, {characters.left} left: {seconds_text(window.left_seconds)} of"
            f" {seconds_text(window.granted_seconds)}"
            f" ({percent_text(window.left_seconds, window.granted_seconds)}); one column is"
            f" {counted(window.column_blocks, 'block')}"
        )

    def one_reservation(self, reservation: Reservation | None) -> None:
        """Show one reservation."""
        if reservation is None:
            return
        self._heading("One reservation, as `allowance show` prints it")
        for line in reservation_lines(reservation):
            self._line("  " + line)

    def checked(self, check: BlockCheck) -> None:
        """Report the check of all taken blocks."""
        self._heading("No block is taken twice")
        self._say("A block of an account must be in at most one active or spent reservation. The history shows:")
        colour = RED if check.held_twice else GREEN
        self._fact(
            self._out.coloured(
                f"{counted(check.blocks, 'block')} in {counted(check.reservations, 'reservation')}"
                f" of {counted(check.accounts, 'account')}, {check.held_twice:,} of them taken twice",
                colour,
            )
        )

    def audited(self, report: AuditReport) -> None:
        """Report the audit."""
        self._heading("The audit checks every rule again")
        self._say("The audit replays the log from its first event and repeats each decision with code of its own.")
        result = "no finding" if not report.findings_count else counted(report.findings_count, "finding")
        self._fact(
            self._out.coloured(
                f"{counted(report.position, 'event')}: {result}",
                RED if report.findings_count else GREEN,
            )
        )

    def conclusion(self, seconds: float, database_bytes: int | None, kept_in: Path | None) -> None:
        """Report the time, the size of the ledger, and the files that were kept."""
        size = "" if database_bytes is None else f"; the ledger with every event is {size_text(database_bytes)} large"
        self._line()
        self._line(f"The demo took {seconds:.1f} s{size}.")
        if kept_in is not None:
            files = (
                "facts.jsonl"
                if database_bytes is None
                else "facts.jsonl and demo.db, for `allowance history` and other commands"
            )
            self._line(f"Kept in {kept_in}: {files}.")

    def _heading(self, text: str) -> None:
        self._chapter += 1
        self._line()
        self._line(self._out.coloured(f"{self._chapter}. {text}", BOLD))

    def _say(self, text: str) -> None:
        for line in textwrap.wrap(text, WIDTH):
            self._line(line)

    def _fact(self, text: str) -> None:
        self._line(f"  {text}")

    def _line(self, text: str = "") -> None:
        if not self._out.json_wanted:
            self._out.line(text)
            self._out.flush()

    def _coloured_chart(self, line: str, characters: chart.ChartCharacters) -> str:
        """Colour the part that is left green, run by run: one escape sequence per character would be many."""
        return "".join(self._out.coloured(run, GREEN) if run[0] == characters.left else run for run in _runs(line))


def _runs(line: str) -> list[str]:
    runs: list[str] = []
    for character in line:
        if runs and runs[-1][0] == character:
            runs[-1] += character
        else:
            runs.append(character)
    return runs
