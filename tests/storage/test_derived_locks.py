"""Writers of derived tables on PostgreSQL: one at a time per ledger, beside other ledgers, and never beside a step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
import pytest_asyncio

from ledger import SCHEMA_VERSION, Head, Store
from ledger.store import schema_steps
from ledger.store.schema_steps import SchemaStep
from projections.derived_tables import remake_broken_tables
from routing import Allowance, StorageUnavailable
from tests.storage.test_schema_steps import rows, stored_version, until_locks_are_awaited
from tests.support.logs import append, append_at, opened, row_after
from tests.support.servers import connected
from tests.support.small import GPU, START, Clock, record_blocks
from tests.support.stories import project, store_of

LOSE_LOCKS = "DROP TABLE allowance_checkpoints"
# The server ends a wait for a lock. In a test that expects no wait there is none, however slow the machine is.
NO_WAIT = "&lock_timeout=100ms"


@pytest_asyncio.fixture
async def two_ledgers(postgres_url: str) -> AsyncIterator[tuple[Store, Store]]:
    """Two ledgers of one database, which never wait for a lock."""
    async with opened(f"{postgres_url}{NO_WAIT}", "one") as one, opened(f"{postgres_url}{NO_WAIT}", "two") as two:
        yield one, two


async def test_ledgers_write_their_derived_tables_at_the_same_time(two_ledgers: tuple[Store, Store]) -> None:
    """While one ledger's transaction is open, another's begins and commits; also at the first use of each.

    Catches one lock for all ledgers.
    """
    one, two = two_ledgers
    for _ in range(2):
        async with one.write_derived():
            async with two.write_derived() as transaction:
                await transaction.query("DELETE FROM allowance_snapshots WHERE ledger = ?", two.ledger)
            async with two.write_verifications():
                pass


async def test_appends_wait_for_no_writer_of_derived_tables(two_ledgers: tuple[Store, Store]) -> None:
    """Neither those of the same ledger, by either way, nor a new ledger's first row.

    Catches a lock of the head's row.
    """
    one, _ = two_ledgers
    async with one.write_derived():
        head = await append(one, [row_after(Head())])
        assert await append_at(one, head, [row_after(head, version=2)])


@pytest.mark.parametrize("lost", [False, True], ids=["locked row", "lost table"])
async def test_writers_of_one_ledger_exclude_each_other(postgres_url: str, lost: bool) -> None:
    """A second writer waits, from the very first use on, and if the table with the locks is lost.

    Catches a lock that is not there yet, and one that is gone.
    """
    async with opened(postgres_url) as one, opened(f"{postgres_url}{NO_WAIT}") as two:
        if lost:
            async with connected(postgres_url) as other:
                await other.execute(LOSE_LOCKS)
        async with one.write_derived():
            with pytest.raises(StorageUnavailable, match="lock timeout"):
                async with two.write_derived():
                    pass
        async with two.write_derived():
            pass


async def test_writers_that_begin_at_once_for_the_first_time_exclude_each_other(postgres_url: str) -> None:
    """Of eight writers that read a value and write the next, each reads the value of the one before.

    Catches a first use in which two writers each insert the lock's row, or none of them has it.
    """
    async with connected(postgres_url) as other, AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(postgres_url)) for _ in range(8)]
        await other.execute("CREATE TABLE counted AS SELECT 0 AS value")
        barrier = asyncio.Barrier(len(stores))

        async def count_up(store: Store) -> None:
            await barrier.wait()
            async with store.write_derived() as transaction:
                ((value,),) = await transaction.query("SELECT value FROM counted")
                await transaction.query("UPDATE counted SET value = ?", value + 1)

        await asyncio.gather(*map(count_up, stores))
        assert await other.fetchval("SELECT value FROM counted") == len(stores)


@asynccontextmanager
async def unprojected(url: str, validator_ss58: str) -> AsyncIterator[Allowance]:
    """A ledger with reservations; its history may be anywhere."""
    clock = Clock(START)
    clock.advance(12 * 40)
    async with Allowance.open(url, validator_ss58=validator_ss58, clock_ns=clock) as ledger:
        await ledger.record_manifests(1, {"5Anna": {GPU: 2}})
        await record_blocks(ledger, 1, 40, ["5Anna"], {validator_ss58: 1.0, "5Other": 1.0})
        for _ in range(20):
            await ledger.reserve("5Anna", GPU, 6.0, 40)
        yield ledger


async def test_two_projectors_of_one_ledger_write_each_row_once(postgres_url: str) -> None:
    """Both project the whole log from a barrier, into a new generation, and neither stops.

    Catches two writers that both find the same checkpoint.
    """
    async with (
        unprojected(postgres_url, "one") as ledger,
        Allowance.open(postgres_url, validator_ss58="one") as again,
    ):
        for _ in range(5):
            async with connected(postgres_url) as other:
                await other.execute("DELETE FROM allowance_reservations; DELETE FROM allowance_reserved_blocks")
                await other.execute("DELETE FROM allowance_checkpoints")  # With the locks' rows.
            barrier = asyncio.Barrier(2)

            async def project_at_once(which: Allowance, barrier: asyncio.Barrier = barrier) -> None:
                await barrier.wait()
                await project(which)

            await asyncio.gather(project_at_once(ledger), project_at_once(again))
            made = await rows(postgres_url, "SELECT count(*), count(DISTINCT position) FROM allowance_reservations")
            assert made == [(20, 20)]
        assert (await ledger.rebuild()).different == 0


async def test_a_ledger_projects_beside_another_ones_open_transaction(postgres_url: str) -> None:
    """Its history reaches its head, and a rebuild puts another generation live."""
    async with (
        opened(postgres_url, "another") as another,
        another.write_derived(),
        unprojected(f"{postgres_url}{NO_WAIT}", "one") as ledger,
    ):
        await project(ledger)
        assert (await ledger.rebuild()).position == (await ledger.head()).position
        assert (await ledger.verify()).findings == []
        assert store_of(ledger).ledger != another.ledger


# Those who exclude every ledger


async def assert_waiting(task: asyncio.Task[None], url: str, locks: int) -> None:
    """Return when this many processes wait for a lock; fail if the task ends before."""
    waiting = asyncio.create_task(until_locks_are_awaited(url, locks))
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    assert not task.done(), task


async def test_a_schema_step_waits_and_others_wait_behind_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step waits for the writers that have begun. One that begins afterwards, of any ledger, waits for the step.

    Catches a step beside a writer, and one that waits for ever because some ledger always writes.
    """
    step = SchemaStep(SCHEMA_VERSION, (), ("ALTER TABLE allowance_snapshots ADD COLUMN stepped INTEGER",))
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(opened(postgres_url, name)) for name in ("one", "two")]
        async with connected(postgres_url) as other:
            await other.execute("UPDATE allowance_schema SET version = version - 1")
        monkeypatch.setattr(schema_steps, "STEPS", (step,))

        async def upgrade() -> None:
            async with opened(postgres_url, "one"):
                pass

        async def write() -> None:
            async with two.write_derived() as transaction:
                await transaction.query("SELECT stepped FROM allowance_snapshots")

        async with one.write_derived():
            upgrading = asyncio.create_task(upgrade())
            await assert_waiting(upgrading, postgres_url, 1)
            assert await stored_version(postgres_url) == SCHEMA_VERSION - 1
            writing = asyncio.create_task(write())
            await assert_waiting(writing, postgres_url, 2)
        await upgrading
        await writing


