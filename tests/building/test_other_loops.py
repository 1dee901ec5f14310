"""gevent and trio: each works in the way that the errors name, and everything else is refused with such an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.servers import PostgresServer

# What every program below does: route three jobs with blocking calls.
BLOCKING = """
from routing import Allowance
from routing.contrib.testing import MovableClock, SmallNetwork

network, clock = SmallNetwork(), MovableClock()

def route(url):
    import routing.sync
    with routing.sync.Allowance.open(url, validator_ss58=network.validator_ss58, clock_ns=clock) as ledger:
        ledger.record_facts(network.facts(clock.now))
        router = routing.sync.Routing(ledger)
        routes = [router.pick_miner_for_job_request(network.job(3.0)) for _ in range(3)]
        return [ledger.settle(each, "spend").status for each in routes]
"""
SPENT = str(["spent"] * 3)


def run(before: str, after: str, *arguments: str) -> list[str]:
    """Run a program in a process of its own, since patches and loops are for whole processes; return its lines."""
    command = [sys.executable, "-c", before + BLOCKING + after, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


PATCH_ALL = "from gevent import monkey\nmonkey.patch_all({})\nimport gevent, sys\n"
PRINT_REFUSAL = """
try:
    route("sqlite://")
except RuntimeError as refusal:
    print(refusal)
"""


@pytest.mark.parametrize("patched", ["", "select=False", "thread=False"])
def test_gevent_that_replaces_threads_or_selectors_is_refused(patched: str) -> None:
    """The ledger would hang or fail obscurely; it fails if `Runtime` does not check.

    The error says which patches and which workers to use instead.
    """
    (refusal,) = run(PATCH_ALL.format(patched), PRINT_REFUSAL)
    assert "patch_all(thread=False, select=False)" in refusal
    assert "gthread" in refusal


ROUTE_IN_GREENLETS = """
from gevent.event import Event

pool, ticked = gevent.get_hub().threadpool, Event()
tick = gevent.spawn(ticked.set)
routed = [pool.spawn(route, url) for url in sys.argv[1:]]
assert ticked.wait(10)
print(*(each.get() for each in routed), sep="\\n")
"""


def test_gevent_routes_in_its_thread_pool() -> None:
    """With the patches that the error names, calls in gevent's thread pool work, and other greenlets go on."""
    in_pool = run(PATCH_ALL.format("thread=False, select=False"), ROUTE_IN_GREENLETS, "sqlite://", "sqlite://")
    assert in_pool == [SPENT, SPENT]


@pytest.mark.slow
def test_gevent_routes_on_postgresql(postgres_18: PostgresServer) -> None:
    """The patched sockets carry the database's connections too."""
    with postgres_18.fresh_database() as url:
        assert run(PATCH_ALL.format("thread=False, select=False"), ROUTE_IN_GREENLETS, url) == [SPENT]


TRIO = """
import trio

async def refused(call):
    try:
        await call()
    except RuntimeError as refusal:
        print(refusal)

async def blocking_in_a_task():
    route("sqlite://")

async def awaited_before_it_is_open():
    await Allowance.open("sqlite://", validator_ss58="5Validator").head()

async def main():
    print(await trio.to_thread.run_sync(route, "sqlite://"))
    await refused(blocking_in_a_task)
    await refused(awaited_before_it_is_open)
    opened = Allowance.open("sqlite://", validator_ss58=network.validator_ss58, clock_ns=clock)
    import asyncio
    await trio.to_thread.run_sync(asyncio.run, opened.record_facts(network.facts(clock.now)))
    await refused(lambda: opened.expire_due())
    await refused(opened.health)

trio.run(main)
"""


def test_trio_routes_in_a_thread_and_is_refused_elsewhere() -> None:
    """Under trio, blocking calls in a thread work. Others would stop trio's loop, or fail inside asyncio.

    It fails if `refuse_on_loop` does not look for trio, or if a call is awaited without an asyncio loop.
    """
    routed, in_a_task, *awaited = run("", TRIO)
    assert routed == SPENT
    assert "trio.to_thread.run_sync" in in_a_task
    assert "would stop trio's event loop" in in_a_task
    assert len(awaited) == 3
    for refusal in awaited:
        assert refusal.startswith("awaiting a ledger needs a running asyncio event loop")
        assert "trio.to_thread.run_sync" in refusal
