"""The derived tables of a SQLite file, in a file of their own that may be lost, damaged, or of another log."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from ledger import DerivedTablesUnavailable
from ledger.store.sqlite import derived, derived_checkpoint
from ledger.store.sqlite.derived_checkpoint import checkpoint_in_thread, is_checkpoint_due
from projections.snapshots import spread_positions
from routing import Allowance, Routing, StorageUnavailable
from tests.support.engines import derived_statement
from tests.support.small import GPU, VALIDATOR, Clock, job, small_ledger
from tests.support.stories import (
    history_of,
    project,
    store_of,
    take_snapshot,
    there,
    upkeep_done,
    whole_history,
)
from tests.support.traced_disk import why_no_strace

HOTKEYS = ["5Anna", "5Bert", "5Carl"]


def derived_path(url: str) -> Path:
    """Return the path of a ledger's file of derived tables."""
    return Path(url.removeprefix("sqlite:///") + "-derived")


def clock() -> Clock:
    """A clock at the newest block of the small ledger."""
    now = Clock()
    now.advance(200)
    return now


def opened(url: str, *, read_only: bool = False) -> Any:
    """Open the small ledger again."""
    return Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock(), read_only=read_only)


@asynccontextmanager
async def projected(url: str, reservations: int = 5) -> AsyncIterator[Allowance]:
    """Open a small ledger with reservations, a history of them, and a snapshot."""
    async with small_ledger(url=url) as ledger:
        for number in range(reservations):
            await ledger.reserve(HOTKEYS[number % 3], GPU, 0.1, 11)
        await project(ledger)
        await take_snapshot(ledger)
        yield ledger


async def lag(ledger: Allowance) -> int:
    return (await ledger.health()).projection_lag


# Where it is


