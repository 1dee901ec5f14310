"""The upgrade of SQLite files to version 3: killed, cancelled and refused anywhere, and what it does to the rows."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger import SCHEMA_VERSION, Head, Lookup
from ledger.store import schema_steps
from ledger.store.sqlite import creation
from ledger.store.sqlite.connection import SqliteConnection
from routing import Allowance, StorageUnavailable, verify
from tests.storage.test_old_ledgers import OLDER_LEDGERS, OldLedger, unpacked
from tests.support.logs import append, opened, row_after

SMALL_PIECE_ROWS = 20
OPCODES_BETWEEN_KILLS = 1000
UUID = "0190f5a0-91c3-7cc0-8a6e-1f2d3c4b5a69"
OTHER_TEXTS = (UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", UUID.replace("a", "g"), "a key", "ключ")


@pytest.fixture(params=OLDER_LEDGERS, ids=lambda old: old.files.name)
def old(request: pytest.FixtureRequest) -> OldLedger:
    """One of the stored ledgers of an older schema version."""
    found: OldLedger = request.param
    return found


def catalog(path: Path) -> list[tuple[str, ...]]:
    """Return everything that the file says about its tables."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def stored_version(path: Path) -> int:
    """Return the schema version in the file."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT version FROM allowance_schema").fetchone()[0])


async def open_once(path: Path, validator_ss58: str) -> Head:
    """Open a ledger for writing and return its head."""
    async with opened(f"sqlite:///{path}", validator_ss58) as store:
        return await store.head()


def _killed_at(path: Path, validator_ss58: str, kind: str, number: int) -> None:
    """In a process of its own: upgrade, and be killed at a statement, or after so many of SQLite's instructions."""
    upgrade = creation._upgrade

    async def watched(connection: sqlite3.Connection, stored: int) -> None:
        steps = 0

        def count(*_: object) -> int:
            nonlocal steps
            steps += 1
            if steps == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0

        if kind == "statement":
            connection.set_trace_callback(count)
        else:
            connection.set_progress_handler(count, OPCODES_BETWEEN_KILLS)
        await upgrade(connection, stored)

    creation._upgrade = watched
    creation.PIECE_ROWS = SMALL_PIECE_ROWS
    asyncio.run(open_once(path, validator_ss58))


