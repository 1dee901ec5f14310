"""The log on PostgreSQL: lost requests and responses, killed servers, contention, settings and URLs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from ledger import CommitOutcomeUnknown, Head, Lookup, Row, Store, encode_state, versions_before
from ledger.store.contract import TransactionConflict
from ledger.store.postgres import creation
from ledger.store.postgres.store import PostgresStore
from routing import AllMinersBusy, Allowance, InvalidInput, OutcomeUnknown, Routing, StorageUnavailable
from tests.support.logs import VALIDATOR, all_rows, append, append_at, append_in, head_at, opened, row_after, rows_after
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, START, Clock, job, small_ledger
from tests.support.small import VALIDATOR as OWNER
from tests.support.wire import Fate, Wire, wired

T = TypeVar("T")

COMMIT = b"COMMIT\x00"
HOWS = ["at a head", "behind the head", "transaction"]
OWN_BACKENDS = "datname = current_database() AND application_name = 'allowance-ledger'"


@pytest_asyncio.fixture
async def store(postgres_url: str) -> AsyncIterator[PostgresStore]:
    async with opened(postgres_url) as store:
        assert isinstance(store, PostgresStore)
        yield store


@pytest_asyncio.fixture
async def wire(server: PostgresServer, postgres_url: str) -> AsyncIterator[Wire]:
    async with wired(server, urlsplit(postgres_url).path[1:]) as wire:
        yield wire


async def append_by(how: str, store: Store, head: Head, rows: list[Row]) -> bool:
    if how == "at a head":
        return await append_at(store, head, rows)
    if how == "behind the head":
        await store.append(lambda _: rows, versions_before(rows))
    else:
        await append(store, rows)
    return True


def mark_of(how: str, row: Row) -> bytes:
    """Return a text in the request that makes the append durable."""
    return row.payload if how == "at a head" else COMMIT


async def fetch(url: str, query: str) -> list[Any]:
    async with connected(url) as other:
        return [tuple(row) for row in await other.fetch(query)]


async def until(url: str, condition: str) -> None:
    """Query the server until a condition holds."""
    async with connected(url) as other:
        while not await other.fetchval(f"SELECT {condition}"):
            pass


async def terminate_backends(url: str) -> None:
    """Close every connection that a ledger has to the database."""
    await fetch(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OWN_BACKENDS}")
    await until(url, f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE {OWN_BACKENDS})")


# Lost requests and responses


@pytest.mark.parametrize("fate", ["request lost", "response lost"])
@pytest.mark.parametrize("how", HOWS)
async def test_a_lost_commit_is_unknown_until_the_log_is_read(wire: Wire, how: str, fate: Fate) -> None:
    """The store raises `CommitOutcomeUnknown`, then finds out; the log has all of the rows or none."""
    async with opened(wire.url) as store:
        head = await append(store, [row_after(Head())])
        rows = [row_after(head, version=2, payload=b"marked")]
        rows.append(row_after(head_at(rows[0]), version=3))
        wire.cut(mark_of(how, rows[0]), fate)
        with pytest.raises(CommitOutcomeUnknown):
            await append_by(how, store, head, rows)
        done = rows if fate == "response lost" else []
        assert await store.resolve_commit(rows[0]) == bool(done)
        assert await store.read(1) == done
        await append(store, [row_after(await store.head(), version=2 + len(done))])


async def test_an_append_that_arrives_too_late_is_refused_by_the_fence(wire: Wire) -> None:
    """Rows reported as not done never get into the log, even if the lost request reaches the server afterwards."""
    async with opened(wire.url) as store:
        head = await append(store, [row_after(Head())])
        late = row_after(head, version=2, payload=b"marked")
        wire.cut(b"marked", "request late")
        with pytest.raises(CommitOutcomeUnknown):
            await append_at(store, head, [late])
        assert not await store.resolve_commit(late)
        await wire.deliver()
        assert await store.read(1) == []
        assert await append_at(store, head, [late])


async def test_the_outcome_waits_for_a_commit_that_may_still_arrive(wire: Wire, postgres_url: str) -> None:
    """While the transaction of a lost COMMIT holds the head's lock, its outcome is open; reads go on."""
    async with opened(wire.url) as store:
        head = await append(store, [row_after(Head())])
        late = row_after(head, version=2)
        wire.cut(COMMIT, "request late")
        with pytest.raises(CommitOutcomeUnknown):
            await append(store, [late])
        resolving = asyncio.create_task(store.resolve_commit(late))
        await until(postgres_url, "EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock')")
        assert await store.read(1) == []
        assert not resolving.done()
        await wire.deliver()
        assert await resolving
        assert await store.read(1) == [late]


