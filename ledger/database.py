"""Database URLs, and the store that each stands for."""

from __future__ import annotations

from .errors import InvalidInput
from .log import Store
from .values import name

LONGEST_URL = 4096
EXPECTED = "sqlite:///path, sqlite:// (memory) or postgresql://…"


def store_for(database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
    """The store of a validator's ledger at a URL; nothing is opened yet."""
    name(database_url, "database_url", LONGEST_URL)
    scheme, separator, rest = database_url.partition("://")
    if separator and scheme == "sqlite":
        from .sqlite import SqliteStore

        if rest and (not rest.startswith("/") or rest == "/"):
            raise InvalidInput("database_url", database_url, EXPECTED)
        return SqliteStore(rest[1:] or None, validator_ss58, read_only=read_only)
    if separator and scheme in ("postgresql", "postgres"):
        from .postgres import PostgresStore

        return PostgresStore(database_url, validator_ss58, read_only=read_only)
    raise InvalidInput("database_url", database_url, EXPECTED)
