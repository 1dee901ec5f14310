"""Short queries run in the caller's thread, and never on a state that differs from the committed log."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger import Head, UnitOfWork
from ledger.store.sqlite.store import SqliteStore
from ledger.writer import LedgerWriter
from routing import Allowance, LedgerClosed, NewerLedger, Routing, StorageUnavailable
from tests.support.small import GPU, VALIDATOR, Clock, job, small_ledger

THREADS, CALLERS, JOBS_EACH = 2, 8, 10


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def writer_of(ledger: Allowance) -> LedgerWriter[Any]:
    assert ledger._lifecycle.open_handle is not None
    return ledger._lifecycle.open_handle.writer


def store_of(ledger: Allowance) -> SqliteStore:
    store = writer_of(ledger).store
    assert isinstance(store, SqliteStore)
    return store


def refuse(*_: object) -> None:
    raise AssertionError("the query was passed to the ledger's thread")


def head_of(state: Any, _: int) -> tuple[int, bytes]:
    return state.position, state.hash


async def test_short_queries_do_not_need_the_ledgers_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short queries succeed although nothing can be passed to that thread, and see the changes before them.

    Without the head probe the first of them would be passed to the thread, which fails here.
    """
    async with small_ledger(url=url) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("job"))
        with monkeypatch.context() as patched:
            patched.setattr(writer_of(ledger)._queries, "put", refuse)
            candidates = await ledger.find_miners(6.0, GPU, 11)
            assert await ledger.current_block() == 11
            assert (await ledger.head()).position == 14
            with pytest.raises(AssertionError, match="passed to"):
                await ledger.overview()  # It is not a short query.
        taken = next(each for each in candidates if each.hotkey_ss58 == route.miner.hotkey_ss58)
        assert (taken.available_seconds, taken.total_seconds, taken.stream_version) == (108.0, 120.0, 1)


async def test_a_short_query_sees_other_processes_commits(url: str) -> None:
    """A state that is behind the file is not queried. Catches a probe without the comparison of heads."""
    async with (
        small_ledger(url=url) as ledger,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as other,
    ):
        assert await ledger.current_block() == await other.current_block() == 11
        await Routing(other).pick_miner_for_job_request(job("job"))
        assert (await ledger.head()).position == 14
        assert writer_of(ledger)._query_in_caller(head_of) == ((14, store_of(ledger)._head().hash),)


async def test_a_state_ahead_of_the_log_is_not_queried(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the decision of a batch to its commit, another thread's short query gets no result from the caller's thread.

    The probe is made to report the head of the state in memory, so that only the lock prevents the query.
    """
    async with small_ledger(url=url) as ledger:
        writer, store = writer_of(ledger), store_of(ledger)
        results: list[object] = []

        def query_in_thread() -> None:
            state = writer._live.current
            with monkeypatch.context() as patched:
                if state is not None:
                    patched.setattr(store, "probe_head", lambda: Head(state.position, state.hash, state.recorded_at_ns))
                thread = threading.Thread(target=lambda: results.append(writer._query_in_caller(head_of)))
                thread.start()
                thread.join()

        def with_queries(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any, **named: Any) -> Any:
                query_in_thread()
                result = function(*arguments, **named)
                query_in_thread()
                return result

            return run

        monkeypatch.setattr(UnitOfWork, "append", with_queries(UnitOfWork.append))
        monkeypatch.setattr(store, "_append", with_queries(store._append))
        await Routing(ledger).pick_miner_for_job_request(job("job"))
        assert results == [None] * 4
        monkeypatch.undo()
        query_in_thread()
        assert results[4:] == [((14, (await ledger.head()).hash),)]


@pytest.mark.parametrize("seed", [4_711])
async def test_threads_that_query_during_changes_see_only_committed_heads(url: str, seed: int) -> None:
    """Every position that a thread sees has the hash of the stored row, and positions never decrease."""
    rng = random.Random(seed)
    async with small_ledger(url=url, blocks=60, offers={f"5Miner{n}": 4 for n in range(6)}) as ledger:
        writer = writer_of(ledger)
        begin, end = threading.Barrier(THREADS + 1), threading.Event()
        seen: list[list[tuple[int, bytes]]] = [[] for _ in range(THREADS)]

        def query(thread: int) -> None:
            begin.wait()
            while not end.is_set():
                found = writer._query_in_caller(head_of)
                if found is not None:
                    seen[thread].append(found[0])

        async def change(router: Routing, caller: int) -> None:
            for number in range(JOBS_EACH):
                route = await router.pick_miner_for_job_request(job(f"{caller} {number}"))
                settle = rng.choice((ledger.spend, ledger.release, ledger.release))
                await settle(route.allowance_reservation_id or 0)

        threads = [threading.Thread(target=query, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(begin.wait)
        try:
            await asyncio.gather(*(change(Routing(ledger), caller) for caller in range(CALLERS)))
        finally:
            end.set()
            for thread in threads:
                thread.join()
        rows = {row.position: row.hash for row in await _all_rows(ledger)}
        assert len(rows) == 62 + 2 * CALLERS * JOBS_EACH
        for heads in seen:
            assert [position for position, _ in heads] == sorted(position for position, _ in heads)
            assert all(rows[position] == a_hash for position, a_hash in heads)
        assert any(seen)


async def _all_rows(ledger: Allowance) -> list[Any]:
    store = store_of(ledger)
    rows: list[Any] = []
    while page := await store.read(rows[-1].position if rows else 0):
        rows += page
    return rows


async def test_a_newer_schema_also_stops_short_queries(url: str, tmp_path: Path) -> None:
    """An older process must not answer queries after a newer one has changed the schema."""
    async with small_ledger(url=url) as ledger:
        assert await ledger.current_block() == 11
        connection = sqlite3.connect(tmp_path / "ledger.db")
        with connection:
            connection.execute("UPDATE allowance_schema SET version = version + 1")
        connection.close()
        with pytest.raises(NewerLedger):
            await ledger.current_block()


async def test_a_replaced_file_is_not_probed(url: str, tmp_path: Path) -> None:
    """The probe's open connection would still show the head of the previous file."""
    async with small_ledger(url=url) as ledger:
        assert await ledger.current_block() == 11
        path = tmp_path / "ledger.db"
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StorageUnavailable, match="there is no file"):
            await ledger.current_block()
        path.write_bytes((tmp_path / "moved.db").read_bytes())
        with pytest.raises(StorageUnavailable, match="was replaced"):
            await ledger.current_block()
        path.unlink()
        (tmp_path / "moved.db").rename(path)
        assert await ledger.current_block() == 11


async def test_the_probe_has_no_connection_during_a_fork_or_after_closing(url: str) -> None:
    """A child that inherited the connection would break its parent's locks; a closed ledger never opens the file."""
    async with small_ledger(url=url) as ledger:
        store, writer = store_of(ledger), writer_of(ledger)
        probe_head = store._head_probe
        assert probe_head is not None
        assert store.probe_head() is not None

        async def paused_for_fork() -> tuple[object, object]:
            async with store.paused_for_fork():
                return probe_head._connection, await asyncio.to_thread(store.probe_head)

        assert await writer._runtime.run(paused_for_fork()) == (None, None)
        assert store.probe_head() is not None
    assert (probe_head._connection, store.probe_head()) == (None, None)
    with pytest.raises(LedgerClosed):
        await writer.query(head_of, short=True)