@pytest.mark.parametrize("how", HOWS)
async def test_a_request_lost_before_the_commit_did_nothing(wire: Wire, postgres_url: str, how: str) -> None:
    """If the connection is lost before the lock or the insert, the store knows that nothing was done."""
    async with opened(wire.url) as store:
        head = await append(store, [row_after(Head())])
        row = row_after(head, version=2, payload=b"marked")
        if how != "at a head":
            wire.cut(b"marked", "response lost")
            with pytest.raises(StorageUnavailable):
                await append_by(how, store, head, [row])
        else:
            wire.unreachable = True
            await terminate_backends(postgres_url)
            with pytest.raises(StorageUnavailable):
                await append_at(store, head, [row])
            wire.unreachable = False
        assert await store.head() == head
        assert await append_at(store, head, [row])


@pytest.mark.parametrize("mark", [b"BEGIN", b"\x00\x00\x00\x01"], ids=["begin", "lock"])
async def test_a_transaction_that_loses_its_connection_before_the_lock_begins_again(wire: Wire, mark: bytes) -> None:
    """Before the lock the caller has seen nothing, so the store can begin again on a new connection."""
    async with opened(wire.url) as store:
        head = await append(store, [row_after(Head())])
        wire.cut(mark, "response lost")
        await append(store, [row_after(head, version=2)])
        assert len(await all_rows(store)) == 2


@pytest.mark.parametrize("fate", ["request lost", "response lost"])
async def test_a_reservation_whose_response_was_lost_is_made_once(wire: Wire, fate: Fate) -> None:
    """The caller gets the reservation if it is in the log, and otherwise an error that nothing was done."""
    async with small_ledger(url=wire.url, offers={"5Anna": 1}) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        wire.cut(b"allowance-reserved", fate)
        if fate == "response lost":
            reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
            assert await ledger.reservation(reservation.reservation_id) == reservation
        else:
            with pytest.raises(StorageUnavailable):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
            reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert reservation.blocks == [2]
        assert [each.blocks for each in (await ledger.history()).items] == [[2], [1]]


