"""PgBouncer in front of a test server, on a Unix socket in a temporary directory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from .servers import CRASH_SECONDS, PostgresServer

POLL_SECONDS = 0.02

_CONFIGURATION = """
[databases]
* = host={server} user=postgres

[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = 5432
auth_type = any
pool_mode = {pool_mode}
default_pool_size = {size}
max_client_conn = 500
server_round_robin = {round_robin}
logfile = {directory}/log
admin_users = postgres
"""


class Pooler:
    """A running PgBouncer."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes]) -> None:
        self._directory = directory
        self._process = process

    def url(self, database_url: str, parameters: str = "") -> str:
        """Return the URL that leads to a database of the server through the pooler."""
        without_host = database_url.partition("?")[0]
        return f"{without_host}?host={quote(str(self._directory))}{parameters}"

    def stop(self) -> None:
        """Stop at once; the clients' connections break, and the server rolls back what is not committed."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(CRASH_SECONDS)


def why_no_pooler() -> str | None:
    """Return why PgBouncer cannot run here; None if it can."""
    return None if _program() else "PgBouncer is not installed; on Debian and Ubuntu: apt install pgbouncer"


@contextmanager
def pooler_of(server: PostgresServer, pool_mode: str, *, size: int = 2, round_robin: bool = True) -> Iterator[Pooler]:
    """Run PgBouncer with at most `size` connections to each database.

    Round robin: it takes another connection for each transaction, so that what belongs to a session is soon missed.
    """
    program = _program()
    assert program is not None
    directory = Path(tempfile.mkdtemp(prefix="allowance-pooler-"))
    configuration = directory / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(
            server=server.socket_directory,
            directory=directory,
            pool_mode=pool_mode,
            size=size,
            round_robin=int(round_robin),
        )
    )
    user = server._server.system_user
    if user is not None:
        shutil.chown(directory, user)
    process = subprocess.Popen(
        [program, str(configuration)], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_ready(directory / ".s.PGSQL.5432", process)
        yield Pooler(directory, process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(CRASH_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


def _program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _wait_until_ready(path: Path, process: subprocess.Popen[bytes]) -> None:
    ends_at = time.monotonic() + CRASH_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                assert process.poll() is None, "PgBouncer ended"
                assert time.monotonic() < ends_at, "PgBouncer does not respond"
                time.sleep(POLL_SECONDS)
            else:
                return
