"""Open the ledger that `--database`, `--validator` and the environment name."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from ledger.errors import LedgerNotFound, StorageUnavailable, renamed_fields
from routing.cli.io.errors import WrongUsage
from routing.service.allowance import Allowance
from routing.service.backup import validators_in
from routing.service.config import VARIABLES, Configuration, configuration_from_environment

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
    with renamed_fields({"database_url": named_database(arguments, configuration_from_environment()).name}):
        asyncio.run(find_validator(arguments))
        if founds:
            asyncio.run(refuse_unexpected_ledger(arguments))
        elif not read_only:
            asyncio.run(refuse_absent_ledger(arguments))
        with connection_to(ledger_from_arguments(arguments, read_only=read_only)) as connection:
            yield connection


@contextmanager
def connection_to(ledger: Allowance) -> Iterator[Connection]:
    """Open a ledger, and close it afterwards, also if opening it fails."""
    with asyncio.Runner() as runner:
        connection = Connection(ledger, runner)
        try:
            connection.run(ledger.__aenter__())
            yield connection
        finally:
            connection.run(ledger.close())


async def refuse_absent_ledger(arguments: argparse.Namespace) -> None:
    """Raise the error that reading the ledger would raise if it does not exist.

    Opening a ledger for writing creates it. Without this check, a typing error in `--database` or `--validator`
    would leave an empty ledger behind.
    """
    async with ledger_from_arguments(arguments, read_only=True):
        return


async def refuse_unexpected_ledger(arguments: argparse.Namespace) -> None:
    """Raise `WrongUsage` if the command would found a ledger in a database that has others, unless `--new` is given.

    Without this check, a typing error in `--validator` would found a second ledger without a word.
    """
    try:
        await refuse_absent_ledger(arguments)
    except StorageUnavailable:
        # There is no file yet; if there is another reason, opening the ledger for writing raises it.
        return
    except LedgerNotFound as absent:
        configuration = configuration_from_environment()
        found = await validators_in(named_database(arguments, configuration).value)
        if found and not arguments.new:
            raise WrongUsage(
                f"the database has no ledger of {absent.validator_ss58}, but of {', '.join(found)};"
                " correct --validator, or give --new to found another ledger",
                validator_ss58=absent.validator_ss58,
                validators=found,
            ) from absent


async def find_validator(arguments: argparse.Namespace) -> None:
    """If no validator is named, set `--validator` to the one whose ledger is the only one in the database.

    Raises `WrongUsage` if there is none or if there are several, and `StorageUnavailable` if a server does not respond.
    """
    configuration = configuration_from_environment()
    if named_validator(arguments, configuration).value:
        return
    how = "give --validator SS58 or set ALLOWANCE_VALIDATOR_SS58"
    if getattr(arguments, "new", False):
        raise WrongUsage(f"--new founds the ledger of a validator, and none is named; {how}")
    database_url = named_database(arguments, configuration).value
    try:
        found = await validators_in(database_url)
    except StorageUnavailable as unavailable:
        # Most often the SQLite file does not exist yet, and an import may still found the ledger once it is named.
        if not database_url.startswith("sqlite"):
            raise
        raise WrongUsage(f"the validator is not known; {how}") from unavailable
    if len(found) != 1:
        several = f"the database has ledgers of {', '.join(found)}" if found else "the validator is not known"
        raise WrongUsage(f"{several}; {how}", validators=found)
    arguments.validator = found[0]


def ledger_from_arguments(arguments: argparse.Namespace, *, read_only: bool = False) -> Allowance:
    """Return a handle of the ledger that the command line or else the environment names; it is not opened yet.

    Settings in the environment are ignored: a variable that is set in some shell must not change a live validator's.
    """
    configuration = configuration_from_environment()
    database, validator = named_database(arguments, configuration), named_validator(arguments, configuration)
    if not validator.value:
        raise WrongUsage("the validator is not known; give --validator SS58 or set ALLOWANCE_VALIDATOR_SS58")
    with renamed_fields({"database_url": database.name, "validator_ss58": validator.name}):
        return Allowance.open(
            database.value,
            validator_ss58=validator.value,
            read_only=read_only,
        )


class NamedValue(NamedTuple):
    """A value, and the name of the option or the variable that it comes from."""

    value: str
    name: str


def named_database(arguments: argparse.Namespace, configuration: Configuration) -> NamedValue:
    """Return the database's URL."""
    if arguments.database:
        return NamedValue(arguments.database, "--database")
    return NamedValue(configuration.database_url, VARIABLES["database_url"])


def named_validator(arguments: argparse.Namespace, configuration: Configuration) -> NamedValue:
    """Return the validator's hotkey, or an empty value if neither the option nor the variable is set."""
    if arguments.validator or not configuration.validator_ss58:
        return NamedValue(arguments.validator or "", "--validator")
    return NamedValue(configuration.validator_ss58, VARIABLES["validator_ss58"])


async def _awaited(awaitable: Awaitable[Result]) -> Result:
    # `Runner.run` accepts coroutines only.
    return await awaitable