@pytest.mark.parametrize("fate", ["request lost", "response lost"])
async def test_a_retry_with_the_errors_key_resolves_an_unknown_outcome(wire: Wire, fate: Fate) -> None:
    """While the server is out of reach the error carries a key; later a retry with it executes the call once."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=wire.url, offers={"5Anna": 1}, clock=clock) as ledger:

        async def outcome(call: Callable[[str | None], Awaitable[T]], mark: bytes) -> T:
            wire.cut(mark, fate)
            wire.unreachable = True
            with pytest.raises(OutcomeUnknown) as unknown:
                await call(None)
            with pytest.raises(StorageUnavailable):
                await ledger.current_block()
            wire.unreachable = False
            first = await call(unknown.value.idempotency_key)
            assert await call(unknown.value.idempotency_key) == first
            return first

        await ledger.reserve("5Anna", GPU, 6.0, 11)
        reservation = await outcome(
            lambda key: ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key=key), mark=b"allowance-reserved"
        )
        assert reservation.blocks == [2]
        await outcome(
            lambda key: ledger.spend(reservation.reservation_id, idempotency_key=key), mark=b"reservation-spent"
        )
        created_at = START + timedelta(seconds=144)
        await outcome(lambda key: ledger.record_block(12, created_at, [], {}, idempotency_key=key), mark=COMMIT)
        await outcome(lambda key: ledger.record_manifests(12, {}, confirm=True, idempotency_key=key), mark=COMMIT)
        clock.advance(1000)
        expired = await outcome(lambda key: ledger.expire_due(idempotency_key=key), mark=b"reservation-expired")
        assert [each.blocks for each in expired] == [[1]]
        assert [each.status for each in (await ledger.history()).items] == ["spent", "expired"]


# Killed connections and servers


async def test_killed_connections_are_replaced(store: PostgresStore, postgres_url: str) -> None:
    """Every connection is killed between calls: each kind of call opens a new one and succeeds."""
    rows = rows_after(Head(), 6)
    head = await append(store, rows[:2])
    await terminate_backends(postgres_url)
    assert await store.head() == head
    await terminate_backends(postgres_url)
    assert await store.read(0) == rows[:2]
    await terminate_backends(postgres_url)
    assert (await store.find(Lookup(positions=[1]))).rows == {1: rows[0]}
    await terminate_backends(postgres_url)
    assert await append(store, rows[2:4]) == head_at(rows[3])
    await terminate_backends(postgres_url)
    assert await append_at(store, head_at(rows[3]), rows[4:])
    for _ in range(2):
        async with store.write_derived() as transaction:
            await transaction.query("SELECT 1")
        async with store.derived_connection() as connection:
            await connection.exec_driver_sql("SELECT 1")
        await terminate_backends(postgres_url)
    assert await store.read(0) == rows


async def test_a_connection_killed_inside_a_transaction_rolls_it_back(store: PostgresStore, postgres_url: str) -> None:
    """Before the commit is sent, the store knows that nothing was done."""
    head = await append(store, [row_after(Head())])

    async def interrupted() -> None:
        async with store.transaction() as transaction:
            await terminate_backends(postgres_url)
            await append_in(transaction, [row_after(head, version=2)])

    with pytest.raises(StorageUnavailable):
        await interrupted()
    assert await store.head() == head
    await append(store, [row_after(head, version=2)])


async def test_a_snapshot_whose_connection_is_killed_shows_the_servers_reason(
    store: PostgresStore, postgres_url: str
) -> None:
    """The error names what ended the read. Catches the end of the transaction, which fails too and would hide it."""
    async with connected(postgres_url) as other, other.transaction():
        await other.execute("LOCK TABLE allowance_ledgers IN ACCESS EXCLUSIVE MODE")

        async def read() -> None:
            async with store.reader() as reader:
                await reader.ledgers()

        reading = asyncio.create_task(read())
        await until(postgres_url, "EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock')")
        await terminate_backends(postgres_url)
        with pytest.raises(StorageUnavailable, match="terminating connection"):
            await reading


async def test_a_connection_killed_before_the_commit_leaves_the_outcome_unknown(
    store: PostgresStore, postgres_url: str
) -> None:
    """A COMMIT on a dead connection might have reached the server; the log shows that it did not."""
    head = await append(store, [row_after(Head())])

    async def interrupted() -> None:
        async with store.transaction() as transaction:
            await append_in(transaction, [row_after(head, version=2)])
            await terminate_backends(postgres_url)

    with pytest.raises(CommitOutcomeUnknown):
        await interrupted()
    assert await store.read(1) == []


async def test_a_ledger_outlives_its_connections(postgres_url: str) -> None:
    """All connections are killed between any two calls: no caller notices."""
    async with small_ledger(url=postgres_url) as ledger:
        await terminate_backends(postgres_url)
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        await terminate_backends(postgres_url)
        assert await ledger.current_block() == 11
        await terminate_backends(postgres_url)
        assert (await ledger.history()).items == [reservation]
        await terminate_backends(postgres_url)
        await ledger.spend(reservation.reservation_id)
        await terminate_backends(postgres_url)
        assert (await ledger.reservation(reservation.reservation_id)).status == "spent"


async def test_an_open_ledger_survives_a_restart_of_the_server(server: PostgresServer, postgres_url: str) -> None:
    """While the server is down, commands and queries raise `StorageUnavailable`; after its start they succeed again."""
    async with small_ledger(url=postgres_url) as ledger:
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        server.stop()
        try:
            for call in (
                lambda: ledger.reserve("5Anna", GPU, 6.0, 11),
                ledger.current_block,
                lambda: ledger.reservation(reservation.reservation_id),
                ledger.history,
                ledger.health,
            ):
                with pytest.raises(StorageUnavailable):
                    await call()
            with pytest.raises(StorageUnavailable):
                async with opened(postgres_url):
                    pass
        finally:
            server.start()
        assert (await ledger.history()).items == [reservation]
        await ledger.spend(reservation.reservation_id)


# Contention


async def test_two_ledgers_of_one_database_never_reserve_a_block_twice(postgres_url: str) -> None:
    """Two open ledgers act as two processes: after a conflict a writer folds the other's rows and decides again."""
    clock = Clock(START + timedelta(seconds=12 * 41))
    async with (
        small_ledger(url=postgres_url, offers={"5Anna": 50}, blocks=41, clock=clock) as one,
        Allowance.open(postgres_url, validator_ss58=OWNER, clock_ns=clock) as two,
    ):
        routers = [Routing(one), Routing(two)]
        barrier = asyncio.Barrier(40)

        async def route(number: int) -> list[int]:
            await barrier.wait()
            claimed = await routers[number % 2].pick_miner_for_job_request(job(f"job {number}", 300.0))
            return claimed.allowance_blocks or []

        taken = [block for blocks in await asyncio.gather(*map(route, range(40))) for block in blocks]
        assert sorted(taken) == list(range(1, 41))
        assert await one._read_state(lambda state, _: encode_state(state)) == await two._read_state(
            lambda state, _: encode_state(state)
        )


