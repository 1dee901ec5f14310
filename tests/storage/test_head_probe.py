"""Brief questions are answered in the thread that asks, and never from a state that is not what is committed."""

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


def actor_of(ledger: Allowance) -> LedgerWriter[Any]:
    assert ledger._lifecycle.open_handle is not None
    return ledger._lifecycle.open_handle.writer


def store_of(ledger: Allowance) -> SqliteStore:
    store = actor_of(ledger).store
    assert isinstance(store, SqliteStore)
    return store


def refuse(*_: object) -> None:
    raise AssertionError("the question was handed to the ledger's thread")


def where(state: Any, _: int) -> tuple[int, bytes]:
    return state.position, state.hash


async def test_brief_questions_do_not_wait_for_the_ledgers_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are answered although nothing can be handed to it; what they see is what was changed before them.

    Without the look from beside, the first of them is handed over, and refused here.
    """
    async with small_ledger(url=url) as ledger:
        route = await Routing(ledger).pick_miner_for_job_request(job("job"))
        with monkeypatch.context() as patched:
            patched.setattr(actor_of(ledger)._queries, "put", refuse)
            candidates = await ledger.find_miners(6.0, GPU, 11)
            assert await ledger.current_block() == 11
            assert (await ledger.head()).position == 14
            with pytest.raises(AssertionError, match="handed"):
                await ledger.overview()  # not a brief one
        taken = next(each for each in candidates if each.hotkey_ss58 == route.miner.hotkey_ss58)
        assert (taken.available_seconds, taken.total_seconds, taken.stream_version) == (108.0, 120.0, 1)


async def test_what_others_committed_is_seen(url: str) -> None:
    """A state that is behind the file is not asked: without the comparison the first ledger would not know the pick."""
    async with (
        small_ledger(url=url) as ledger,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock()) as other,
    ):
        assert await ledger.current_block() == await other.current_block() == 11
        await Routing(other).pick_miner_for_job_request(job("job"))
        assert (await ledger.head()).position == 14
        assert actor_of(ledger)._query_in_caller(where) == ((14, store_of(ledger)._head().hash),)


async def test_nobody_asks_a_state_that_is_being_changed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch is decided and until it is committed, a thread beside it gets no answer, whatever the file says.

    The file is made to say what the state says, so that only the lock is between them.
    """
    async with small_ledger(url=url) as ledger:
        writer, store = actor_of(ledger), store_of(ledger)
        answers: list[object] = []

        def look_beside() -> None:
            state = writer._state
            with monkeypatch.context() as patched:
                if state is not None:
                    patched.setattr(store, "probe_head", lambda: Head(state.position, state.hash, state.recorded_at_ns))
                thread = threading.Thread(target=lambda: answers.append(writer._query_in_caller(where)))
                thread.start()
                thread.join()

        def looking(what: Callable[..., Any]) -> Callable[..., Any]:
            def looked(*arguments: Any, **named: Any) -> Any:
                look_beside()
                done = what(*arguments, **named)
                look_beside()
                return done

            return looked

        monkeypatch.setattr(UnitOfWork, "append", looking(UnitOfWork.append))
        monkeypatch.setattr(store, "_append", looking(store._append))
        await Routing(ledger).pick_miner_for_job_request(job("job"))
        assert answers == [None] * 4
        monkeypatch.undo()
        look_beside()
        assert answers[4:] == [((14, (await ledger.head()).hash),)]


@pytest.mark.parametrize("seed", [4_711])
async def test_threads_that_ask_while_others_change_see_only_what_is_stored(url: str, seed: int) -> None:
    """Every position that any thread was told has the hash that the log has there, and none steps back."""
    drawn = random.Random(seed)
    async with small_ledger(url=url, blocks=60, offers={f"5Miner{n}": 4 for n in range(6)}) as ledger:
        writer = actor_of(ledger)
        begin, end = threading.Barrier(THREADS + 1), threading.Event()
        seen: list[list[tuple[int, bytes]]] = [[] for _ in range(THREADS)]

        def ask(place: int) -> None:
            begin.wait()
            while not end.is_set():
                answer = writer._query_in_caller(where)
                if answer is not None:
                    seen[place].append(answer[0])

        async def change(router: Routing, caller: int) -> None:
            for number in range(JOBS_EACH):
                route = await router.pick_miner_for_job_request(job(f"{caller} {number}"))
                settle = drawn.choice((ledger.spend, ledger.release, ledger.release))
                await settle(route.allowance_reservation_id or 0)

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(THREADS)]
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
        for told in seen:
            assert [position for position, _ in told] == sorted(position for position, _ in told)
            assert all(rows[position] == a_hash for position, a_hash in told)
        assert any(seen)


async def _all_rows(ledger: Allowance) -> list[Any]:
    store = store_of(ledger)
    rows: list[Any] = []
    while page := await store.read(rows[-1].position if rows else 0):
        rows += page
    return rows


async def test_a_newer_schema_is_met_by_a_brief_question_too(url: str, tmp_path: Path) -> None:
    """An older process must not go on answering once a newer one has changed the schema."""
    async with small_ledger(url=url) as ledger:
        assert await ledger.current_block() == 11
        connection = sqlite3.connect(tmp_path / "ledger.db")
        with connection:
            connection.execute("UPDATE allowance_schema SET version = version + 1")
        connection.close()
        with pytest.raises(NewerLedger):
            await ledger.current_block()


async def test_a_file_that_took_the_place_of_ours_is_not_glanced_at(url: str, tmp_path: Path) -> None:
    """The open connection would still tell what the one before it says."""
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


async def test_nothing_is_open_while_a_process_forks_or_after_the_end(url: str) -> None:
    """A child that inherits the connection would take locks from its parent; a closed ledger opens no file again."""
    async with small_ledger(url=url) as ledger:
        store, writer = store_of(ledger), actor_of(ledger)
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
        await writer.query(where, short=True)
