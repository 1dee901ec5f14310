"""The schema is created exactly once, however many processes open a new database at the same time."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from ledger.codec import decode
from ledger.events import LedgerOpened
from ledger.store.triggers import POSTGRES_TRIGGERS, SQLITE_TRIGGERS, trigger_names
from projections import schema
from routing import Allowance
from tests.support.logs import VALIDATOR, all_rows, opened
from tests.support.servers import connected

pytestmark = pytest.mark.compatibility

PROCESSES = 16


async def names(url: str) -> dict[str, set[str]]:
    """Return the names of the database's tables, indexes and triggers."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        rows = connection.execute("SELECT type, name FROM sqlite_master WHERE name LIKE 'allowance%'").fetchall()
        connection.close()
    else:
        async with connected(url) as other:
            rows = await other.fetch(
                """SELECT 'table', tablename FROM pg_tables WHERE schemaname = 'public'
                   UNION ALL SELECT 'index', indexname FROM pg_indexes WHERE schemaname = 'public'
                   UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal"""
            )
    found: dict[str, set[str]] = {"table": set(), "index": set(), "trigger": set(), "view": set()}
    for kind, name in rows:
        found[kind].add(name)
    return found


_barrier: Barrier


def _set_barrier(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - a process can get a barrier only when it starts
    _barrier = barrier


def _open_at_once(url: str, validator_ss58: str) -> int:
    """In one of the processes: wait for the others, open the ledger and return its position."""

    async def opened_position() -> int:
        async with Allowance.open(url, validator_ss58=validator_ss58) as ledger:
            return (await ledger.head()).position

    _barrier.wait()
    return asyncio.run(opened_position())


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """Sixteen processes, forked from one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["asyncpg", "sqlalchemy.ext.asyncio", "tests.storage.test_schema"])
    with ProcessPoolExecutor(PROCESSES, context, _set_barrier, (context.Barrier(PROCESSES),)) as pool:
        yield pool


async def test_many_processes_that_open_one_new_ledger_at_once_create_it_once(
    shared_url: str, processes: ProcessPoolExecutor
) -> None:
    """All of them open it; there is one ledger with one opening event, and every table, index and trigger."""
    openings = [processes.submit(_open_at_once, shared_url, VALIDATOR) for _ in range(PROCESSES)]
    assert [opening.result() for opening in openings] == [1] * PROCESSES
    async with opened(shared_url, read_only=True) as store:
        assert store.ledger == 1
        (row,) = await all_rows(store)
        event = decode(row.position, row.payload)
        assert isinstance(event, LedgerOpened)
        assert event.validator_ss58 == VALIDATOR
    made = await names(shared_url)
    tables = [*schema().log.tables.values()]
    tables += [] if shared_url.startswith("sqlite") else schema().derived.tables.values()
    assert made["table"] == {table.name for table in tables}
    assert made["index"] >= {str(index.name) for table in tables for index in table.indexes}
    assert made["trigger"] == set(
        trigger_names(SQLITE_TRIGGERS if shared_url.startswith("sqlite") else POSTGRES_TRIGGERS)
    )


@pytest.mark.slow
def test_many_processes_never_lock_each_other_out_of_a_new_file(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    """Sixteen processes open a missing file, 25 times: none gets the error that the file is locked.

    Catches a file that is set to WAL mode outside of the queue: SQLite then refuses some, about every twentieth time.
    """
    for n in range(25):
        openings = [
            processes.submit(_open_at_once, f"sqlite:///{tmp_path}/{n}.db", VALIDATOR) for _ in range(PROCESSES)
        ]
        assert [opening.result() for opening in openings] == [1] * PROCESSES


async def test_many_processes_that_create_different_ledgers_at_once_each_create_one(
    shared_url: str, processes: ProcessPoolExecutor
) -> None:
    """Sixteen new validators of one database get sixteen ids, and each log begins at 1."""
    validators = [f"validator-{n}" for n in range(PROCESSES)]
    openings = [processes.submit(_open_at_once, shared_url, validator) for validator in validators]
    assert [opening.result() for opening in openings] == [1] * PROCESSES
    ledgers = set()
    for validator in validators:
        async with opened(shared_url, validator, read_only=True) as store:
            (row,) = await all_rows(store)
            assert validator.encode() in row.payload
            ledgers.add(store.ledger)
    assert ledgers == set(range(1, PROCESSES + 1))


async def test_opening_again_creates_no_table(shared_url: str) -> None:
    """The schema remains as it is; another validator's ledger is a row, not a table."""
    async with opened(shared_url):
        before = await names(shared_url)
    async with opened(shared_url), opened(shared_url, "another-validator"):
        assert await names(shared_url) == before
