"""The ledger that a command works on, opened from `--database`, `--validator` and the environment."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from ledger.errors import renamed_fields
from routing.service.allowance import Allowance
from routing.service.config import VARIABLES, Configuration, configuration_from_environment

from .errors import WrongUsage

Answer = TypeVar("Answer")


class Connection:
    """An open ledger for code without an event loop: `connection.run(connection.book.health())`.

    Between two runs no loop is running, so reading a slow pipe can be interrupted like any other blocking
    call.
    """

    def __init__(self, ledger: Allowance, runner: asyncio.Runner) -> None:
        self.ledger = ledger
        self._runner = runner

    def run(self, question: Awaitable[Answer]) -> Answer:
        """Waits for an answer."""
        return self._runner.run(_answer(question))


@contextmanager
def connected(arguments: argparse.Namespace, *, read_only: bool = False, creates: bool = False) -> Iterator[Connection]:
    """Opens the ledger that the command line and the environment name, and closes it afterwards.

    One that is not there is made only where the command `creates` ledgers.
    """
    with renamed_fields({"database_url": named_database(arguments, configuration_from_environment()).name}):
        if not (read_only or creates):
            asyncio.run(refuse_absent(arguments))
        with opened(ledger_of(arguments, read_only=read_only)) as connection:
            yield connection


@contextmanager
def opened(ledger: Allowance) -> Iterator[Connection]:
    """Opens a ledger, and closes it afterwards."""
    with asyncio.Runner() as runner:
        connection = Connection(ledger, runner)
        try:
            connection.run(ledger.__aenter__())
            yield connection
        finally:
            connection.run(ledger.close())


async def refuse_absent(arguments: argparse.Namespace) -> None:
    """Raises what reading a ledger that is not there does: opened for writing, a mistyped one would be made."""
    async with ledger_of(arguments, read_only=True):
        return


def ledger_of(arguments: argparse.Namespace, *, read_only: bool = False) -> Allowance:
    """The ledger that the command line names, or else the environment; not opened yet."""
    configuration = configuration_from_environment()
    database, validator = named_database(arguments, configuration), named_validator(arguments, configuration)
    if not validator.value:
        raise WrongUsage("whose ledger? give --validator SS58 or set ALLOWANCE_VALIDATOR_SS58")
    with renamed_fields({"database_url": database.name, "validator_ss58": validator.name}):
        return Allowance.open(
            database.value,
            validator_ss58=validator.value,
            settings=configuration.settings,
            read_only=read_only,
        )


class NamedValue(NamedTuple):
    """A value, and the option or the variable that gave it."""

    value: str
    name: str


def named_database(arguments: argparse.Namespace, configuration: Configuration) -> NamedValue:
    """The database's URL."""
    if arguments.database:
        return NamedValue(arguments.database, "--database")
    return NamedValue(configuration.database_url, VARIABLES["database_url"])


def named_validator(arguments: argparse.Namespace, configuration: Configuration) -> NamedValue:
    """The validator's hotkey; empty where nobody says."""
    if arguments.validator or not configuration.validator_ss58:
        return NamedValue(arguments.validator or "", "--validator")
    return NamedValue(configuration.validator_ss58, VARIABLES["validator_ss58"])


async def _answer(question: Awaitable[Answer]) -> Answer:
    return await question
