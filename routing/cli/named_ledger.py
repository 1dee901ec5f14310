"""Which ledger the command line and the environment name: its database, and the validator that owns it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ledger.errors import LedgerNotFound, StorageUnavailable, renamed_fields
from routing.cli.io.errors import NoSuchLedger, WrongUsage
from routing.cli.sources import url_of_file
from routing.service.allowance import Allowance
from routing.service.backup import validators_in
from routing.service.config import VARIABLES, Configuration, configuration_from_environment, default_database_url

HOW_TO_NAME_ONE = "give --validator SS58 or set ALLOWANCE_VALIDATOR_SS58"


class NamedValue(NamedTuple):
    """A value, and the name of the option or the variable that it comes from."""

    value: str
    name: str


def is_in_environment(named: NamedValue) -> bool:
    """Return whether a value comes from the environment, or from its default there, instead of the command line."""
    return named.name in VARIABLES.values()


def named_database(arguments: argparse.Namespace, configuration: Configuration) -> NamedValue:
    """Return the database's URL; also if `--database` is the path of a SQLite file. Other text stays as it is."""
    if arguments.database:
        return NamedValue(url_of_file(arguments.database), "--database")
    return NamedValue(configuration.database_url, VARIABLES["database_url"])


def named_validator(arguments: argparse.Namespace, configuration: Configuration) -> NamedValue:
    """Return the validator's hotkey, or an empty value if neither the option nor the variable is set.

    If `find_validator` has found the only one of the database, that one is returned.
    """
    if arguments.validator or not configuration.validator_ss58:
        return NamedValue(arguments.validator or getattr(arguments, "only_validator", ""), "--validator")
    return NamedValue(configuration.validator_ss58, VARIABLES["validator_ss58"])


@contextmanager
def naming_options(arguments: argparse.Namespace) -> Iterator[None]:
    """Let each `InvalidInput` about the database or the validator name the option or variable that it comes from."""
    configuration = configuration_from_environment()
    database, validator = named_database(arguments, configuration), named_validator(arguments, configuration)
    names = {"database_url": database.name, "source": database.name, "validator_ss58": validator.name}
    with renamed_fields(names):
        yield


def ledger_from_arguments(arguments: argparse.Namespace, *, read_only: bool = False) -> Allowance:
    """Return a handle of the ledger that the command line or else the environment names; it is not opened yet.

    Settings in the environment are ignored: a variable that is set in some shell must not change a live validator's.
    """
    configuration = configuration_from_environment()
    validator = named_validator(arguments, configuration)
    if not validator.value:
        raise WrongUsage(f"the validator is not known; {HOW_TO_NAME_ONE}")
    with naming_options(arguments):
        database_url = named_database(arguments, configuration).value
        return Allowance.open(database_url, validator_ss58=validator.value, read_only=read_only)


def refuse_missing_default(arguments: argparse.Namespace) -> None:
    """Raise `WrongUsage` if no database is named, and there is none at the default place.

    A new user has not heard of that place, so an error about a missing file would not help.
    """
    if arguments.database or os.environ.get(VARIABLES["database_url"]):
        return
    path = default_database_url().removeprefix("sqlite:///")
    if not os.path.exists(path):
        raise WrongUsage(
            f"no database is named, and there is none at {path}; give --database or set ALLOWANCE_DATABASE_URL;"
            " `allowance guide getting-started` says how to begin"
        )


async def find_validator(arguments: argparse.Namespace) -> None:
    """If no validator is named, remember the one whose ledger is the only one in the database.

    Raises `WrongUsage` if there is none or if there are several, and `StorageUnavailable` if a server does not respond.
    """
    configuration = configuration_from_environment()
    if not hasattr(arguments, "new"):  # Only `import` founds a ledger where there is no database yet.
        refuse_missing_default(arguments)
    if named_validator(arguments, configuration).value:
        return
    if getattr(arguments, "new", False):
        raise WrongUsage(f"--new founds the ledger of a validator, and none is named; {HOW_TO_NAME_ONE}")
    database_url = named_database(arguments, configuration).value
    try:
        found = await validators_in(database_url)
    except StorageUnavailable as unavailable:
        # Most often the SQLite file does not exist yet, and an import may still found the ledger once it is named.
        if not database_url.startswith("sqlite"):
            raise
        raise WrongUsage(f"the validator is not known; {HOW_TO_NAME_ONE}") from unavailable
    arguments.only_validator = _only_one(found)


async def validator_to_read(arguments: argparse.Namespace, database_url: str) -> str:
    """Return the validator whose ledger a reading command means.

    The environment's validator is that of the environment's database. So if `--database` names another one, which has
    a single ledger, that ledger is meant. Raises `NoSuchLedger` if there is none, and `WrongUsage` if there are several
    and none of them is named.
    """
    named = named_validator(arguments, configuration_from_environment())
    if arguments.validator or (named.value and not arguments.database):
        return named.value
    found = await validators_in(database_url)
    if not found:
        raise await absent_ledger(arguments, database_url)
    return named.value if named.value in found else _only_one(found)


async def refuse_absent_ledger(arguments: argparse.Namespace) -> None:
    """Raise the error that reading the ledger would raise if it does not exist.

    Opening a ledger for writing creates it. Without this check, a typing error in `--database` or `--validator`
    would leave an empty ledger behind.
    """
    try:
        async with ledger_from_arguments(arguments, read_only=True):
            return
    except LedgerNotFound:
        database_url = named_database(arguments, configuration_from_environment()).value
        raise await absent_ledger(arguments, database_url) from None


async def absent_ledger(arguments: argparse.Namespace, database_url: str) -> NoSuchLedger:
    """Return the error for a database that does not have the ledger which the options name; it lists those it has."""
    configuration = configuration_from_environment()
    database, validator = named_database(arguments, configuration), named_validator(arguments, configuration)
    return NoSuchLedger(database.name, validator.value, validator.name, await validators_in(database_url))


async def refuse_unexpected_ledger(arguments: argparse.Namespace) -> None:
    """Raise `WrongUsage` if the command would found a ledger in a database that has others, unless `--new` is given.

    Without this check, a typing error in `--validator` would found a second ledger without a word.
    """
    configuration = configuration_from_environment()
    named = named_validator(arguments, configuration)
    try:
        found = await validators_in(named_database(arguments, configuration).value)
    except StorageUnavailable:
        # There is no file yet; if there is another reason, opening the ledger for writing raises it.
        return
    if found and named.value not in found and not arguments.new:
        raise WrongUsage(
            f"the database has no ledger of {named.value}, but of {', '.join(found)};"
            " correct --validator, or give --new to found another ledger",
            validator_ss58=named.value,
            validators=found,
        )


def _only_one(found: list[str]) -> str:
    if len(found) != 1:
        several = f"the database has ledgers of {', '.join(found)}" if found else "the validator is not known"
        raise WrongUsage(f"{several}; {HOW_TO_NAME_ONE}", validators=found)
    return found[0]
