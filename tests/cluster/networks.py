"""One network namespace per node, joined by a bridge on which the tests' own processes are too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

TOOL_SECONDS = 30
SUBNETS = 250


class Namespace:
    """The network of one node: an address that the tests reach, whatever is cut between the nodes."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    @property
    def entering(self) -> list[str]:
        """The words before a command that run it in this namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def kill_all(self) -> None:
        """Kill every process in the namespace with SIGKILL, until none is left."""
        while pids := self._pids():
            _kill(pids)

    def kill(self, command: str) -> None:
        """Kill the processes of this command that run in the namespace now with SIGKILL."""
        _kill(pid for pid in self._pids() if _command(pid) == command)

    def cut(self, other: Namespace) -> None:
        """Let no packet pass between the two nodes. Connections are not closed: packets vanish without an error."""
        self._route(other, "replace")
        other._route(self, "replace")

    def restore(self, other: Namespace) -> None:
        """Let packets pass again between nodes that were cut apart."""
        self._route(other, "del")
        other._route(self, "del")

    def _pids(self) -> list[int]:
        return [int(pid) for pid in _run("ip", "netns", "pids", self.name).split()]

    def _route(self, other: Namespace, verb: str) -> None:
        _run("ip", "-n", self.name, "route", verb, "blackhole", f"{other.address}/32")


def as_user(uid: int, gid: int) -> list[str]:
    """Return the words before a command that run it as this user.

    The capability lets the user pass directories that only root may enter: Python is often installed in one.
    """
    passing = "+dac_read_search"
    user = [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return ["setpriv", *user, f"--inh-caps={passing}", f"--ambient-caps={passing}", "--"]


def missing() -> str | None:
    """Return why there can be no namespaces here; None if there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nsenter", "setpriv"):
        if shutil.which(tool) is None:
            return f"network namespaces need the command {tool}"
    name = f"allowance-{os.getpid()}-try"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "del", name)
    except subprocess.CalledProcessError as refused:
        return f"network namespaces are not permitted: {refused.stderr.strip()}"
    return None


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Make a bridge and namespaces on a subnet that the machine does not use; at the end kill what runs in them."""
    subnet = _unused_subnet()
    bridge = f"al{subnet}b{os.getpid() % 100000}"
    with ExitStack() as stack:
        _run("ip", "link", "add", bridge, "type", "bridge")
        stack.callback(_run, "ip", "link", "del", bridge)
        _run("ip", "address", "add", f"10.213.{subnet}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        yield [stack.enter_context(_joined(bridge, subnet, number)) for number in range(1, count + 1)]


@contextmanager
def _joined(bridge: str, subnet: int, number: int) -> Iterator[Namespace]:
    node = Namespace(f"{bridge}n{number}", f"10.213.{subnet}.{number}")
    outside = f"{bridge}n{number}"[:15]
    _run("ip", "netns", "add", node.name)
    try:
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", node.name)
        _run("ip", "link", "set", outside, "master", bridge, "up")
        _run("ip", "-n", node.name, "address", "add", f"{node.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", node.name, "link", "set", device, "up")
        yield node
    finally:
        node.kill_all()
        _run("ip", "netns", "del", node.name)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _unused_subnet() -> int:
    devices = json.loads(_run("ip", "-json", "address"))
    used = {info["local"].rpartition(".")[0] for device in devices for info in device["addr_info"]}
    return next(number for number in range(os.getpid() % SUBNETS, 256) if f"10.213.{number}" not in used)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TOOL_SECONDS).stdout
