"""Hot standbys as a place to read: every reading command, the lag that `health` shows, and conflicts with recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from ledger import RecoveryConflict, StoredLedger
from ledger.store.postgres.reader import PostgresReader
from routing import Allowance, LogWentBack, ReadOnlyLedger, Routing, StorageUnavailable
from routing import restore as restore_ledger
from routing import verify as verify_source
from routing.service.backup import verify_since
from tests.support.cli import command_line, configure_ledger
from tests.support.servers import PostgresServer, connected
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger
from tests.support.standbys import Standby, standby_of
from tests.support.stories import project
from tests.support.wire import wired

WAIT_SECONDS = 60


class Pair(NamedTuple):
    """A primary, its hot standby, and a database that is on both."""

    server: PostgresServer
    standby: Standby
    database: str

    @property
    def primary_url(self) -> str:
        return self.server.url(self.database)

    @property
    def url(self) -> str:
        """The database on the standby."""
        return self.standby.url(self.database)


@pytest.fixture(scope="module", params=["postgres_16", "postgres_18"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[PostgresServer, Standby]]:
    """A primary of each version with a standby."""
    server: PostgresServer = request.getfixturevalue(request.param)
    with standby_of(server, "reading") as standby:
        yield server, standby


@pytest.fixture
def pair(servers: tuple[PostgresServer, Standby]) -> Iterator[Pair]:
    """The two servers with an empty database."""
    server, standby = servers
    with server.fresh_database() as url:
        yield Pair(server, standby, urlsplit(url).path[1:])


@asynccontextmanager
async def story(pair: Pair) -> AsyncIterator[Allowance]:
    """A ledger on the primary with one job and a projected history, all of it replayed by the standby."""
    clock = Clock(START)
    clock.advance(132)
    async with small_ledger(url=pair.primary_url, clock=clock) as ledger:
        await Routing(ledger).pick_miner_for_job_request(job("a job"))
        await project(ledger)
        await asyncio.to_thread(pair.standby.catch_up)
        yield ledger


def reader_of(url: str) -> Allowance:
    clock = Clock(START)
    clock.advance(132)
    return Allowance.open(url, validator_ss58=VALIDATOR, clock_ns=clock, read_only=True)


@pytest.fixture
def impatient(pair: Pair) -> Iterator[None]:
    """The standby cancels reads at once. Whatever the primary tidies up by itself would disturb the other tests."""
    with pair.standby.impatient():
        yield


async def test_every_read_works_on_a_standby(pair: Pair, tmp_path: Path) -> None:
    """Every reading method gives the primary's result; an export of the standby restores to the same head.

    Catches a read that writes: the standby refuses it.
    """
    async with story(pair) as ledger, reader_of(pair.url) as reader:
        head = await ledger.head()
        assert await reader.head() == head
        assert await reader.find_miners(6.0, GPU, 11) == await ledger.find_miners(6.0, GPU, 11)
        assert await reader.history() == await ledger.history()
        assert await reader.history(block=1) == await ledger.history(block=1)
        assert await reader.reservation_for_job("a job") == await ledger.reservation_for_job("a job")
        assert (await reader.explain("a job")) == (await ledger.explain("a job"))
        assert await reader.overview() == await ledger.overview()
        assert await reader.at(block=5).overview() == await ledger.at(block=5).overview()
        assert await reader.settings() == await ledger.settings()
        assert (await reader.audit()).findings == []
        assert (await reader.verify([head])).findings == []
        assert (await reader.health()).position == head.position
        await reader.export(tmp_path / "export.gz")
    assert [each.findings for each in await verify_source(pair.url)] == [[]]
    for source in (tmp_path / "export.gz", pair.url):
        target = f"sqlite:///{tmp_path / type(source).__name__}.db"
        await restore_ledger(source, target)
        async with reader_of(target) as restored:
            assert await restored.head() == head


COMMANDS = [
    ("miners", "--executor-class", GPU, "--seconds", "6", "--block", "11"),
    ("history",),
    ("history", "--block", "1"),
    ("explain", "a job"),
    ("why", "5Anna", GPU),
    ("audit",),
    ("replay",),
    ("replay", "--at-block", "5"),
    ("verify",),
    ("settings", "show", "--changes"),
]


async def test_every_reading_command_works_on_a_standby(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prints the same as on the primary; `health` adds the lag."""
    run = command_line(capsys)

    def printed(url: str, *words: object) -> Any:
        with monkeypatch.context() as environment:
            configure_ledger(environment, url, VALIDATOR)
            return run(*words, "--json")

    async with story(pair):
        pass
    await asyncio.to_thread(pair.standby.catch_up)
    for words in COMMANDS:
        on_primary, on_standby = [await asyncio.to_thread(printed, url, *words) for url in (pair.primary_url, pair.url)]
        assert (words, on_standby.code, on_standby.err) == (words, on_primary.code, on_primary.err)
        assert on_standby.code in (0, 1), on_standby
        if words[0] not in ("audit", "verify"):  # They print how long they took.
            assert on_standby.out == on_primary.out
    assert (await asyncio.to_thread(printed, pair.url, "export", tmp_path / "export.gz")).code == 0
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", f"sqlite:///{tmp_path}/restored.db")
    assert (await asyncio.to_thread(run, "restore", tmp_path / "export.gz")).code == 0
    health = await asyncio.to_thread(printed, pair.url, "health")
    assert health.document["replication_lag_seconds"] == 0
    configure_ledger(monkeypatch, pair.url, VALIDATOR)
    assert "the server is a standby" in (await asyncio.to_thread(run, "health")).out


