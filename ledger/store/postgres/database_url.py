"""A PostgreSQL URL, taken apart: the hosts, the server's settings, and what is left for the driver.

The driver sends parameters that it does not know to the server when a connection starts. A connection pool such as
PgBouncer refuses that, so the settings are taken out of the URL and sent later. The hosts are tried here, one after the
other, because the driver does not tell what each of them answered, and spends the whole time limit on the first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from ledger.errors import InvalidInput

# Messages show this instead of the URL, which may hold a password.
SHOWN_URL = "postgresql://…"
EXPECTED_URL = "postgresql://user:password@host:port/database, with %40 for @, %2F for / and so on inside of the parts"
POOL_MODES = ("session", "transaction")
SESSION_ATTRIBUTES = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")
# The driver's own parameters. `options` has settings too, but only the start of a connection can carry it.
_DRIVER_PARAMETERS = frozenset(
    (
        *("host", "port", "dbname", "database", "user", "password", "passfile", "service", "servicefile"),
        *("krbsrvname", "gsslib", "options", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"),
        *("sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version"),
    )
)
# Of a search path: an identifier, in quotation marks or not. A ledger's tables are there: see `search_path.py`.
_FIRST_SCHEMA = re.compile(r'^\s*(?:"(?:[^"]|"")*"|[^,]*)')


@dataclass(frozen=True)
class Host:
    """One server of a URL; without a name it is the driver's default."""

    name: str | None = None
    port: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The driver's arguments that lead to this host alone."""
        port = int(self.port) if self.port else None
        return {name: value for name, value in (("host", self.name), ("port", port)) if value is not None}

    def __str__(self) -> str:
        return f"{self.name}:{self.port}" if self.port else str(self.name)


@dataclass(frozen=True)
class DatabaseUrl:
    """What a URL says. `settings` are those of the server; `session_attributes` None: the URL has no such condition."""

    for_driver: str
    hosts: tuple[Host, ...]
    settings: dict[str, str]
    session_attributes: str | None
    pool_mode: str | None


def parsed_url(database_url: str) -> DatabaseUrl:
    """Take a URL apart. Raises `InvalidInput`, which shows no part of the URL but its parameters' names."""
    try:
        url = urlsplit(database_url)
        parameters = {name: given[-1] for name, given in _parameters(url.query).items()}
        hosts = _hosts(url.netloc, parameters)
        # Several hosts, separated by commas, are valid for the driver but have no single port.
        if "," not in url.netloc:
            _ = url.port
    except ValueError:
        # `from None`: the original error quotes the URL.
        raise InvalidInput("database_url", SHOWN_URL, EXPECTED_URL) from None
    attributes = parameters.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    pool_mode = parameters.get("pool_mode")
    _check_choice("target_session_attrs", attributes, SESSION_ATTRIBUTES)
    _check_choice("pool_mode", pool_mode, POOL_MODES)
    ours = {"target_session_attrs", "pool_mode"}
    settings = {
        name: value for name, value in parameters.items() if name not in _DRIVER_PARAMETERS and name not in ours
    }
    if "search_path" in settings:
        settings["search_path"] = _FIRST_SCHEMA.findall(settings["search_path"])[0]
    if settings and pool_mode == "transaction":
        # Each transaction may run in another session, and a session's setting would reach other clients.
        names = ", ".join(settings)
        expected = f"a URL without {names} if pool_mode=transaction; use ALTER ROLE … SET {next(iter(settings))} = …"
        raise InvalidInput("database_url", SHOWN_URL, expected)
    kept = [part for part in url.query.split("&") if part.partition("=")[0] in _DRIVER_PARAMETERS]
    return DatabaseUrl(urlunsplit(url._replace(query="&".join(kept))), hosts, settings, attributes, pool_mode)


def _parameters(query: str) -> dict[str, list[str]]:
    return parse_qs(query, strict_parsing=True) if query else {}


def _hosts(netloc: str, parameters: dict[str, str]) -> tuple[Host, ...]:
    """Return the hosts if the URL, or PGHOST, names several; else one without a name, and the driver finds it."""
    from_netloc = netloc.rpartition("@")[2]
    names = from_netloc or parameters.get("host") or os.environ.get("PGHOST", "")
    if "," not in names:
        return (Host(),)
    ports = (parameters.get("port") or os.environ.get("PGPORT", "")).split(",")
    hosts = [_host(each, unquote_it=bool(from_netloc)) for each in names.split(",")]
    if ports != [""]:
        hosts = [Host(host.name, host.port or ports[min(number, len(ports) - 1)]) for number, host in enumerate(hosts)]
    for host in hosts:
        _ = host.arguments  # Raises `ValueError` if the port is no number.
    return tuple(hosts)


def _host(text: str, *, unquote_it: bool) -> Host:
    name, separator, port = text.rpartition(":")
    if not separator or port.endswith("]") or name.startswith("/"):
        name, port = text, ""
    name = name.removeprefix("[").removesuffix("]")
    return Host(unquote(name) if unquote_it else name, port or None)


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidInput("database_url", f"{name}={value}", f"a URL whose {name} is one of {', '.join(choices)}")
