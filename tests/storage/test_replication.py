"""PostgreSQL with standbys: fail-overs that lose a tail, two primaries, commits that no standby has confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from ledger import CommitOutcomeUnknown, Head, Lookup
from ledger.store.postgres import fence, fenced_writes
from routing import Allowance, LogWentBack, OutcomeUnknown, Routing, StorageUnavailable
from tests.support.logs import append, append_at, opened, row_after
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, START, Clock, job, small_ledger
from tests.support.small import VALIDATOR as OWNER
from tests.support.standbys import standby_of
from tests.support.wire import wired

HOWS = ["at a head", "transaction"]
SHORT_SECONDS = 0.3
"""A limit that the tests let pass, instead of seconds."""

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()"


async def fetch(url: str, query: str, *arguments: Any) -> list[Any]:
    async with connected(url) as other:
        return [tuple(row) for row in await other.fetch(query, *arguments)]


async def waiting_backend(url: str) -> int:
    """Wait until a commit waits for a standby; return its server process."""
    async with connected(url) as other:
        while (pid := await other.fetchval(WAITING)) is None:
            pass
        return int(pid)


async def until_commits_wait(server: PostgresServer) -> None:
    """Commit until a commit waits: the server applies `synchronous_standby_names` some time after a reload."""
    async with connected(server.url("postgres")) as other:
        while True:
            async with connected(server.url("postgres")) as probe:
                pid = probe.get_server_pid()
                probing = asyncio.create_task(probe.execute("SELECT pg_logical_emit_message(true, 'probe', '')"))
                waits = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1"
                while not probing.done() and not await other.fetchval(waits, pid):
                    pass
                if not probing.done():
                    await other.fetchval("SELECT pg_terminate_backend($1)", pid)
                    await asyncio.gather(probing, return_exceptions=True)
                    return


async def cancel_the_wait(url: str) -> None:
    """Do what an operator does whose standby is gone."""
    await fetch(url, "SELECT pg_cancel_backend($1)", await waiting_backend(url))


def set_standbys(server: PostgresServer, names: str) -> None:
    server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    server.execute("SELECT pg_reload_conf()")


@contextmanager
def commits_wait_for(server: PostgresServer, name: str) -> Iterator[Callable[[], None]]:
    """Make every commit wait for this standby; yield a function that ends that, as it ends after the block."""
    set_standbys(server, name)
    try:
        yield lambda: set_standbys(server, "")
    finally:
        set_standbys(server, "")


@asynccontextmanager
async def a_missing_standby(
    server: PostgresServer, *, short_fence: bool = True, gives_up: bool = False
) -> AsyncIterator[Callable[[], Any]]:
    """Make every commit wait for a standby that does not exist; yield a function that ends it.

    Meanwhile the limit of the fence is short, unless it must not pass; if the append `gives_up`, its limit too.
    """
    with pytest.MonkeyPatch.context() as limits:
        if short_fence:
            limits.setattr(fence, "FENCE_TIMEOUT_SECONDS", SHORT_SECONDS)
        if gives_up:
            limits.setattr(fenced_writes, "APPEND_TIMEOUT_SECONDS", SHORT_SECONDS)
        waits = commits_wait_for(server, "nobody")
        end_waits = await asyncio.to_thread(waits.__enter__)
        await until_commits_wait(server)

        async def standby_is_back() -> None:
            limits.undo()
            await asyncio.to_thread(end_waits)

        try:
            yield standby_is_back
        finally:
            await asyncio.to_thread(waits.__exit__, None, None, None)


@pytest.fixture
def url_16(postgres_16: PostgresServer) -> Iterator[str]:
    """The URL of an empty database on PostgreSQL 16."""
    with postgres_16.fresh_database() as url:
        yield url


def positions_of(error: LogWentBack) -> tuple[int, int, int]:
    return error.acknowledged_position, error.stored_position, error.kept_position


# Commits that no standby has confirmed


@pytest.mark.parametrize("how", HOWS)
async def test_a_cancelled_wait_for_a_standby_makes_the_outcome_unknown(
    server: PostgresServer, postgres_url: str, how: str
) -> None:
    """PostgreSQL reports success with a warning; only a later commit that a standby confirms makes it true.

    Catches the warning ignored, and an outcome that is read from the primary alone.
    """
    async with opened(postgres_url) as store:
        head = await append(store, [row_after(Head())])
        row = row_after(head, version=2)
        async with a_missing_standby(server) as standby_is_back:
            appending = asyncio.create_task(
                append_at(store, head, [row]) if how == "at a head" else append(store, [row])
            )
            await cancel_the_wait(postgres_url)
            with pytest.raises(CommitOutcomeUnknown, match="canceling"):
                await appending
            # The primary shows the row, which is committed there. It is not known to be safe all the same.
            assert await store.read(1) == [row]
            with pytest.raises(StorageUnavailable):
                await store.resolve_commit(row)
            await standby_is_back()
            assert await store.resolve_commit(row)


async def test_a_cancelled_fence_proves_nothing(server: PostgresServer, postgres_url: str) -> None:
    """If the wait of the fence's own commit is cancelled too, the outcome stays unknown."""
    async with opened(postgres_url) as store:
        head = await append(store, [row_after(Head())])
        row = row_after(head, version=2)
        async with a_missing_standby(server, short_fence=False):
            appending = asyncio.create_task(append_at(store, head, [row]))
            await cancel_the_wait(postgres_url)
            with pytest.raises(CommitOutcomeUnknown):
                await appending
            resolving = asyncio.create_task(store.resolve_commit(row))
            await cancel_the_wait(postgres_url)
            with pytest.raises(StorageUnavailable, match="canceling"):
                await resolving
        assert await store.resolve_commit(row)


