"""Ledgers of one process that share connections to PostgreSQL."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from ledger import CommitOutcomeUnknown, Head
from ledger.store.postgres.connection_pool import MOST_CONNECTIONS
from ledger.store.postgres.shared_connections import _shared
from ledger.store.postgres.store import PostgresStore
from routing import Allowance
from tests.support.logs import append, append_at, opened, row_after
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, START, Clock, record_blocks
from tests.support.wire import wired

LEDGERS = 16
KINDS = 4
"""Appends, writes of derived tables, reads of the log, and SQLAlchemy's reads."""
BACKENDS = """SELECT pid FROM pg_stat_activity
              WHERE application_name = 'allowance-ledger' AND datname = current_database()"""


async def backends(url: str) -> set[int]:
    """Return the server's processes that serve ledgers."""
    async with connected(url) as other:
        return {pid for (pid,) in await other.fetch(BACKENDS)}


async def test_sixteen_ledgers_of_a_process_share_a_few_connections(postgres_url: str) -> None:
    """All of them work at the same time, none waits for ever, and closing the last one closes the connections.

    Catches connections for each ledger: there were up to five, so eighty.
    """
    clock = Clock(START + timedelta(seconds=132))
    async with AsyncExitStack() as stack:
        ledgers = [
            await stack.enter_async_context(Allowance.open(postgres_url, validator_ss58=f"5V{n}", clock_ns=clock))
            for n in range(LEDGERS)
        ]

        async def work(ledger: Allowance, number: int) -> int:
            await ledger.record_manifests(1, {"5Anna": {GPU: 2}})
            await record_blocks(ledger, 1, 11, ["5Anna"], {f"5V{number}": 1.0})
            made = [await ledger.reserve("5Anna", GPU, 6.0, 11) for _ in range(5)]
            await ledger.rebuild()
            return len((await ledger.history()).items) - len(made)

        assert await asyncio.gather(*(work(ledger, n) for n, ledger in enumerate(ledgers))) == [0] * LEDGERS
        assert len(await backends(postgres_url)) <= KINDS * MOST_CONNECTIONS
        assert [(await ledger.audit()).findings for ledger in ledgers] == [[]] * LEDGERS
    async with connected(postgres_url) as other:
        while await other.fetch(BACKENDS):
            pass


async def test_a_lone_ledger_needs_no_more_connections_than_it_has_sessions(postgres_url: str) -> None:
    """One for its appends, one for reads; each piece of work gets the same one again."""
    async with opened(postgres_url) as store:
        head = await append(store, [row_after(Head())])
        before = await backends(postgres_url)
        for version in range(2, 7):
            row = row_after(head, version=version)
            assert await append_at(store, head, [row])
            await store.read(0)
            head = await store.head()
        assert await backends(postgres_url) == before
        assert len(before) == 2
    assert not any(_shared.values())


async def test_a_ledger_in_doubt_does_not_disturb_the_append_of_another(
    server: PostgresServer, postgres_url: str
) -> None:
    """The other's append, which is under way on an old connection, ends as usual; later work has new connections.

    Catches connections that are cut while another ledger uses them: its outcome would be unknown too, and it would cut
    those of the first one in turn.
    """
    async with (
        wired(server, urlsplit(postgres_url).path[1:]) as wire,
        opened(wire.url, "doubtful") as doubtful,
        opened(wire.url, "other") as other,
        connected(postgres_url) as holder,
    ):
        assert isinstance(other, PostgresStore)
        assert isinstance(doubtful, PostgresStore)
        head = await append(doubtful, [row_after(Head())])
        before = await backends(postgres_url)
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM allowance_ledgers WHERE validator_ss58 = 'other' FOR UPDATE")
            appending = asyncio.create_task(append_at(other, Head(), [row_after(Head())]))
            while not await holder.fetch("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                pass
            wire.cut(b"marked", "response lost")
            row = row_after(head, version=2, payload=b"marked")
            with pytest.raises(CommitOutcomeUnknown):
                await append_at(doubtful, head, [row])
            assert await doubtful.resolve_commit(row)
            assert not appending.done()
        assert await appending
        assert (await other.head()).position == 1
        assert await append_at(other, await other.head(), [row_after(await other.head(), version=2)])
        async with connected(postgres_url) as watcher:
            while before & {pid for (pid,) in await watcher.fetch(BACKENDS)}:
                pass


async def test_whoever_waits_for_a_connection_gets_one_when_another_ledger_is_done(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one connection of each kind two ledgers take turns, also after an error and a cancellation.

    Catches a connection that is not given back.
    """
    monkeypatch.setattr("ledger.store.postgres.connection_pool.MOST_CONNECTIONS", 1)
    async with opened(postgres_url, "one") as one, opened(postgres_url, "two") as two:

        async def fail() -> None:
            async with one.transaction():
                raise KeyError

        for _ in range(3):
            with pytest.raises(KeyError):
                await fail()
            async with one.transaction():
                waiting = asyncio.create_task(append(two, [row_after(Head())]))
                await one.read(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
        assert await append(two, [row_after(Head())])
        assert await append(one, [row_after(Head())])
