"""Costs, counted and never timed: statements, commits and rows per call, so that a regression fails a test."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import Account, Chain, LedgerState, Lookup
from ledger.codec import reservation_position
from projections.ranking import Ranking
from routing import Allowance, BlockFact, JobRoute, Routing, Settings
from tests.support.small import GPU, START, VALIDATOR, job, miner, small_ledger

MINERS = {f"5Miner{number:02}": 1 for number in range(20)}
BLOCKS = 31
"""Each grants 6 s per miner, so together they are enough for 600 jobs."""
ANY_NUMBER_OF_JOBS = Settings(respect_executor_count=False)
STATEMENTS_PER_SQLITE_COMMIT = 5
"""BEGIN, read the head, compare the streams that were only read, move the head, COMMIT; without look-ups and rows."""
STATEMENTS_PER_SETTLING_COMMIT = 4
"""As above, but a settlement depends on its account alone."""
STATEMENTS_PER_STREAM = 1
"""Compares the version of a stream and moves it, however many rows the stream gets in this commit."""
SAVEPOINT = 2
"""Around the moves of several streams: if one is not as expected, those that were moved before it are undone."""
LOOKUP = 1
"""One statement finds the stored rows of all jobs in a batch."""
MOST_ROUND_TRIPS_PER_BLOCK = 4
"""On PostgreSQL: begin, lock the head, compare all streams and append, commit."""
ROWS_BEFORE_SNAPSHOT = 1000
QUEUED_SECONDS = 60.0
"""A generous limit for calls to reach the queue; only a defect exceeds it."""


class Statements(list[str]):
    """The statements that the log's connections executed, in order."""

    @property
    def commits(self) -> int:
        return sum(statement == "COMMIT" for statement in self)

    @property
    def inserted(self) -> int:
        return sum(statement.startswith("INSERT") and " INTO allowance_events " in statement for statement in self)

    @property
    def reads_of_events(self) -> list[str]:
        return [each for each in self if each.startswith(("SELECT", "WITH")) and "allowance_events" in each]


def opened(ledger: Allowance) -> Any:
    """Return the ledger's handle, with its runtime, writer and store; no public call reaches their connections."""
    assert ledger._lifecycle.open_handle is not None
    return ledger._lifecycle.open_handle


def log_connections(ledger: Allowance) -> list[sqlite3.Connection]:
    """Return the connections to the log's file: the writer's, and the one of the head probe."""
    store = opened(ledger).store
    return [store._connection, store._head_probe._connection]


@asynccontextmanager
async def counted(ledger: Allowance) -> AsyncIterator[Statements]:
    """Collect the statements that SQLite executes on the log's connections, without those of its triggers.

    Some versions of Python report a statement again for every trigger that it fires, so repeated changes are skipped;
    no two real ones are equal.
    """
    await ledger.head()  # Opens the connection of the head probe.
    connections = log_connections(ledger)
    statements = Statements()

    def note(reported: str) -> None:
        statement = " ".join(reported.split())
        is_repeat = statement.startswith(("INSERT", "UPDATE")) and statement in statements[-1:]
        if not is_repeat and not statement.startswith("--"):
            statements.append(statement)

    for connection in connections:
        connection.set_trace_callback(note)
    yield statements
    for connection in connections:
        connection.set_trace_callback(None)


@asynccontextmanager
async def counted_on_postgres(ledger: Allowance) -> AsyncIterator[list[str]]:
    """Collect the queries that the log's two connections send; each is one round trip."""
    store = opened(ledger).store
    connections = [await session.connection() for session in (store._writes, store._reads)]
    queries: list[str] = []

    def note(query: Any) -> None:
        queries.append(query.query)

    for connection in connections:
        connection.add_query_logger(note)
    yield queries
    for connection in connections:
        connection.remove_query_logger(note)