async def test_a_caller_whose_commit_no_standby_has_is_told_so(server: PostgresServer, postgres_url: str) -> None:
    """`OutcomeUnknown`; reads go on, changes are refused, and once the standby is back the key tells the outcome.

    Catches a repeat that is answered from a row which no standby has: the read had brought it into the state.
    """
    async with small_ledger(url=postgres_url) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        async with a_missing_standby(server) as standby_is_back:
            reserving = asyncio.create_task(ledger.reserve("5Bert", GPU, 6.0, 11, job_uuid="a job"))
            await cancel_the_wait(postgres_url)
            with pytest.raises(OutcomeUnknown) as unknown:
                await reserving
            key = unknown.value.idempotency_key
            assert await ledger.current_block() == 11
            assert [each.hotkey_ss58 for each in await ledger.find_miners(6.0, GPU, 11)] != []
            assert len((await ledger.history()).items) == 2
            assert "no change is accepted" in (await ledger.health()).status
            for repeated_key in (None, key):
                with pytest.raises(OutcomeUnknown):
                    await ledger.reserve("5Bert", GPU, 6.0, 11, job_uuid="a job", idempotency_key=repeated_key)
            with pytest.raises(StorageUnavailable):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
            await standby_is_back()
            first = await ledger.reserve("5Bert", GPU, 6.0, 11, job_uuid="a job", idempotency_key=key)
        assert first in (await ledger.history()).items
        assert len((await ledger.history()).items) == 2


async def out_of_reach(_: object) -> bool:
    raise StorageUnavailable("the server is out of reach")