async def test_one_job_routed_by_two_ledgers_at_once_is_reserved_once(postgres_url: str) -> None:
    """Both return the same route: the job's uuid is the key, and the database refuses a second row."""
    clock = Clock(START + timedelta(seconds=12 * 11))
    async with (
        small_ledger(url=postgres_url, clock=clock) as one,
        Allowance.open(postgres_url, validator_ss58=OWNER, clock_ns=clock) as two,
    ):
        for number in range(10):
            routes = await asyncio.gather(
                *(Routing(ledger).pick_miner_for_job_request(job(f"job {number}")) for ledger in (one, two)),
                return_exceptions=True,
            )
            if isinstance(routes[0], AllMinersBusy):
                assert isinstance(routes[1], AllMinersBusy)
            else:
                assert routes[0] == routes[1]
        items = (await one.history()).items
        assert len({each.job_uuid for each in items}) == len(items)


GIVE_UP = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN
            IF nextval('tries') <= {times} THEN RAISE EXCEPTION 'restart' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NULL;
        END $$;
    CREATE {trigger} FUNCTION give_up()"""
AT_INSERT = "TRIGGER give_up BEFORE INSERT ON allowance_events EXECUTE"
AT_COMMIT = """CONSTRAINT TRIGGER give_up AFTER INSERT ON allowance_events
               DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE"""


@pytest.mark.parametrize("trigger", [AT_INSERT, AT_COMMIT], ids=["insert", "commit"])
@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
async def test_an_append_that_the_database_aborts_for_another_can_be_retried(
    store: PostgresStore, postgres_url: str, sqlstate: str, trigger: str
) -> None:
    """After a serialization failure or deadlock nothing was done: `TransactionConflict`, or the result is False."""
    head = await append(store, [row_after(Head())])
    async with connected(postgres_url) as other:
        await other.execute(GIVE_UP.format(times=2, sqlstate=sqlstate, trigger=trigger))
    row = row_after(head, version=2)
    assert not await append_at(store, head, [row])
    with pytest.raises(TransactionConflict):
        await append(store, [row])
    await append(store, [row])


async def test_a_ledger_retries_a_transaction_that_the_database_aborted(postgres_url: str) -> None:
    """The database aborts a reservation five times; the sixth attempt succeeds, and it is made once."""
    async with small_ledger(url=postgres_url) as ledger:
        async with connected(postgres_url) as other:
            await other.execute(GIVE_UP.format(times=5, sqlstate="40001", trigger=AT_INSERT))
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.history()).items == [reservation]


# Statements


async def test_an_append_without_contention_is_one_round_trip(wire: Wire) -> None:
    """It is one statement without a transaction; under the lock it takes a BEGIN, a SELECT and a COMMIT more."""
    async with opened(wire.url) as store:
        head = await append(store, rows_after(Head(), 2))
        wire.requests.clear()
        assert await append_at(store, head, rows_after(head, 300, version=3))
        assert len(wire.requests) == 1
        head = await store.head()
        wire.requests.clear()
        await append(store, rows_after(head, 300, version=303))
        assert len(wire.requests) == 4
        wire.requests.clear()
        await store.append(lambda head: rows_after(head, 300, version=603), {"stream": 602})
        assert len(wire.requests) == 4


async def test_an_append_moves_streams_without_touching_an_index(postgres_url: str) -> None:
    """An update of a stream's version stays in its page, however often the stream moves.

    A few do not, if a page is full while the server cannot yet tidy it up. Catches a table without room in its pages,
    and an index on the version.
    """
    async with opened(postgres_url) as store:
        head = Head()
        for version in range(1, 31):
            rows: list[Row] = []
            before = head
            for number in range(100):
                rows.append(row_after(head, f"5Miner{number}\talways_on.gpu-24gb", version))
                head = head_at(rows[-1])
            assert await append_at(store, before, rows)
    await until(postgres_url, f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE {OWN_BACKENDS})")
    updates = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'allowance_streams'"
    ((moved, in_place),) = await fetch(postgres_url, updates)
    assert moved == 2900
    assert in_place > 0.98 * moved


async def test_a_reservation_without_contention_is_one_round_trip(wire: Wire) -> None:
    """Keys and jobs are not looked up: a reservation, and a route with its job, send one request to the server."""
    async with small_ledger(url=wire.url) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        for claim in (
            lambda: ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key="a key"),
            lambda: Routing(ledger).pick_miner_for_job_request(job("a job")),
        ):
            wire.requests.clear()
            await claim()
            assert len([request for request in wire.requests if b"allowance-reserved" in request]) == 1
            assert len(wire.requests) == 1


async def test_a_look_up_is_one_round_trip(wire: Wire) -> None:
    """However many keys, jobs and positions a batch looks up, it sends one request."""
    async with opened(wire.url) as store:
        lookup = Lookup(positions=range(1, 100))
        lookup.keys = {f"key {n}" for n in range(100)}
        lookup.jobs = {f"job {n}" for n in range(100)}
        await store.find(lookup)
        wire.requests.clear()
        await store.find(lookup)
        assert len(wire.requests) == 1


async def test_no_statement_scans_the_log(postgres_url: str) -> None:
    """Appends, their checks, reads and look-ups use indexes, also with plans that were made for an empty log.

    Catches `NOT EXISTS` and plain joins, for which the planner uses scans while its statistics say the log is small.
    """

    async def scans() -> int:
        await until(postgres_url, f"NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE {OWN_BACKENDS})")
        ((count,),) = await fetch(
            postgres_url, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'allowance_events'"
        )
        return int(count)

    async with opened(postgres_url):
        pass
    before = await scans()
    async with opened(postgres_url) as store:
        head = await store.head()
        lookup = Lookup()
        for _ in range(20):
            rows = rows_after(head, 50, version=head.position + 1)
            assert await append_at(store, head, rows)
            head = await append(store, rows_after(head_at(rows[-1]), 50, version=head.position + 51))
            lookup.keys.add(f"key {head.position}")
            lookup.jobs.add(f"job {head.position}")
            lookup.positions.add(head.position)
            await store.find(lookup)
            await store.read(head.position - 10)
    assert await scans() == before


# Settings


async def test_every_session_has_a_name_timeouts_and_flushed_commits(store: PostgresStore) -> None:
    """The settings are the same on the log's connections and on SQLAlchemy's."""
    expected = {
        "application_name": "allowance-ledger",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "20s",
        "default_transaction_isolation": "read committed",
        "default_transaction_read_only": "off",
        "synchronous_commit": "on",
    }
    for session in (store._reads, store._writes, store._derived_writes):
        connection = await session.connection()
        assert {name: await connection.fetchval(f"SHOW {name}") for name in expected} == expected
    async with store.derived_connection() as read:
        shown = {name: (await read.exec_driver_sql(f"SHOW {name}")).scalar_one() for name in expected}
        assert shown == expected


async def test_settings_in_the_url_have_precedence(postgres_url: str) -> None:
    """Timeouts and name in the URL replace the store's defaults."""
    url = f"{postgres_url}&statement_timeout=7s&idle_in_transaction_session_timeout=5s&application_name=mine"
    async with opened(url) as store:
        assert isinstance(store, PostgresStore)
        connection = await store._reads.connection()
        names = ("statement_timeout", "idle_in_transaction_session_timeout", "application_name")
        assert [await connection.fetchval(f"SHOW {name}") for name in names] == ["7s", "5s", "mine"]