async def test_an_older_release_excludes_the_writers_of_this_one(
    two_ledgers: tuple[Store, Store], postgres_url: str
) -> None:
    """It locks the schema's row for every ledger. Both releases may project the same ledger during a roll-out.

    Catches a lock that an older release does not see.
    """
    one, _ = two_ledgers
    async with connected(f"{postgres_url}{NO_WAIT}") as older:
        holding = older.transaction()
        await holding.start()
        await older.execute("SELECT version FROM allowance_schema FOR UPDATE")
        with pytest.raises(StorageUnavailable, match="lock timeout"):
            async with one.write_derived():
                pass
        await holding.rollback()
        async with one.write_derived():
            assert await older.fetch("SELECT version FROM allowance_schema FOR NO KEY UPDATE SKIP LOCKED") == []
        async with one.write_derived(all_ledgers=True):
            with pytest.raises(asyncpg.LockNotAvailableError):
                await older.fetch("SELECT version FROM allowance_schema FOR UPDATE")


@pytest.mark.parametrize("table", ["allowance_snapshots", "allowance_verifications"])
async def test_a_table_is_remade_while_no_ledger_writes(
    two_ledgers: tuple[Store, Store], postgres_url: str, table: str
) -> None:
    """All ledgers share the tables, so the writers of all are excluded from the replacement of one.

    Catches a table that is dropped between two statements of another ledger's transaction.
    """
    one, two = two_ledgers
    async with connected(postgres_url) as other:
        await other.execute(f"DROP TABLE {table}")
    async with two.write_derived():
        with pytest.raises(StorageUnavailable, match="lock timeout"):
            await remake_broken_tables(one)
    assert await remake_broken_tables(one) == [table]
