"""`allowance ledgers`: list the ledgers of a database or a file."""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from typing import NamedTuple

from routing.cli.commands import CliCommand
from routing.cli.io.errors import NO
from routing.cli.io.next_steps import next_command
from routing.cli.io.output import Output
from routing.texts import size_text


class LedgerSummary(NamedTuple):
    """One ledger; `problem` says why it cannot be opened, and the fields after it are None then."""

    validator_ss58: str
    problem: str | None
    events: int | None = None
    newest_block: int | None = None
    recorded_at: datetime | None = None
    head: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: only the common options apply."""


def run(arguments: argparse.Namespace, out: Output) -> int:
    """List the ledgers by validator; return `NO` if there is none."""
    import asyncio

    found, file_bytes = asyncio.run(_read(arguments))
    if out.json_wanted:
        for each in found:
            out.document({**each._asdict(), "file_bytes": file_bytes})
    elif found:
        _show(found, file_bytes, out)
        validator = [] if arguments.validator or len(found) == 1 else ["--validator", found[0].validator_ss58]
        out.next_step(f"{next_command(arguments, 'health', *validator)} shows how current it is")
    else:
        out.note("there is no ledger")
    return 0 if found else NO


async def _read(arguments: argparse.Namespace) -> tuple[list[LedgerSummary], int | None]:
    from routing.cli.connection import reading_database
    from routing.service.backup import validators_in

    async with reading_database(arguments) as database_url:
        found = [await _summary(database_url, each) for each in await validators_in(database_url)]
        file_bytes = _file_bytes(arguments.database, database_url)
    return [each for each in found if arguments.validator in (None, each.validator_ss58)], file_bytes


def _file_bytes(named: str | None, database_url: str) -> int | None:
    """Return the size of the file that was named: of an export, not of the temporary database; None for a server."""
    if not database_url.startswith("sqlite:///"):
        return None
    file = named if named is not None and os.path.isfile(named) else database_url.removeprefix("sqlite:///")
    return os.stat(file).st_size


async def _summary(database_url: str, validator_ss58: str) -> LedgerSummary:
    from ledger.values import instant
    from routing import Allowance, AllowanceException

    try:
        async with Allowance.open(database_url, validator_ss58=validator_ss58, read_only=True) as ledger:
            head, newest_block = await ledger.head(), await ledger.current_block()
    except AllowanceException as error:
        return LedgerSummary(validator_ss58, str(error))
    recorded_at = instant(head.recorded_at_ns)
    return LedgerSummary(
        validator_ss58, None, head.position, newest_block, recorded_at, f"{head.position}:{head.hash.hex()}"
    )


def _show(found: list[LedgerSummary], file_bytes: int | None, out: Output) -> None:
    out.table(
        ("validator", "events", "newest block", "last event at", "head"),
        [
            (
                each.validator_ss58,
                each.events,
                each.newest_block,
                each.recorded_at,
                each.problem or each.head,
            )
            for each in found
        ],
        ("validator", "events", "newest block", "last event at"),
    )
    if file_bytes is not None:
        out.line(f"the file is {size_text(file_bytes)} large")


COMMAND = CliCommand(
    details=(
        "A ledger is one validator's log; a database may have several. The head is the last position and its hash, as\n"
        "`allowance verify --head` takes it. Exit code 1: there is none."
    ),
    examples=(
        "allowance ledgers",
        "allowance ledgers --database ledger.db",
        "allowance ledgers --database postgresql://auditor@db/allowance --json",
    ),
    add_arguments=add_arguments,
    run=run,
)
