"""Database URLs, and the store that each stands for."""

from __future__ import annotations

import re

from ledger.errors import InvalidInput
from ledger.values import name

from .contract import Store

LONGEST_URL = 4096
EXPECTED = "sqlite:///path, sqlite:// (memory) or postgresql://…"
_with_driver = re.compile(r"postgres(ql)?\+")
_sqlite_url = re.compile(r"sqlite:///?[^@?]*")
_may_be_secret = re.compile(r"@|pass|(^|\s)postgres", re.IGNORECASE)


def store_from_url(database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
    """The store of a validator's ledger at a URL; nothing is opened yet."""
    try:
        name(database_url, "database_url", LONGEST_URL)
    except InvalidInput as refused:
        raise InvalidInput("database_url", redacted_url(database_url), refused.expected) from None
    scheme, separator, rest = database_url.partition("://")
    if separator and scheme == "sqlite":
        from ledger.store.sqlite.store import SqliteStore

        if rest and (not rest.startswith("/") or rest == "/"):
            raise InvalidInput("database_url", redacted_url(database_url), EXPECTED)
        return SqliteStore(rest[1:] or None, validator_ss58, read_only=read_only)
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres_store(database_url, validator_ss58, read_only=read_only)
    expected = "postgresql://…, without a driver's name" if _with_driver.match(scheme) else EXPECTED
    raise InvalidInput("database_url", redacted_url(database_url), expected)


def redacted_url(database_url: object) -> object:
    """What was given as a database URL, fit to be shown: of what may say how to log in, the scheme at the most."""
    if isinstance(database_url, (bytes, bytearray)):
        return "…"
    if not isinstance(database_url, str) or _sqlite_url.fullmatch(database_url):
        return database_url
    if not _may_be_secret.search(database_url):
        return database_url
    scheme, separator, _ = database_url.partition("://")
    return f"{scheme}://…" if separator and re.fullmatch(r"[A-Za-z0-9.+-]+", scheme) else "…"


def _postgres_store(database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
    try:
        from ledger.store.postgres.store import PostgresStore
    except ModuleNotFoundError as cause:
        if cause.name != "asyncpg":
            raise
        expected = "a URL whose driver is installed (pip install 'allowance-ledger[postgres]')"
        raise InvalidInput("database_url", "postgresql://…", expected) from cause
    return PostgresStore(database_url, validator_ss58, read_only=read_only)
