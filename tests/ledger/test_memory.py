"""A database in memory: reads and writes take turns there, and nobody waits for a turn that cannot come."""

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
    """Runs work on the ledger's own loop, where its locks live."""
    opened = await ledger._lifecycle.handle()

    async def working() -> Any:
        assert isinstance(opened.store, SqliteStore)
        return await work(opened.store, opened.writer)

    return await opened.runtime.run(working())


async def settle() -> None:
    """Lets every task of the loop go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_question_behind_a_waiting_change_does_not_stop_both() -> None:
    """A change in line for the database and a question asked meanwhile are both answered.

    Catches: the change holding the database and waiting for the state, the question the other way round.
    """
    async with small_ledger() as ledger:

        async def story(store: SqliteStore, writer: LedgerWriter[Any]) -> None:
            async with store.read_connection():  # as a page of the history does
                change = asyncio.create_task(Routing(ledger).pick_miner_for_job_request(job("one")))
                await settle()
                question = asyncio.create_task(ledger.current_block())
                await settle()
            await asyncio.gather(change, question)

        await on_loop_of(ledger, story)


async def test_state_lost_before_a_change_has_the_lock_is_folded_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change whose state a failing question threw away, just before the change was alone, is made all the same.

    Catches: loading the snapshot inside the transaction, which waits for a turn that the transaction itself has.
    """
    async with small_ledger() as ledger:

        async def story(_store: SqliteStore, writer: LedgerWriter[Any]) -> None:
            fold_anew, folds = writer._catch_up_before_lock, 0

            async def folded_in_vain_at_first() -> None:
                nonlocal folds
                folds += 1
                await fold_anew()
                if folds == 1:
                    writer._state = None

            monkeypatch.setattr(writer, "_catch_up_before_lock", folded_in_vain_at_first)
            writer._state = None
            await Routing(ledger).pick_miner_for_job_request(job("one"))
            assert folds == 2

        await on_loop_of(ledger, story)
