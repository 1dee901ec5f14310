"""SQLite as the log's home: how it is set up, and that nothing is lost or made up when it fails."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import Row, encode_state
from ledger.codec import row_hash
from ledger.store.sqlite.store import SqliteStore
from routing import (
    Allowance,
    CorruptLedger,
    LedgerNotFound,
    NewerLedger,
    OutcomeUnknown,
    ReadOnlyLedger,
    Routing,
    StorageUnavailable,
)
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

pytestmark = pytest.mark.compatibility

EVENT_COLUMNS = "ledger, position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def store_of(ledger: Allowance) -> SqliteStore:
    store = ledger._lifecycle.open_handle.store if ledger._lifecycle.open_handle is not None else None
    assert isinstance(store, SqliteStore)
    return store


class Failing:
    """A connection that fails at a statement, before it or after it was done."""

    def __init__(self, connection: sqlite3.Connection, statement: str, *, done: bool) -> None:
        self._connection = connection
        self._statement = statement
        self._done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith(self._statement):
            if self._done:
                self._connection.execute(sql, *parameters)
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *parameters)


def fail(ledger: Allowance, statement: str, *, done: bool = False) -> None:
    """Makes the ledger's next such statement fail; the connection after it is sound again."""
    store = store_of(ledger)
    assert store._connection is not None
    store._connection = Failing(store._connection, statement, done=done)  # type: ignore[assignment]


def heal(ledger: Allowance) -> None:
    store = store_of(ledger)
    if isinstance(store._connection, Failing):
        store._connection = store._connection._connection


async def folded_anew(url: str) -> bytes:
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        return await ledger._read_state(lambda state, _: encode_state(state))


async def test_the_file_is_its_owners_and_every_commit_is_flushed(url: str, tmp_path: Path) -> None:
    """Mode 0600; WAL; synchronous FULL on the connection that writes. That FULL flushes is SQLite's promise."""
    async with small_ledger(url=url) as ledger:
        connection = store_of(ledger)._open_connection()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "UPDATE allowance_ledgers", "COMMIT"])
async def test_a_failed_write_is_never_served(url: str, statement: str) -> None:
    """Whatever fails, the caller hears a typed error, nothing of it is to be seen, and the next change is done.

    Catches a state that keeps what it decided although the commit failed: `self._state = None` left out.
    """
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        before = await ledger._read_state(lambda state, _: encode_state(state))
        fail(ledger, statement)
        with pytest.raises(StorageUnavailable):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        heal(ledger)
        assert await ledger._read_state(lambda state, _: encode_state(state)) == before
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [1]
        assert await ledger._read_state(lambda state, _: encode_state(state)) == await folded_anew(url)


async def test_a_commit_that_was_done_although_it_failed_is_answered_as_done(url: str) -> None:
    """After an error at COMMIT the log is read: the reservation stands, so the caller gets it.

    Catches an error at COMMIT that is passed on as a failure without a look at the log.
    """
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        fail(ledger, "COMMIT", done=True)
        held = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert await ledger.reservation(held.reservation_id) == held
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]


@pytest.mark.parametrize("done", [False, True])
async def test_an_outcome_that_cannot_be_found_out_is_told_by_the_key(url: str, monkeypatch: Any, done: bool) -> None:
    """With the database out of reach after COMMIT, the error carries a key; the same call with it does it once."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, offers={"5Anna": 1}, clock=clock) as ledger:
        held = await ledger.reserve("5Anna", GPU, 6.0, 11)
        calls: list[Callable[[str | None], Any]] = [
            lambda key: ledger.spend(held.reservation_id, idempotency_key=key),
            lambda key: ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key=key),
            lambda key: ledger.record_block(12, START + timedelta(seconds=144), [], {}, idempotency_key=key),
            lambda key: ledger.record_manifests(12, {}, confirm=True, idempotency_key=key),
            lambda key: ledger.expire_due(idempotency_key=key),
        ]
        for call in calls:
            clock.advance(1000)
            fail(ledger, "COMMIT", done=done)
            with monkeypatch.context() as unreachable:
                unreachable.setattr(SqliteStore, "read", _no_answer)
                with pytest.raises(OutcomeUnknown) as unknown:
                    await call(None)
            first: Any = await call(unknown.value.idempotency_key)
            assert await call(unknown.value.idempotency_key) == first
        assert [(each.blocks, each.status) for each in (await ledger.history()).items] == [
            ([2], "expired"),
            ([1], "spent"),
        ]


async def _no_answer(*_: Any) -> Any:
    raise StorageUnavailable("out of reach")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Where the file may not grow, changes are refused as StorageUnavailable; with room again they are done."""
    script = f"""
    import asyncio, resource, signal
    from routing import Allowance, StorageUnavailable
    from tests.support.small import GPU, small_ledger

    async def main() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        async with small_ledger(url="sqlite:///{tmp_path}/ledger.db", offers={{"5Anna": 400}}) as book:
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
            done = refused = 0
            while refused < 3:
                try:
                    await book.reserve("5Anna", GPU, 1.0, 11)
                    done += 1
                except StorageUnavailable:
                    refused += 1
                if done > 5000:
                    break
                if done % 9 == 8:
                    for each in (await book.history(status="reserved")).items:
                        try:
                            await book.release(each.reservation_id)
                        except StorageUnavailable:
                            refused += 1
            assert refused, "the disk never filled"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            page = await book.history(limit=10_000)
            assert len(page.items) == done, (len(page.items), done)
            for each in (await book.history(status="reserved")).items:
                await book.release(each.reservation_id)
            print("done", done)

    asyncio.run(main())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("done")


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """A typed error, and the file as it was."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes, " * 1000)
    with pytest.raises(StorageUnavailable):
        async with Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR):
            pass
    assert path.read_text() == "my notes, " * 1000