async def test_the_file_is_private_and_the_log_has_no_derived_table(url: str) -> None:
    """Only its owner can read the file, and what is derived is in it alone."""
    async with projected(url):
        assert stat.S_IMODE(derived_path(url).stat().st_mode) == 0o600
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as log:
            names = {name for (name,) in log.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    log_tables = {"allowance_schema", "allowance_ledgers", "allowance_streams", "allowance_events"}
    assert names == {*log_tables, "allowance_verifications"}


async def test_a_short_log_has_no_derived_file(url: str) -> None:
    """A ledger whose history nobody asks for is one file, and so costs nothing. Catches an eager creation."""
    async with small_ledger(url=url) as ledger:
        await ledger.reserve("5Anna", GPU, 1.0, 11)
        assert len((await ledger.history()).items) == 1
    assert not derived_path(url).exists()


async def test_a_symbolic_link_leads_to_the_same_derived_file(url: str, tmp_path: Path) -> None:
    """A log that is opened under two names has one history."""
    async with projected(url):
        pass
    link = tmp_path / "link.db"
    link.symlink_to(url.removeprefix("sqlite:///"))
    async with opened(f"sqlite:///{link}") as ledger:
        assert await lag(ledger) <= 1
    assert not Path(f"{link}-derived").exists()


# It may be lost, damaged or another's


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwrite_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


LOSSES = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "not a database": lambda path: path.write_bytes(b"no database " * 1000),
    "cut off": cut,
    "overwritten pages": overwrite_pages,
    "an older layout": lambda path: derived_statement(
        f"sqlite:///{str(path).removesuffix('-derived')}", "PRAGMA user_version = 0"
    ),
    "no binding": lambda path: derived_statement(
        f"sqlite:///{str(path).removesuffix('-derived')}", "DELETE FROM allowance_derived_from"
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("read_only", [True, False])
async def test_a_lost_file_is_not_missed_and_is_made_again(url: str, loss: str, read_only: bool) -> None:
    """The ledger opens, and pages are those of the log; a writer makes the file again, with the same rows.

    Catches a damaged file that is believed, one that is never made again, and a reader that needs it.
    """
    async with projected(url) as ledger:
        history = await whole_history(ledger)
    LOSSES[loss](derived_path(url))
    before = derived_path(url).exists()
    async with opened(url, read_only=read_only) as ledger:
        assert await whole_history(ledger) == history
        assert len(await ledger.find_miners(0.1, GPU, 11)) == 3
        if read_only:
            assert derived_path(url).exists() == before
            return
        await project(ledger)
        await project(ledger)
        assert await lag(ledger) == 0
        assert (await ledger.rebuild()).different == 0
        assert await whole_history(ledger) == history


async def test_whoever_deletes_a_damaged_file_does_not_keep_others_from_making_it(url: str) -> None:
    """The ledger that finds the damage reads on, and another one makes the file.

    Catches a lock on a file that is gone: the other one would take the file for that of somebody who has it open.
    """
    async with projected(url):
        pass
    derived_path(url).write_bytes(b"no database " * 1000)
    async with opened(url) as finder, opened(url) as other:
        await lag(finder)
        assert not derived_path(url).exists()
        await project(other)
        assert await lag(other) == 0


async def test_a_database_of_somebody_else_with_this_name_is_left_alone(url: str) -> None:
    """Pages come from the log, and a rebuild is refused with the file's name. Catches a file that is deleted."""
    async with projected(url) as ledger:
        history = await whole_history(ledger)
    for name in ("", "-wal", "-shm"):
        Path(f"{derived_path(url)}{name}").unlink(missing_ok=True)
    with closing(sqlite3.connect(derived_path(url))) as other:
        other.execute("CREATE TABLE recipes AS SELECT 'bread' AS name")
        other.commit()
    async with opened(url) as ledger:
        assert await whole_history(ledger) == history
        with pytest.raises(StorageUnavailable, match="derived has tables of somebody else; move it away"):
            await ledger.rebuild()
        await ledger.reserve("5Anna", GPU, 0.1, 11)
    with closing(sqlite3.connect(derived_path(url))) as other:
        assert other.execute("SELECT name FROM recipes").fetchall() == [("bread",)]


async def test_a_file_that_is_deleted_while_it_is_open_is_made_again(url: str) -> None:
    """Neither pages nor picks fail. Catches a process that goes on with a file that has no name any more."""
    async with projected(url) as ledger:
        history = await whole_history(ledger)
        for name in ("", "-wal", "-shm"):
            Path(f"{derived_path(url)}{name}").unlink()
        assert await whole_history(ledger) == history
        await ledger.reserve("5Anna", GPU, 0.1, 11)
        await project(ledger)
        assert await lag(ledger) == 0
    async with opened(url, read_only=True) as ledger:
        assert await lag(ledger) <= 1
    async with opened(url) as ledger:
        assert (await ledger.rebuild()).different == 0


async def test_the_file_of_another_log_is_not_believed(url: str, tmp_path: Path) -> None:
    """Two logs of one validator, with equal ids, positions and jobs; one gets the other's file.

    Fails if the file is not bound to the log by its hash: the pages would lack a reservation, which no comparison of
    the rows shown can find.
    """
    other_url = f"sqlite:///{tmp_path}/other.db"
    async with projected(url, 9), projected(other_url, 2) as ledger:
        await ledger.reserve("5Carl", GPU, 0.2, 11)
        history = await whole_history(ledger)
    shutil.copyfile(derived_path(url), derived_path(other_url))
    for read_only in (True, False):
        async with opened(other_url, read_only=read_only) as ledger:
            assert await lag(ledger) > 0
            assert await whole_history(ledger) == history
    async with opened(other_url) as ledger:
        await project(ledger)
        assert await lag(ledger) == 0
        assert await whole_history(ledger) == history


async def test_a_file_from_a_lost_end_of_the_log_is_not_believed(url: str, tmp_path: Path) -> None:
    """The log is put back to a backup and goes on differently; the derived file has rows of the lost end."""
    path = url.removeprefix("sqlite:///")
    async with projected(url, 2):
        pass
    shutil.copyfile(path, tmp_path / "backup")
    async with opened(url) as ledger:
        for _ in range(5):
            await ledger.reserve("5Anna", GPU, 0.1, 11)
        await project(ledger)
    shutil.copyfile(tmp_path / "backup", path)
    async with opened(url) as ledger:
        for _ in range(9):
            await ledger.reserve("5Bert", GPU, 0.1, 11)
        history = await whole_history(ledger)
        assert len(history) == 11
        await project(ledger)
        assert await whole_history(ledger) == history
        assert (await ledger.rebuild()).different == 0


# It is in nobody's way


class Trace:
    """The statements on the log and on its derived tables, in order, with what the callers do."""

    def __init__(self, ledger: Allowance) -> None:
        self.notes: list[tuple[str, str]] = []
        store: Any = store_of(ledger)
        store._open_connection().set_trace_callback(lambda statement: self.notes.append(("log", statement)))
        store._derived._open().set_trace_callback(lambda statement: self.notes.append(("derived", statement)))

    def of(self, where: str) -> list[str]:
        return [what for which, what in self.notes if which == where]


def keep_up(monkeypatch: pytest.MonkeyPatch, every_rows: int) -> None:
    """Let the upkeep begin after so many events instead of a thousand."""
    monkeypatch.setattr("routing.service.handle.PROJECT_EVERY_ROWS", every_rows)


async def test_no_statement_on_the_derived_tables_runs_between_a_pick_and_its_answer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers who leave no idle moment do not meet the upkeep, although it is due; afterwards it is done.

    Fails if the upkeep does not wait for an idle moment.
    """
    keep_up(monkeypatch, 20)
    monkeypatch.setattr("routing.service.upkeep.IDLE_SECONDS", 0.2)
    async with projected(url) as ledger:
        await upkeep_done(ledger)
        trace, router = Trace(ledger), Routing(ledger)
        for number in range(60):
            route = await router.pick_miner_for_job_request(job(f"busy-{number}", 0.1))
            await ledger.release(route.allowance_reservation_id or 0)
        assert trace.of("derived") == []
        await upkeep_done(ledger)
        assert any(each.startswith("INSERT") for each in trace.of("derived"))
        assert await lag(ledger) < 20


async def test_the_upkeep_goes_on_under_load_when_the_backlog_is_too_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers who never stop cannot keep the history from being projected. Fails without the limit."""
    keep_up(monkeypatch, 10)
    monkeypatch.setattr("routing.service.upkeep.IDLE_SECONDS", 0.2)
    monkeypatch.setattr("routing.service.upkeep.MOST_BACKLOG_THOUSANDS", 4)
    async with projected(url) as ledger:
        await upkeep_done(ledger)
        before = await there(ledger, history_of(ledger).checkpoint)
        for _ in range(2000):
            await ledger.release((await ledger.reserve("5Anna", GPU, 0.1, 11)).reservation_id)
            if await there(ledger, history_of(ledger).checkpoint) > before + 20:
                return
        pytest.fail("the upkeep has waited for an idle moment for 4,000 events")


async def test_no_statement_on_the_derived_tables_runs_under_the_logs_write_lock(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between BEGIN IMMEDIATE and COMMIT on the log there is none, whatever projects, reads or saves meanwhile.

    Fails if derived tables are written in a transaction on the log, as they were when they were in the same file.
    """
    keep_up(monkeypatch, 10)
    async with projected(url) as ledger:
        trace = Trace(ledger)

        async def reserve() -> None:
            for _ in range(20):
                await ledger.release((await ledger.reserve("5Anna", GPU, 0.01, 11)).reservation_id)

        async def read() -> None:
            for _ in range(10):
                await ledger.history(limit=3)
                await project(ledger)

        await asyncio.gather(reserve(), read(), take_snapshot(ledger))
    locked = False
    for where, statement in trace.notes:
        if where == "log":
            locked = statement == "BEGIN IMMEDIATE" or (locked and statement not in ("COMMIT", "ROLLBACK"))
        assert not (locked and where == "derived"), statement
    assert len([each for each in trace.of("derived") if each == "COMMIT"]) >= 3


async def test_a_commit_of_derived_tables_is_not_flushed(url: str) -> None:
    """The connection's settings, as SQLite has them: WAL, `synchronous` NORMAL, and no checkpoint within a COMMIT."""
    async with projected(url) as ledger:
        connection = store_of(ledger)._derived._connection  # type: ignore[attr-defined]  # the file is SQLite's alone
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "busy_timeout")
        ]
    assert found == ["wal", 1, 0, 0]


async def test_a_long_wal_is_checkpointed_on_another_thread(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The WAL is copied into the file while the ledger is open, and not on the ledger's thread."""
    threads: list[str] = []
    real = derived_checkpoint.checkpoint_in_thread

    async def noted(uri: str) -> None:
        before = derived_path(url).read_bytes()
        await real(uri)
        threads.append(f"{before != derived_path(url).read_bytes()}")

    monkeypatch.setattr("ledger.store.sqlite.derived_checkpoint.CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(derived, "checkpoint_in_thread", noted)
    async with projected(url) as ledger:
        store: Any = store_of(ledger)
        await there(ledger, store._derived.dispose)
    assert "True" in threads


async def test_a_wal_that_was_checkpointed_is_cut_when_it_begins_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a checkpoint the next one is due only when the WAL has grown again.

    Catches a limit of the file's size above the size at which a checkpoint is due: each commit would start one.
    """
    async with projected(url, 1) as ledger:
        tables: Any = store_of(ledger)._derived  # type: ignore[attr-defined]  # the file is SQLite's alone

        async def fill_and_begin_again() -> None:
            tables._connection.execute("CREATE TABLE allowance_filling AS SELECT randomblob(5000000)")
            assert is_checkpoint_due(tables.file.path)
            await checkpoint_in_thread(tables.file.uri())
            tables._connection.execute("CREATE TABLE allowance_small (number)")

        await there(ledger, fill_and_begin_again)
        assert not is_checkpoint_due(tables.file.path)


async def test_another_process_that_writes_derived_tables_does_not_stop_the_loop(url: str) -> None:
    """While another connection holds the file's lock, picks go on, and the projection waits for it.

    Fails if SQLite itself waits for the lock: it would wait on the loop, and the pick would not be answered.
    """
    async with projected(url) as ledger:
        await ledger.reserve("5Anna", GPU, 0.1, 11)
        with closing(sqlite3.connect(derived_path(url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            projecting = asyncio.create_task(project(ledger))
            for number in range(3):
                route = await Routing(ledger).pick_miner_for_job_request(job(f"job-{number}", 0.1))
                await ledger.release(route.allowance_reservation_id or 0)
            assert not projecting.done()
            other.execute("COMMIT")
        await projecting
        assert (await ledger.rebuild()).different == 0


# What cannot be written


async def test_a_full_disk_delays_the_history_only(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite refuses to let the file grow: picks go on, pages are folded from the log, and a warning says why.

    When there is space again, the projection goes on where it ended.
    """
    keep_up(monkeypatch, 20)
    monkeypatch.setattr("projections.history.pages.TAIL_ROWS", 5)
    async with projected(url) as ledger:
        await upkeep_done(ledger)
        store: Any = store_of(ledger)
        connection = store._derived._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()
        for number in range(150):
            await ledger.release((await ledger.reserve(HOTKEYS[number % 3], GPU, 0.01, 11)).reservation_id)
        with pytest.raises(DerivedTablesUnavailable, match="full"):
            await project(ledger)
        with caplog.at_level(logging.WARNING):
            for _ in range(10):
                await ledger.release((await ledger.reserve("5Anna", GPU, 0.01, 11)).reservation_id)
            await upkeep_done(ledger)
        assert "the derived tables could not be brought up to date" in caplog.text
        history = await whole_history(ledger)
        assert len(history) >= 150
        connection.execute("PRAGMA max_page_count = 1000000").fetchone()
        await project(ledger)
        assert await whole_history(ledger) == history
        assert (await ledger.rebuild()).different == 0


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_file_that_cannot_be_opened_is_done_without(
    url: str, read_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory in its place: the ledger opens, and its pages are folded from the log.

    Fails if a page needs the projection that a reader with write access begins with.
    """
    monkeypatch.setattr("projections.history.pages.TAIL_ROWS", 5)
    async with projected(url) as ledger:
        history = await whole_history(ledger)
    derived_path(url).unlink()
    derived_path(url).mkdir()
    async with opened(url, read_only=read_only) as ledger:
        assert await whole_history(ledger) == history
        assert len(await ledger.find_miners(0.1, GPU, 11)) == 3
        if not read_only:
            with pytest.raises(DerivedTablesUnavailable, match="-derived"):
                await project(ledger)


async def test_reading_leaves_no_trace_beside_the_derived_file(url: str, tmp_path: Path) -> None:
    """An auditor uses the file, and creates and changes nothing."""
    async with projected(url) as ledger:
        history = await whole_history(ledger)

    def files() -> list[tuple[str, int, int]]:
        return sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in tmp_path.iterdir())

    before = files()
    async with opened(url, read_only=True) as ledger:
        assert await lag(ledger) <= 1
        assert await whole_history(ledger) == history
        assert (await ledger.audit()).findings == []
    assert files() == before


# Forks, views, snapshots


async def test_a_fork_finds_no_connection_to_the_derived_file(url: str) -> None:
    """Before a fork the file is closed, and afterwards it is opened again: a child must inherit no lock of SQLite."""
    async with projected(url) as ledger:
        await whole_history(ledger)
        store: Any = store_of(ledger)

        async def pause() -> tuple[object, object]:
            async with store.paused_for_fork() as close:
                close()
                return store._derived._connection, store._derived._engine

        assert await there(ledger, pause) == (None, None)
        await project(ledger)
        assert len(await whole_history(ledger)) == 5


async def test_the_views_show_the_history_and_state_its_position(url: str) -> None:
    """Somebody who queries the file directly sees the live history, and up to which event it is true."""
    async with projected(url) as ledger:
        await ledger.rebuild()
        head = (await ledger.head()).position
    with closing(sqlite3.connect(derived_path(url))) as file:
        assert file.execute("SELECT * FROM allowance_history_position").fetchall() == [(1, head)]
        rows = file.execute("SELECT miner_ss58, status, as_of_position FROM allowance_history ORDER BY position")
        assert rows.fetchall() == [(HOTKEYS[number % 3], "reserved", head) for number in range(5)]


def test_snapshots_are_spread_over_the_log() -> None:
    """Of a hundred, sixteen remain: the newest ones dense, the older ones sparse. Fails if the newest ones remain.

    No gap is longer than the stretch from its beginning to the head is without it, so a view costs at most that.
    """
    positions: list[int] = []
    for position in range(10_000, 1_010_000, 10_000):
        positions = spread_positions([*positions, position], 16)
    assert len(positions) == 16
    assert positions[-2:] == [990_000, 1_000_000]
    gaps = [later - earlier for earlier, later in zip([0, *positions], positions, strict=False)]
    assert all(gap <= (1_000_000 - position + gap) for gap, position in zip(gaps, positions, strict=True))
    assert positions[0] <= 400_000
    assert spread_positions(range(10_000, 110_000, 10_000), 16) == [*range(10_000, 110_000, 10_000)]


PROJECTING = """
import asyncio
from tests.support.small import GPU, small_ledger
from tests.support.stories import history_of, there

async def main():
    async with small_ledger(url={url!r}) as ledger:
        for _ in range(100):
            await ledger.release((await ledger.reserve("5Anna", GPU, 0.1, 11)).reservation_id)
        async def pause(position):
            return 2
        head = (await ledger.head()).position
        await there(ledger, lambda: history_of(ledger).project(head, pause))

asyncio.run(main())
"""


@pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))
def test_a_hundred_commits_of_derived_tables_flush_nothing(url: str, tmp_path: Path) -> None:
    """The system calls of a process that projects in a hundred transactions: the file is flushed when it is made and
    closed, the log at each of its commits.

    Fails if the file's connection has SQLite's usual `synchronous`.
    """
    calls = tmp_path / "calls"
    strace = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(calls)]
    script = PROJECTING.format(url=url)
    subprocess.run([*strace, sys.executable, "-c", script], check=True, capture_output=True, timeout=120)
    flushed = [line for line in calls.read_text().splitlines() if ".db" in line]
    assert len([line for line in flushed if ".db-derived" in line]) <= 12
    assert len([line for line in flushed if ".db-wal" in line]) >= 200