async def test_another_process_does_not_repeat_what_no_standby_has(
    server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process reads the row of a commit whose wait was cancelled, and is asked to repeat the call.

    The first one raises no fence, whose own wait would keep the head locked: its process is gone by then.

    Catches a repeat that is answered from the row at once, without a commit of its own that waits for the standby; one
    that is told that nothing was done; and a detour under the lock that is counted as a conflict with another process.
    """
    clock = Clock(START)
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(small_ledger(url=postgres_url, clock=clock))
        other = await stack.enter_async_context(Allowance.open(postgres_url, validator_ss58=OWNER, clock_ns=clock))
        await other.head()
        standby_is_back = await stack.enter_async_context(a_missing_standby(server))
        gone = stack.enter_context(monkeypatch.context())
        gone.setattr((await ledger._lifecycle.handle()).store, "resolve_commit", out_of_reach)
        picking = asyncio.create_task(Routing(ledger).pick_miner_for_job_request(job("a job")))
        await cancel_the_wait(postgres_url)
        with pytest.raises(OutcomeUnknown):
            await picking
        assert [each.job_uuid for each in (await other.history()).items] == ["a job"]
        with monkeypatch.context() as limits:
            limits.setattr(fenced_writes, "APPEND_TIMEOUT_SECONDS", SHORT_SECONDS)
            for _ in range(2):
                with pytest.raises(OutcomeUnknown) as unknown:
                    await Routing(other).pick_miner_for_job_request(job("a job"))
                assert unknown.value.idempotency_key == "a job"
        await standby_is_back()
        gone.undo()
        routes = [await Routing(each).pick_miner_for_job_request(job("a job")) for each in (ledger, other)]
        assert routes[0] == routes[1]
        assert len((await other.history()).items) == 1
        assert (await other.counters())["conflicts"] == 0


async def test_a_call_without_key_or_job_that_is_not_confirmed_is_not_called_a_failure(
    server: PostgresServer, postgres_url: str
) -> None:
    """There is nothing by which a retry could find its outcome, and nothing proves that nothing was done."""
    async with small_ledger(url=postgres_url) as ledger:
        async with a_missing_standby(server, gives_up=True):
            with pytest.raises(StorageUnavailable, match="its outcome is not known yet"):
                await ledger.expire_due()
        assert await ledger.expire_due() == []


async def test_a_commit_that_waits_for_a_lost_standby_is_given_up_in_time(
    server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the limit of an append the outcome is unknown at once; reads go on, and nobody sees the row.

    Catches a caller who waits for the fence as well, reads that need the fence, and a cancel request: it would end the
    wait for the standby and make a row visible that no standby has.
    """
    raised = []

    async def raise_fence(*arguments: Any) -> fence.RaisedFence:
        raised.append(arguments)
        return await fence.raise_fence(*arguments)

    monkeypatch.setattr(fenced_writes, "raise_fence", raise_fence)
    async with small_ledger(url=postgres_url) as ledger:
        before = await ledger.head()
        async with a_missing_standby(server, gives_up=True) as standby_is_back:
            with pytest.raises(OutcomeUnknown) as unknown:
                await ledger.reserve("5Anna", GPU, 6.0, 11)
            assert raised == []
            pid = await waiting_backend(postgres_url)
            assert await ledger.head() == before
            assert (await ledger.history()).items == []
            assert raised == []
            with pytest.raises(StorageUnavailable):
                await ledger.reserve("5Anna", GPU, 6.0, 11)
            assert len(raised) == 1
            assert pid in [each for (each,) in await fetch(postgres_url, WAITING)]
            await standby_is_back()
        key = unknown.value.idempotency_key
        first = await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key=key)
        assert (await ledger.history()).items == [first]


