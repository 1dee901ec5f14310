"""Database URLs, and the store that each stands for."""

from __future__ import annotations

import re

from .errors import InvalidInput
from .log import Store
from .values import name

LONGEST_URL = 4096
EXPECTED = "sqlite:///path, sqlite:// (memory) or postgresql://…"
_secrets = re.compile(r"(?<=://).*@|(?<=password=)[^&#]*")


def store_for(database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
    """The store of a validator's ledger at a URL; nothing is opened yet."""
    try:
        name(database_url, "database_url", LONGEST_URL)
    except InvalidInput as refused:
        raise InvalidInput("database_url", without_secrets(database_url), refused.expected) from None
    scheme, separator, rest = database_url.partition("://")
    if separator and scheme == "sqlite":
        from .sqlite import SqliteStore

        if rest and (not rest.startswith("/") or rest == "/"):
            raise InvalidInput("database_url", without_secrets(database_url), EXPECTED)
        return SqliteStore(rest[1:] or None, validator_ss58, read_only=read_only)
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres_store(database_url, validator_ss58, read_only=read_only)
    raise InvalidInput("database_url", without_secrets(database_url), EXPECTED)


def without_secrets(database_url: object) -> object:
    """A database URL fit to be shown: without who logs in, and how."""
    return _secrets.sub("…", database_url) if isinstance(database_url, str) else database_url


def _postgres_store(database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
    try:
        from .postgres import PostgresStore
    except ModuleNotFoundError as cause:
        if cause.name != "asyncpg":
            raise
        expected = "a URL whose driver is installed: pip install 'allowance-ledger[postgres]'"
        raise InvalidInput("database_url", "postgresql://…", expected) from cause
    return PostgresStore(database_url, validator_ss58, read_only=read_only)