async def test_what_writes_is_refused_by_name(pair: Pair) -> None:
    """A change, a rebuild, a recorded verification and an opening for changes: each error says why."""
    async with story(pair):
        async with reader_of(pair.url) as reader:
            with pytest.raises(ReadOnlyLedger):
                await reader.reserve("5Anna", GPU, 6.0, 11)
            with pytest.raises(ReadOnlyLedger):
                await reader.rebuild()
        with pytest.raises(StorageUnavailable, match="standby"):
            await verify_since(pair.url)
        with pytest.raises(StorageUnavailable, match="standby"):
            await Allowance.open(pair.url, validator_ss58=VALIDATOR)


async def test_health_shows_the_lag(pair: Pair) -> None:
    """While replay is paused the lag is positive and the position is behind; later it is 0. None on the primary.

    Catches an idle primary that makes the lag grow, and a standby that shows 0 although it has not replayed
    what it has received, or has lost its primary.
    """
    async with story(pair) as ledger, reader_of(pair.url) as reader:
        assert (await ledger.health()).replication_lag_seconds is None
        before = await reader.health()
        assert before.replication_lag_seconds == 0
        with pair.standby.paused():
            await ledger.reserve("5Anna", GPU, 6.0, 11)
            await asyncio.to_thread(pair.standby.receive)
            paused = await reader.health()
            assert (paused.replication_lag_seconds or 0) > 0
            assert paused.position == before.position < (await ledger.head()).position
        await asyncio.to_thread(pair.standby.catch_up)
        resumed = await reader.health()
        assert (resumed.replication_lag_seconds, resumed.position) == (0, (await ledger.head()).position)
        await asyncio.to_thread(pair.standby.cut_off)
        try:
            assert ((await reader.health()).replication_lag_seconds or 0) > 0
        finally:
            await asyncio.to_thread(pair.standby.reconnect)


REMOVES_ROWS = ("UPDATE allowance_ledgers SET fence = fence", "VACUUM allowance_ledgers")
LOCKS_THE_LOG = (
    "ALTER TABLE allowance_events ADD COLUMN added int",
    "ALTER TABLE allowance_events DROP COLUMN added",
)


SHORT_READS = {
    "head": ("allowance_ledgers", "allowance_schema"),
    "history": ("allowance_reserved_blocks", "allowance_reservations"),
}
"""The tables of a read's statement, in the order in which it locks them."""
WAITS = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted)"
LOCKED = """SELECT EXISTS (SELECT FROM pg_locks
            WHERE relation = $1::text::regclass AND mode = 'AccessExclusiveLock' AND granted)"""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("read", ["head", "history"])