async def test_the_server_refuses_writes_of_a_read_only_session(postgres_url: str) -> None:
    """Even if a read-only ledger sent a writing statement, the server would refuse it."""
    async with opened(postgres_url):
        pass
    async with opened(postgres_url, read_only=True) as store:
        assert isinstance(store, PostgresStore)
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await store._reads.run(lambda connection: connection.execute("DELETE FROM allowance_ledgers"))
        async with store.derived_connection() as read:
            with pytest.raises(DBAPIError, match="read-only transaction"):
                await read.exec_driver_sql("DELETE FROM allowance_ledgers")
        with pytest.raises(StorageUnavailable):
            async with store.write_derived():
                pass


async def test_a_client_that_hangs_with_the_heads_lock_loses_it(postgres_url: str) -> None:
    """The server aborts an idle transaction, so that waiting clients continue; the idle one commits nothing."""
    async with (
        opened(f"{postgres_url}&idle_in_transaction_session_timeout=100ms") as hung,
        opened(postgres_url) as other,
    ):

        async def hang() -> None:
            async with hung.transaction() as transaction:
                await append_in(transaction, [row_after(Head(), "hung")])
                await append(other, [row_after(Head(), "other")])

        with pytest.raises(CommitOutcomeUnknown):
            await hang()
        assert [row.stream for row in await hung.read(0)] == ["other"]


