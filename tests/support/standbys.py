"""Streaming standbys of a test server, made with the server's own tools."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from .servers import TOOL_SECONDS, PostgresServer

WAIT_SECONDS = 0.02


class Standby:
    """A standby that streams from a primary, until it is stopped, cut off or promoted."""

    def __init__(self, primary: PostgresServer, name: str, directory: Path) -> None:
        self.name = name
        self.socket_directory = str(directory)
        self._primary = primary
        self._data = directory / "data"
        self._primary_is = f"host={primary.socket_directory} user=postgres application_name={name}"
        target = ("-D", str(self._data), "--checkpoint=fast", "--no-sync", "-R")
        self._run("pg_basebackup", *target, "-d", self._primary_is)
        self.start()

    def url(self, database: str) -> str:
        """Return the URL of a database on the standby."""
        return f"postgresql://postgres@/{database}?host={quote(self.socket_directory)}"

    def start(self) -> None:
        """Start, and wait until it streams."""
        self._control("start", "-o", f"-h '' -k {self.socket_directory}", "-l", f"{self.socket_directory}/log")
        self._wait_on_primary("EXISTS", "")

    def stop(self) -> None:
        """Stop at once; the primary then waits for it if commits must."""
        self._control("stop", "-m", "immediate")

    def catch_up(self) -> None:
        """Wait until everything is replayed that the primary has committed by now."""
        self._wait_on_primary("EXISTS", " AND replay_lsn >= pg_current_wal_lsn()")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Receive what the primary commits meanwhile, but replay it only after the block."""
        self._execute("SELECT pg_wal_replay_pause()")
        try:
            yield
        finally:
            self._execute("SELECT pg_wal_replay_resume()")

    def execute_on_primary(self, database: str, *statements: str) -> None:
        """Execute statements on the primary, each in a transaction of its own; also in a thread with an event loop."""
        # The last one flushes what came before: VACUUM does not.
        for statement in (*statements, "SELECT pg_logical_emit_message(true, 'flush', '')"):
            self._run("psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", self._primary.url(database), "-c", statement)

    def receive(self) -> None:
        """Wait until everything is received that the primary has committed by now."""
        self._wait_on_primary("EXISTS", " AND flush_lsn >= pg_current_wal_lsn()")

    def reconnect(self) -> None:
        """Stream again after `cut_off`."""
        self._execute(f"ALTER SYSTEM SET primary_conninfo = '{self._primary_is}'; SELECT pg_reload_conf()")
        self._wait_on_primary("EXISTS", "")

    def cut_off(self) -> None:
        """Replay what the primary has committed by now, and receive nothing more."""
        self.catch_up()
        self._execute("ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()")
        self._wait_on_primary("NOT EXISTS", "")

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Within the block, replay cancels at once whatever is in its way; otherwise it waits for 30 s."""
        self._execute("ALTER SYSTEM SET max_standby_streaming_delay = 0; SELECT pg_reload_conf()")
        try:
            yield
        finally:
            self._execute("ALTER SYSTEM RESET max_standby_streaming_delay; SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Become a primary; the old one is not told."""
        self._control("promote")

    def _wait_on_primary(self, exists: str, condition: str) -> None:
        streams = f"SELECT 1 FROM pg_stat_replication WHERE application_name = '{self.name}' AND state = 'streaming'"
        query = f"SELECT {exists} ({streams}{condition})"
        ends_at = time.monotonic() + TOOL_SECONDS
        while self._run("psql", "-X", "-A", "-t", "-d", self._primary.url("postgres"), "-c", query).strip() != "t":
            assert time.monotonic() < ends_at, query
            time.sleep(WAIT_SECONDS)

    def _execute(self, statements: str) -> None:
        for statement in statements.split("; "):
            self._run("psql", "-X", "-d", self.url("postgres"), "-c", statement)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-w", "-D", str(self._data), *arguments)

    def _run(self, tool: str, *arguments: str) -> str:
        server = self._primary._server
        # Files instead of pipes: a server that pg_ctl starts would keep a pipe open.
        with tempfile.TemporaryFile("w+") as out:
            subprocess.run(
                [str(server.bin_path / tool), *arguments],
                check=True,
                stdout=out,
                stderr=subprocess.DEVNULL,
                timeout=TOOL_SECONDS,
                user=server.system_user,
            )
            out.seek(0)
            return out.read()


@contextmanager
def standby_of(primary: PostgresServer, name: str) -> Iterator[Standby]:
    """Make a standby of a running server; at the end stop and delete it."""
    directory = Path(tempfile.mkdtemp(prefix="allowance-standby-"))
    if primary._server.system_user is not None:
        shutil.chown(directory, primary._server.system_user)
    standby = None
    try:
        standby = Standby(primary, name, directory)
        yield standby
    finally:
        if standby is not None and (directory / "data" / "postmaster.pid").exists():
            standby.stop()
        shutil.rmtree(directory, ignore_errors=True)
