"""The log on SQLite: its settings, and that a failure neither loses nor invents an event."""

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
from ledger.store.sqlite.durability import Durability
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
from tests.support.raw_rows import insert_rows
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

pytestmark = pytest.mark.compatibility


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def store_of(ledger: Allowance) -> SqliteStore:
    store = ledger._lifecycle.open_handle.store if ledger._lifecycle.open_handle is not None else None
    assert isinstance(store, SqliteStore)
    return store


class Failing:
    """A connection that fails once at a statement, before or after executing it."""

    def __init__(self, connection: sqlite3.Connection, statement: str, *, done: bool) -> None:
        self._connection = connection
        self._statement = statement
        self._done = done
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.startswith(self._statement) and not self._has_failed:
            self._has_failed = True
            if self._done:
                self._connection.execute(sql, *parameters)
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(sql, *parameters)


def fail(ledger: Allowance, statement: str, *, done: bool = False) -> None:
    """Make the ledger's next such statement fail."""
    store = store_of(ledger)
    assert store._connection is not None
    store._connection = Failing(store._connection, statement, done=done)  # type: ignore[assignment]


def heal(ledger: Allowance) -> None:
    store = store_of(ledger)
    if isinstance(store._connection, Failing):
        store._connection = store._connection._connection


async def state_of_new_ledger(url: str) -> bytes:
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        return await ledger._read_state(lambda state, _: encode_state(state))


async def test_only_the_owner_can_read_the_file_and_every_commit_is_flushed(url: str, tmp_path: Path) -> None:
    """The mode is 0600; the writing connection uses WAL and synchronous FULL. That FULL flushes is SQLite's promise."""
    async with small_ledger(url=url) as ledger:
        connection = store_of(ledger)._open_connection()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "UPDATE allowance_ledgers", "COMMIT"])
async def test_a_failed_write_is_never_visible(url: str, statement: str) -> None:
    """Whichever statement fails, the caller gets a typed error, nothing is visible, and the next change succeeds.

    Catches a state that keeps the decision although the commit failed, without `self._state = None`.
    """
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        before = await ledger._read_state(lambda state, _: encode_state(state))
        fail(ledger, statement)
        with pytest.raises(StorageUnavailable):
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        heal(ledger)
        assert await ledger._read_state(lambda state, _: encode_state(state)) == before
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [1]
        assert await ledger._read_state(lambda state, _: encode_state(state)) == await state_of_new_ledger(url)


async def test_a_commit_that_succeeded_despite_an_error_is_reported_as_success(url: str) -> None:
    """After an error at COMMIT the writer reads the log: the reservation is there, so the caller gets it.

    Catches an error at COMMIT that is raised as a failure without reading the log.
    """
    async with small_ledger(url=url, offers={"5Anna": 1}) as ledger:
        fail(ledger, "COMMIT", done=True)
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert await ledger.reservation(reservation.reservation_id) == reservation
        assert (await ledger.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]


@pytest.mark.parametrize("done", [False, True])
async def test_a_retry_with_the_errors_key_resolves_an_unknown_outcome(url: str, monkeypatch: Any, done: bool) -> None:
    """If the database is out of reach after COMMIT, the error carries a key; a retry with it executes the call once."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=url, offers={"5Anna": 1}, clock=clock) as ledger:
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        calls: list[Callable[[str | None], Any]] = [
            lambda key: ledger.spend(reservation.reservation_id, idempotency_key=key),
            lambda key: ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key=key),
            lambda key: ledger.record_block(12, START + timedelta(seconds=144), [], {}, idempotency_key=key),
            lambda key: ledger.record_manifests(12, {}, confirm=True, idempotency_key=key),
            lambda key: ledger.expire_due(idempotency_key=key),
        ]
        for call in calls:
            clock.advance(1000)
            fail(ledger, "COMMIT", done=done)
            with monkeypatch.context() as unreachable:
                unreachable.setattr(Durability, "settle", _out_of_reach)
                with pytest.raises(OutcomeUnknown) as unknown:
                    await call(None)
            first: Any = await call(unknown.value.idempotency_key)
            assert await call(unknown.value.idempotency_key) == first
        assert [(each.blocks, each.status) for each in (await ledger.history()).items] == [
            ([2], "expired"),
            ([1], "spent"),
        ]


def _out_of_reach(*_: Any) -> Any:
    raise StorageUnavailable("out of reach")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """While the file cannot grow, changes raise StorageUnavailable; with room again they succeed."""
    script = f"""
    import asyncio, resource, signal
    from routing import Allowance, StorageUnavailable
    from tests.support.small import GPU, small_ledger

    async def main() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        async with small_ledger(url="sqlite:///{tmp_path}/ledger.db", offers={{"5Anna": 400}}) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
            done = refused = 0
            while refused < 3:
                try:
                    await ledger.reserve("5Anna", GPU, 1.0, 11)
                    done += 1
                except StorageUnavailable:
                    refused += 1
                if done > 5000:
                    break
                if done % 9 == 8:
                    for each in (await ledger.history(status="reserved")).items:
                        try:
                            await ledger.release(each.reservation_id)
                        except StorageUnavailable:
                            refused += 1
            assert refused, "the disk never filled"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            page = await ledger.history(limit=10_000)
            assert len(page.items) == done, (len(page.items), done)
            for each in (await ledger.history(status="reserved")).items:
                await ledger.release(each.reservation_id)
            print("done", done)

    asyncio.run(main())
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("done")