async def test_what_was_acknowledged_is_on_the_standby(
    server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real standby stops, a wait is cancelled, the standby comes back: it has all that was acknowledged."""
    database = urlsplit(postgres_url).path[1:]
    standbys = standby_of(server, "one")
    standby = await asyncio.to_thread(standbys.__enter__)
    waits = commits_wait_for(server, "one")
    await asyncio.to_thread(waits.__enter__)
    try:
        async with small_ledger(url=postgres_url) as ledger:
            acknowledged = [await ledger.reserve("5Anna", GPU, 6.0, 11)]
            await asyncio.to_thread(standby.stop)
            await until_commits_wait(server)
            with monkeypatch.context() as limits:
                limits.setattr(fence, "FENCE_TIMEOUT_SECONDS", SHORT_SECONDS)
                reserving = asyncio.create_task(ledger.reserve("5Anna", GPU, 6.0, 11))
                await cancel_the_wait(postgres_url)
                with pytest.raises(OutcomeUnknown) as unknown:
                    await reserving
            await asyncio.to_thread(standby.start)
            key = unknown.value.idempotency_key
            acknowledged.append(await ledger.reserve("5Anna", GPU, 6.0, 11, idempotency_key=key))
        await asyncio.to_thread(standby.promote)
        async with Allowance.open(standby.url(database), validator_ss58=OWNER, read_only=True) as promoted:
            items = (await promoted.history(newest_first=False)).items
            assert items == acknowledged
    finally:
        await asyncio.to_thread(waits.__exit__, None, None, None)
        await asyncio.to_thread(standbys.__exit__, None, None, None)


# Fail-overs


@asynccontextmanager
async def cut_off_standby(server: PostgresServer, database: str) -> AsyncIterator[Any]:
    standbys = standby_of(server, "one")
    standby = await asyncio.to_thread(standbys.__enter__)
    try:
        yield standby
    finally:
        await asyncio.to_thread(standbys.__exit__, None, None, None)


async def test_every_process_notices_a_fail_over_that_lost_a_tail(server: PostgresServer, postgres_url: str) -> None:
    """A standby without the last reservations is promoted: all four processes refuse, whatever they do first.

    Catches a state that is discarded, by the connection's error, before it is compared: such a process went on.
    """
    database = urlsplit(postgres_url).path[1:]
    clock = Clock(START)
    clock.advance(132)
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(small_ledger(url=postgres_url, offers={"5Anna": 9}, clock=clock))
        await ledger.close()
        wires = [await stack.enter_async_context(wired(server, database)) for _ in range(4)]
        ledgers = [
            await stack.enter_async_context(Allowance.open(wire.url, validator_ss58=OWNER, clock_ns=clock))
            for wire in wires
        ]
        standby = await stack.enter_async_context(cut_off_standby(server, database))
        kept = await ledgers[0].reserve("5Anna", GPU, 6.0, 11)
        await asyncio.to_thread(standby.cut_off)
        stored = (await ledger_head(ledgers)).position
        for ledger in ledgers:
            await ledger.reserve("5Anna", GPU, 6.0, 11)
        acknowledged = (await ledger_head(ledgers)).position
        assert acknowledged == stored + 4
        await asyncio.to_thread(standby.promote)
        for wire in wires:
            wire.unreachable = True
            wire.hang_up()
        for ledger, call in zip(ledgers, calls_of(), strict=True):
            with pytest.raises((StorageUnavailable, OutcomeUnknown)):  # Here the state is lost.
                await call(ledger)
        for wire in wires:
            wire.lead_to(standby.socket_directory)
            wire.unreachable = False
        for ledger, call in zip(ledgers, calls_of(), strict=True):
            with pytest.raises(LogWentBack) as went_back:
                await call(ledger)
            assert positions_of(went_back.value) == (acknowledged, stored, stored)
            for again in calls_of():
                with pytest.raises(LogWentBack):
                    await again(ledger)
        await ledgers[0].close()
        async with Allowance.open(wires[0].url, validator_ss58=OWNER, clock_ns=clock) as reopened:
            assert (await reopened.history()).items == [kept]
            assert (await reopened.reserve("5Anna", GPU, 6.0, 11)).blocks == [2]
        for ledger in ledgers[1:]:
            with pytest.raises(LogWentBack):
                await ledger.current_block()


async def ledger_head(ledgers: list[Allowance]) -> Head:
    """Let every ledger read the head; return it."""
    return [await ledger.head() for ledger in ledgers][-1]


def calls_of() -> list[Callable[[Allowance], Any]]:
    return [
        lambda ledger: ledger.reserve("5Anna", GPU, 6.0, 11),
        lambda ledger: ledger.current_block(),
        lambda ledger: ledger.expire_due(),
        lambda ledger: ledger.find_miners(6.0, GPU, 11),
    ]


async def test_an_outcome_is_looked_up_where_the_fence_was_raised(server: PostgresServer, postgres_url: str) -> None:
    """An append reaches the old primary only, its answer is lost, and new connections lead to the promoted standby.

    Catches a fence that is raised on one server and rows that are looked up on the other: the caller was told that a
    reservation was made which the promoted server does not have.
    """
    database = urlsplit(postgres_url).path[1:]
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(wired(server, database))
        ledger = await stack.enter_async_context(small_ledger(url=wire.url))
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        await ledger.history()
        standby = await stack.enter_async_context(cut_off_standby(server, database))
        await asyncio.to_thread(standby.cut_off)
        await asyncio.to_thread(standby.promote)
        wire.lead_to(standby.socket_directory)
        wire.cut(b"allowance-reserved", "response lost")
        with pytest.raises(StorageUnavailable, match="nothing was done"):
            await ledger.reserve("5Bert", GPU, 6.0, 11)
        # The old primary has it, and still responds; nobody asks it any more.
        rows = "SELECT count(*) FROM allowance_log WHERE stream LIKE '5Bert%'"
        assert await fetch(postgres_url, rows) == [(1,)]
        assert await fetch(standby.url(database), rows) == [(0,)]
        assert [each.miner_ss58 for each in (await ledger.history()).items] == ["5Anna"]
        reserved = await ledger.reserve("5Bert", GPU, 6.0, 11)
        assert await fetch(standby.url(database), rows) == [(1,)]
        assert (await ledger.history()).items[0] == reserved


async def test_fence_and_look_up_use_one_connection(server: PostgresServer, postgres_url: str) -> None:
    """The next connection leads to the promoted server, all others to the old primary, as with several hosts.

    Catches a look-up on any other connection than that of the fence, also on a new one.
    """
    database = urlsplit(postgres_url).path[1:]
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(wired(server, database))
        store = await stack.enter_async_context(opened(wire.url))
        head = await append(store, [row_after(Head())])
        standby = await stack.enter_async_context(cut_off_standby(server, database))
        await asyncio.to_thread(standby.cut_off)
        await asyncio.to_thread(standby.promote)
        row = row_after(head, version=2, payload=b"marked")
        wire.cut(b"marked", "response lost")
        with pytest.raises(CommitOutcomeUnknown):
            await append_at(store, head, [row])
        wire.lead_to(standby.socket_directory, only_next=True)
        assert not await store.resolve_commit(row)
        assert await fetch(standby.url(database), "SELECT fence FROM allowance_ledgers") == [(1,)]
        assert await fetch(postgres_url, "SELECT fence FROM allowance_ledgers") == [(0,)]


async def test_a_writer_never_reads_a_standby(server: PostgresServer, postgres_url: str) -> None:
    """Of several hosts a writer chooses the primary, in any order; a standby alone is refused, except by a reader."""
    database = urlsplit(postgres_url).path[1:]
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(postgres_url))
        head = await append(store, [row_after(Head())])
        standby = await stack.enter_async_context(cut_off_standby(server, database))
        await asyncio.to_thread(standby.cut_off)
        head = await append(store, [row_after(head, version=2)])
        both = (
            f"postgresql://postgres@/{database}?host={quote(f'{standby.socket_directory},{server.socket_directory}')}"
        )
        async with opened(both) as writer:
            assert await writer.head() == head
            assert (await writer.find(Lookup(positions=[2]))).rows[2].hash == head.hash
        with pytest.raises(StorageUnavailable, match="standby"):
            async with opened(standby.url(database)):
                pass
        async with opened(standby.url(database), read_only=True) as reader:
            assert (await reader.head()).position == 1


# Errors that prove nothing


@pytest.mark.parametrize("how", HOWS)
async def test_an_error_after_a_commit_does_not_say_that_nothing_was_done(
    server: PostgresServer, postgres_url: str, how: str
) -> None:
    """A server may run out of memory after the commit, while it tidies up; the row is in the log.

    Catches every error of the server taken for "nothing was done".
    """
    async with wired(server, urlsplit(postgres_url).path[1:]) as wire, opened(wire.url) as store:
        head = await append(store, [row_after(Head())])
        row = row_after(head, version=2, payload=b"marked")
        wire.cut(b"marked" if how == "at a head" else b"COMMIT\x00", "response replaced")
        with pytest.raises(CommitOutcomeUnknown, match="out of memory"):
            await (append_at(store, head, [row]) if how == "at a head" else append(store, [row]))
        assert await store.resolve_commit(row)


REFUSE = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{sqlstate}'; END $$;
    CREATE {trigger} FUNCTION refuse()"""
AT_INSERT = "TRIGGER refuse BEFORE INSERT ON allowance_events EXECUTE"
AT_COMMIT = """CONSTRAINT TRIGGER refuse AFTER INSERT ON allowance_events
               DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE"""


@pytest.mark.parametrize("trigger", [AT_INSERT, AT_COMMIT], ids=["insert", "commit"])
@pytest.mark.parametrize(
    ("sqlstate", "is_proof"),
    [("22003", True), ("25006", True), ("42501", True), ("57014", True)]
    + [(code, False) for code in ("53100", "53200", "58030", "XX000", "40003", "57P01", "55000", "F0000")],
)
async def test_only_listed_sqlstates_prove_that_nothing_was_done(
    url_16: str, sqlstate: str, is_proof: bool, trigger: str
) -> None:
    """An error that the list does not have leaves the outcome open until the fence is raised; then nothing was done."""
    async with opened(url_16) as store:
        head = await append(store, [row_after(Head())])
        async with connected(url_16) as other:
            await other.execute(REFUSE.format(sqlstate=sqlstate, trigger=trigger))
        row = row_after(head, version=2)
        with pytest.raises(StorageUnavailable if is_proof else CommitOutcomeUnknown):
            await append_at(store, head, [row])
        assert not await store.resolve_commit(row)
