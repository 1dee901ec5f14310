"""Connections to a PostgreSQL server, and their settings."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from ledger.errors import InvalidInput, StorageUnavailable

# Some limits depend on each other: lock of an optimistic append < append; idle transaction < statement < command.
CONNECT_TIMEOUT_SECONDS = 10.0
# Enforced by the server. A statement mostly waits for the head's lock, as long as a SQLite writer waits for its lock.
STATEMENT_TIMEOUT_SECONDS = 30
# Enforced by the server. Shorter than the statement timeout: if a client dies while it holds the head's lock, the
# server releases the lock before the statements that wait for it time out.
IDLE_TRANSACTION_TIMEOUT_SECONDS = 20
# Enforced by the client. Longer than the statement timeout: the server's error proves that nothing was done, but after
# a timeout of the client the outcome is unknown. So the server's must come first.
COMMAND_TIMEOUT_SECONDS = 40.0
# Enforced by the server, on the log's writing connection: for an optimistic append, also behind a moved head, and for
# the fence. The writer decides again under the lock afterwards, and waits for it without keeping queries waiting.
LOCK_TIMEOUT_SECONDS = 3
# Encodings that accept every name. Any other would refuse some names, and with each the whole batch that contains it.
ENCODINGS = ("UTF8", "SQL_ASCII")
# Messages show this instead of the URL, which may hold a password.
SHOWN_URL = "postgresql://…"
EXPECTED_URL = "postgresql://user:password@host:port/database, with %40 for @, %2F for / and so on inside of the parts"
# The driver's messages about these quote no part of the URL, so they can be shown.
_SAFE_REASON = re.compile("`ssl|^root certificate file|^direct TLS")
# Of a search path: an identifier, in quotation marks or not. See `search_path.py`.
_FIRST_SCHEMA = re.compile(r'^\s*(?:"(?:[^"]|"")*"|[^,]*)')
# If it is off, a commit is reported before it is flushed. How long commits wait for standbys is the operator's choice.
_FLUSH_COMMITS = """SELECT set_config('synchronous_commit', 'on', false)
                    WHERE current_setting('synchronous_commit') = 'off'"""


class Connector:
    """Opens connections to the server of a URL. Raises `InvalidInput` for a malformed URL."""

    def __init__(self, database_url: str, *, read_only: bool) -> None:
        self._database_url = database_url
        self._read_only = read_only
        self._given, several_hosts = _parsed(database_url)
        self._arguments: dict[str, Any] = {}
        if several_hosts and not read_only and not self._names_session_attributes():
            # A standby has an older log, or will have. A writer must not read it just because it is named first.
            self._arguments["target_session_attrs"] = "primary"

    async def connect(self) -> asyncpg.Connection:
        """Connect for reading the log, and for the read models."""
        return await self._connect({})

    async def connect_for_appends(self) -> asyncpg.Connection:
        """Connect for appending to the log."""
        connection = await self._connect({"lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s"})
        try:
            if not self._read_only:
                await connection.execute(_FLUSH_COMMITS)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _names_session_attributes(self) -> bool:
        return "target_session_attrs" in self._given or "PGTARGETSESSIONATTRS" in os.environ

    def _server_settings(self, more: dict[str, str]) -> dict[str, str]:
        """Return the settings of a connection; settings in the URL have precedence over these defaults.

        The isolation level is not up to the URL, because the transactions depend on it.
        """
        defaults = {
            "application_name": "allowance-ledger",
            "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION_TIMEOUT_SECONDS}s",
            **more,
        }
        session = {name: value for name, value in defaults.items() if name not in self._given}
        session["default_transaction_isolation"] = "read committed"
        if "search_path" in self._given:
            session["search_path"] = _FIRST_SCHEMA.findall(self._given["search_path"][-1])[0]
        return session

    async def _connect(self, settings: dict[str, str]) -> asyncpg.Connection:
        try:
            connection = await asyncpg.connect(
                self._database_url,
                timeout=CONNECT_TIMEOUT_SECONDS,
                command_timeout=COMMAND_TIMEOUT_SECONDS,
                server_settings=self._server_settings(settings),
                **self._arguments,
            )
        except TimeoutError as cause:
            raise StorageUnavailable(f"could not connect within {CONNECT_TIMEOUT_SECONDS:g} s") from cause
        except (asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError) as cause:
            expected = f"a URL whose parameters the server accepts ({cause})"
            raise InvalidInput("database_url", SHOWN_URL, expected) from cause
        except ValueError as cause:
            # Most of the driver's messages quote a part of the URL. If the password is not escaped, any part may belong
            # to it, even the port. So only messages that are known to be safe are shown.
            expected = f"a URL that the driver accepts ({cause})" if _SAFE_REASON.search(str(cause)) else EXPECTED_URL
            raise InvalidInput("database_url", SHOWN_URL, expected) from cause
        try:
            await self._prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _prepare(self, connection: asyncpg.Connection) -> None:
        encoding = connection.get_settings().server_encoding
        if encoding not in ENCODINGS:
            expected = f"the URL of a database whose encoding is UTF8, not {encoding}"
            raise InvalidInput("database_url", SHOWN_URL, expected)
        if not self._read_only and getattr(connection.get_settings(), "in_hot_standby", "off") == "on":
            # Its log may be older than what this process has acknowledged, and it accepts no change anyway.
            raise StorageUnavailable("the server is a standby; a ledger that is open for changes needs the primary")
        if self._read_only:
            # Set after the connection is open. As a connection parameter it would make the driver believe that
            # every server is a standby, and `target_session_attrs=read-write` would find none.
            await connection.execute("SET default_transaction_read_only = on")


def _parsed(database_url: str) -> tuple[dict[str, list[str]], bool]:
    """Return the parameters in the URL, and whether it names several hosts. Raises `InvalidInput`."""
    try:
        url = urlsplit(database_url)
        given = parse_qs(url.query, strict_parsing=True) if url.query else {}
        several_hosts = "," in url.netloc or any("," in hosts for hosts in given.get("host", ()))
        # Several hosts, separated by commas, are valid for the driver but have no single port.
        if "," not in url.netloc:
            _ = url.port
    except ValueError:
        # `from None`: the original error quotes the URL.
        raise InvalidInput("database_url", SHOWN_URL, EXPECTED_URL) from None
    return given, several_hosts