async def test_a_file_that_is_no_database_is_not_changed(tmp_path: Path) -> None:
    """Opening it raises a typed error, and the file is unchanged."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes, " * 1000)
    with pytest.raises(StorageUnavailable):
        async with Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR):
            pass
    assert path.read_text() == "my notes, " * 1000


async def test_the_error_names_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """The error names the file and the reason."""
    (tmp_path / "text").write_text("no database\n" * 100)
    for path, reason in ((tmp_path, "is a directory"), (tmp_path / "text", "not a database")):
        with pytest.raises(StorageUnavailable) as unavailable:
            await Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR)
        assert str(path) in unavailable.value.reason
        assert reason in unavailable.value.reason
    with pytest.raises(StorageUnavailable) as unavailable:
        await Allowance.open(f"sqlite:///{tmp_path}/absent", validator_ss58=VALIDATOR, read_only=True)
    assert unavailable.value.reason == f"there is no file {tmp_path}/absent"


async def test_a_file_without_write_permission_can_still_be_read(url: str, monkeypatch: Any) -> None:
    """A change raises a typed error, and a read-only ledger returns the same head."""
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
    monkeypatch.setattr(SqliteStore, "_uri", lambda store: f"file:{store._path}?mode=ro")
    with pytest.raises(StorageUnavailable):
        async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
            await ledger.reserve("5Anna", GPU, 6.0, 11)
    async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert await ledger.head() == head


async def test_a_newer_schema_stops_an_old_process_while_it_runs(url: str) -> None:
    """The process is refused at its next command or query, and when it opens the ledger again.

    Catches a head that is read without the schema's version.
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
    """An event type of a newer release, appended by a newer process, is never skipped."""
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as other, other:
            lent = b'{"type":"allowance-lent"}'
            row = Row(head.position + 1, "lending", 1, head.recorded_at_ns, None, None, None, None, lent, b"")
            row = row._replace(hash=row_hash(head.hash, row))
            insert_rows(other, 1, [row])
            other.execute("UPDATE allowance_ledgers SET position = position + 1, hash = ?", (row.hash,))
        for call in (lambda: ledger.reserve("5Anna", GPU, 6.0, 11), ledger.current_block):
            with pytest.raises(NewerLedger):
                await call()


async def test_a_read_only_ledger_creates_and_records_nothing(url: str, tmp_path: Path) -> None:
    """Opening creates no file, no ledger and no settings; changes are refused, queries succeed."""
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
    """Triggers refuse to update, delete or replace events, and to move a head back."""
    async with small_ledger(url=url):
        pass
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute("SELECT * FROM allowance_events").fetchall()
    with pytest.raises(sqlite3.IntegrityError, match=r"never|dense"):
        connection.execute(statement)
    assert connection.execute("SELECT * FROM allowance_events").fetchall() == rows
    connection.close()


async def test_two_ledgers_of_one_file_never_reserve_a_block_twice(url: str) -> None:
    """Two open ledgers act as two processes: each folds the rows that the other appended before it decides.

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


async def test_a_log_shorter_than_its_head_is_reported_as_damaged(url: str, tmp_path: Path) -> None:
    """A retry cannot help: the error names the first position whose event is missing."""
    async with small_ledger(url=url):
        pass
    connection = sqlite3.connect(tmp_path / "ledger.db")
    with connection:
        connection.execute("UPDATE allowance_ledgers SET position = position + 5")
    connection.close()
    async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock(), read_only=True) as ledger:
        with pytest.raises(CorruptLedger, match=r"position 14.*its head row is at 18"):
            await ledger.current_block()
