"""Database URLs, and the stores for them."""

from __future__ import annotations

import re

from ledger.errors import InvalidInput
from ledger.values import name

from .contract import Store

# A limit on input, far above any real URL.
LONGEST_URL = 4096
EXPECTED = "sqlite:///path, sqlite:// (memory) or postgresql://…"
_with_driver = re.compile(r"postgres(ql)?\+")
# A SQLite URL without `@` or `?` holds only a path.
_sqlite_url = re.compile(r"sqlite:///?[^@?]*")
# Signs of credentials: `user:password@host`, a `password=` parameter, or a PostgreSQL URL or connection string.
_may_be_secret = re.compile(r"@|pass|(^|\s)postgres", re.IGNORECASE)


def store_from_url(database_url: str, validator_ss58: str, *, read_only: bool) -> Store:
    """Return the store of a validator's ledger, not yet opened. Raises `InvalidInput` for a URL that it cannot use."""
    try:
        name(database_url, "database_url", LONGEST_URL)
    except InvalidInput as refused:
        # `from None`: the original error shows the value, which may hold a password.
        raise InvalidInput("database_url", redacted_url(database_url), refused.expected) from None
    scheme, separator, rest = database_url.partition("://")
    if separator and scheme == "sqlite":
        # Imported here, so that each engine's driver is imported only for its own URLs.
        from ledger.store.sqlite.store import SqliteStore

        if rest and (not rest.startswith("/") or rest == "/"):
            raise InvalidInput("database_url", redacted_url(database_url), EXPECTED)
        return SqliteStore(rest[1:] or None, validator_ss58, read_only=read_only)
    if separator and scheme in ("postgresql", "postgres"):
        return _postgres_store(database_url, validator_ss58, read_only=read_only)
    expected = "postgresql://…, without a driver's name" if _with_driver.match(scheme) else EXPECTED
    raise InvalidInput("database_url", redacted_url(database_url), expected)


def redacted_url(database_url: object) -> object:
    """Return a value given as a database URL in a form for messages: at most the scheme if it may hold credentials.

    The value may be of any type and malformed, so anything that looks like credentials is hidden.
    """
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
            raise  # Another module is missing: to install the extra would not help.
        expected = "a URL whose driver is installed: pip install 'allowance-ledger[postgres]'"
        raise InvalidInput("database_url", "postgresql://…", expected) from cause
    return PostgresStore(database_url, validator_ss58, read_only=read_only)
