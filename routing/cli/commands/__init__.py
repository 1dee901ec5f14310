"""The table of commands, and the shape of the module behind each.

To add a command, write its module with a `CliCommand` and add a row to `COMMANDS`. `allowance --help` lists the
rows in this order. It prints only the table, so it imports no command module and answers quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse

    from routing.cli.io.output import Output


class CliCommand(NamedTuple):
    """The implementation of a command, defined in the command's own module.

    `examples` are command lines; `details` follow the summary in the command's help. `run` does the work and
    returns the exit code. `run` imports the library itself, so that the command's `--help` stays quick.

    The name and the summary are only in `COMMANDS`, which help reads without importing the command.
    """

    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Output], int]
    details: str = ""


class CommandEntry(NamedTuple):
    """A row of the table: `summary` is one sentence, `attribute` the name of the `CliCommand` in the module."""

    name: str
    summary: str
    module: str
    attribute: str = "COMMAND"

    def load(self) -> CliCommand:
        """Import the command's module and return its implementation."""
        command: CliCommand = getattr(import_module(f"{__name__}.{self.module}"), self.attribute)
        return command


COMMANDS: tuple[CommandEntry, ...] = (
    CommandEntry("demo", "Show everything on made-up data: import, routing, settling, history, audit.", "demo"),
    CommandEntry("import", "Record chain facts (blocks and manifest syncs) from a file.", "import_facts"),
    CommandEntry(
        "import-computehorde",
        "Take over the blocks, manifests and bookings of ComputeHorde's validator, and compare every account.",
        "import_computehorde",
    ),
    CommandEntry("withdraw", "Withdraw a block or a manifest sync that was recorded by mistake.", "withdraw"),
    CommandEntry("exclude", "Exclude a miner from routing, for good or until a time.", "miner_facts", "EXCLUDE"),
    CommandEntry("readmit", "Readmit a miner that was excluded.", "miner_facts", "READMIT"),
    CommandEntry("collateral", "Record the collateral of miners.", "miner_facts", "COLLATERAL"),
    CommandEntry("job-elsewhere", "Record a job of another validator, or its end.", "miner_facts", "JOB_ELSEWHERE"),
    CommandEntry("incident", "Report that a job went wrong on a miner.", "miner_facts", "INCIDENT"),
    CommandEntry("miners", "List the candidates for a job, best first, or all registered miners.", "miners"),
    CommandEntry("pick", "Pick a miner for a job and reserve the allowance that the job needs.", "pick"),
    CommandEntry("reserve", "Reserve allowance on one account, if it is still at an expected version.", "reserve"),
    CommandEntry("spend", "Spend a reservation: its job ran.", "settle", "SPEND"),
    CommandEntry("release", "Release a reservation: its job did not run.", "settle", "RELEASE"),
    CommandEntry("expire", "Expire the overdue reservations, whose jobs nobody settled.", "expire"),
    CommandEntry("history", "List reservations, newest first.", "history"),
    CommandEntry("show", "Show one reservation: its job, its blocks, its status and its times.", "show"),
    CommandEntry("events", "List the events of the log in order, and follow it as it grows.", "events"),
    CommandEntry("explain", "Explain why a job was routed to its miner.", "explain"),
    CommandEntry("why", "Show how much allowance an account has left, and what used the rest.", "why"),
    CommandEntry("audit", "Check every rule of the ledger again, by replaying its log from the first event.", "audit"),
    CommandEntry("replay", "Replay the log up to a moment and show the state at that moment.", "replay"),
    CommandEntry("policy", "Make the choices of the log anew under other settings, and compare.", "policy"),
    CommandEntry("receipts", "Check receipts of other validators, in order, against the recorded chain.", "receipts"),
    CommandEntry("verify", "Check every stored event by its hash and report the first bad position.", "verify"),
    CommandEntry("export", "Write a whole ledger, with its events as stored, to a compressed file.", "export"),
    CommandEntry("restore", "Restore a ledger from an export or from another database.", "restore"),
    CommandEntry("rebuild", "Rebuild the history and the snapshots from the log and report differences.", "rebuild"),
    CommandEntry("health", "Show whether the ledger can be read and how current it is.", "health"),
    CommandEntry("ledgers", "List the ledgers of a database or a file.", "ledgers"),
    CommandEntry("settings", "Show or change the recorded settings, and list their changes.", "settings"),
    CommandEntry("serve", "Show the ledger in a browser: read-only pages, live, on this machine.", "serve"),
    CommandEntry("guide", "Show a page of the user guide, or list its topics.", "guide"),
)