@pytest.mark.parametrize("how", HOWS)
async def test_an_append_that_waits_too_long_fails_without_doubt(postgres_url: str, how: str) -> None:
    """The server's timeout comes before the client's and proves that nothing was done."""
    async with opened(postgres_url) as holder, opened(f"{postgres_url}&statement_timeout=500ms") as waiter:
        async with holder.transaction():
            with pytest.raises(StorageUnavailable):
                await append_by(how, waiter, Head(), [row_after(Head())])
        assert await waiter.read(0) == []
        assert await append_by(how, waiter, Head(), [row_after(Head())])


async def test_an_append_behind_a_moved_head_does_not_wait_long_for_the_lock(postgres_url: str) -> None:
    """Queries wait for it; the writer then waits under `transaction` instead, without keeping queries waiting.

    It catches a transaction of `append` that waits without the short limit, until the statement times out.
    """
    limits = "lock_timeout=50ms&statement_timeout=2s"
    async with opened(postgres_url) as holder, opened(f"{postgres_url}&{limits}") as waiter:
        async with holder.transaction():
            with pytest.raises(TransactionConflict):
                await waiter.append(lambda head: [row_after(head)], {})
        assert await waiter.read(0) == []
        assert await waiter.append(lambda head: [row_after(head)], {})


async def test_a_transaction_whose_ledger_is_gone_acknowledges_nothing(postgres_url: str) -> None:
    """It catches an append that took the missing head for a log that was replaced, and then committed nothing."""
    async with opened(postgres_url) as store, store.transaction() as transaction:
        assert isinstance(store, PostgresStore)
        store._fenced.ledger += 1  # A ledger of this number does not exist.
        with pytest.raises(StorageUnavailable, match="not locked"):
            await append_in(transaction, [row_after(Head())])


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE allowance_events",
        "TRUNCATE allowance_ledgers",
        "INSERT INTO allowance_events SELECT * FROM allowance_events WHERE position = 2"
        " ON CONFLICT (ledger, position) DO UPDATE SET payload = excluded.hash",
    ],
)
async def test_postgresqls_own_statements_cannot_change_the_past_either(
    store: PostgresStore, postgres_url: str, statement: str
) -> None:
    """The database refuses to truncate, and an insert that becomes an update."""
    rows = rows_after(Head(), 3)
    await append(store, rows)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="never"):
        await fetch(postgres_url, statement)
    assert await store.read(0) == rows


async def test_an_existing_schema_is_opened_without_the_right_to_create(
    server: PostgresServer, postgres_url: str
) -> None:
    """A user who may only read and write rows opens a database that another user created, also for a new ledger."""
    role = urlsplit(postgres_url).path[1:] + "_clerk"
    url = postgres_url.replace("postgres@", f"{role}@")
    async with connected(postgres_url) as other:
        await other.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with pytest.raises(StorageUnavailable):
            async with opened(url):
                pass
        async with opened(postgres_url):
            pass
        async with connected(postgres_url) as other:
            await other.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}")
            await other.execute(f"GRANT USAGE ON SCHEMA public TO {role}")
        async with opened(url, "another-validator") as store:
            await append(store, [row_after(Head())])
    finally:
        async with connected(postgres_url) as other:
            await other.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://clerk:sec#ret@localhost/db",
        "postgresql://clerk:secret@localhost:port/db",
        "postgresql://clerk:secret@localhost/db?sslmode",
        "postgresql+asyncpg://clerk:secret@localhost/db",
        "postgresql://clerk:secret@localhost/d\x00b",
        "mysql://clerk:secret@localhost/db",
        "mysql://localhost/db?user=clerk&password=secret",
    ],
)
def test_a_refused_url_does_not_show_its_password(url: str) -> None:
    """It is not in the cause of the error either, which a log would show."""
    with pytest.raises(InvalidInput) as refused:
        Allowance.open(url, validator_ss58=VALIDATOR)
    assert refused.value.field == "database_url"
    assert "sec" not in repr(refused.value) + str(refused.value.value)
    assert refused.value.__cause__ is None


