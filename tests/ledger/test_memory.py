"""In a memory database reads and writes exclude each other; they never deadlock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ledger.store.sqlite.store import SqliteStore
from ledger.writer import LedgerWriter
from routing import Allowance, Routing
from tests.support.small import job, small_ledger

pytestmark = pytest.mark.timeout(30)


async def on_loop_of(ledger: Allowance, work: Callable[[SqliteStore, LedgerWriter[Any]], Awaitable[Any]]) -> Any:
    """Run work on the ledger's own loop, to which its locks belong."""
    opened = await ledger._lifecycle.handle()

    async def working() -> Any:
        assert isinstance(opened.store, SqliteStore)
        return await work(opened.store, opened.writer)

    return await opened.runtime.run(working())


async def let_all_tasks_run() -> None:
    """Let every task of the loop run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_query_behind_a_waiting_command_does_not_deadlock() -> None:
    """A command that waits for the database and a query that arrives in the meantime both succeed.

    Catches a command that holds the database and waits for the state, while the query does it the other way round.
    """
    async with small_ledger() as ledger:

        async def story(store: SqliteStore, writer: LedgerWriter[Any]) -> None:
            async with store.derived_connection():  # as a page of the history does
                command = asyncio.create_task(Routing(ledger).pick_miner_for_job_request(job("one")))
                await let_all_tasks_run()
                query = asyncio.create_task(ledger.current_block())
                await let_all_tasks_run()
            await asyncio.gather(command, query)

        await on_loop_of(ledger, story)


async def test_a_state_discarded_while_a_command_waits_is_loaded_before_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command succeeds although a failing catch-up discards the state just before the command gets the lock.

    Catches a load of the snapshot inside of the transaction: it would wait for the lock that the transaction holds.
    """
    async with small_ledger() as ledger:

        async def story(_store: SqliteStore, writer: LedgerWriter[Any]) -> None:
            catch_up, folds = writer._live.catch_up_before_lock, 0

            async def catch_up_in_vain_at_first() -> None:
                nonlocal folds
                folds += 1
                await catch_up()
                if folds == 1:
                    writer._live.current = None

            monkeypatch.setattr(writer._live, "catch_up_before_lock", catch_up_in_vain_at_first)
            writer._live.current = None
            await Routing(ledger).pick_miner_for_job_request(job("one"))
            assert folds == 2

        await on_loop_of(ledger, story)
