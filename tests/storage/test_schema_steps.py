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

import pytest

from ledger import SCHEMA_VERSION
from ledger.errors import NewerLedger
from ledger.store import schema_steps
from routing import Allowance
from tests.storage.test_old_ledgers import HEAD, STATUSES, VALIDATOR, history, old_url
from tests.support.servers import connected

__all__ = ["old_url"]

PROCESSES = 16
NEW_VALIDATOR = "validator-of-a-new-database"


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


class _ThenKill(tuple[str, ...]):
    """Statements after which the process is killed."""

    def __iter__(self) -> Iterator[str]:
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
    for module in ("contract", "sqlite.store", "postgres.store", "schema_steps"):
        monkeypatch.setattr(f"ledger.store.{module}.SCHEMA_VERSION", 1)
    async with Allowance.open(old_url, validator_ss58=VALIDATOR) as running:
        assert await stored_version(old_url) == 1
        with monkeypatch.context() as newer:
            for module in ("contract", "sqlite.store", "postgres.store", "schema_steps"):
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
