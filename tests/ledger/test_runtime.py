"""A ledger lives in whatever process its caller has: loops, threads, forks, and exits that nobody prepared."""

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
from ledger import current_runtime, store_from_url
from ledger import runtime as runtime_module
from routing import Allowance, JobRoute, LedgerClosed, Routing, Settings, StorageUnavailable
from tests.support.small import VALIDATOR, job, small_ledger

ROOT = Path(__file__).parents[1]
SETTINGS = Settings(respect_executor_count=False)
OFFERS = {f"5Miner{number}": 5 for number in range(5)}
CHILD_SECONDS = 60
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine without an event loop of the test's own."""
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
    """The jobs that the log has a reservation of, as another opening sees them."""
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        return {reservation.job_uuid for reservation in ledger.history(limit=10_000).items}


def held_once(routes: list[JobRoute]) -> bool:
    """Whether no block is in two of the routes."""
    blocks = [(route.miner.hotkey_ss58, block) for route in routes for block in route.allowance_blocks or []]
    return len(blocks) == len(set(blocks))


def at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of functions that start in their threads at the same moment."""
    barrier = threading.Barrier(len(works))

    def started(work: Callable[[], Any]) -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(started, works))


def in_child(work: Callable[[], object]) -> str:
    """What a function answers in a forked child; the child ends as Celery's do, without cleaning up."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(sending, answer.encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as answers:
        answered = answers.read().decode()
    os.waitpid(child, 0)
    return answered


