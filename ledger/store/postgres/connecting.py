"""Connections to a PostgreSQL server, and their settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import asyncpg

from ledger.errors import InvalidInput, StorageUnavailable

from .database_url import EXPECTED_URL, SHOWN_URL, Host, parsed_url
from .statements import BEGIN

# Some limits depend on each other: lock of an optimistic append < append; idle transaction < statement < command.
CONNECT_TIMEOUT_SECONDS = 10.0
# For each host, if the URL names several: one whose network is cut must not take the time of those that respond.
HOST_TIMEOUT_SECONDS = 3.0
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
# The driver's messages about these quote no part of the URL, so they can be shown.
_SAFE_REASON = re.compile("`ssl|^root certificate file|^direct TLS")
# If it is off, a commit is reported before it is flushed. How long commits wait for standbys is the operator's choice.
_FLUSH_COMMITS = """SELECT set_config('synchronous_commit', 'on', {is_local})
                    WHERE current_setting('synchronous_commit') = 'off'"""
# Behind a pool, what the server reported when a connection began may be that of another server.
_ABOUT = """SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on',
                   current_setting('server_encoding')"""
# What the server says of a URL with a setting that it does not accept.
_WRONG_SETTING = (
    asyncpg.UndefinedObjectError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.InvalidParameterValueError,
)
# What the driver raises if a host cannot be used.
_UNREACHED = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class About(NamedTuple):
    """A server's description of itself and of the connection."""

    backend: int
    is_standby: bool
    is_read_only: bool
    encoding: str

    @property
    def shown(self) -> str:
        """The description in an error message."""
        return "is a standby" if self.is_standby else "is read-only" if self.is_read_only else "is a primary"


_ACCEPTS: dict[str, Callable[[About], bool]] = {
    "any": lambda about: True,
    "primary": lambda about: not about.is_standby,
    "standby": lambda about: about.is_standby,
    "read-write": lambda about: not (about.is_standby or about.is_read_only),
    "read-only": lambda about: about.is_standby or about.is_read_only,
}