async def test_a_short_read_that_a_standby_cancels_is_done_again(pair: Pair, read: str) -> None:
    """A read holds one table and waits for another; replay wants the first one and cancels it. The retry succeeds.

    Catches a conflict that reaches the caller of a short read, of the log or of the history.
    """
    held, awaited = SHORT_READS[read]
    async with story(pair), reader_of(pair.url) as reader, connected(pair.url) as watching:
        await reader.history(block=1)
        async with connected(pair.primary_url) as first, connected(pair.primary_url) as second:
            for connection in (first, second):
                await connection.execute("BEGIN")
            await lock(pair, first, awaited, watching)
            reading = asyncio.create_task(reader.head() if read == "head" else reader.history(block=1))
            await until(watching, WAITS, awaited)
            await lock(pair, second, held, watching)  # It is replayed, so the read was cancelled.
        await reading


async def lock(pair: Pair, connection: Any, table: str, watching: Any) -> None:
    """Lock a table on the primary, and wait until the standby has replayed that."""
    await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    async with connected(pair.primary_url) as other:
        await other.execute("SELECT pg_logical_emit_message(true, 'flush', '')")
    await until(watching, LOCKED, table)


async def until(connection: Any, condition: str, table: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not await connection.fetchval(condition, table):
            pass


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("changes", [REMOVES_ROWS, LOCKS_THE_LOG], ids=["rows", "lock"])
async def test_a_long_read_that_a_standby_ends_says_so(
    pair: Pair, changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verify and export read one snapshot; replay needs the space of its rows, or a lock, and ends them.

    Between two statements the connection is cut and the driver drops the reason. Catches an error that only says that
    the connection is closed.
    """
    ledgers = PostgresReader.ledgers

    async def ledgers_then_conflict(reader: PostgresReader) -> list[StoredLedger]:
        found = await ledgers(reader)
        await asyncio.to_thread(pair.standby.execute_on_primary, pair.database, *changes)
        await asyncio.to_thread(pair.standby.catch_up)
        return found

    async with story(pair), reader_of(pair.url) as reader:
        calls: list[Callable[[], Awaitable[object]]] = [
            reader.verify,
            lambda: reader.export(tmp_path / "export.gz"),
            lambda: verify_source(pair.url),
        ]
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(PostgresReader, "ledgers", ledgers_then_conflict)
            for call in calls:
                with pytest.raises(RecoveryConflict, match=r"hot_standby_feedback = on.*or read on the primary"):
                    await call()
        assert not (tmp_path / "export.gz").exists()
        assert (await reader.verify()).findings == []


async def test_a_reader_notices_a_standby_that_is_behind(pair: Pair) -> None:
    """A reader has read the primary, then is led to a standby without the newest reservation: each read refuses.

    Catches a reader that shows a log which went back as if nothing had happened.
    """
    async with story(pair) as ledger, wired(pair.server, pair.database) as wire, reader_of(wire.url) as reader:
        with pair.standby.paused():
            await ledger.reserve("5Anna", GPU, 6.0, 11)
            assert len((await reader.history()).items) == 2
            wire.unreachable = True
            wire.hang_up()
            for read in READS:
                with pytest.raises(StorageUnavailable):
                    await read(reader)
            wire.lead_to(pair.standby.socket_directory)
            wire.unreachable = False
            for read in READS:
                with pytest.raises(LogWentBack):
                    await read(reader)
        async with reader_of(pair.url) as again:
            await again.head()


READS: list[Callable[[Allowance], Awaitable[object]]] = [
    lambda reader: reader.history(),
    lambda reader: reader.head(),
    lambda reader: reader.find_miners(6.0, GPU, 11),
    lambda reader: reader.health(),
    lambda reader: reader.reservation_for_job("a job"),
    lambda reader: reader.explain("a job"),
    lambda reader: reader.at(block=5).overview(),
]