def script(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own that has to end within a minute."""
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
    """`await routing().pick_miner_for_job_request(…)` is all that an asyncio caller does."""
    route = await routing.routing().pick_miner_for_job_request(job("a"))

    assert (await routing.allowance().reservation_for_job("a")).reservation_id == route.allowance_reservation_id


def test_the_shared_router_works_from_one_loop_after_the_other(singletons: str) -> None:
    """Nothing of it belongs to the loop that used it first, which is closed when the second comes."""

    def one_after_the_other() -> None:
        for number in range(3):
            asyncio.run(routing.routing().pick_miner_for_job_request(job(f"job-{number}")))

    at_once([one_after_the_other])  # in a thread: `asyncio.run` takes a thread's own loop away

    assert reserved(singletons) == {"job-0", "job-1", "job-2"}


def test_the_shared_router_works_from_several_loops_at_once(singletons: str) -> None:
    """Two threads with a loop each share one ledger, and never a block."""

    async def pick_ten(thread: int) -> list[JobRoute]:
        picks = [routing.routing().pick_miner_for_job_request(job(f"{thread}-{number}")) for number in range(10)]
        return await asyncio.gather(*picks)

    def in_a_loop(thread: int) -> list[JobRoute]:
        return asyncio.run(pick_ten(thread))

    first, second = at_once([lambda: in_a_loop(1), lambda: in_a_loop(2)])

    assert held_once(first + second)
    assert len(reserved(singletons)) == 20


def test_the_blocking_face_works_from_threads_without_a_loop(singletons: str) -> None:
    """Eight threads at once, each with its own job."""
    picks = [
        lambda number=number: routing.sync.routing().pick_miner_for_job_request(job(f"job-{number}"))
        for number in range(8)
    ]
    routes = at_once(picks)

    assert held_once(routes)
    assert len({route.allowance_reservation_id for route in routes}) == 8


def test_django_style_calls_leave_no_thread_and_no_file_behind(singletons: str) -> None:
    """Each `async_to_sync` call brings a loop of its own and takes it away again; nothing of ours stays in it."""
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


async def test_a_blocking_call_on_a_running_loop_says_what_to_do(singletons: str) -> None:
    """It would stop the loop that it is made on; from a thread beside the loop it is fine."""
    with pytest.raises(RuntimeError, match=r"await the same call.*asyncio\.to_thread"):
        routing.sync.routing().pick_miner_for_job_request(job("a"))
    with pytest.raises(RuntimeError, match="await the same call"):
        routing.sync.allowance().current_block()

    assert await asyncio.to_thread(routing.sync.allowance().current_block) == 41


# Opening and closing


def test_a_ledger_that_many_threads_use_first_is_opened_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask at the same moment, one of them opens it and all the others wait for that."""
    opened: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        store = store_from_url(*args, **kwargs)
        opening = store.open

        def open_counted(*args: Any) -> Any:
            opened.append(1)
            return opening(*args)

        monkeypatch.setattr(store, "open", open_counted)
        return store

    monkeypatch.setattr("routing.service.lifecycle.store_from_url", counted)
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


async def test_a_ledger_that_is_used_after_closing_says_so(url: str) -> None:
    """Changes and questions raise `LedgerClosed`; closing again does nothing."""
    ledger = await Allowance.open(url, validator_ss58=VALIDATOR)
    await ledger.close()
    await ledger.close()

    for late in (ledger.current_block(), ledger.release(1), ledger.head(), ledger.history()):
        with pytest.raises(LedgerClosed):
            await late


async def test_closing_while_it_opens_closes_what_is_opened(url: str) -> None:
    """Nothing is left open behind a ledger that was closed before it was there; callers hear of one or the other."""
    ledger = Allowance.open(url, validator_ss58=VALIDATOR)
    opening = asyncio.create_task(ledger.current_block())
    while ledger._lifecycle._opening is None:  # noqa: ASYNC110 - the opening begins in another thread, which tells nobody
        await asyncio.sleep(0)
    await ledger.close()
    (answer,) = await asyncio.gather(opening, return_exceptions=True)

    assert answer == 41 or isinstance(answer, LedgerClosed)
    with pytest.raises(LedgerClosed):
        await ledger.current_block()
    assert ledger._lifecycle.open_handle is None


async def test_closing_does_not_wait_for_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits hears that the ledger was closed. Catches a close that waits until connecting is given up, which
    here is never: an interrupted command would seem not to hear."""
    monkeypatch.setattr("ledger.store.postgres.store.CONNECT_TIMEOUT_SECONDS", 1e6)
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


async def test_closing_while_another_process_writes_leaves_the_line(tmp_path: Path) -> None:
    """An opening that waits for its turn is given up, and holds up nobody when the turn comes."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    await seed(url)
    ledger = Allowance.open(url, validator_ss58=VALIDATOR)
    with open(tmp_path / "ledger.db.lock", "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        waiting = asyncio.create_task(ledger.current_block())
        while ledger._lifecycle._connecting is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        await ledger.close()
        with pytest.raises(LedgerClosed):
            await waiting
    with open(tmp_path / "ledger.db.lock", "wb") as turn:
        await asyncio.to_thread(fcntl.flock, turn, fcntl.LOCK_EX)
    async with Allowance.open(url, validator_ss58=VALIDATOR) as again:
        assert await again.current_block() == 41


async def test_an_opening_that_fails_when_nobody_waits_any_more_is_no_ones_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches asyncio's "exception was never retrieved", with a traceback, on an interrupted command."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
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
    del opening, ledger, waiting  # What keeps the futures alive; they complain when they go.
    await current_runtime().run(asyncio.sleep(0))  # By then the other loop has let go of them as well.
    gc.collect()
    assert complaints == []


async def test_closing_settles_or_reports_every_change_that_waits(url: str) -> None:
    """Each of 200 picks in the queue is either in the log and answered, or refused and not in the log."""
    ledger = await Allowance.open(url, validator_ss58=VALIDATOR)
    router = Routing(ledger)
    picks = [asyncio.create_task(router.pick_miner_for_job_request(job(f"job-{n}", 1.0))) for n in range(200)]
    await asyncio.sleep(0)
    await ledger.close()
    outcomes = await asyncio.gather(*picks, return_exceptions=True)
    answered = {f"job-{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, JobRoute)}

    assert {type(outcome) for outcome in outcomes} <= {JobRoute, LedgerClosed}
    assert await asyncio.to_thread(reserved, url) == answered
    assert answered


async def test_an_opening_that_failed_is_tried_again(tmp_path: Path) -> None:
    """A database that was not to be had at the first call may be there at the second."""
    (tmp_path / "ledgers").write_text("in the way")
    ledger = Allowance.open(f"sqlite:///{tmp_path}/ledgers/ledger.db", validator_ss58=VALIDATOR)
    with pytest.raises(StorageUnavailable):
        await ledger.current_block()
    (tmp_path / "ledgers").unlink()

    assert await ledger.current_block() is None
    await ledger.close()


def test_configuring_what_is_in_use_is_refused(singletons: str) -> None:
    """Else half a process would go on with the old ledger. `reset` closes it, and makes room for another."""
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


def test_a_forked_child_and_its_parent_both_go_on(singletons: str) -> None:
    """The child finds its parent's ledger unusable, opens its own, and both write one log."""
    pick = routing.sync.routing().pick_miner_for_job_request
    pick(job("before"))

    assert in_child(lambda: pick(job("child")).allowance_reservation_id).isdigit()
    pick(job("after"))
    assert reserved(singletons) == {"before", "child", "after"}


def test_what_a_forked_child_commits_outlives_its_parent(url: str) -> None:
    """A child's acknowledged commit is still there when the parent closed the database meanwhile.

    SQLite remembers a process's locks in memory, which a child inherits without the locks: were the parent's
    connection open during the fork, the parent would take itself for the last one, remove the WAL, and with it what
    the child writes.
    """
    closed_receiving, closed_sending = os.pipe()
    ledger = routing.sync.Allowance.open(url, validator_ss58=VALIDATOR)
    ledger.reserve("5Miner0", "always_on.gpu-24gb", 6.0, 41, job_uuid="parent")

    def reserve_around_the_closing() -> str:
        ledger.reserve("5Miner1", "always_on.gpu-24gb", 6.0, 41, job_uuid="child, before")
        os.write(closed_sending, b"ready")
        os.read(wait_receiving, 1)
        ledger.reserve("5Miner2", "always_on.gpu-24gb", 6.0, 41, job_uuid="child, after")
        return "done"

    wait_receiving, wait_sending = os.pipe()

    def close_meanwhile() -> None:
        os.read(closed_receiving, 5)
        ledger.close()
        os.write(wait_sending, b"x")

    closing = threading.Thread(target=close_meanwhile)
    closing.start()
    answer = in_child(reserve_around_the_closing)
    closing.join()

    assert answer == "done"
    assert reserved(url) == {"parent", "child, before", "child, after"}


def test_forking_in_the_middle_of_work_harms_nobody(singletons: str) -> None:
    """Threads go on picking while the process forks again and again; every pick of every process stands."""
    pick = routing.sync.routing().pick_miner_for_job_request
    pick(job("first", 1.0))
    stop = threading.Event()
    answered: list[str] = ["first"]

    def pick_on_and_on(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            route = pick(job(f"{thread}-{number}", 1.0))
            answered.append(f"{thread}-{number}")
            routing.sync.allowance().release(route.allowance_reservation_id or 0)
            routing.sync.allowance().history(limit=1)

    def pick_one(number: int) -> float | None:
        return pick(job(f"child-{number}", 1.0)).allowance_job_value

    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(pick_on_and_on, thread) for thread in range(3)]
        try:
            answers = [in_child(partial(pick_one, n)) for n in range(6)]
        finally:
            stop.set()
        for work in working:
            work.result()

    assert answers == ["1.0"] * 6
    assert reserved(singletons) == {*answered, *(f"child-{n}" for n in range(6))}


def test_multiprocessing_workers_share_the_ledger(singletons: str) -> None:
    """A pool forked after the first use: each worker opens its own, and no block is held twice."""
    pick = routing.sync.routing().pick_miner_for_job_request
    pick(job("before", 1.0))
    with multiprocessing.get_context("fork").Pool(3) as pool:
        routes = pool.map(_pick, [f"job-{number}" for number in range(30)])

    assert held_once(routes)
    assert len(reserved(singletons)) == 31


def _pick(uuid: str) -> JobRoute:
    return routing.sync.routing().pick_miner_for_job_request(job(uuid, 1.0))


@pytest.mark.parametrize(
    "lock", ["routing.singletons._guard", "routing.service.lifecycle._guard", "ledger.runtime._starting"]
)
def test_a_lock_held_during_a_fork_does_not_hold_up_the_child(lock: str, tmp_path: Path) -> None:
    """Another thread of the parent was just inside; in the child nobody will ever let go."""
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
    threading.Timer(5, forked.set).start()  # a child that hangs would otherwise keep its parent waiting for ever
    answer = in_child(first_use)
    forked.set()
    holder.join()

    assert answer == "None"


def test_a_child_of_a_fork_that_came_at_a_bad_moment_does_not_touch_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a write could not be waited for, the child is told to start anew; the parent goes on."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    run(seed(url))
    monkeypatch.setattr(runtime_module, "FORK_PAUSE_SECONDS", 0.2)
    with routing.sync.Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert ledger.asynchronous._lifecycle.open_handle is not None
        writing = ledger.asynchronous._lifecycle.open_handle.store.transaction()
        run(writing.__aenter__())
        answer = in_child(ledger.current_block)
        run(writing.__aexit__(None, None, None))

        assert answer.startswith("StorageUnavailable")
        assert "forked" in answer
        assert ledger.reserve("5Miner0", "always_on.gpu-24gb", 6.0, 41).blocks
        assert in_child(ledger.current_block) == "41"


def test_a_ledger_in_memory_stays_with_the_parent() -> None:
    """A child would have a copy that nobody else sees: it is refused, and the parent keeps what it had."""
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


def test_a_process_that_closes_nothing_ends_cleanly(url: str) -> None:
    """No thread holds it up, nothing is written to standard error, and what was answered is there."""
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


def test_an_exiting_process_settles_or_reports_what_is_under_way(url: str) -> None:
    """Threads are in the middle of picks when the main thread ends: what any of them was told is in the log."""
    ended = script(
        EXIT
        + """
import os
pick(job("first", 1.0))
begun = threading.Barrier(9)

def pick_on_and_on(thread):
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
    threading.Thread(target=pick_on_and_on, args=(thread,), daemon=True).start()
begun.wait()
pick(job("last", 1.0))
""",
        url,
    )
    told = set(ended.stdout.split())

    assert (ended.returncode, ended.stderr) == (0, "")
    assert {"first", "last", *told} <= reserved(url)


def test_a_process_that_never_used_the_ledger_starts_nothing(tmp_path: Path) -> None:
    """Importing does no work: no thread, no file, no engine."""
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