class Connector:
    """Opens connections to the servers of a URL. Raises `InvalidInput` for a malformed URL."""

    def __init__(self, database_url: str, *, read_only: bool) -> None:
        self.database_url = database_url
        self.read_only = read_only
        self._url = parsed_url(database_url)
        self._hosts = list(self._url.hosts)
        several = len(self._hosts) > 1
        # A standby has an older log, or will have. A writer must not read it just because it is named first.
        attributes = self._url.session_attributes or ("read-write" if several and not read_only else "any")
        self._accepted = ("standby", "any") if attributes == "prefer-standby" else (attributes,)

    @property
    def is_pooled(self) -> bool:
        """Whether each transaction may run in another session of the server."""
        return self._url.pool_mode == "transaction"

    @property
    def session_suffices(self) -> bool:
        """Whether a statement outside of a transaction has all settings."""
        return not (self.is_pooled or self.read_only)

    def begin(self, *, for_appends: bool = False, waits: bool = False) -> str:
        """Return the text that begins a transaction; one round trip. It has the settings that no session keeps.

        `waits`: for locks without a limit but that of a statement.
        """
        parts = [f"{BEGIN} READ ONLY" if self.read_only else BEGIN]
        if self.is_pooled:
            parts += self._settings_text(for_appends=for_appends, is_local=True)
        return "; ".join([*parts, "SET LOCAL lock_timeout = 0"] if waits else parts)

    async def connect(self) -> asyncpg.Connection:
        """Connect for reading the log, and for the read models."""
        return await self._connect(for_appends=False)

    async def connect_for_appends(self) -> asyncpg.Connection:
        """Connect for appending to the log."""
        return await self._connect(for_appends=True)

    def _settings(self, *, for_appends: bool) -> dict[str, str]:
        """Return the settings of a session; settings in the URL have precedence over these defaults.

        The isolation level is not up to the URL, because the transactions depend on it.
        """
        return {
            "application_name": "allowance-ledger",
            "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
            "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION_TIMEOUT_SECONDS}s",
            **({"lock_timeout": f"{LOCK_TIMEOUT_SECONDS}s"} if for_appends else {}),
            **self._url.settings,
            "default_transaction_isolation": "read committed",
        }

    async def _connect(self, *, for_appends: bool) -> asyncpg.Connection:
        """Connect to the first host that is what the URL asks for; begin with the one that was the last time."""
        answers: dict[Host, str] = {}
        for accepted in self._accepted:
            for host in tuple(self._hosts):
                try:
                    connection, about = await self._connect_to(host)
                except _UNREACHED as error:
                    if len(self._hosts) == 1:
                        raise
                    answers[host] = str(error) or type(error).__name__
                    continue
                if not _ACCEPTS[accepted](about):
                    answers[host] = about.shown
                    connection.terminate()
                    continue
                await self._prepare(connection, about, for_appends=for_appends)
                self._hosts.sort(key=lambda each: each != host)
                return connection
        raise StorageUnavailable(f"no host is {accepted}: {_listed(self._url.hosts, answers)}")

    async def _connect_to(self, host: Host) -> tuple[asyncpg.Connection, About]:
        """Connect to a host and ask what it is. Raises the driver's errors, and `InvalidInput` for a wrong URL."""
        limit = CONNECT_TIMEOUT_SECONDS if len(self._hosts) == 1 else HOST_TIMEOUT_SECONDS
        arguments = {"statement_cache_size": 0} if self.is_pooled else {}
        try:
            with _setting_errors():
                connection = await asyncpg.connect(
                    self._url.for_driver,
                    timeout=limit,
                    command_timeout=COMMAND_TIMEOUT_SECONDS,
                    target_session_attrs="any",
                    **arguments,
                    **host.arguments,
                )
        except TimeoutError as cause:
            raise TimeoutError(f"could not connect within {limit:g} s") from cause
        except ValueError as cause:
            # Most of the driver's messages quote a part of the URL. If the password is not escaped, any part may belong
            # to it, even the port. So only messages that are known to be safe are shown.
            expected = f"a URL that the driver accepts ({cause})" if _SAFE_REASON.search(str(cause)) else EXPECTED_URL
            raise InvalidInput("database_url", SHOWN_URL, expected) from cause
        with _cut_on_error(connection):
            # A pool that nobody mentioned may be in between. It keeps nothing of a statement without a name, and in a
            # transaction all of this happens in one session.
            transaction = connection.transaction()
            await transaction.start()
            about = About._make(await (await connection.prepare(_ABOUT, name="")).fetchrow())
            await transaction.rollback()
        return connection, about

    async def _prepare(self, connection: asyncpg.Connection, about: About, *, for_appends: bool) -> None:
        """Check that the ledger can use a connection, and send the session's settings."""
        with _cut_on_error(connection):
            if about.encoding not in ENCODINGS:
                expected = f"the URL of a database whose encoding is UTF8, not {about.encoding}"
                raise InvalidInput("database_url", SHOWN_URL, expected)
            if not self.read_only and about.is_standby:
                # Its log may be older than what this process has acknowledged, and it accepts no change anyway.
                raise StorageUnavailable("the server is a standby; a ledger that is open for changes needs the primary")
            if self._url.pool_mode is None and about.backend != connection.get_server_pid():
                # A pool invents the number of the session's process.
                expected = "a URL with pool_mode=session or pool_mode=transaction, because a connection pool is between"
                raise InvalidInput("database_url", SHOWN_URL, expected)
            if not self.is_pooled:
                await self._send_settings(connection, for_appends=for_appends)

    async def _send_settings(self, connection: asyncpg.Connection, *, for_appends: bool) -> None:
        """Set the session's settings; not when the connection starts, because a pool refuses that."""
        with _setting_errors():
            await connection.execute("; ".join(self._settings_text(for_appends=for_appends, is_local=False)))

    def _settings_text(self, *, for_appends: bool, is_local: bool) -> list[str]:
        """Return the statements that set all settings, for the session or for the transaction."""
        settings = self._settings(for_appends=for_appends)
        calls = (f"set_config({_quoted(name)}, {_quoted(value)}, {is_local})" for name, value in settings.items())
        flush = [_FLUSH_COMMITS.format(is_local=is_local)] if for_appends and not self.read_only else []
        return [f"SELECT {', '.join(calls)}", *flush]


@contextmanager
def _setting_errors() -> Iterator[None]:
    try:
        yield
    except _WRONG_SETTING as cause:
        expected = f"a URL whose parameters the server accepts ({cause})"
        raise InvalidInput("database_url", SHOWN_URL, expected) from cause


@contextmanager
def _cut_on_error(connection: asyncpg.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.terminate()
        raise


def _quoted(text: str) -> str:
    """Return a text as SQL, whatever the server's settings are."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _listed(hosts: tuple[Host, ...], answers: dict[Host, str]) -> str:
    """Return what each host answered, in the order of the URL."""
    return "; ".join(f"{host} {answers[host]}" for host in hosts)
