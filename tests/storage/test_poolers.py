"""Ledgers behind PgBouncer: what a pool of transactions gives to others, and which pools are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import asyncpg
import pytest

from ledger import CommitOutcomeUnknown, Head, Lookup
from ledger.store.postgres.store import PostgresStore
from routing import Allowance, InvalidInput, Routing, StorageUnavailable
from tests.support.logs import append, append_at, opened, row_after
from tests.support.poolers import Pooler, pooler_of, why_no_pooler
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

pytestmark = pytest.mark.skipif(why_no_pooler() is not None, reason=why_no_pooler() or "")

PROCESSES, CALLERS, JOBS_PER_CALLER = 4, 4, 10
BARRIER_SECONDS = 120.0
"""Only a process that has failed makes the others wait as long."""
NEWEST_BLOCK = 120
TRANSACTIONS = "&pool_mode=transaction"
LEFT_BEHIND = """SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),
                        current_setting('default_transaction_read_only'), current_setting('application_name'),
                        current_setting('idle_in_transaction_session_timeout'),
                        (SELECT count(*) FROM pg_prepared_statements WHERE name <> '')"""

PoolerOf = Callable[..., AbstractContextManager[Pooler]]


@pytest.fixture
def pool(server: PostgresServer) -> PoolerOf:
    """Starts PgBouncer in front of the server, in a mode."""
    return partial(pooler_of, server)


def clock() -> Clock:
    """A clock at the newest block."""
    now = Clock(START)
    now.advance(12 * NEWEST_BLOCK)
    return now


def work(url: str, barrier: Barrier, results: Any, number: int) -> None:
    """Pick and spend with several callers, and read pages meanwhile; runs in its own process."""

    async def call(ledger: Allowance, caller: int) -> list[int]:
        router, spent = Routing(ledger), []
        for each in range(JOBS_PER_CALLER):
            route = await router.pick_miner_for_job_request(job(f"job {number} {caller} {each}", 6.0))
            spent.append((await ledger.spend(route.allowance_reservation_id or 0)).reservation_id)
        return spent

    async def run() -> list[int]:
        async with (
            Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock()) as ledger,
            Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock(), read_only=True) as auditor,
        ):
            await ledger.head()
            await asyncio.to_thread(barrier.wait, BARRIER_SECONDS)
            reading = asyncio.gather(auditor.audit(), auditor.history())
            spent = await asyncio.gather(*(call(ledger, caller) for caller in range(CALLERS)))
            report, _ = await reading
            assert report.findings == []
            return [each for some in spent for each in some]

    try:
        results.put(asyncio.run(run()))
    except BaseException as error:
        barrier.abort()
        results.put(repr(error))
        raise


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_four_processes_work_through_a_small_pool(pool: PoolerOf, postgres_url: str, pool_mode: str) -> None:
    """Every call succeeds, everything acknowledged is in the log once, and readers in between find no fault.

    With two connections to the server for four processes, it catches prepared statements with names, statements that
    rely on a session's settings, and a session that is left read-only.
    """
    async with small_ledger(url=postgres_url, offers={f"5Miner{n}": 9 for n in range(5)}, blocks=NEWEST_BLOCK):
        pass
    with pool(pool_mode, size=2 if pool_mode == "transaction" else 64) as pooler:
        url = pooler.url(postgres_url, f"&pool_mode={pool_mode}")
        context = get_context("spawn")
        barrier, results = context.Barrier(PROCESSES), context.Queue()
        started = [context.Process(target=work, args=(url, barrier, results, n)) for n in range(PROCESSES)]
        for process in started:
            process.start()
        told = [await asyncio.to_thread(results.get, timeout=BARRIER_SECONDS) for _ in started]
        for process in started:
            process.join(BARRIER_SECONDS)
    assert [each for each in told if isinstance(each, str)] == []
    acknowledged = sorted(each for some in told for each in some)
    assert len(set(acknowledged)) == PROCESSES * CALLERS * JOBS_PER_CALLER
    async with Allowance.open(postgres_url, validator_ss58=VALIDATOR, read_only=True) as ledger:
        stored = (await ledger.history(limit=1000)).items
        assert sorted(each.reservation_id for each in stored) == acknowledged
        assert {each.status for each in stored} == {"spent"}
        assert (await ledger.audit()).findings == []


async def test_nothing_of_a_session_stays_with_the_pool(pool: PoolerOf, postgres_url: str) -> None:
    """After an auditor and a writer, the next client of the one connection finds it as it was.

    Catches settings and prepared statements that are not the transaction's: the next client would be read-only, or run
    a statement of ours.
    """
    with pool("transaction", size=1) as pooler:
        url = pooler.url(postgres_url, TRANSACTIONS)
        before = await _ask(pooler.url(postgres_url), LEFT_BEHIND)
        async with small_ledger(url=url) as ledger:
            await ledger.reserve("5Anna", GPU, 6.0, 11)
            await ledger.rebuild()
            assert len((await ledger.history()).items) == 1
        async with Allowance.open(url, validator_ss58=VALIDATOR, read_only=True) as auditor:
            await auditor.history()
            assert (await auditor.audit()).findings == []
        assert await _ask(pooler.url(postgres_url), LEFT_BEHIND) == before
        async with Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=Clock(START)) as ledger:
            assert (await ledger.reserve("5Bert", GPU, 6.0, 11)).status == "reserved"


@pytest.mark.parametrize("read_only", [False, True])
async def test_the_reads_behind_a_pool_are_transactions(pool: PoolerOf, postgres_url: str, read_only: bool) -> None:
    """They have the ledger's limits, and what the driver sets for itself ends on the connection that it began on.

    Catches reads outside of a transaction. To learn an array's type the driver switches `jit` off and on again;
    a pool would switch it off on one connection to the server and on again on another.
    """
    async with opened(postgres_url):
        pass
    with pool("transaction", size=3) as pooler:
        async with AsyncExitStack() as stack:
            # At the same time, so that the pool has all of its connections to the server.
            for _ in range(3):
                holder = await stack.enter_async_context(connected(pooler.url(postgres_url)))
                await stack.enter_async_context(holder.transaction())
        async with opened(pooler.url(postgres_url, TRANSACTIONS), read_only=read_only) as store:
            assert isinstance(store, PostgresStore)
            await store.find(Lookup(positions=[1]))
            assert await store.query("SHOW statement_timeout") == [("30s",)]
        left = {
            await _ask(pooler.url(postgres_url), "SELECT pg_backend_pid(), current_setting('jit')") for _ in "abcdef"
        }
    assert len(left) == 3
    assert {jit for _, jit in left} == {"on"}


async def _ask(url: str, query: str) -> tuple[Any, ...]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return tuple(await connection.fetchrow(query))
    finally:
        await connection.close()


async def test_a_setting_of_an_append_holds_behind_a_pool(pool: PoolerOf, postgres_url: str) -> None:
    """An append waits for the head's lock only for a short time, although no session has the limit.

    Catches an append without a transaction that sets it.
    """
    with pool("transaction") as pooler, pytest.MonkeyPatch.context() as limits:
        limits.setattr("ledger.store.postgres.connecting.LOCK_TIMEOUT_SECONDS", 0.05)
        async with opened(postgres_url) as holder, opened(pooler.url(postgres_url, TRANSACTIONS)) as store:
            async with holder.transaction():
                assert not await append_at(store, Head(), [row_after(Head())])
            assert await append_at(store, Head(), [row_after(Head())])


@pytest.mark.parametrize("how", ["at a head", "transaction"])
async def test_an_append_whose_server_process_dies_behind_a_pool_is_found_out(
    pool: PoolerOf, postgres_url: str, how: str
) -> None:
    """The outcome is unknown, then certain; the next append is done. Catches an append that is reported as failed."""
    with pool("transaction") as pooler:
        async with opened(pooler.url(postgres_url, TRANSACTIONS)) as store:
            head = await append(store, [row_after(Head())])
            row = row_after(head, version=2)
            with _killed_at_the_commit(postgres_url), pytest.raises(CommitOutcomeUnknown):
                await (append_at(store, head, [row]) if how == "at a head" else append(store, [row]))
            assert not await store.resolve_commit(row)
            assert await append_at(store, head, [row])
            assert (await store.read(0))[1:] == [row]


@contextmanager
def _killed_at_the_commit(url: str) -> Iterator[None]:
    """Kill the server's processes of the pool when the store sends COMMIT; the request still goes out."""
    execute = asyncpg.Connection.execute

    async def killed(self: asyncpg.Connection, query: str, *arguments: Any, **options: Any) -> Any:
        if query == "COMMIT":
            async with connected(url) as other:
                await execute(other, _KILL)
        return await execute(self, query, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg.Connection, "execute", killed)
        yield


