"""System checks. `manage.py check` tries the configuration; with `--database default` also the ledger's database."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from django.core.checks import CheckMessage, Error, Info

from routing import AllowanceException, InvalidInput, LedgerNotFound
from routing.singletons import configuration
from routing.sync import Allowance


def check_configuration(**_: Any) -> list[CheckMessage]:
    """Check that a validator is named, unless a debug miner gets all jobs, and that the URL is one."""
    try:
        _ledger()
    except InvalidInput as refused:
        return [Error(str(refused), hint="Correct ALLOWANCE in the settings.", id="allowance.E001")]
    return []


def check_database(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Check that the ledger can be read. Django asks for such checks before `migrate` and by `check --database`."""
    try:
        ledger = _ledger() if databases else None
        if ledger is not None:
            with closing(ledger):
                ledger.head()
    except InvalidInput:
        return []  # `check_configuration` reports it.
    except LedgerNotFound as absent:
        return [Info(str(absent), hint="The first change founds the ledger.", id="allowance.I001")]
    except AllowanceException as refused:
        return [Error(str(refused), hint="Is DATABASE_URL of ALLOWANCE right?", id="allowance.E002")]
    return []


def _ledger() -> Allowance | None:
    """Return the configured ledger, not opened yet; None if a debug miner makes it needless."""
    configured = configuration()
    if configured.debug_miner is not None:
        return None
    return Allowance.open(configured.database_url, validator_ss58=configured.validator_ss58, read_only=True)