@pytest.fixture(scope="module")
def killed() -> Callable[..., bool]:
    """Return a function that runs `_killed_at` in a process, and returns whether it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sqlalchemy", "tests.storage.test_sqlite_upgrade"])

    def run(*arguments: object) -> bool:
        process = context.Process(target=_killed_at, args=arguments)
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode != 0

    return run


@pytest.mark.parametrize("kind", ["statement", "instructions"])
async def test_a_process_killed_anywhere_in_the_upgrade_leaves_the_old_version_or_the_new(
    old: OldLedger, kind: str, tmp_path: Path, killed: Callable[..., bool]
) -> None:
    """Killed at each statement, and in the middle of long ones: all tables are old or all are new, and no row is lost.

    Catches a step that commits in between, or a version that is stored in another transaction than the rows.
    """
    before = catalog(unpacked("ledger.db.gz", tmp_path, old.files))
    number, versions = 1, []
    while True:
        path = unpacked("ledger.db.gz", tmp_path, old.files)
        if not killed(path, old.validator_ss58, kind, number):
            break
        versions.append(stored_version(path))
        assert (catalog(path) == before) is (versions[-1] < SCHEMA_VERSION)
        (report,) = await verify(f"sqlite:///{path}", heads=[old.head])
        assert (report.findings, report.noted) == ([], [old.head.position])
        assert await open_once(path, old.validator_ss58) == old.head
        assert stored_version(path) == SCHEMA_VERSION
        for part in ("", "-wal", "-shm"):
            path.with_name(path.name + part).unlink(missing_ok=True)
        number += 1
    assert len(versions) > 5
    assert versions == sorted(versions)
    assert versions[0] < SCHEMA_VERSION


async def test_an_upgrade_that_is_cancelled_changes_nothing(
    old: OldLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pieces of the copy the opening notices that it was cancelled, and rolls back.

    Catches a copy that keeps the event loop until its end.
    """
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    before, pieces = catalog(path), 0

    def cancel(*_: object) -> None:
        nonlocal pieces
        pieces += 1
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    with monkeypatch.context() as patched:
        patched.setattr(creation, "PIECE_ROWS", SMALL_PIECE_ROWS)
        patched.setattr(schema_steps, "log_progress", cancel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(open_once(path, old.validator_ss58))
    assert (pieces, catalog(path)) == (1, before)
    assert await open_once(path, old.validator_ss58) == old.head


async def test_an_upgrade_without_room_changes_nothing(
    old: OldLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite finds the disk full in the middle of the copy: a typed error, the old tables, and success with room."""
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    with closing(sqlite3.connect(path)) as connection, connection:
        _grow(connection, old.head, 3000)
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    before, connect = catalog(path), SqliteConnection._new_connection

    def with_little_room(store: SqliteConnection) -> sqlite3.Connection:
        connection = connect(store)
        connection.execute(f"PRAGMA max_page_count = {pages + 10}").fetchone()
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(SqliteConnection, "_new_connection", with_little_room)
        with pytest.raises(StorageUnavailable, match="full"):
            await open_once(path, old.validator_ss58)
    assert (catalog(path), stored_version(path) < SCHEMA_VERSION) == (before, True)
    assert (await open_once(path, old.validator_ss58)).position == old.head.position + 3000


def _grow(connection: sqlite3.Connection, head: Head, count: int) -> None:
    """Append rows to the old tables; their hashes fit nothing."""
    rows = ((head.position + n, n, f"key {n}", b"x" * 300, bytes(32)) for n in range(1, count + 1))
    connection.executemany(
        """INSERT INTO allowance_events (ledger, position, stream, version, recorded_at_ns, key, payload, hash)
           VALUES (1, ?, 'grown', ?, 0, ?, ?, ?)""",
        rows,
    )
    connection.execute("UPDATE allowance_ledgers SET position = ?", (head.position + count,))


async def test_a_long_upgrade_says_how_far_it_is(
    old: OldLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of the program names the events that are done and their number."""
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    monkeypatch.setattr(creation, "PIECE_ROWS", SMALL_PIECE_ROWS)
    monkeypatch.setattr(schema_steps, "PROGRESS_ROWS", 2 * SMALL_PIECE_ROWS)
    with caplog.at_level(logging.INFO, "allowance.ledger"):
        await open_once(path, old.validator_ss58)
    fields: list[Any] = [record.__dict__ for record in caplog.records if hasattr(record, "done")]
    assert [each["done"] for each in fields] == list(range(40, old.head.position + 1, 40))
    assert {(each["total"], each["schema_version"]) for each in fields} == {(old.head.position, 3)}


async def test_keys_and_jobs_are_narrowed_and_found_again(old: OldLedger, tmp_path: Path) -> None:
    """A read-only opening finds them in the old tables, also while a writer upgrades them; the texts stay exactly.

    Catches a reader that looks only for the narrow form, or remembers which tables the file had.
    """
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    texts = (UUID, *OTHER_TEXTS)
    with closing(sqlite3.connect(path)) as connection, connection:
        for n, text in enumerate(texts, 1):
            row = (old.head.position + n, n, text, text)
            connection.execute(
                """INSERT INTO allowance_events (ledger, position, stream, version, recorded_at_ns, key, job_uuid,
                   attempt, payload, hash) VALUES (1, ?, 'added', ?, 0, ?, ?, 1, x'00', x'00')""",
                row,
            )
        connection.execute("UPDATE allowance_ledgers SET position = position + ?", (len(texts),))
    lookup = Lookup()
    lookup.keys.update(texts)
    lookup.jobs.update(texts)
    async with opened(f"sqlite:///{path}", old.validator_ss58, read_only=True) as reader:
        expected, rows = await reader.find(lookup), await reader.read(0)
        assert await reader.schema_version() < SCHEMA_VERSION
        await open_once(path, old.validator_ss58)
        found = await reader.find(lookup)
        assert await reader.schema_version() == SCHEMA_VERSION
        assert (found.keys, found.jobs, await reader.read(0)) == (expected.keys, expected.jobs, rows)
        facts = [row for row in rows if row.stream in {"chain", "added"}]
        assert await reader.read_streams({"chain", "added"}, 0, len(rows)) == facts
    async with opened(f"sqlite:///{path}", old.validator_ss58) as store:
        found = await store.find(lookup)
    assert (set(found.keys), set(found.jobs), found.keys) == (set(texts), set(texts), expected.keys)
    with closing(sqlite3.connect(path)) as connection:
        stored = dict(connection.execute("SELECT version, typeof(key) FROM allowance_events WHERE payload = x'00'"))
    assert [stored[n] for n, _ in enumerate(texts, 1)] == ["blob", *["text"] * len(OTHER_TEXTS)]


async def test_a_damaged_text_is_upgraded_as_it_is(old: OldLedger, tmp_path: Path) -> None:
    """Text that is not UTF-8 does not stop the upgrade; `verify` finds it before and after at the same position."""
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER allowance_events_no_update")
        bad = b"0190f5a0-91c3-7cc0-8a6e-1f2d3c4b5a\xff\xfe"
        connection.execute("UPDATE allowance_events SET key = CAST(? AS TEXT) WHERE position = 20", (bad,))
    (before,) = await verify(f"sqlite:///{path}")
    await open_once(path, old.validator_ss58)
    (after,) = await verify(f"sqlite:///{path}")
    assert [finding.position for finding in before.findings] == [finding.position for finding in after.findings] == [20]


async def test_several_ledgers_of_one_file_are_upgraded_together(old: OldLedger, tmp_path: Path) -> None:
    """Each keeps its rows, and numbers its streams from 1."""
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO allowance_ledgers SELECT 2, 'other', position, hash, 5 FROM allowance_ledgers")
        connection.execute("DROP TRIGGER allowance_events_no_replace")
        columns = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
        connection.execute(
            f"INSERT INTO allowance_events (ledger, {columns}) SELECT 2, {columns} FROM allowance_events"
        )
        connection.execute(f"CREATE TABLE had AS SELECT ledger, {columns} FROM allowance_events")
    await open_once(path, old.validator_ss58)
    with closing(sqlite3.connect(path)) as connection:
        firsts = connection.execute("SELECT ledger, min(stream) FROM allowance_streams GROUP BY ledger").fetchall()
        assert firsts == [(1, 1), (2, 1)]
    async with (
        opened(f"sqlite:///{path}", old.validator_ss58, read_only=True) as one,
        opened(f"sqlite:///{path}", "other", read_only=True) as two,
    ):
        assert await one.read(0) == await two.read(0)
        assert len(await one.read(0)) == old.head.position


async def test_the_log_goes_on_after_the_upgrade(old: OldLedger, tmp_path: Path) -> None:
    """The next version of an old stream is appended; a new stream gets the next number."""
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    async with opened(f"sqlite:///{path}", old.validator_ss58) as store:
        rows = await store.read(0)
        newest = {row.stream: row.version for row in rows}
        row = row_after(old.head, "chain", newest["chain"] + 1)
        head = await append(store, [row])
        await append(store, [row_after(head, "new", 1)])
    with closing(sqlite3.connect(path)) as connection:
        streams = dict(connection.execute("SELECT name, version FROM allowance_streams"))
        numbers = [number for (number,) in connection.execute("SELECT stream FROM allowance_streams ORDER BY stream")]
    assert streams == {**newest, "chain": row.version, "new": 1}
    assert numbers == list(range(1, len(streams) + 1))


async def test_an_auditor_reads_old_tables_through_the_service(old: OldLedger, tmp_path: Path) -> None:
    """`Allowance` opened read-only audits from the first event and from a seal, without an upgrade."""
    path = unpacked("ledger.db.gz", tmp_path, old.files)
    async with Allowance.open(f"sqlite:///{path}", validator_ss58=old.validator_ss58, read_only=True) as ledger:
        assert (await ledger.audit()).findings == []
    assert stored_version(path) < SCHEMA_VERSION