_KILL = """SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""


# Refused


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_a_pool_that_the_url_does_not_name_is_refused(pool: PoolerOf, postgres_url: str, pool_mode: str) -> None:
    """The ledger notices the pool and says what to write. Catches a ledger that prepares statements behind it."""
    with pool(pool_mode) as pooler, pytest.raises(InvalidInput, match="pool_mode=session or pool_mode=transaction"):
        async with opened(pooler.url(postgres_url)):
            pass


async def test_a_pool_of_statements_is_refused(pool: PoolerOf, postgres_url: str) -> None:
    """It allows no transactions, and PgBouncer's own words say so."""
    with pool("statement") as pooler, pytest.raises(StorageUnavailable, match="statement pooling mode"):
        async with opened(pooler.url(postgres_url, TRANSACTIONS)):
            pass


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("pool_mode=statement", "pool_mode is one of session, transaction"),
        ("pool_mode=transaction&search_path=mine", r"without search_path .* ALTER ROLE … SET search_path"),
        ("target_session_attrs=best", "target_session_attrs is one of any, primary"),
    ],
)
def test_what_cannot_work_is_refused_by_name(parameters: str, expected: str) -> None:
    """The error names the parameter and what would be right, before anything connects."""
    with pytest.raises(InvalidInput, match=expected):
        Allowance.open(f"postgresql://localhost/db?{parameters}", validator_ss58=VALIDATOR)


async def test_settings_in_the_url_reach_a_session_behind_a_pool(pool: PoolerOf, postgres_url: str) -> None:
    """PgBouncer refuses them when a connection starts, so they are sent afterwards."""
    with pool("session", size=9) as pooler:
        async with opened(pooler.url(postgres_url, "&pool_mode=session&statement_timeout=7s")) as store:
            assert isinstance(store, PostgresStore)
            shown = await store._reads.run(lambda connection: connection.fetchval("SHOW statement_timeout"))
    assert shown == "7s"
