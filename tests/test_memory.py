"""A database in memory: reads and writes take turns there, and nobody waits for a turn that cannot come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ledger.sqlite import SqliteStore
from ledger.writer import LedgerActor
from routing import Allowance, Routing

from .small import job, small_book

pytestmark = pytest.mark.timeout(30)


async def on_loop_of(book: Allowance, work: Callable[[SqliteStore, LedgerActor[Any]], Awaitable[Any]]) -> Any:
    """Runs work on the ledger's own loop, where its locks live."""
    opened = await book._ready()

    async def working() -> Any:
        assert isinstance(opened.store, SqliteStore)
        return await work(opened.store, opened.actor)

    return await opened.runtime.run(working())


async def settle() -> None:
    """Lets every task of the loop go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_question_behind_a_waiting_change_does_not_stop_both() -> None:
    """A change in line for the database and a question asked meanwhile are both answered.

    Catches: the change holding the database and waiting for the state, the question the other way round.
    """
    async with small_book() as book:

        async def story(store: SqliteStore, actor: LedgerActor[Any]) -> None:
            async with store.reading():  # as a page of the history does
                change = asyncio.create_task(Routing(book).pick_miner_for_job_request(job("one")))
                await settle()
                question = asyncio.create_task(book.current_block())
                await settle()
            await asyncio.gather(change, question)

        await on_loop_of(book, story)


async def test_state_lost_before_a_change_has_the_lock_is_folded_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change whose state a failing question threw away, just before the change was alone, is made all the same.

    Catches: loading the snapshot inside the transaction, which waits for a turn that the transaction itself has.
    """
    async with small_book() as book:

        async def story(_store: SqliteStore, actor: LedgerActor[Any]) -> None:
            fold_anew, folds = actor._follow, 0

            async def folded_in_vain_at_first() -> None:
                nonlocal folds
                folds += 1
                await fold_anew()
                if folds == 1:
                    actor._state = None

            monkeypatch.setattr(actor, "_follow", folded_in_vain_at_first)
            actor._state = None
            await Routing(book).pick_miner_for_job_request(job("one"))
            assert folds == 2

        await on_loop_of(book, story)
