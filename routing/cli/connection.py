"""The ledger that a command works on, opened from `--database`, `--validator` and the environment."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..book import Allowance
from ..environment import VARIABLES, from_environment, naming
from .failure import WrongUsage

Answer = TypeVar("Answer")


class Connection:
    """An open ledger for code without an event loop: `connection.run(connection.book.health())`.

    Between two runs no loop is running, so reading a slow pipe can be interrupted like any other blocking
    call.
    """

    def __init__(self, book: Allowance, runner: asyncio.Runner) -> None:
        self.book = book
        self._runner = runner

    def run(self, question: Awaitable[Answer]) -> Answer:
        """Waits for an answer."""
        return self._runner.run(_answer(question))


@contextmanager
def connected(arguments: argparse.Namespace, *, read_only: bool = False, creates: bool = False) -> Iterator[Connection]:
    """Opens the ledger that the command line and the environment name, and closes it afterwards.

    One that is not there is made only where the command `creates` ledgers.
    """
    if not (read_only or creates):
        asyncio.run(refuse_absent(arguments))
    with opened(ledger_of(arguments, read_only=read_only)) as connection:
        yield connection


@contextmanager
def opened(book: Allowance) -> Iterator[Connection]:
    """Opens a ledger, and closes it afterwards."""
    with asyncio.Runner() as runner:
        connection = Connection(book, runner)
        try:
            connection.run(book.__aenter__())
            yield connection
        finally:
            connection.run(book.close())


async def refuse_absent(arguments: argparse.Namespace) -> None:
    """Raises what reading a ledger that is not there does: opened for writing, a mistyped one would be made."""
    async with ledger_of(arguments, read_only=True):
        return


def ledger_of(arguments: argparse.Namespace, *, read_only: bool = False) -> Allowance:
    """The ledger that the command line names, or else the environment; not opened yet."""
    configuration = from_environment()
    validator_ss58 = arguments.validator or configuration.validator_ss58
    if not validator_ss58:
        raise WrongUsage("whose ledger? give --validator SS58 or set ALLOWANCE_VALIDATOR_SS58")
    names = {
        "database_url": "--database" if arguments.database else VARIABLES["database_url"],
        "validator_ss58": "--validator" if arguments.validator else VARIABLES["validator_ss58"],
    }
    with naming(names):
        return Allowance.open(
            arguments.database or configuration.database_url,
            validator_ss58=validator_ss58,
            settings=configuration.settings,
            read_only=read_only,
        )


async def _answer(question: Awaitable[Answer]) -> Answer:
    return await question