async def test_a_url_that_only_the_driver_can_check_is_refused_at_opening(postgres_url: str) -> None:
    """A port in the query that is not a number raises `InvalidInput`."""
    with pytest.raises(InvalidInput):
        async with opened(f"{postgres_url}&port=five"):
            pass


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("&keepalives=1", "keepalives"),
        ("&ssl=true", "ssl"),
        ("&sslmode=yes", "`sslmode` parameter must be one of"),
    ],
)
async def test_the_error_names_an_invalid_parameter(postgres_url: str, parameters: str, expected: str) -> None:
    """A retry could not help, so the error is not `StorageUnavailable`."""
    with pytest.raises(InvalidInput) as refused:
        async with opened(postgres_url + parameters):
            pass
    assert expected in str(refused.value)


async def test_a_database_whose_encoding_lacks_some_names_is_refused(server: PostgresServer) -> None:
    """One name that its encoding cannot represent would fail the whole batch."""
    create = "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    await asyncio.to_thread(server.execute, create)
    try:
        with pytest.raises(InvalidInput, match="UTF8, not LATIN1"):
            async with opened(server.url("latin")):
                pass
    finally:
        await asyncio.to_thread(server.execute, "DROP DATABASE latin")


async def test_a_connection_to_a_read_only_server_is_replaced(postgres_url: str) -> None:
    """After a fail-over or maintenance the next append succeeds on a new connection.

    Catches a connection that is kept although its server refuses writes: every append would fail until the process is
    restarted.
    """
    name = (await fetch(postgres_url, "SELECT current_database()"))[0][0]
    async with opened(postgres_url) as store:
        head = await append(store, [row_after(Head())])
        for how in HOWS:
            row = row_after(head, how)
            async with connected(postgres_url) as other:
                await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
                await other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OWN_BACKENDS}")
                try:
                    with suppress(CommitOutcomeUnknown, StorageUnavailable):  # It may find the connection gone.
                        await append_by(how, store, head, [row])
                    with pytest.raises(StorageUnavailable, match="read-only"):
                        await append_by(how, store, head, [row])
                finally:
                    await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
            assert await append_by(how, store, head, [row])
            head = head_at(row)
    async with connected(postgres_url) as other:
        await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            async with opened(postgres_url) as store:
                with pytest.raises(StorageUnavailable, match="read-only"):
                    await append_at(store, head, [row_after(head, "last")])
                await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
                assert await append_at(store, head, [row_after(head, "last")])
        finally:
            await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")


async def test_a_retry_gets_a_new_connection_also_if_another_is_idle(postgres_url: str) -> None:
    """Two ledgers share connections, and the server of both has become read-only.

    Catches a retry on the second one, which fails like the first; with one idle connection per ledger, so would the
    next calls.
    """
    name = (await fetch(postgres_url, "SELECT current_database()"))[0][0]
    async with opened(postgres_url, "one") as one, opened(postgres_url, "two") as two:
        assert isinstance(one, PostgresStore)
        assert isinstance(two, PostgresStore)
        async with connected(postgres_url) as other:
            await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            try:
                await terminate_backends(postgres_url)
                async with one._writes.held():
                    await one._writes.connection()
                    await two._writes.run(lambda connection: connection.execute("SELECT 1"))
            finally:
                await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
        assert await append(one, [row_after(Head())])


@pytest.mark.parametrize("is_in_use", [True, False])
async def test_a_ledger_in_doubt_does_not_cut_the_page_of_another(wire: Wire, is_in_use: bool) -> None:
    """The other's page, which SQLAlchemy reads, is read to its end; then its connection is not used again.

    Catches connections that are cut while another ledger uses them, and an old connection that stays in the pool, idle
    or in use.
    """
    async with opened(wire.url, "doubtful") as doubtful, opened(wire.url, "other") as other:

        async def doubt() -> None:
            wire.cut(b"marked", "response lost")
            with pytest.raises(CommitOutcomeUnknown):
                await append_at(doubtful, Head(), [row_after(Head(), payload=b"marked")])

        async with other.derived_connection() as page:
            before = await backend_of(page)
            if is_in_use:
                await doubt()
                assert await backend_of(page) == before
        if not is_in_use:
            await doubt()
        async with other.derived_connection() as page:
            assert await backend_of(page) != before


