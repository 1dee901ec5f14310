"""The ledger that a command works on, opened from `--database`, `--validator` and the environment."""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from routing import Allowance

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
def connected(arguments: argparse.Namespace, *, read_only: bool = False) -> Iterator[Connection]:
    """Opens the ledger that the command line names, and closes it afterwards."""
    with opened(database_url(arguments), validator(arguments), read_only=read_only) as connection:
        yield connection


@contextmanager
def opened(
    url: str, validator_ss58: str, *, read_only: bool = False, clock_ns: Callable[[], int] = time.time_ns
) -> Iterator[Connection]:
    """Opens a ledger, and closes it afterwards."""
    with asyncio.Runner() as runner:
        opening = Allowance.open(url, validator_ss58=validator_ss58, clock_ns=clock_ns, read_only=read_only)
        book = runner.run(_answer(opening.__aenter__()))
        try:
            yield Connection(book, runner)
        finally:
            runner.run(_answer(opening.__aexit__(None, None, None)))


def database_url(arguments: argparse.Namespace) -> str:
    """Where the ledger is: as the command line says, else the environment, else the library."""
    given: str | None = arguments.database or os.environ.get("ALLOWANCE_DATABASE_URL")
    if given:
        return given
    raise WrongUsage("which database? give --database sqlite:///PATH or set ALLOWANCE_DATABASE_URL")


def validator(arguments: argparse.Namespace) -> str:
    """Whose ledger it is: as the command line says, else the environment."""
    given: str | None = arguments.validator or os.environ.get("ALLOWANCE_VALIDATOR_SS58")
    if given:
        return given
    raise WrongUsage("whose ledger? give --validator SS58 or set ALLOWANCE_VALIDATOR_SS58")


async def _answer(question: Awaitable[Answer]) -> Answer:
    return await question
