"""Open the ledger that `--database`, `--validator` and the environment name."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TypeVar

from ledger.errors import LedgerNotFound
from routing.cli.named_ledger import (
    absent_ledger,
    find_validator,
    ledger_from_arguments,
    named_database,
    naming_options,
    refuse_absent_ledger,
    refuse_missing_default,
    refuse_unexpected_ledger,
    validator_to_read,
)
from routing.cli.sources import opened_database
from routing.service.allowance import Allowance
from routing.service.backup import check_database
from routing.service.config import configuration_from_environment

Result = TypeVar("Result")


class Connection:
    """An open ledger for code without an event loop: `connection.run(connection.ledger.health())`.

    The event loop runs only inside `run`. Between two calls none is running, so that Control-C interrupts a
    command that waits for a slow pipe as it interrupts any other blocking read.
    """

    def __init__(self, ledger: Allowance, runner: asyncio.Runner) -> None:
        self.ledger = ledger
        self._runner = runner

    def run(self, awaitable: Awaitable[Result]) -> Result:
        """Run the awaitable to its end and return its result."""
        return self._runner.run(_awaited(awaitable))


@contextmanager
def ledger_connection(
    arguments: argparse.Namespace, *, read_only: bool = False, founds: bool = False
) -> Iterator[Connection]:
    """Open the ledger that the command line or the environment names, and close it afterwards.

    Raise `LedgerNotFound` or `StorageUnavailable` if there is none. A command that `founds` ledgers creates it then,
    but in a database that has ledgers only with `--new`.
    """
    opened = reading_ledger(arguments) if read_only else _changing_ledger(arguments, founds=founds)
    with naming_options(arguments), connection_to(opened) as connection:
        yield connection


@contextmanager
def connection_to(opened: AbstractAsyncContextManager[Allowance]) -> Iterator[Connection]:
    """Open a ledger, and close it afterwards."""
    with asyncio.Runner() as runner:
        connection = Connection(runner.run(_awaited(opened.__aenter__())), runner)
        try:
            yield connection
        finally:
            # Without the error of the body, which closing does not depend on.
            runner.run(_awaited(opened.__aexit__(None, None, None)))


@asynccontextmanager
async def reading_ledger(arguments: argparse.Namespace) -> AsyncIterator[Allowance]:
    """Open for reading the ledger that the command line or the environment names, and close it afterwards.

    Raises the errors of `reading_database`, `NoSuchLedger` and `WrongUsage`.
    """
    async with reading_database(arguments) as database_url:
        validator_ss58 = await validator_to_read(arguments, database_url)
        ledger = Allowance.open(database_url, validator_ss58=validator_ss58, read_only=True)
        try:
            yield await ledger
        except LedgerNotFound:
            raise await absent_ledger(arguments, database_url) from None
        finally:
            await ledger.close()


@asynccontextmanager
async def reading_database(arguments: argparse.Namespace) -> AsyncIterator[str]:
    """Yield the URL of the database to read from.

    `--database` is a URL, the path of a SQLite file, or an export, which is restored to a temporary database. A SQLite
    file that nobody has open is read without locks; of one whose writer was killed, with its `-wal` file beside it, a
    temporary copy is read. Nothing is written beside a file, so its directory may be read-only.

    Raises `UnreadableInput`, `DamagedExport`, `InvalidInput`, `StorageUnavailable`.
    """
    refuse_missing_default(arguments)
    with naming_options(arguments):
        database = named_database(arguments, configuration_from_environment())
        if not arguments.database:
            check_database(database.value)  # Programs read the variable too, and they accept a URL only.
        async with opened_database(database.value) as database_url:
            yield database_url


@asynccontextmanager
async def _changing_ledger(arguments: argparse.Namespace, *, founds: bool) -> AsyncIterator[Allowance]:
    await find_validator(arguments)
    await (refuse_unexpected_ledger if founds else refuse_absent_ledger)(arguments)
    ledger = ledger_from_arguments(arguments)
    try:
        yield await ledger
    finally:
        await ledger.close()


async def _awaited(awaitable: Awaitable[Result]) -> Result:
    # `Runner.run` accepts coroutines only.
    return await awaitable