@asynccontextmanager
async def ledger_at(location: Path | str) -> AsyncIterator[Allowance]:
    """Open a ledger in a SQLite file or at a URL."""
    url = location if isinstance(location, str) else f"sqlite:///{location}"
    async with small_ledger(url=url, offers=MINERS, blocks=BLOCKS, settings=ANY_NUMBER_OF_JOBS) as ledger:
        yield ledger


async def at_once(ledger: Allowance, calls: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Make calls that the writer finds queued together: its thread is blocked until all are queued."""
    blocked, queued = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        queued.wait(QUEUED_SECONDS)

    opened(ledger).runtime.loop.call_soon_threadsafe(block)
    assert blocked.wait(QUEUED_SECONDS)
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        while len(opened(ledger).writer._commands._waiting) < len(tasks):
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0)
    finally:
        queued.set()
    return await asyncio.gather(*tasks)


async def picks(ledger: Allowance, count: int, *, first: int = 0) -> list[JobRoute]:
    """Route this many jobs at once."""
    router = Routing(ledger)
    return await at_once(
        ledger, [router.pick_miner_for_job_request(job(f"job-{first + number}")) for number in range(count)]
    )


async def use_every_account(ledger: Allowance) -> None:
    """Reserve on each account once: the first event of a stream costs more, because its row is inserted."""
    await at_once(ledger, [ledger.reserve(hotkey, GPU, 6.0, BLOCKS) for hotkey in MINERS])


def reservation_ids(routes: list[JobRoute]) -> list[int]:
    """Return the ids of the routes' reservations."""
    return [route.allowance_reservation_id or 0 for route in routes]


async def test_a_pick_is_one_commit_of_few_statements(tmp_path: Path) -> None:
    """A lone pick costs a commit, one look-up of its job, one insert, and one move of its stream."""
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await use_every_account(ledger)
        async with counted(ledger) as statements:
            await picks(ledger, 1)
    assert statements.commits == statements.inserted == 1
    assert len(statements) <= STATEMENTS_PER_SQLITE_COMMIT + STATEMENTS_PER_STREAM + LOOKUP + 1, statements


async def test_a_pick_on_a_longer_log_costs_no_more_statements(tmp_path: Path) -> None:
    """The number of a pick's statements does not depend on the length of the log."""
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await use_every_account(ledger)
        async with counted(ledger) as before:
            await picks(ledger, 1)
        for round_number in range(4):
            routes = await picks(ledger, 100, first=1000 * (round_number + 1))
            await at_once(ledger, map(ledger.release, reservation_ids(routes)))
        # From this many rows on, the projector and snapshots run too, and their statements would be counted.
        assert (await ledger.head()).position < ROWS_BEFORE_SNAPSHOT
        async with counted(ledger) as after:
            await picks(ledger, 1, first=1)
    assert len(after) == len(before), after


async def test_concurrent_callers_share_a_commit(tmp_path: Path) -> None:
    """Two hundred concurrent picks cost one commit and one look-up together, one insert each, one move per stream."""
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await use_every_account(ledger)
        async with counted(ledger) as statements:
            await picks(ledger, 200)
    assert (statements.commits, statements.inserted) == (1, 200)
    of_streams = SAVEPOINT + len(MINERS) * STATEMENTS_PER_STREAM
    assert len(statements) <= 200 + LOOKUP + of_streams + STATEMENTS_PER_SQLITE_COMMIT


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_lookup_searches_indexes_and_scans_nothing(tmp_path: Path, analyzed: bool) -> None:
    """Keys, jobs, positions and settlements are each found by all columns of their index, for any number of them.

    Catches: SQLite scanning the log or an index for a batch, with and without statistics about the tables.
    """
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        route, *others = await picks(ledger, 60)
        await ledger.spend(route.allowance_reservation_id or 0, idempotency_key="spent")
        await at_once(ledger, map(ledger.release, reservation_ids(others)))
        connection: sqlite3.Connection = opened(ledger).store._connection
        if analyzed:
            connection.execute("ANALYZE")
            connection.execute("ANALYZE sqlite_master")  # Makes this connection load the new statistics.
        lookup = Lookup(positions=map(reservation_position, reservation_ids([route, *others])))
        lookup.keys.update({"spent", *map(str, range(300))})
        lookup.jobs.update({"job-0", *map(str, range(300))})
        # The names of streams are read once in the life of a store.
        await opened(ledger).runtime.run(opened(ledger).store.find(lookup))
        async with counted(ledger) as statements:
            known = await opened(ledger).runtime.run(opened(ledger).store.find(lookup))
        assert [set(known.keys), set(known.jobs), len(known.settlements)] == [{"spent"}, {"job-0"}, 60]
        plans = [
            [step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {statement}")] for statement in statements
        ]
    searches = sorted(step for plan in plans for step in plan if "SEARCH" in step)
    assert len(plans) == len(searches) == 5
    assert {search.rpartition("allowance_events USING ")[2] for search in searches} == {
        "PRIMARY KEY (ledger=? AND position=?)",
        "COVERING INDEX allowance_events_key (ledger=? AND key=?)",
        "COVERING INDEX allowance_events_job_uuid (ledger=? AND job_uuid=?)",
        "COVERING INDEX allowance_events_settles (ledger=? AND settles=?)",
    }
    assert not any(step.startswith("BLOOM") or "SCAN allowance" in step for plan in plans for step in plan)


async def test_settling_an_active_reservation_reads_no_row(tmp_path: Path) -> None:
    """Active reservations are in memory, so spending one costs its insert only, and one move of its stream."""
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        routes = await picks(ledger, 100)
        async with counted(ledger) as statements:
            await at_once(ledger, map(ledger.spend, reservation_ids(routes)))
    assert (statements.commits, statements.inserted) == (1, 100)
    assert statements.reads_of_events == []
    of_streams = SAVEPOINT + len(MINERS) * STATEMENTS_PER_STREAM
    assert len(statements) <= 100 + of_streams + STATEMENTS_PER_SETTLING_COMMIT


async def test_a_search_reads_the_head_and_no_row(tmp_path: Path) -> None:
    """`find_miners` sends one statement, which reads the head."""
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await picks(ledger, 50)
        async with counted(ledger) as statements:
            for number in range(10):
                await ledger.find_miners(1.0 + number, GPU, BLOCKS)
    assert statements.reads_of_events == []
    assert len(statements) == 10, statements


async def test_a_search_after_a_claim_measures_one_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranking is maintained: only the account of the claim is measured again."""
    measured: list[str] = []
    measure = Ranking._measure

    def counting(ranking: Ranking, state: LedgerState, account: Account, now_ns: int) -> Any:
        measured.append(account.miner_ss58)
        return measure(ranking, state, account, now_ns)

    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await ledger.find_miners(1.0, GPU, BLOCKS)
        monkeypatch.setattr(Ranking, "_measure", counting)
        await ledger.find_miners(1.0, GPU, BLOCKS)
        assert measured == []
        (route,) = await picks(ledger, 1)
        await ledger.find_miners(1.0, GPU, BLOCKS)
    assert measured == [route.miner.hotkey_ss58]


async def test_the_row_of_an_unchanged_block_has_the_same_size_for_any_number_of_miners(tmp_path: Path) -> None:
    """Metagraphs repeat from block to block, and an event stores only the difference."""

    async def stored_bytes(miners: int) -> int:
        path = tmp_path / f"{miners}.db"
        offers = {f"5Miner{number:03}": 1 for number in range(miners)}
        async with small_ledger(url=f"sqlite:///{path}", offers=offers):
            pass
        connection = sqlite3.connect(path)
        (size,) = connection.execute(
            "SELECT length(stream) + length(payload) + length(hash) FROM allowance_events ORDER BY position DESC"
        ).fetchone()
        connection.close()
        return int(size)

    assert await stored_bytes(200) == await stored_bytes(2) <= 200


async def test_an_unchanged_block_touches_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts hold until something changes, so folding a block that changes nothing computes none of them."""
    counted_for: list[str] = []
    capped = Chain._capped

    def counting(chain: Chain, account: Account, count: int) -> int:
        counted_for.append(account.miner_ss58)
        return capped(chain, account, count)

    async with ledger_at(tmp_path / "ledger.db") as ledger:
        monkeypatch.setattr(Chain, "_capped", counting)
        await ledger.record_facts(blocks(BLOCKS + 1, 10))
        assert counted_for == []
        await ledger.record_manifests(BLOCKS + 11, {hotkey: {GPU: 2} for hotkey in MINERS})
        await ledger.record_facts(blocks(BLOCKS + 11, 2))
    assert sorted(counted_for) == sorted(MINERS)


async def test_facts_of_one_call_are_one_commit(tmp_path: Path) -> None:
    """A batch of facts is committed once, without reading any other event."""
    async with ledger_at(tmp_path / "ledger.db") as ledger, counted(ledger) as statements:
        await ledger.record_facts(blocks(BLOCKS + 1, 300))
    assert (statements.commits, statements.inserted) == (1, 300)
    assert statements.reads_of_events == []
    assert len(statements) <= 300 + STATEMENTS_PER_STREAM + STATEMENTS_PER_SQLITE_COMMIT


async def test_opening_folds_only_the_events_after_the_snapshot(tmp_path: Path) -> None:
    """A closed ledger is opened at the cost of its snapshot, however long its log is."""
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await ledger.record_facts(blocks(BLOCKS + 1, ROWS_BEFORE_SNAPSHOT))
        length = (await ledger.head()).position
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
        assert await ledger.current_block() == BLOCKS + ROWS_BEFORE_SNAPSHOT
        folded = (await ledger.counters())["foreign_rows"]
    assert length > ROWS_BEFORE_SNAPSHOT
    # The seal of the snapshot, which closing appended after it.
    assert folded == 1


async def test_one_process_decides_every_command_once(database_url: str) -> None:
    """Without another writer, no command is decided twice, on any engine."""
    async with ledger_at(database_url) as ledger:
        await picks(ledger, 200)
        counters = await ledger.counters()
    assert counters["attempts"] == counters["commands"]
    assert counters["conflicts"] == counters["retries"] == 0


async def test_concurrent_callers_share_a_round_trip_on_postgres(postgres_url: str) -> None:
    """Uncontended, one statement compares the head, updates it, inserts the rows, and commits by itself.

    It suffices for a lone pick, for two hundred concurrent ones, and for their settlements.
    """
    async with ledger_at(postgres_url) as ledger:
        await picks(ledger, 1)
        async with counted_on_postgres(ledger) as alone:
            await picks(ledger, 1, first=1)
        async with counted_on_postgres(ledger) as together:
            routes = await picks(ledger, 200, first=2)
        async with counted_on_postgres(ledger) as settled:
            await at_once(ledger, map(ledger.spend, reservation_ids(routes)))
    assert (len(alone), len(together), len(settled)) == (1, 1, 1)


async def test_a_search_on_postgres_is_one_round_trip_and_a_block_is_few(postgres_url: str) -> None:
    """A search reads the head; recording a block begins, locks the head, appends and commits."""
    async with ledger_at(postgres_url) as ledger:
        await ledger.find_miners(1.0, GPU, BLOCKS)
        async with counted_on_postgres(ledger) as searched:
            await ledger.find_miners(1.0, GPU, BLOCKS)
        async with counted_on_postgres(ledger) as recorded:
            await ledger.record_facts(blocks(BLOCKS + 1, 1))
    assert len(searched) == 1, searched
    assert len(recorded) <= MOST_ROUND_TRIPS_PER_BLOCK, recorded


def blocks(first: int, count: int) -> list[BlockFact]:
    """Return blocks like those of the ledger."""
    miners = [miner(hotkey) for hotkey in sorted(MINERS)]
    stakes = {VALIDATOR: 1.0, "5Other": 1.0}
    return [
        BlockFact(number, START + timedelta(seconds=12 * number), miners, stakes)
        for number in range(first, first + count)
    ]
