"""A ledger works in any process: with loops, threads, forks, and exits without a clean-up."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync

import routing
import routing.singletons
import routing.sync
from ledger import current_runtime
from ledger import runtime as runtime_module
from routing import Allowance, JobRoute, LedgerClosed, Routing, Settings, StorageUnavailable
from routing.service import lifecycle
from routing.service.lifecycle import Lifecycle
from tests.support.small import VALIDATOR, job, small_ledger

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(respect_executor_count=False)
OFFERS = {f"5Miner{number}": 5 for number in range(5)}
CHILD_SECONDS = 60
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine without an event loop of the test's own."""
    return current_runtime().run_blocking(work)


async def seed(url: str) -> None:
    async with small_ledger(url=url, offers=OFFERS, blocks=41, settings=SETTINGS):
        """Five miners with 40 blocks of 30 s each."""


@pytest.fixture
def url(shared_url: str) -> str:
    """A ledger with plenty of allowance."""
    run(seed(shared_url))
    return shared_url


@pytest.fixture
def singletons(url: str) -> Iterator[str]:
    """`routing()` and `allowance()` on that ledger."""
    routing.reset()
    routing.configure(database_url=url, validator_ss58=VALIDATOR)
    yield url
    routing.reset()


def reserved(url: str) -> set[str | None]:
    """Return the jobs that have a reservation in the log, read through a second ledger."""
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        return {reservation.job_uuid for reservation in ledger.history(limit=10_000).items}


