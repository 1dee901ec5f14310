"""Schema steps: a database of schema version 1 is upgraded exactly once, completely or not at all."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any

import asyncpg
import pytest

from ledger import SCHEMA_VERSION, Head, Row
from ledger.errors import NewerLedger
from ledger.store import schema_steps
from routing import Allowance
from tests.storage.test_old_ledgers import HEAD, STATUSES, VALIDATOR, history, old_url
from tests.support.logs import head_at, opened, row_after
from tests.support.servers import connected

__all__ = ["old_url"]

PROCESSES = 16
NEW_VALIDATOR = "validator-of-a-new-database"
# The contract last: a module that is imported only after its constant was replaced would keep the replacement.
VERSION_READERS = ("sqlite.store", "postgres.appending", "postgres.creation", "schema_steps", "contract")


async def rows(url: str, query: str) -> list[tuple[object, ...]]:
    """Query the database without the library."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    async with connected(url) as other:
        return [tuple(row) for row in await other.fetch(query)]


async def catalog(url: str) -> list[tuple[object, ...]]:
    """Return all that the database says about its tables, columns, indexes, constraints and triggers."""
    if url.startswith("sqlite"):
        found = await rows(url, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
        return [(*names, " ".join(str(sql).split()).replace("( ", "(").replace(" )", ")")) for *names, sql in found]
    return [
        *await rows(
            url,
            """SELECT table_name::text, column_name::text, data_type::text, is_nullable::text, column_default::text
               FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2""",
        ),
        *await rows(url, "SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"),
        *await rows(
            url,
            """SELECT conname::text, conrelid::regclass::text, pg_get_constraintdef(oid)
               FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' ORDER BY 1, 2""",
        ),
        *await rows(
            url, "SELECT tgname::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"
        ),
    ]


async def stored_version(url: str) -> object:
    """Return the schema version in the database."""
    ((version,),) = await rows(url, "SELECT version FROM allowance_schema")
    return version


async def open_once(url: str, validator_ss58: str = VALIDATOR) -> int:
    """Open a ledger for writing and return its position."""
    async with Allowance.open(url, validator_ss58=validator_ss58) as ledger:
        return (await ledger.head()).position


async def test_an_upgraded_database_has_the_tables_of_a_new_one(
    old_url: str, shared_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening upgrades version 1 step by step, says so in the log, and leaves exactly the tables of a new database."""
    if old_url.split(":", maxsplit=1)[0] != shared_url.split(":", maxsplit=1)[0]:
        pytest.skip("the catalogs of two engines cannot be compared")
    assert await stored_version(old_url) == 1
    with caplog.at_level(logging.INFO, "allowance.ledger"):
        assert await open_once(old_url) == HEAD.position
    assert [record.getMessage() for record in caplog.records if "schema version" in record.getMessage()] == [
        f"upgrading the tables to schema version {step.version}" for step in schema_steps.STEPS
    ]
    await open_once(shared_url, NEW_VALIDATOR)
    assert await stored_version(old_url) == await stored_version(shared_url) == SCHEMA_VERSION
    assert await catalog(old_url) == await catalog(shared_url)


async def test_a_read_only_opening_does_not_upgrade(old_url: str) -> None:
    """A database of version 1 is read as it is; `health` reports the stored version, not that of the code."""
    before = await catalog(old_url)
    async with Allowance.open(old_url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        assert await ledger.head() == HEAD
        assert len(await history(ledger)) == sum(STATUSES.values())
        assert (await ledger.health()).schema_version == 1
    assert (await catalog(old_url), await stored_version(old_url)) == (before, 1)
    async with Allowance.open(old_url, validator_ss58=VALIDATOR) as ledger:
        assert (await ledger.health()).schema_version == SCHEMA_VERSION


_barrier: Barrier


def _set_barrier(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - a process can get a barrier only when it starts
    _barrier = barrier


def _open_at_once(url: str) -> int:
    _barrier.wait()
    return asyncio.run(open_once(url))


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Sixteen processes, forked from one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["asyncpg", "sqlalchemy.ext.asyncio", "tests.storage.test_schema_steps"])
    with ProcessPoolExecutor(PROCESSES, context, _set_barrier, (context.Barrier(PROCESSES),)) as pool:
        yield pool


async def test_many_processes_that_upgrade_at_once_upgrade_once(old_url: str, processes: ProcessPoolExecutor) -> None:
    """Sixteen processes open a database of version 1 at the same time: each opens it, and none gets an error."""
    openings = [processes.submit(_open_at_once, old_url) for _ in range(PROCESSES)]
    assert [opening.result() for opening in openings] == [HEAD.position] * PROCESSES
    assert await stored_version(old_url) == SCHEMA_VERSION


class _ThenKill(tuple[Any, ...]):
    """Statements after which the process is killed."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        os.kill(os.getpid(), signal.SIGKILL)


def _killed_in_the_middle(url: str) -> None:
    step = schema_steps.STEPS[-1]
    killing = step._replace(sqlite=_ThenKill(step.sqlite), postgres=_ThenKill(step.postgres))
    schema_steps.STEPS = (*schema_steps.STEPS[:-1], killing)
    asyncio.run(open_once(url))


async def test_a_process_that_is_killed_in_a_step_leaves_the_old_version(old_url: str) -> None:
    """After the kill the tables are those of version 1; the next opening upgrades, and the log is unchanged.

    Catches a step that commits before its version is stored: the next opening then fails on the existing table.
    """
    before = await catalog(old_url)
    process = multiprocessing.get_context("spawn").Process(target=_killed_in_the_middle, args=(old_url,))
    process.start()
    await asyncio.to_thread(process.join)
    assert process.exitcode == -signal.SIGKILL
    assert (await catalog(old_url), await stored_version(old_url)) == (before, 1)
    assert await open_once(old_url) == HEAD.position
    assert await stored_version(old_url) == SCHEMA_VERSION


async def test_an_older_release_refuses_a_newer_schema_and_changes_nothing(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running process of the older release refuses its next change after an upgrade; so does its next opening.

    The release is made older by its constant, in every module that reads it.
    """
    for module in VERSION_READERS:
        monkeypatch.setattr(f"ledger.store.{module}.SCHEMA_VERSION", 1)
    async with Allowance.open(old_url, validator_ss58=VALIDATOR) as running:
        assert await stored_version(old_url) == 1
        with monkeypatch.context() as newer:
            for module in VERSION_READERS:
                newer.setattr(f"ledger.store.{module}.SCHEMA_VERSION", SCHEMA_VERSION)
            await open_once(old_url)
        before = await rows(old_url, "SELECT position, hash FROM allowance_ledgers")
        for _ in range(2):
            with pytest.raises(NewerLedger):
                await running.record_manifests(10**6, {"a": {"b": 1}}, confirm=True)
    with pytest.raises(NewerLedger):
        await open_once(old_url)
    assert await rows(old_url, "SELECT position, hash FROM allowance_ledgers") == before
    assert await stored_version(old_url) == SCHEMA_VERSION


async def until_locks_are_awaited(url: str, count: int, at_least: str = "0 ms") -> None:
    """Poll until this many of the ledgers' server processes wait for a lock, and have waited this long."""
    waiting = f"""SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                  AND application_name = 'allowance-ledger' AND wait_event_type = 'Lock'
                  AND clock_timestamp() - query_start > interval '{at_least}'"""
    async with connected(url) as other:
        while await other.fetchval(waiting) < count:
            pass


# The append of the release that wrote schema version 1, for one row.
OLDER_APPEND = """
    WITH moved AS (
        UPDATE allowance_ledgers SET position = $5, hash = $6, recorded_at_ns = $7
        WHERE ledger = $1 AND position = $2 AND hash = $3 AND fence = $4
          AND (SELECT version FROM allowance_schema) = $8
        RETURNING ledger
    )
    INSERT INTO allowance_events
        (ledger, position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash)
    SELECT moved.ledger, appended.* FROM moved, unnest(
        $9::bigint[], $10::text[], $11::bigint[], $12::bigint[], $13::text[],
        $14::text[], $15::bigint[], $16::bigint[], $17::bytea[], $18::bytea[]
    ) AS appended"""


async def append_like_an_older_release(connection: asyncpg.Connection, row: Row) -> str:
    """Append a row behind the head of the old database; return the statement's status, or the code of its error."""
    head = (1, HEAD.position, HEAD.hash, 0, row.position, row.hash, row.recorded_at_ns, 1)
    try:
        return str(await connection.execute(OLDER_APPEND, *head, *([value] for value in row)))
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)


async def test_an_append_that_waits_for_an_upgrade_is_refused(old_url: str) -> None:
    """An older release begins an append while the upgrade is under way: nothing of it is in the upgraded log.

    The statement is planned for the old tables. Catches an upgrade that lets others append to the log that it rewrites.
    """
    if old_url.startswith("sqlite"):
        pytest.skip("SQLite decides under the lock of the file")
    async with connected(old_url) as other, connected(f"{old_url}&application_name=allowance-ledger") as running:
        await running.fetch("SELECT 1")
        blocking = other.transaction()
        await blocking.start()
        await other.execute("CREATE TABLE allowance_verifications ()")  # The step waits for its end.
        upgrading = asyncio.create_task(open_once(old_url))
        await until_locks_are_awaited(old_url, 1)
        appending = asyncio.create_task(append_like_an_older_release(running, row_after(HEAD, "other")))
        await until_locks_are_awaited(old_url, 2)
        await blocking.rollback()
        assert await appending in ("INSERT 0 0", "42804")
        assert await upgrading == HEAD.position
    assert await rows(old_url, "SELECT position FROM allowance_ledgers") == [(HEAD.position,)]
    assert await rows(old_url, "SELECT max(position) FROM allowance_events") == [(HEAD.position,)]


async def open_store(url: str) -> Head:
    """Open the log alone for writing and return its head."""
    async with opened(url, VALIDATOR) as store:
        return await store.head()


async def test_an_append_that_began_before_an_upgrade_is_upgraded(old_url: str) -> None:
    """An older release's append waits for the head while the upgrade begins: the upgrade waits for it, and includes it.

    Catches an upgrade that counts the streams before the last append to the old tables has ended.
    """
    if old_url.startswith("sqlite"):
        pytest.skip("SQLite decides under the lock of the file")
    row = row_after(HEAD, "other")
    async with connected(old_url) as other, connected(f"{old_url}&application_name=allowance-ledger") as running:
        await running.execute("SET deadlock_timeout = '1h'")
        holding = other.transaction()
        await holding.start()
        await other.execute("SELECT position FROM allowance_ledgers FOR UPDATE")
        appending = asyncio.create_task(append_like_an_older_release(running, row))
        await until_locks_are_awaited(old_url, 1)
        upgrading = asyncio.create_task(open_store(f"{old_url}&deadlock_timeout=1h"))
        await until_locks_are_awaited(old_url, 2)
        await holding.rollback()
        assert await appending == "INSERT 0 1"
        assert await upgrading == head_at(row)
    assert await rows(old_url, "SELECT version FROM allowance_streams WHERE name = 'other'") == [(1,)]


async def test_an_opening_waits_for_an_upgrade_by_another_process(old_url: str) -> None:
    """However long it takes: the limit on waits for locks is for appends.

    Catches an opening that fails while another process executes a long step.
    """
    if old_url.startswith("sqlite"):
        pytest.skip("the limit is the server's")
    async with connected(old_url) as other:
        upgrading = other.transaction()
        await upgrading.start()
        await other.execute("SELECT version FROM allowance_schema FOR UPDATE")
        opening = asyncio.create_task(open_once(f"{old_url}&lock_timeout=20ms"))
        waiting = asyncio.create_task(until_locks_are_awaited(old_url, 1, "200 ms"))
        await asyncio.wait([opening, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        await upgrading.rollback()
    assert await opening == HEAD.position
