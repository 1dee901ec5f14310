"""The kinds of fail-over: what is done to the nodes, and how the cluster is whole again after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.support.servers import connected

from .nodes import Cluster, Node

# How long an old leader that noticed nothing goes on answering beside the new one.
BESIDE_SECONDS = 3.0
POLL_SECONDS = 0.05
WAIT_SECONDS = 60.0


class Failover(NamedTuple):
    """One fail-over, by the monotonic clock."""

    kind: str
    began_ns: int
    ended_ns: int


def fail_over(cluster: Cluster, kind: str) -> Failover:
    """Do a fail-over of this kind, and wait until all nodes are back and commits wait for a standby again."""
    leader = cluster.wait_until_ready()
    began_ns = time.monotonic_ns()
    KINDS[kind](cluster, leader)
    cluster.wait_until_ready()
    return Failover(kind, began_ns, time.monotonic_ns())


def leader_killed(cluster: Cluster, leader: Node) -> None:
    """Patroni and PostgreSQL of the leader end with SIGKILL; the old leader comes back after that."""
    leader.kill()
    cluster.leader(besides=leader)
    leader.start()


def postgres_stopped(cluster: Cluster, leader: Node) -> None:
    """The leader's PostgreSQL is stopped; its Patroni gives the lead away and starts it as a standby."""
    leader.stop_postgres()
    cluster.leader(besides=leader)


def postgres_killed(cluster: Cluster, leader: Node) -> None:
    """The leader's PostgreSQL ends with SIGKILL; its Patroni gives the lead away and starts it as a standby."""
    leader.kill_postgres()
    cluster.leader(besides=leader)


def standby_killed(cluster: Cluster, leader: Node) -> None:
    """The standby for which commits wait ends with SIGKILL; the other one takes its place."""
    standby = cluster.synchronous_standby()
    standby.kill()
    cluster.wait_until_ready()
    standby.start()


def network_cut(cluster: Cluster, leader: Node) -> None:
    """The leader is cut off from the other nodes, but not from callers; Patroni demotes it, and it comes back."""
    cluster.isolate(leader)
    cluster.leader(besides=leader)
    cluster.restore(leader)


def old_leader_late(cluster: Cluster, leader: Node) -> None:
    """The leader is cut off and its Patroni hangs: it goes on as a primary beside the new one, and answers callers."""
    leader.pause_patroni()
    cluster.isolate(leader)
    try:
        cluster.leader(besides=leader)
        assert is_primary(leader), "the old leader was to go on beside the new one"
        # A duration, not a race: callers work on both primaries meanwhile, and the judge looks at all of it afterwards.
        time.sleep(BESIDE_SECONDS)
        assert is_primary(leader), "the old leader was to go on beside the new one"
    finally:
        cluster.restore(leader)
        leader.resume_patroni()


def lose_a_tail(cluster: Cluster, is_acknowledged: Callable[[], bool]) -> Failover:
    """Kill a leader that was cut off after it went on to acknowledge; asynchronous standbys lack that tail.

    Wait before the kill until `is_acknowledged`: then there is something to lose.
    """
    leader = cluster.wait_until_ready(synchronous=False)
    # Its Patroni would demote it soon.
    leader.pause_patroni()
    cluster.isolate(leader)
    began_ns = time.monotonic_ns()
    _wait_until(is_acknowledged)
    leader.kill()
    cluster.leader(besides=leader)
    promoted_ns = time.monotonic_ns()
    cluster.restore(leader)
    return Failover("lost tail", began_ns, promoted_ns)


def is_primary(node: Node) -> bool:
    """Whether PostgreSQL on this node answers, and is no standby."""
    return asyncio.run(_is_primary(node.url("postgres")))


async def _is_primary(url: str) -> bool:
    async with connected(url) as connection:
        return not await connection.fetchval("SELECT pg_is_in_recovery()")


def _wait_until(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < ends_at, "nobody acknowledged anything on the old leader"
        time.sleep(POLL_SECONDS)


KINDS: dict[str, Callable[[Cluster, Node], None]] = {
    kind.__name__.replace("_", "-"): kind
    for kind in (leader_killed, postgres_stopped, postgres_killed, standby_killed, network_cut, old_leader_late)
}