async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """The error says which file, and what is the matter with it."""
    (tmp_path / "text").write_text("no database\n" * 100)
    for path, reason in ((tmp_path, "is a directory"), (tmp_path / "text", "not a database")):
        with pytest.raises(StorageUnavailable) as unavailable:
            await Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR)
        assert str(path) in unavailable.value.reason
        assert reason in unavailable.value.reason
    with pytest.raises(StorageUnavailable) as unavailable:
        await Allowance.open(f"sqlite:///{tmp_path}/absent", validator_ss58=VALIDATOR, read_only=True)
    assert unavailable.value.reason == f"there is no file {tmp_path}/absent"


async def test_a_file_that_may_only_be_read_takes_no_change(url: str, monkeypatch: Any) -> None:
    """A typed error for the change, and the same answers to the same questions."""
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
    monkeypatch.setattr(SqliteStore, "_uri", lambda store: f"file:{store._path}?mode=ro")
    with pytest.raises(StorageUnavailable):
        async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
            await ledger.reserve("5Anna", GPU, 6.0, 11)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert await ledger.head() == head


async def test_a_newer_schema_stops_an_old_process_also_while_it_runs(url: str) -> None:
    """At opening and at the next change or question; and nothing is written.

    Catches a head that is read without the schema's version beside it.
    """
    async with small_ledger(url=url) as ledger:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other, other:
            other.execute("UPDATE allowance_schema SET version = version + 1")
        for call in (lambda: ledger.reserve("5Anna", GPU, 6.0, 11), ledger.current_block, ledger.expire_due):
            with pytest.raises(NewerLedger):
                await call()
    with pytest.raises(NewerLedger):
        async with Allowance.open(url, validator_ss58=VALIDATOR):
            pass


async def test_a_newer_event_stops_an_old_process(url: str) -> None:
    """An event type of a newer release, appended by a newer process, is never passed over."""
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other, other:
            lent = b'{"type":"allowance-lent"}'
            row = Row(head.position + 1, "lending", 1, head.recorded_at_ns, None, None, None, None, lent, b"")
            row = row._replace(hash=row_hash(head.hash, row))
            other.execute(f"INSERT INTO allowance_events ({EVENT_COLUMNS}) VALUES ({','.join('?' * 11)})", (1, *row))
            other.execute("UPDATE allowance_ledgers SET position = position + 1, hash = ?", (row.hash,))
        for call in (lambda: ledger.reserve("5Anna", GPU, 6.0, 11), ledger.current_block):
            with pytest.raises(NewerLedger):
                await call()


async def test_reading_only_creates_and_records_nothing(url: str, tmp_path: Path) -> None:
    """No file, no ledger, no settings; changes are refused; questions are answered."""
    with pytest.raises(StorageUnavailable):
        await Allowance.open(url, validator_ss58=VALIDATOR, read_only=True)
    assert list(tmp_path.iterdir()) == []
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
    with pytest.raises(LedgerNotFound):
        await Allowance.open(url, validator_ss58="5Stranger", read_only=True)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert await ledger.head() == head
        assert len(await ledger.find_miners(6.0, GPU, 11)) == 3
        for change in (lambda: ledger.reserve("5Anna", GPU, 6.0, 11), ledger.expire_due):
            with pytest.raises(ReadOnlyLedger):
                await change()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE allowance_events SET payload = x'00' WHERE position = 2",
        "DELETE FROM allowance_events WHERE position = 2",
        "INSERT OR REPLACE INTO allowance_events SELECT * FROM allowance_events WHERE position = 2",
        "REPLACE INTO allowance_events SELECT ledger, position + 1000, stream, version, recorded_at_ns, key,"
        " job_uuid, attempt, settles, payload, hash FROM allowance_events WHERE position = 2",
        "DELETE FROM allowance_ledgers",
        "UPDATE allowance_ledgers SET position = position - 1",
    ],
)
async def test_the_database_refuses_to_change_the_past(url: str, statement: str) -> None:
    """Update, delete and replacement of events, and a head that steps back, are refused by triggers."""
    async with small_ledger(url=url):
        pass
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute("SELECT * FROM allowance_events").fetchall()
    with pytest.raises(sqlite3.IntegrityError, match=r"never|dense"):
        connection.execute(statement)
    assert connection.execute("SELECT * FROM allowance_events").fetchall() == rows
    connection.close()


async def test_two_ledgers_of_one_file_never_take_one_block_twice(url: str) -> None:
    """Two openings stand for two processes: each folds what the other appended before it decides.

    Catches a batch that is decided without reading the tail under the lock.
    """
    clock = Clock()
    async with (
        small_ledger(url=url, offers={"5Anna": 50}, blocks=41, clock=clock) as one,
        Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock) as two,
    ):
        routers = [Routing(one), Routing(two)]
        routes = await asyncio.gather(
            *(routers[n % 2].pick_miner_for_job_request(job(f"job {n}", 300.0)) for n in range(40))
        )
        taken = [block for route in routes for block in route.allowance_blocks or []]
        assert sorted(taken) == list(range(1, 41))
        assert await one._read_state(lambda state, _: encode_state(state)) == await two._read_state(
            lambda state, _: encode_state(state)
        )


async def test_a_log_that_is_shorter_than_its_head_says_is_damaged(url: str, tmp_path: Path) -> None:
    """It is not a matter of trying again later: events are missing, from the position that is named on."""
    async with small_ledger(url=url):
        pass
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with connection:
        connection.execute("UPDATE allowance_ledgers SET position = position + 5")
    connection.close()
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock(), read_only=True) as ledger:
        with pytest.raises(CorruptLedger, match=r"position 14.*its head says 18"):
            await ledger.current_block()