def no_block_twice(routes: list[JobRoute]) -> bool:
    """Whether no two routes have a block in common."""
    blocks = [(route.miner.hotkey_ss58, block) for route in routes for block in route.allowance_blocks or []]
    return len(blocks) == len(set(blocks))


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Start functions at the same moment, each in its thread, and return their results."""
    barrier = threading.Barrier(len(works))

    def started(work: Callable[[], Any]) -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(started, works))


def in_child(work: Callable[[], object]) -> str:
    """Run a function in a forked child and return its result or error as text.

    The child ends as Celery's workers do, without a clean-up.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = str(work())
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(sending, result.encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        received = pipe.read().decode()
    os.waitpid(child, 0)
    return received


def script(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new Python process that must end within a minute."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# Loops and threads


async def test_the_shared_router_works_from_the_loop_of_the_test(singletons: str) -> None:
    """An asyncio caller needs nothing but `await routing().pick_miner_for_job_request(…)`."""
    route = await routing.routing().pick_miner_for_job_request(job("a"))

    assert (await routing.allowance().reservation_for_job("a")).reservation_id == route.allowance_reservation_id


def test_the_shared_router_works_from_several_loops_in_succession(singletons: str) -> None:
    """Nothing in the router belongs to its first caller's loop, which is closed before the second call."""

    def one_after_the_other() -> None:
        for number in range(3):
            asyncio.run(routing.routing().pick_miner_for_job_request(job(f"job-{number}")))

    at_once([one_after_the_other])  # In a thread: `asyncio.run` removes the loop of its thread.

    assert reserved(singletons) == {"job-0", "job-1", "job-2"}


def test_the_shared_router_works_from_several_loops_at_once(singletons: str) -> None:
    """Two threads with a loop each share one ledger, and no block is reserved twice."""

    async def pick_ten(thread: int) -> list[JobRoute]:
        picks = [routing.routing().pick_miner_for_job_request(job(f"{thread}-{number}")) for number in range(10)]
        return await asyncio.gather(*picks)

    def in_a_loop(thread: int) -> list[JobRoute]:
        return asyncio.run(pick_ten(thread))

    first, second = at_once([lambda: in_a_loop(1), lambda: in_a_loop(2)])

    assert no_block_twice(first + second)
    assert len(reserved(singletons)) == 20


def test_blocking_calls_work_from_threads_without_a_loop(singletons: str) -> None:
    """Eight threads pick for a job each at the same time, and get eight reservations."""
    picks = [
        lambda number=number: routing.sync.routing().pick_miner_for_job_request(job(f"job-{number}"))
        for number in range(8)
    ]
    routes = at_once(picks)

    assert no_block_twice(routes)
    assert len({route.allowance_reservation_id for route in routes}) == 8


def test_django_style_calls_leave_no_thread_and_no_file_behind(singletons: str) -> None:
    """Each `async_to_sync` call creates a loop and closes it; the library leaves nothing in it."""
    pick = async_to_sync(routing.routing().pick_miner_for_job_request)

    def pick_and_release(number: int) -> None:
        route = pick(job(f"job-{number}"))
        async_to_sync(routing.allowance().release)(route.allowance_reservation_id or 0)

    for number in range(5):
        pick_and_release(number)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for number in range(130):
        pick_and_release(number)

    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files


async def test_a_blocking_call_on_a_running_loop_is_refused_with_advice(singletons: str) -> None:
    """The call would stop that loop; from another thread it works."""
    with pytest.raises(RuntimeError, match=r"await the same call.*asyncio\.to_thread"):
        routing.sync.routing().pick_miner_for_job_request(job("a"))
    with pytest.raises(RuntimeError, match="await the same call"):
        routing.sync.allowance().current_block()

    assert await asyncio.to_thread(routing.sync.allowance().current_block) == 41


def test_a_forked_child_does_not_apply_the_settings_again(tmp_path: Path) -> None:
    """A child opens again what its parent has opened; settings that were changed meanwhile stay.

    Catches a read in a worker process that undoes what an operator has changed.
    """
    url = f"sqlite:///{tmp_path / 'a.db'}"
    given = Settings(longest_job_seconds=60)
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR, settings=given) as ledger:
        ledger.change_settings(longest_job_seconds=1800)
        assert in_child(lambda: ledger.settings().longest_job_seconds) == "1800.0"
        assert ledger.settings().longest_job_seconds == 1800.0


def test_a_forked_child_refuses_a_log_that_went_back(tmp_path: Path) -> None:
    """Nobody reopened it on purpose: a prefork server must not go on in its next worker.

    The loss is made by a head that the log never had.
    """
    with routing.sync.Allowance.open(f"sqlite:///{tmp_path / 'a.db'}", validator_ss58=VALIDATOR) as ledger:
        ledger.expire_due()
        handle = ledger.asynchronous._lifecycle.open_handle
        assert handle is not None
        handle.writer._live.acknowledged.note(10**6, bytes(32))
        assert in_child(ledger.expire_due).startswith("LogWentBack: ")


# Opening and closing


def test_a_ledger_first_used_by_many_threads_is_opened_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If many threads use a ledger at the same moment, one of them opens it and the others wait."""
    opened: list[int] = []

    new_store = Lifecycle._new_store

    def counted(opener: Lifecycle) -> Any:
        store = new_store(opener)
        opening = store.open

        def open_counted(*args: Any) -> Any:
            opened.append(1)
            return opening(*args)

        monkeypatch.setattr(store, "open", open_counted)
        return store

    monkeypatch.setattr(Lifecycle, "_new_store", counted)
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for attempt in range(1, 6):
            ledger = routing.sync.Allowance.open(url, validator_ss58=VALIDATOR)
            assert set(at_once([ledger.current_block] * 16)) == {41}
            assert len(opened) == attempt
            ledger.close()
    finally:
        sys.setswitchinterval(switching)


async def test_a_closed_ledger_refuses_every_call(url: str) -> None:
    """Commands and queries raise `LedgerClosed`; to close it again does nothing."""
    ledger = await Allowance.open(url, validator_ss58=VALIDATOR)
    await ledger.close()
    await ledger.close()

    for late in (ledger.current_block(), ledger.release(1), ledger.head(), ledger.history()):
        with pytest.raises(LedgerClosed):
            await late


async def test_closing_a_ledger_that_is_being_opened_leaves_nothing_open(url: str) -> None:
    """The waiting caller gets its result or `LedgerClosed`, and the ledger keeps no connection."""
    ledger = Allowance.open(url, validator_ss58=VALIDATOR)
    opening = asyncio.create_task(ledger.current_block())
    while ledger._lifecycle._opening is None:  # noqa: ASYNC110 - the opening begins in another thread, without an event
        await asyncio.sleep(0)
    await ledger.close()
    (answer,) = await asyncio.gather(opening, return_exceptions=True)

    assert answer == 41 or isinstance(answer, LedgerClosed)
    with pytest.raises(LedgerClosed):
        await ledger.current_block()
    assert ledger._lifecycle.open_handle is None


async def test_closing_does_not_wait_for_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting callers raise `LedgerClosed` at once.

    Catches a close that waits for the connection to time out, which here is never: an interrupted command line would
    seem to hang.
    """
    monkeypatch.setattr("ledger.store.postgres.connecting.CONNECT_TIMEOUT_SECONDS", 1e6)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ledger = Allowance.open(f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/db", validator_ss58=VALIDATOR)
        waiting = [asyncio.create_task(ledger.current_block()) for _ in range(2)]
        connection, _ = await asyncio.to_thread(server.accept)
        with connection:
            await ledger.close()
            for each in waiting:
                with pytest.raises(LedgerClosed):
                    await each
    assert ledger._lifecycle._connecting is None


async def test_closing_while_another_process_writes_leaves_the_write_lock_queue(tmp_path: Path) -> None:
    """An opening that waits for the write lock is cancelled, and gives the lock back when it arrives."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    await seed(url)
    ledger = Allowance.open(url, validator_ss58=VALIDATOR)
    with open(tmp_path / "ledger.db.lock", "wb") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        waiting = asyncio.create_task(ledger.current_block())
        while ledger._lifecycle._connecting is None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        await ledger.close()
        with pytest.raises(LedgerClosed):
            await waiting
    with open(tmp_path / "ledger.db.lock", "wb") as lock_file:
        await asyncio.to_thread(fcntl.flock, lock_file, fcntl.LOCK_EX)
    async with Allowance.open(url, validator_ss58=VALIDATOR) as again:
        assert await again.current_block() == 41


async def test_an_opening_that_fails_after_its_caller_was_cancelled_logs_no_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches asyncio's "exception was never retrieved", with a traceback, on an interrupted command."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    begun, failing = threading.Event(), asyncio.Event()

    async def fail(*_: object) -> None:
        begun.set()
        await failing.wait()
        raise StorageUnavailable("no")

    monkeypatch.setattr("ledger.store.sqlite.store.SqliteStore.open", fail)
    ledger = Allowance.open(f"sqlite:///{tmp_path / 'ledger.db'}", validator_ss58=VALIDATOR)
    waiting = asyncio.create_task(ledger.current_block())
    await asyncio.to_thread(begun.wait)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    opening = ledger._lifecycle._opening
    assert opening is not None
    current_runtime().loop.call_soon_threadsafe(failing.set)
    await asyncio.gather(asyncio.wrap_future(opening), return_exceptions=True)
    del opening, ledger, waiting  # They keep the futures alive, which would complain when they are deleted.
    await current_runtime().run(asyncio.sleep(0))  # Afterwards the other loop has no reference to them either.
    gc.collect()
    assert complaints == []


async def test_closing_finishes_or_refuses_every_waiting_pick(url: str) -> None:
    """Each of 200 queued picks either returns and is in the log, or raises `LedgerClosed` and is not in the log."""
    ledger = await Allowance.open(url, validator_ss58=VALIDATOR)
    router = Routing(ledger)
    picks = [asyncio.create_task(router.pick_miner_for_job_request(job(f"job-{n}", 1.0))) for n in range(200)]
    await asyncio.sleep(0)
    await ledger.close()
    outcomes = await asyncio.gather(*picks, return_exceptions=True)
    routed = {f"job-{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, JobRoute)}

    assert {type(outcome) for outcome in outcomes} <= {JobRoute, LedgerClosed}
    assert await asyncio.to_thread(reserved, url) == routed
    assert routed


async def test_a_failed_opening_is_retried_by_the_next_call(tmp_path: Path) -> None:
    """A database that is unavailable at the first call may be available at the second."""
    (tmp_path / "ledgers").write_text("in the way")
    ledger = Allowance.open(f"sqlite:///{tmp_path}/ledgers/ledger.db", validator_ss58=VALIDATOR)
    with pytest.raises(StorageUnavailable):
        await ledger.current_block()
    (tmp_path / "ledgers").unlink()

    assert await ledger.current_block() is None
    await ledger.close()


def test_configuring_a_ledger_in_use_is_refused(singletons: str) -> None:
    """Otherwise a part of the process would go on with the old ledger. After `reset` another can be configured."""
    assert routing.sync.allowance().current_block() == 41
    with pytest.raises(RuntimeError, match=r"routing\.reset"):
        routing.configure(validator_ss58="5Other")
    before = routing.allowance()
    routing.reset()
    routing.configure(database_url="sqlite://", validator_ss58="5Other")

    with pytest.raises(LedgerClosed):
        routing.sync.Allowance(before).current_block()
    assert routing.allowance().validator_ss58 == "5Other"
    assert routing.sync.allowance().current_block() is None


# Forks


def test_a_forked_child_and_its_parent_both_continue(singletons: str) -> None:
    """The child does not use its parent's ledger but opens its own, and both append to one log."""
    pick = routing.sync.routing().pick_miner_for_job_request
    pick(job("before"))

    assert in_child(lambda: pick(job("child")).allowance_reservation_id).isdigit()
    pick(job("after"))
    assert reserved(singletons) == {"before", "child", "after"}


def test_a_forked_childs_commits_survive_its_parents_closing(url: str) -> None:
    """A child's acknowledged commit is still stored after the parent has closed the database.

    SQLite keeps a process's locks in memory, which a child inherits without the locks. If the parent's connection were
    open during the fork, the parent would believe that it is the only user of the file, remove the WAL when it closes,
    and lose the child's commits with it.
    """
    closed_receiving, closed_sending = os.pipe()
    ledger = routing.sync.Allowance.open(url, validator_ss58=VALIDATOR)
    ledger.reserve("5Miner0", "always_on.gpu-24gb", 6.0, 41, job_uuid="parent")

    def reserve_before_and_after_the_closing() -> str:
        ledger.reserve("5Miner1", "always_on.gpu-24gb", 6.0, 41, job_uuid="child, before")
        os.write(closed_sending, b"ready")
        os.read(wait_receiving, 1)
        ledger.reserve("5Miner2", "always_on.gpu-24gb", 6.0, 41, job_uuid="child, after")
        return "done"

    wait_receiving, wait_sending = os.pipe()

    def close_in_between() -> None:
        os.read(closed_receiving, 5)
        ledger.close()
        os.write(wait_sending, b"x")

    closing = threading.Thread(target=close_in_between)
    closing.start()
    result = in_child(reserve_before_and_after_the_closing)
    closing.join()

    assert result == "done"
    assert reserved(url) == {"parent", "child, before", "child, after"}


def test_forking_while_threads_pick_loses_no_pick(singletons: str) -> None:
    """Threads keep picking while the process forks repeatedly; every pick of every process is in the log."""
    pick = routing.sync.routing().pick_miner_for_job_request
    pick(job("first", 1.0))
    stop = threading.Event()
    routed: list[str] = ["first"]

    def keep_picking(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            route = pick(job(f"{thread}-{number}", 1.0))
            routed.append(f"{thread}-{number}")
            routing.sync.allowance().release(route.allowance_reservation_id or 0)
            routing.sync.allowance().history(limit=1)

    def pick_one(number: int) -> float | None:
        return pick(job(f"child-{number}", 1.0)).allowance_job_value

    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(keep_picking, thread) for thread in range(3)]
        try:
            values = [in_child(partial(pick_one, n)) for n in range(6)]
        finally:
            stop.set()
        for work in working:
            work.result()

    assert values == ["1.0"] * 6
    assert reserved(singletons) == {*routed, *(f"child-{n}" for n in range(6))}


def test_multiprocessing_workers_share_the_ledger(singletons: str) -> None:
    """Each worker of a pool that is forked after the first use opens its own ledger; no block is reserved twice."""
    pick = routing.sync.routing().pick_miner_for_job_request
    pick(job("before", 1.0))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        routes = pool.map(_pick, [f"job-{number}" for number in range(30)])

    assert no_block_twice(routes)
    assert len(reserved(singletons)) == 31


def _pick(uuid: str) -> JobRoute:
    return routing.sync.routing().pick_miner_for_job_request(job(uuid, 1.0))


@pytest.mark.parametrize(
    "lock", ["routing.singletons._guard", "routing.service.lifecycle._guard", "ledger.runtime._starting"]
)
def test_a_lock_held_by_another_thread_during_a_fork_does_not_block_the_child(lock: str, tmp_path: Path) -> None:
    """The thread that holds the lock does not exist in the child, so nobody would ever release it there."""
    module_name, _, name = lock.rpartition(".")
    holding, forked = threading.Event(), threading.Event()
    url = f"sqlite:///{tmp_path}/ledger.db"

    def hold() -> None:
        with getattr(sys.modules[module_name], name):
            holding.set()
            forked.wait()

    def first_use() -> int | None:
        routing.reset()
        routing.configure(database_url=url, validator_ss58=VALIDATOR)
        newest: int | None = routing.sync.allowance().current_block()
        return newest

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    threading.Timer(5, forked.set).start()  # Otherwise a child that hangs would block its parent for ever.
    result = in_child(first_use)
    forked.set()
    holder.join()

    assert result == "None"


def test_a_child_forked_during_a_write_refuses_to_use_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the fork cannot wait for a write, the child raises `StorageUnavailable`, and the parent continues."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    run(seed(url))
    monkeypatch.setattr(runtime_module, "FORK_PAUSE_SECONDS", 0.2)
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert ledger.asynchronous._lifecycle.open_handle is not None
        writing = ledger.asynchronous._lifecycle.open_handle.store.transaction()
        run(writing.__aenter__())
        result = in_child(ledger.current_block)
        run(writing.__aexit__(None, None, None))

        assert result.startswith("StorageUnavailable")
        assert "forked" in result
        assert ledger.reserve("5Miner0", "always_on.gpu-24gb", 6.0, 41).blocks
        assert in_child(ledger.current_block) == "41"


def test_a_child_that_closes_its_parents_ledger_leaves_it_open(url: str) -> None:
    """The child keeps the parent's handle: garbage collection in the child would end the parent's connections."""
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert ledger.current_block() == 41
        handle = ledger.asynchronous._lifecycle.open_handle

        def close() -> bool:
            ledger.close()
            return handle in lifecycle._left_to_parents

        assert in_child(close) == "True"
        assert ledger.reserve("5Miner0", "always_on.gpu-24gb", 6.0, 41).blocks


def test_a_ledger_in_memory_stays_with_the_parent() -> None:
    """A child would have a copy that nobody else sees: its calls are refused, and the parent's ledger is unchanged."""
    with routing.sync.Allowance.open("sqlite://", validator_ss58=VALIDATOR) as ledger:
        ledger.record_manifests(1, {"5Anna": {"gpu": 1}})

        assert in_child(ledger.current_block).startswith("StorageUnavailable")
        assert ledger.manifests() == {"5Anna": {"gpu": 1}}


# Exits


EXIT = """
import sys, threading
import routing.sync
from tests.support.small import VALIDATOR, job
routing.configure(database_url=sys.argv[1], validator_ss58=VALIDATOR)
pick = routing.sync.routing().pick_miner_for_job_request
"""


def test_a_process_that_closes_nothing_exits_cleanly(url: str) -> None:
    """No thread delays the exit, nothing is written to standard error, and every returned pick is in the log."""
    ended = script(
        EXIT
        + """
pick(job("a"))
routing.sync.allowance().history()
routing.sync.allowance().health()
""",
        url,
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert reserved(url) == {"a"}


def test_an_exiting_process_finishes_or_refuses_the_picks_under_way(url: str) -> None:
    """Threads are in the middle of picks when the main thread ends: every pick that returned is in the log."""
    ended = script(
        EXIT
        + """
import os
pick(job("first", 1.0))
begun = threading.Barrier(9)

def keep_picking(thread):
    begun.wait()
    for number in range(10_000):
        uuid = f"{thread}-{number}"
        try:
            route = pick(job(uuid, 1.0))
            os.write(1, f"{uuid}\\n".encode())
            routing.sync.allowance().release(route.allowance_reservation_id)
        except routing.LedgerClosed:
            return

for thread in range(8):
    threading.Thread(target=keep_picking, args=(thread,), daemon=True).start()
begun.wait()
pick(job("last", 1.0))
""",
        url,
    )
    returned = set(ended.stdout.split())

    assert (ended.returncode, ended.stderr) == (0, "")
    assert {"first", "last", *returned} <= reserved(url)


def test_a_process_that_never_used_the_ledger_starts_nothing(tmp_path: Path) -> None:
    """An import starts no thread and loads neither SQLAlchemy nor a driver."""
    ended = script(
        """
import os, sys, threading
import routing, routing.sync
assert threading.active_count() == 1, threading.enumerate()
assert "sqlalchemy" not in sys.modules
assert "asyncpg" not in sys.modules
"""
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
