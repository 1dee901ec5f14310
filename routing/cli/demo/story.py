"""What the demo says at each step, for somebody who sees the product for the first time."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from routing.cli.commands.show import life
from routing.cli.files.importing import ImportSummary
from routing.cli.io.colour import BOLD, GREEN, RED, painted
from routing.cli.io.output import Output
from routing.cli.io.render import counted, milliseconds_text, percent_text, seconds_text, short_hotkey, size_text

from . import chart
from .observations import BlockCheck, Window
from .traffic import Traffic

if TYPE_CHECKING:
    from routing import AuditReport, Reservation

WIDTH = 88
STATUSES = ("spent", "released", "expired", "reserved")


class Story:
    """Tells the demo to a person; keeps silent where JSON was asked for."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._chapter = 0

    def opening(self, arguments: argparse.Namespace) -> None:
        """What this is about."""
        self._say(
            "A validator may use other people's machines as far as its stake goes: every block of the"
            " chain, about every 12 seconds, grants it some executor-seconds on every miner. This ledger"
            " keeps account of them, so that each is used once: it records what the chain says, picks a"
            " miner for a job, reserves the blocks that pay for it, and remembers for good how that"
            f" ended. Here it is at work on a made-up network of"
            f" {counted(arguments.miners, 'miner')} and {counted(arguments.validators, 'validator')}."
        )

    def made_up(self, validator_ss58: str) -> None:
        """Whose ledger it is."""
        self._heading("The chain's facts go in")
        self._say(f"The validator is {short_hotkey(validator_ss58)}. Its facts come as a file, one a line:")

    def imported(self, summary: ImportSummary) -> None:
        """How the import went."""
        self._fact(
            f"{counted(summary.lines, 'fact')} imported in {summary.seconds:.2f} s, {summary.rate}:"
            f" {counted(summary.blocks_recorded, 'block')}, {counted(summary.syncs_recorded, 'manifest sync')}"
        )
        self._say(
            "A sync says how many executors of which class each miner offers; importing the file again"
            " would change nothing."
        )

    def routed(
        self,
        arguments: argparse.Namespace,
        traffic: Traffic,
        statuses: Counter[str],
    ) -> None:
        """How routing went."""
        self._heading("Jobs are routed")
        self._say(
            f"Miners are asked for by {counted(arguments.callers, 'caller')} at once, job after job. Each gets one"
            " and a reservation: whole blocks of that miner's allowance, the oldest first. Jobs that ran are"
            " spent, jobs that failed are released; where a caller never came back, the reservation"
            " expires on its own."
        )
        self._fact(
            f"{counted(len(traffic.latencies), 'pick')}, {traffic.picks_per_second:,.0f} a second, each also settled;"
            f" an answer took {milliseconds_text(traffic.latency(0.5))} (median),"
            f" {milliseconds_text(traffic.latency(0.99))} (p99)"
        )
        ended = ", ".join(f"{statuses[status]:,} {status}" for status in STATUSES if statuses[status])
        self._fact(f"{ended or 'nothing reserved'}, once the demo's clock had moved on by an hour")
        for name, count in sorted(traffic.refused.items()):
            self._fact(f"{counted(count, 'job')} {'was' if count == 1 else 'were'} refused: {name}")
        if traffic.asked_twice:
            same = "the same" if not traffic.answered_differently else "NOT always the same"
            self._fact(
                f"{counted(traffic.asked_twice, 'caller')} asked twice, as after a lost answer: {same} route came back"
            )

    def window(self, window: Window | None) -> None:
        """What is left of the busiest account."""
        if window is None:
            return
        self._heading("One miner's allowance over time")
        self._say(
            f"What {short_hotkey(window.miner_ss58)} granted us in {window.executor_class}, from the oldest"
            " block that still counts to the newest. The oldest goes first, since it ages away first. A step"
            " is a sync that found more executors or fewer; a gap, a time when the miner was away."
        )
        signs = chart.UNICODE if self._out.shows_unicode else chart.ASCII
        for line in chart.draw(
            window.columns,
            first_label=f"block {window.first_block}",
            last_label=f"block {window.last_block}",
            signs=signs,
        ):
            self._line("  " + self._coloured(line, signs))
        self._fact(
            f"{signs.gone} used, {signs.left} left: {seconds_text(window.left_seconds)} of"
            f" {seconds_text(window.granted_seconds)}"
            f" ({percent_text(window.left_seconds, window.granted_seconds)}); a column is"
            f" {counted(window.column_blocks, 'block')}"
        )

    def one_reservation(self, reservation: Reservation | None) -> None:
        """The life of one reservation."""
        if reservation is None:
            return
        self._heading("One job's reservation, on record for good")
        for line in life(reservation):
            self._line("  " + line)

    def checked(self, check: BlockCheck) -> None:
        """Whether the book is right."""
        self._heading("Nothing is held twice")
        self._say("From the history: no block of an account may be in two reservations that hold or have spent it.")
        sound = check.held_twice == 0
        self._fact(
            painted(
                f"{counted(check.blocks, 'block')} in {counted(check.reservations, 'reservation')}"
                f" of {counted(check.accounts, 'account')}, {check.held_twice:,} of them held twice",
                GREEN if sound else RED,
                wanted=self._out.colour_wanted,
            )
        )

    def audited(self, report: AuditReport) -> None:
        """Whether the log keeps every rule."""
        self._heading("Every rule, checked again from nothing")
        self._say("The audit replays the log and decides each claim anew, by code of its own.")
        found = "no finding" if not report.findings_count else counted(report.findings_count, "finding")
        self._fact(
            painted(
                f"{counted(report.position, 'event')}: {found}",
                RED if report.findings_count else GREEN,
                wanted=self._out.colour_wanted,
            )
        )

    def farewell(self, seconds: float, database_bytes: int | None, kept: Path | None) -> None:
        """How long it took, how large the ledger is, and what to try next."""
        size = "" if database_bytes is None else f", and a ledger of {size_text(database_bytes)} with every event in it"
        self._line()
        self._line(f"That took {seconds:.1f} s{size}.")
        if kept is not None:
            files = (
                "facts.jsonl"
                if database_bytes is None
                else "facts.jsonl and demo.db, for `allowance history` and others"
            )
            self._line(f"Kept in {kept}: {files}.")

    def _heading(self, text: str) -> None:
        self._chapter += 1
        self._line()
        self._line(painted(f"{self._chapter}. {text}", BOLD, wanted=self._out.colour_wanted))

    def _say(self, text: str) -> None:
        for line in textwrap.wrap(text, WIDTH):
            self._line(line)

    def _fact(self, text: str) -> None:
        self._line(f"  {text}")

    def _line(self, text: str = "") -> None:
        if not self._out.json_wanted:
            self._out.line(text)
            self._out.flush()

    def _coloured(self, line: str, signs: chart.ChartCharacters) -> str:
        """Puts each run of what is left into green; what is gone stays as it is."""
        if not self._out.colour_wanted:
            return line
        return "".join(painted(run, GREEN, wanted=run[0] == signs.left) for run in _runs(line))


def _runs(line: str) -> list[str]:
    runs: list[str] = []
    for sign in line:
        if runs and runs[-1][0] == sign:
            runs[-1] += sign
        else:
            runs.append(sign)
    return runs