async def backend_of(connection: AsyncConnection) -> int:
    """Return the server's process."""
    return int((await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one())


async def test_the_url_can_demand_a_server_that_accepts_writes(postgres_url: str) -> None:
    """A read-only ledger can demand it too: its session is read-only, the server is not."""
    for read_only in (False, True):
        async with opened(f"{postgres_url}&target_session_attrs=read-write", read_only=read_only) as store:
            assert await store.head() == Head()


async def test_a_read_models_error_is_the_servers_message(postgres_url: str) -> None:
    """The message contains neither the statement nor a link to SQLAlchemy's manual, but a way out."""
    async with opened(postgres_url) as store:
        with pytest.raises(StorageUnavailable) as unavailable:
            async with store.derived_connection() as connection:
                await connection.exec_driver_sql("SELECT * FROM no_such_table")
        reason = 'relation "no_such_table" does not exist'
        assert f"now: {reason}; `allowance rebuild` makes" in str(unavailable.value)


async def test_both_spellings_of_the_scheme_are_accepted(postgres_url: str) -> None:
    """Some hosting providers give URLs that begin with postgres://."""
    async with opened(postgres_url.replace("postgresql://", "postgres://")) as store:
        assert await store.head() == Head()


@pytest.mark.parametrize("change", [("/allowance_", "/no_such_"), ("host=", "host=/nowhere"), ("postgres@", "nobody@")])
async def test_a_database_that_cannot_be_reached_is_unavailable(postgres_url: str, change: tuple[str, str]) -> None:
    """A missing database, server or user raises the same error, whose cause says which it is."""
    with pytest.raises(StorageUnavailable) as unavailable:
        async with opened(postgres_url.replace(*change)):
            pass
    assert isinstance(unavailable.value.__cause__, (asyncpg.PostgresError, OSError))


def test_the_error_for_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asyncpg, SQLite works, and a PostgreSQL URL is refused with the extra's name."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "ledger.store.postgres.store")
    Allowance.open("sqlite://", validator_ss58=VALIDATOR)
    with pytest.raises(InvalidInput, match=r"allowance-ledger\[postgres\]"):
        Allowance.open("postgresql://localhost/db", validator_ss58=VALIDATOR)


# The public interface


async def test_the_public_interface_works_on_postgresql(postgres_url: str) -> None:
    """Facts, routes, settlements, pages and health work, and a second ledger shows the same afterwards."""
    clock = Clock(START + timedelta(seconds=132))
    async with small_ledger(url=postgres_url, clock=clock) as ledger:
        routes = [await Routing(ledger).pick_miner_for_job_request(job(f"job {number}", 12.0)) for number in range(3)]
        ids = [route.allowance_reservation_id or 0 for route in routes]
        await ledger.spend(ids[0])
        await ledger.release(ids[1])
        clock.advance(1000)
        assert [each.reservation_id for each in await ledger.expire_due()] == [ids[2]]
        page = await ledger.history(limit=2)
        rest = await ledger.history(limit=2, after=page.next)
        assert [each.status for each in (*page.items, *rest.items)] == ["expired", "released", "spent"]
        assert [each.reservation_id for each in (await ledger.history(status="spent")).items] == ids[:1]
        assert (await ledger.reservation_for_job("job 1")).status == "released"
        assert (await ledger.health()).database == "postgresql"
        head, state = await ledger.head(), await ledger._read_state(lambda state, _: encode_state(state))
    async with Allowance.open(postgres_url, validator_ss58=OWNER, clock_ns=clock) as ledger:
        assert await ledger.head() == head
        assert await ledger._read_state(lambda state, _: encode_state(state)) == state
        assert [each.status for each in (await ledger.history()).items] == ["expired", "released", "spent"]


async def test_a_process_that_comes_late_to_create_the_schema_takes_no_locks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that found no schema, but is overtaken, executes none of the statements after the first.

    Catches the deadlock of such a process with ledgers that are already in use.
    """
    stored_schema_version = creation.stored_schema_version
    queries: list[str] = []
    checks = 0

    async def check_too_early(connection: asyncpg.Connection) -> int | None:
        nonlocal checks
        checks += 1
        if checks > 1:
            return await stored_schema_version(connection)
        connection.add_query_logger(lambda query: queries.append(query.query))
        return None

    async with opened(postgres_url):
        pass
    monkeypatch.setattr(creation, "stored_schema_version", check_too_early)
    async with opened(postgres_url):
        pass
    made = [query for query in queries if "CREATE" in query or "ALTER" in query]
    assert len(made) == 1
    assert "allowance_schema" in made[0]
