"""The log's contract, tested on every storage engine."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from ledger import Head, Lookup, Row, RowExists, Store, VersionConflict
from ledger.domain.lookup import LookupResult
from ledger.store.contract import PAGE_ROWS, RowsBehind
from routing import Allowance, LedgerNotFound, NewerLedger, ReadOnlyLedger, Routing, StorageUnavailable
from tests.support.logs import all_rows, append, append_at, append_in, head_at, opened, row_after, rows_after
from tests.support.servers import connected
from tests.support.small import GPU, START, Clock, job, miner, small_ledger
from tests.support.small import VALIDATOR as OWNER

pytestmark = pytest.mark.compatibility

INTEGRITY_ERRORS = (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError)
"""The drivers' errors when the database itself refuses a row."""


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with opened(database_url) as store:
        yield store


async def execute(url: str, statement: str) -> None:
    """Execute a statement without the library."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        try:
            connection.execute(statement)
        finally:
            connection.close()
    else:
        async with connected(url) as other:
            await other.execute(statement)


# Appending


async def test_a_new_log_is_empty(store: Store) -> None:
    """Its head has position 0 and a hash of zeros, and there is no row to read."""
    assert await store.head() == Head(0, bytes(32), 0)
    assert await store.read(0) == []


async def test_a_row_is_read_back_as_it_was_appended(store: Store) -> None:
    """Every column returns byte for byte, including the largest integers and a payload that is not text."""
    largest = 2**63 - 1
    row = row_after(
        Head(),
        stream="5Miner\talways_on.gpu-24gb",
        recorded_at_ns=largest,
        key="schlüssel 🗝",
        job_uuid="job",
        attempt=largest,
        settles=largest,
    )
    assert await append(store, [row]) == await store.head()
    assert await store.read(0) == [row]
    assert all(type(value) is type(given) for value, given in zip((await store.read(0))[0], row, strict=True))


APPENDS = ["at a head", "behind the head", "transaction"]
"""The ways to append: `Store.append` with a head and without one, and `Transaction.append`."""


async def append_how(store: Store, how: str, events: RowsBehind, expected: Mapping[str, int], at: Head) -> bool:
    """Append in one of `APPENDS`; return False if the head is not `at`, which only one of them expects."""
    if how == "transaction":
        async with store.transaction() as transaction:
            await transaction.append(events(await transaction.head()), expected)
        return True
    appended = await store.append(events, expected, at=at if how == "at a head" else None)
    if appended is not None:
        rows = await store.read(appended[0].position - 1)
        assert appended == rows[: len(appended)]
    return appended is not None


def conflicts_of(conflict: VersionConflict) -> list[tuple[str, int, int]]:
    """Return what a conflict names: stream, expected and actual version."""
    return [(each.stream, each.expected_version, each.actual_version) for each in conflict.conflicts]


@pytest.mark.parametrize("key", ["new", "repeated", "repeated with other content"])
@pytest.mark.parametrize("others", ["unmoved", "moved"])
@pytest.mark.parametrize(
    ("stream", "expected"),
    [("present", "exact"), ("present", "behind"), ("present", "ahead"), ("absent", "exact"), ("absent", "ahead")],
)
@pytest.mark.parametrize("how", APPENDS)
async def test_only_events_on_the_expected_version_of_their_stream_are_appended(
    store: Store, how: str, stream: str, expected: str, others: str, key: str
) -> None:
    """The truth table of appends: the stream decides, not the head; then the key. A refused append leaves nothing.

    Other streams may have moved since the decision, except with a head, which is then another one. A version conflict
    takes precedence over a repeated key, because a moved stream may be the reason why the key is stored.
    """
    current = 2 if stream == "present" else 0
    version = current + {"exact": 0, "behind": -1, "ahead": 1}[expected]
    first = row_after(Head(), "present", 1, key="repeated")
    decided_at = await append(store, [first, row_after(head_at(first), "present", 2)])
    if others == "moved":
        await append(store, [row_after(decided_at, "another", 1)])
    payload = b"other content" if key.endswith("other content") else first.payload
    columns = {"key": "new" if key == "new" else "repeated", "payload": payload}
    events: RowsBehind = lambda head: [row_after(head, stream, version + 1, **columns)]  # noqa: E731 - as callers do
    before, head = await store.read(0), await store.head()

    is_stored = False
    if how == "at a head" and others == "moved":
        assert not await append_how(store, how, events, {stream: version}, decided_at)
    elif expected != "exact":
        with pytest.raises(VersionConflict) as conflict:
            await append_how(store, how, events, {stream: version}, decided_at)
        assert conflicts_of(conflict.value) == [(stream, version, current)]
    elif key != "new":
        with pytest.raises(StorageUnavailable if how == "transaction" else RowExists):
            await append_how(store, how, events, {stream: version}, decided_at)
    else:
        is_stored = await append_how(store, how, events, {stream: version}, decided_at)
        assert is_stored
    assert await store.read(0) == [*before, *(events(head) if is_stored else [])]
    await append(store, [row_after(await store.head(), "afterwards", 1)])


@pytest.mark.parametrize(
    ("read", "version"),
    [("present", 2), ("present", 1), ("present", 3), ("present", 0), ("absent", 0), ("absent", 1)],
)
@pytest.mark.parametrize("how", APPENDS)
async def test_a_stream_that_was_only_read_is_compared_too(store: Store, how: str, read: str, version: int) -> None:
    """A claim depends on the facts: if their stream has moved, it is refused although its own stream has not.

    Catches a store that compares only the streams to which it appends.
    """
    current = 2 if read == "present" else 0
    head = await append(store, rows_after(Head(), 2, "present"))
    expected = {"own": 0, read: version}
    if version == current:
        assert await append_how(store, how, lambda head: [row_after(head, "own", 1)], expected, head)
    else:
        with pytest.raises(VersionConflict) as conflict:
            await append_how(store, how, lambda head: [row_after(head, "own", 1)], expected, head)
        assert conflicts_of(conflict.value) == [(read, version, current)]
    assert len(await store.read(0)) == (3 if version == current else 2)
    # The comparison itself moves no stream.
    await append(store, [row_after(await store.head(), read, current + 1)])


@pytest.mark.parametrize("how", APPENDS)
async def test_a_conflict_names_every_stream_that_moved(store: Store, how: str) -> None:
    """Stream, expected and actual version of each one, and none of the others; nothing is appended to any stream.

    Catches a store that stops at the first conflict, and one that has moved some streams when it notices it.
    """
    rows = rows_after(Head(), 3, "one")
    rows += rows_after(head_at(rows[-1]), 2, "two")
    head = await append(store, rows)
    expected = {"one": 2, "two": 2, "three": 0, "four": 1}

    def events(head: Head) -> list[Row]:
        numbered: list[Row] = []
        for stream, version in expected.items():
            numbered.append(row_after(head, stream, version + 1))
            head = head_at(numbered[-1])
        return numbered

    with pytest.raises(VersionConflict) as conflict:
        await append_how(store, how, events, expected, head)
    assert sorted(conflicts_of(conflict.value)) == [("four", 1, 0), ("one", 2, 3)]
    assert str(conflict.value).count("stream") == 2
    assert await all_rows(store) == rows
    expected = {"one": 3, "two": 2, "three": 0}
    assert await append_how(store, how, events, expected, head)
    assert [(row.stream, row.version) for row in await all_rows(store)][5:] == [("one", 4), ("two", 3), ("three", 1)]


@pytest.mark.parametrize("how", APPENDS)
async def test_a_stream_moves_by_as_many_versions_as_it_gets_events(store: Store, how: str) -> None:
    """Events of several streams, some with more than one, are appended together, and each stream goes on from there."""
    head = await append(store, rows_after(Head(), 2, "old"))

    def events(head: Head) -> list[Row]:
        rows = rows_after(head, 2, "old", 3)
        rows += rows_after(head_at(rows[-1]), 3, "new")
        return [*rows, row_after(head_at(rows[-1]), "old", 5)]

    assert await append_how(store, how, events, {"old": 2, "new": 0}, head)
    for expected in ({"old": 4, "new": 3}, {"old": 5, "new": 1}):
        with pytest.raises(VersionConflict):
            await append_how(store, "behind the head", lambda head: [row_after(head, "own", 1)], expected, head)
    await append_how(store, how, lambda head: rows_after(head, 1, "old", 6), {"old": 5, "new": 3}, await store.head())


@pytest.mark.parametrize("decided_at", ["exact", "behind", "ahead", "another hash"])
@pytest.mark.parametrize("key", ["new", "repeated"])
async def test_an_append_at_a_head_expects_exactly_that_head(store: Store, decided_at: str, key: str) -> None:
    """At another head nothing is done, even if no stream of the append has moved and whether or not the key is new."""
    first = row_after(Head(), "existing", 1, key="repeated")
    second = row_after(head_at(first), "existing", 2)
    head = await append(store, [first, second])
    at = {
        "exact": head,
        "behind": head_at(first),
        "ahead": head._replace(position=3),
        "another hash": head._replace(hash=bytes(32)),
    }[decided_at]
    appending = store.append(lambda head: [row_after(head, "own", 1, key=key)], {"own": 0}, at=at)
    if decided_at != "exact":
        assert await appending is None
    elif key == "repeated":
        with pytest.raises(RowExists):
            await appending
    else:
        assert await appending == [row_after(head, "own", 1, key=key)]
    stored = [first, second, *([row_after(head, "own", 1, key=key)] if (decided_at, key) == ("exact", "new") else [])]
    assert await store.read(0) == stored
    assert await store.head() == head_at(stored[-1])


@pytest.mark.parametrize(
    ("since", "is_in_log"),
    [
        (Head(), True),
        (head_at(row_after(Head())), True),
        (head_at(rows_after(Head(), 2)[1]), True),
        (head_at(row_after(Head(), "another")), False),
        (head_at(rows_after(Head(), 3)[2]), False),
    ],
    ids=["empty log", "earlier", "newest", "another hash", "lost"],
)
async def test_events_are_appended_only_to_the_log_on_which_they_were_decided(
    store: Store, since: Head, is_in_log: bool
) -> None:
    """A log that was replaced may have the same versions and other events: nothing decided on the lost ones is stored.

    Catches an append behind the head that compares versions only.
    """
    head = await append(store, rows_after(Head(), 2))
    row = row_after(head, "own", 1)
    appended = await store.append(lambda head: [row_after(head, "own", 1)], {"own": 0}, since=since)
    assert appended == ([row] if is_in_log else None)
    assert (await store.read(2)) == ([row] if is_in_log else [])
    await append(store, [row_after(await store.head(), version=3)])


async def test_if_numbering_the_events_fails_nothing_is_done(store: Store) -> None:
    """The error is raised unchanged, and the store appends as before."""

    def refuse(head: Head) -> list[Row]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await store.append(refuse, {"own": 0})
    assert await store.append(lambda head: [row_after(head, "own", 1)], {"own": 0}) == await store.read(0)


@pytest.mark.parametrize("columns", [{"job_uuid": "a job", "attempt": 1}, {"settles": 1}], ids=str)
@pytest.mark.parametrize("how", ["at a head", "behind the head"])
async def test_an_append_refuses_a_stored_attempt_and_a_stored_settlement(
    store: Store, how: str, columns: dict[str, Any]
) -> None:
    """As it refuses a stored key: `RowExists`, although each stream is at its expected version."""
    head = await append(store, [row_after(Head(), **columns)])
    with pytest.raises(RowExists):
        await append_how(store, how, lambda head: [row_after(head, "own", 1, **columns)], {"own": 0}, head)
    assert len(await store.read(0)) == 1
    assert await append_how(store, how, lambda head: [row_after(head, "own", 1)], {"own": 0}, head)


@pytest.mark.parametrize(
    "columns",
    [
        {"position": 5},
        {"position": 2},
        {"position": 0},
        {"payload": None},
        {"key": "a key"},
        {"job_uuid": "a job", "attempt": 1},
        {"settles": 1},
    ],
    ids=str,
)
async def test_the_database_itself_refuses_a_row_that_breaks_an_invariant(
    store: Store, columns: dict[str, Any]
) -> None:
    """Positions are dense; keys, attempts of a job and settlements are unique. No code checks it first."""
    first = row_after(Head(), version=1, key="a key", job_uuid="a job", attempt=1)
    second = row_after(head_at(first), version=2, settles=1)
    third = row_after(head_at(second), version=3)
    head = await append(store, [first, second, third])
    bad = row_after(head, version=4)._replace(**columns)

    with pytest.raises(StorageUnavailable) as refused:
        await append(store, [bad])
    assert isinstance(refused.value.__cause__, INTEGRITY_ERRORS)
    assert not await append_at(store, head, [bad])
    assert await store.read(0) == [first, second, third]
    assert await store.head() == head


async def test_many_rows_may_lack_a_unique_column(store: Store) -> None:
    """Keys, jobs and settlements are unique only if present; another attempt of a job is another reservation."""
    rows = rows_after(Head(), 3)
    for attempt in (1, 2):
        rows.append(row_after(head_at(rows[-1]), version=len(rows) + 1, job_uuid="job", attempt=attempt))
    await append(store, rows)
    assert await store.read(0) == rows


async def test_an_append_is_atomic(store: Store) -> None:
    """If the last row repeats a key, the first one is not stored either."""
    head = await append(store, [row_after(Head(), key="key")])
    good = row_after(head, "good")
    bad = row_after(head_at(good), "bad", key="key")
    assert not await append_at(store, head, [good, bad])
    with pytest.raises(StorageUnavailable):
        await append(store, [good, bad])
    assert len(await all_rows(store)) == 1


async def test_an_exception_rolls_a_transaction_back(store: Store) -> None:
    """The block's exception is raised unchanged; head and rows are as before, and the next transaction succeeds."""
    head = await append(store, rows_after(Head(), 2))

    async def fail() -> None:
        async with store.transaction() as transaction:
            await append_in(transaction, [row_after(head, version=3)])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert await store.head() == head
    assert len(await all_rows(store)) == 2
    await append(store, [row_after(head, version=3)])


async def test_a_transaction_sees_the_log_at_its_head(store: Store) -> None:
    """Its head, pages and look-ups agree with the rows committed before."""
    rows = rows_after(Head(), 3)
    head = await append(store, [rows[0], rows[1], rows[2]])
    async with store.transaction() as transaction:
        assert await transaction.head() == head
        assert await transaction.read(1) == rows[1:]
        assert (await transaction.find(Lookup(positions=[2]))).rows == {2: rows[1]}


async def test_a_commit_is_resolved_by_the_hash_of_its_first_row(store: Store) -> None:
    """A stored batch was committed, a row that is not stored was not, nor was one whose position has another row.

    Afterwards the store accepts changes as before.
    """
    rows = rows_after(Head(), 3)
    head = await append(store, rows)
    assert await store.resolve_commit(rows[0])
    assert await store.resolve_commit(rows[2])
    assert not await store.resolve_commit(row_after(head, version=4))
    assert not await store.resolve_commit(row_after(head_at(rows[1]), "another"))
    await append(store, [row_after(head, version=4)])
    assert await store.resolve_commit(row_after(head, version=4))


# Reading


async def test_every_page_but_the_last_is_full(store: Store) -> None:
    """Pages have `PAGE_ROWS` rows, ascending, without gap or overlap; after the last row they are empty."""
    rows = rows_after(Head(), 2 * PAGE_ROWS + 500)
    await append(store, rows)
    assert await store.read(0) == rows[:PAGE_ROWS]
    assert await store.read(PAGE_ROWS) == rows[PAGE_ROWS : 2 * PAGE_ROWS]
    assert await store.read(2 * PAGE_ROWS) == rows[2 * PAGE_ROWS :]
    assert await store.read(len(rows) - 1) == rows[-1:]
    assert await store.read(len(rows)) == []
    assert await store.read(2**63 - 1) == []


@pytest.mark.parametrize("seed", range(3))
async def test_find_returns_the_same_rows_as_a_scan_of_the_log(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds keys, jobs' last attempts and positions, stored or not, and their settlements, in several statements."""
    monkeypatch.setattr("ledger.store.sqlite.streams.LOOKUP_VALUES", 2)
    rng = random.Random(seed)
    rows = _random_log(rng, 200)
    await append(store, rows)
    for _ in range(30):
        lookup = Lookup()
        lookup.keys = {f"key {rng.randrange(120)}" for _ in range(rng.randrange(4))}
        lookup.jobs = {f"job {rng.randrange(40)}" for _ in range(rng.randrange(4))}
        lookup.positions = {rng.choice([rng.randrange(1, 220), 2**63, 2**100]) for _ in range(rng.randrange(4))}
        known = await store.find(lookup)
        expected = _scanned(rows, lookup)
        assert known.keys == expected.keys
        assert known.jobs == expected.jobs
        assert known.rows == expected.rows
        assert known.settlements == expected.settlements


def _random_log(rng: random.Random, count: int) -> list[Row]:
    rows: list[Row] = []
    attempts: dict[str, int] = {}
    open_positions: list[int] = []
    head = Head()
    for n in range(count):
        key = f"key {n}" if rng.random() < 0.5 else None
        if open_positions and rng.random() < 0.4:
            settled = open_positions.pop(rng.randrange(len(open_positions)))
            row = row_after(head, version=n + 1, key=key, settles=settled)
        else:
            job = f"job {rng.randrange(30)}" if rng.random() < 0.8 else None
            if job is not None:
                attempts[job] = attempts.get(job, 0) + 1
            row = row_after(head, version=n + 1, key=key, job_uuid=job, attempt=job and attempts[job])
            open_positions.append(row.position)
        rows.append(row)
        head = head_at(row)
    return rows


def _scanned(rows: list[Row], lookup: Lookup) -> LookupResult:
    known = LookupResult()
    known.keys = {row.key: row for row in rows if row.key in lookup.keys}
    known.jobs = {row.job_uuid: row for row in rows if row.job_uuid in lookup.jobs}
    known.rows = {row.position: row for row in rows if row.position in lookup.positions}
    reservations = {row.position for row in (*known.jobs.values(), *known.rows.values())}
    known.settlements = {row.settles: row for row in rows if row.settles in reservations}
    return known


# Several stores


async def test_a_store_sees_another_stores_commit(shared_url: str) -> None:
    """Head, rows and look-ups show it directly after the commit, and not before."""
    async with opened(shared_url) as one, opened(shared_url) as two:
        assert one.ledger == two.ledger
        row = row_after(Head(), key="key")
        lookup = Lookup()
        lookup.keys.add("key")
        async with one.transaction() as transaction:
            await append_in(transaction, [row])
            assert await two.head() == Head()
            assert await two.read(0) == []
            assert (await two.find(lookup)).keys == {}
        assert await two.head() == head_at(row)
        assert await two.read(0) == [row]
        assert (await two.find(lookup)).keys == {"key": row}


async def test_one_transaction_at_a_time(shared_url: str) -> None:
    """A second transaction waits for the first to end, and then sees its rows."""
    async with opened(shared_url) as one, opened(shared_url) as two:
        asked = asyncio.Event()
        story: list[str] = []

        async def second() -> Head:
            asked.set()
            async with two.transaction() as transaction:
                story.append("second begins")
                return await transaction.head()

        async with one.transaction() as transaction:
            waiting = asyncio.create_task(second())
            await asked.wait()
            await append_in(transaction, rows_after(Head(), 2))
            story.append("first ends")
        assert (await waiting).position == 2
        assert story == ["first ends", "second begins"]


async def test_a_transaction_cancelled_while_it_waits_blocks_nobody(shared_url: str) -> None:
    """After a waiting transaction is cancelled, both stores can append."""
    async with opened(shared_url) as one, opened(shared_url) as two:
        asked = asyncio.Event()

        async def second() -> None:
            asked.set()
            async with two.transaction():
                raise AssertionError("it was cancelled before it had the lock")

        async with one.transaction() as transaction:
            waiting = asyncio.create_task(second())
            await asked.wait()
            await two.head()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await append_in(transaction, [row_after(Head())])
        head = await one.head()
        await append(two, [row_after(head, version=2)])
        await append(one, [row_after(await one.head(), version=3)])


@pytest.mark.parametrize("how", APPENDS)
async def test_racing_appends_make_one_dense_chain(shared_url: str, how: str) -> None:
    """Four stores append at once until all of their rows are stored: no row is lost, repeated or out of order."""
    writers, each = 4, 15
    barrier = asyncio.Barrier(writers)

    async def write(number: int) -> None:
        async with opened(shared_url) as store:
            await barrier.wait()
            written = 0
            while written < each:
                stream, head = f"stream {number}", await store.head()
                events = partial(rows_after, count=1, stream=stream, version=written + 1)
                written += await append_how(store, how, events, {stream: written}, head)

    await asyncio.gather(*(write(number) for number in range(writers)))
    async with opened(shared_url) as store:
        rows = await all_rows(store)
        assert await store.head() == head_at(rows[-1])
    head = Head()
    for row in rows:
        assert row == row_after(head, row.stream, row.version)
        head = head_at(row)
    for number in range(writers):
        assert [row.version for row in rows if row.stream == f"stream {number}"] == list(range(1, each + 1))


@pytest.mark.parametrize("how", APPENDS)
async def test_of_racing_appends_on_one_version_exactly_one_succeeds(shared_url: str, how: str) -> None:
    """Four stores append to one stream at the same version, again and again: each version is written by one of them.

    Catches a comparison that is not atomic with the append.
    """
    writers, versions = 4, 12
    barrier = asyncio.Barrier(writers)
    won: list[tuple[int, int]] = []

    def signed_rows(head: Head, version: int, payload: bytes) -> list[Row]:
        return [row_after(head, "contended", version, payload=payload)]

    async def write(number: int) -> None:
        async with opened(shared_url) as store:
            for version in range(versions):
                await barrier.wait()
                events = partial(signed_rows, version=version + 1, payload=b"%d" % number)
                with suppress(VersionConflict):
                    if await append_how(store, how, events, {"contended": version}, await store.head()):
                        won.append((version + 1, number))

    await asyncio.gather(*(write(number) for number in range(writers)))
    async with opened(shared_url) as store:
        assert [(row.version, int(row.payload)) for row in await all_rows(store)] == won
    assert [version for version, _ in won] == list(range(1, versions + 1))


async def test_two_validators_of_one_database_share_no_row(shared_url: str) -> None:
    """Each log begins at position 1, and neither finds the other's keys, jobs or rows."""
    async with opened(shared_url, "validator-one") as one, opened(shared_url, "validator-two") as two:
        assert one.ledger != two.ledger
        columns: dict[str, Any] = {"key": "key", "job_uuid": "job", "attempt": 1}
        await append(one, [row_after(Head(), "one", **columns)])
        assert await two.head() == Head()
        assert await two.read(0) == []
        lookup = Lookup(positions=[1])
        lookup.keys, lookup.jobs = {"key"}, {"job"}
        known = await two.find(lookup)
        assert (known.keys, known.jobs, known.rows) == ({}, {}, {})
        await append(two, [row_after(Head(), "two", **columns)])
        assert [row.stream for row in await one.read(0)] == ["one"]


async def test_a_log_is_the_same_after_it_is_opened_again(shared_url: str) -> None:
    """Its id, head and rows are unchanged, also if it is opened for writing."""
    async with opened(shared_url) as store:
        ledger, rows = store.ledger, rows_after(Head(), 5)
        await append(store, rows)
    for read_only in (False, True):
        async with opened(shared_url, read_only=read_only) as store:
            assert store.ledger == ledger
            assert await store.head() == head_at(rows[-1])
            assert await store.read(0) == rows


async def test_a_store_can_be_closed_twice(database_url: str) -> None:
    """The second close does nothing."""
    async with opened(database_url) as store:
        await store.close()


# The read models' connections


async def test_writers_of_read_models_exclude_each_other(shared_url: str) -> None:
    """Of two writers that read a value and write the next, the second reads the value of the first."""
    async with opened(shared_url) as one, opened(shared_url) as two:
        async with one.write_derived() as transaction:
            await transaction.query("CREATE TABLE allowance_counted AS SELECT 0 AS value")
        barrier = asyncio.Barrier(2)

        async def count_up(store: Store) -> None:
            await barrier.wait()
            for _ in range(10):
                async with store.write_derived() as transaction:
                    ((value,),) = await transaction.query("SELECT value FROM allowance_counted")
                    await asyncio.sleep(0)  # Lets the other writer continue, unless the transaction excludes it.
                    await transaction.query("UPDATE allowance_counted SET value = ?", value + 1)

        await asyncio.gather(count_up(one), count_up(two))
        async with two.derived_connection() as connection:
            assert (await connection.exec_driver_sql("SELECT value FROM allowance_counted")).scalar_one() == 20


async def test_appends_do_not_wait_for_writers_of_read_models(postgres_url: str) -> None:
    """If the database can do both at once, a long rebuild delays no append."""
    async with opened(postgres_url) as store, store.write_derived():
        head = await append(store, [row_after(Head())])
        assert await append_at(store, head, [row_after(head, version=2)])


async def test_an_exception_rolls_a_read_model_write_back(store: Store) -> None:
    """Checkpoint and read model are written in one transaction: both or neither."""
    async with store.write_derived() as transaction:
        await transaction.query("CREATE TABLE allowance_counted AS SELECT 0 AS value")

    async def fail() -> None:
        async with store.write_derived() as transaction:
            await transaction.query("UPDATE allowance_counted SET value = 1")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    async with store.derived_connection() as connection:
        assert (await connection.exec_driver_sql("SELECT value FROM allowance_counted")).scalar_one() == 0


async def test_a_drivers_error_is_raised_as_storage_unavailable(store: Store) -> None:
    """A driver's error in a query or a write of a read model is only the cause of a `StorageUnavailable`."""
    async with store.write_derived():
        pass  # Makes a file of derived tables.
    with pytest.raises(StorageUnavailable) as unavailable:
        async with store.derived_connection() as connection:
            await connection.exec_driver_sql("SELECT * FROM no_such_table")
    assert unavailable.value.__cause__ is not None
    with pytest.raises(StorageUnavailable) as unavailable:
        async with store.write_derived() as transaction:
            await transaction.query("SELECT * FROM no_such_table")
    assert unavailable.value.__cause__ is not None


async def test_every_connection_to_a_file_flushes_every_commit(tmp_path: Path) -> None:
    """The connection to the log uses WAL and synchronous FULL, whoever writes on it."""
    async with opened(f"sqlite:///{tmp_path}/ledger.db") as store, store.write_verifications() as transaction:
        assert await transaction.query("PRAGMA journal_mode") == [("wal",)]
        assert await transaction.query("PRAGMA synchronous") == [(2,)]


# Refusals


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE allowance_events SET payload = hash",
        "UPDATE allowance_events SET position = position + 100",
        "DELETE FROM allowance_events WHERE position = 2",
        "UPDATE allowance_ledgers SET position = position - 1",
        "DELETE FROM allowance_ledgers",
    ],
)
async def test_the_past_cannot_be_changed(shared_url: str, statement: str) -> None:
    """The database refuses to update or delete events, to move a head back, and to delete a ledger."""
    rows = rows_after(Head(), 3)
    async with opened(shared_url) as store:
        await append(store, rows)
        with pytest.raises(INTEGRITY_ERRORS, match="never"):
            await execute(shared_url, statement)
        assert await store.read(0) == rows
        assert await store.head() == head_at(rows[-1])


async def test_an_open_store_refuses_a_newer_schema(shared_url: str) -> None:
    """It refuses at opening, at the next read of the head and in the next transaction, and appends nothing."""
    async with opened(shared_url) as store:
        head = await append(store, [row_after(Head())])
        await execute(shared_url, "UPDATE allowance_schema SET version = version + 1")
        next_row = row_after(head, version=2)
        with pytest.raises(NewerLedger):
            await store.head()
        with pytest.raises(NewerLedger):
            await append(store, [next_row])
        if store.optimistic:
            assert not await append_at(store, head, [next_row])
        assert await store.read(0) == [row_after(Head())]
    for read_only in (False, True):
        with pytest.raises(NewerLedger):
            async with opened(shared_url, read_only=read_only):
                pass


@pytest.mark.parametrize(
    "payload",
    [b'{"type":"allowance-lent"}', b'{"type":"reservation-spent","reservation_id":1,"tip_ns":5}'],
    ids=["tag", "field"],
)
async def test_an_event_of_a_newer_release_is_never_skipped(shared_url: str, payload: bytes) -> None:
    """After an unknown type, or an unknown field of a known type, the ledger refuses every query and command."""
    async with small_ledger(url=shared_url) as ledger, opened(shared_url, OWNER) as other:
        head = await append(other, [row_after(await other.head(), "lending", 1, payload=payload)])
        await _every_call_stops(ledger)
        assert await other.head() == head


async def test_a_newer_schema_stops_an_old_process_while_it_runs(shared_url: str) -> None:
    """During a rolling upgrade the old process refuses every kind of command and query, and appends nothing."""
    async with small_ledger(url=shared_url) as ledger:
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        head = await ledger.head()
        await execute(shared_url, "UPDATE allowance_schema SET version = version + 1")
        await _every_call_stops(ledger)
        for call in (
            lambda: ledger.reservation(reservation.reservation_id),
            lambda: ledger.at(position=1).current_block(),
        ):
            with pytest.raises(NewerLedger):
                await call()
        await execute(shared_url, "UPDATE allowance_schema SET version = version - 1")
        assert await ledger.head() == head
        assert (await ledger.spend(reservation.reservation_id)).status == "spent"


async def _every_call_stops(ledger: Allowance) -> None:
    """Assert that picks, reservations, settlements, facts and queries are refused."""
    anna = miner("5Anna")
    for call in (
        lambda: Routing(ledger).pick_miner_for_job_request(job("job")),
        lambda: ledger.reserve("5Anna", GPU, 6.0, 11),
        lambda: ledger.spend(1 << 20),
        lambda: ledger.release(1 << 20, idempotency_key="key"),
        ledger.expire_due,
        lambda: ledger.record_block(12, START + timedelta(seconds=144), [anna], {OWNER: 1.0}),
        lambda: ledger.record_manifests(12, {"5Anna": {GPU: 2}}),
        ledger.current_block,
        lambda: ledger.find_miners(6.0, GPU, 11),
        ledger.history,
    ):
        with pytest.raises(NewerLedger):
            await call()


async def test_a_read_only_store_creates_nothing_and_refuses_to_write(shared_url: str) -> None:
    """Opening creates no file, no table and no ledger, and an append raises `StorageUnavailable`."""
    with pytest.raises((LedgerNotFound, StorageUnavailable)):
        async with opened(shared_url, read_only=True):
            pass
    assert await _tables(shared_url) == []
    async with opened(shared_url) as store:
        rows = rows_after(Head(), 3)
        head = await append(store, rows)
    with pytest.raises(LedgerNotFound):
        async with opened(shared_url, "validator-of-nobody", read_only=True):
            pass
    async with opened(shared_url, read_only=True) as store:
        assert await store.read(0) == rows
        with pytest.raises(StorageUnavailable):
            await append(store, [row_after(head, version=4)])
        with pytest.raises(StorageUnavailable):
            await append_at(store, head, [row_after(head, version=4)])
        assert await store.head() == head


async def _tables(url: str) -> list[Any]:
    if url.startswith("sqlite"):
        return list(Path(url.removeprefix("sqlite:///")).parent.iterdir())
    async with connected(url) as other:
        return list(await other.fetch("SELECT 1 FROM pg_tables WHERE schemaname = 'public'"))


async def test_a_read_only_ledger_follows_the_log_and_never_writes(shared_url: str) -> None:
    """An auditor beside a running validator sees each commit, and every change is refused."""
    clock = Clock(START + timedelta(seconds=132))
    async with (
        small_ledger(url=shared_url, clock=clock) as ledger,
        Allowance.open(shared_url, validator_ss58=OWNER, clock_ns=clock, read_only=True) as auditor,
    ):
        reservation = await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert await auditor.reservation(reservation.reservation_id) == reservation
        assert (await auditor.history()).items == [reservation]
        head = await ledger.head()
        for change in (lambda: auditor.spend(reservation.reservation_id), auditor.expire_due):
            with pytest.raises(ReadOnlyLedger):
                await change()
        assert await ledger.head() == await auditor.head() == head


# Failures of the storage


FULL = {
    "sqlite": "PRAGMA max_page_count = 1",
    "postgresql": """
        CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER no_room BEFORE INSERT ON allowance_events EXECUTE FUNCTION no_room()""",
}
ROOM = {"sqlite": "PRAGMA max_page_count = 1000000", "postgresql": "DROP TRIGGER no_room ON allowance_events"}


async def _execute_at_storage(ledger: Allowance, url: str, statements: dict[str, str]) -> None:
    """Execute the engine's statement, which makes the disk full or not; on SQLite through the writing connection."""
    store: Any = (await ledger._lifecycle.handle()).store
    engine = url.partition(":")[0]
    if engine == "sqlite":
        store._open_connection().execute(statements[engine]).fetchall()
    else:
        await execute(url, statements[engine])


async def test_a_full_disk_loses_nothing_and_may_recover(shared_url: str) -> None:
    """Commands raise `StorageUnavailable` and queries return the same as before; with room, commands succeed again."""
    async with small_ledger(url=shared_url, offers={"5Anna": 400}) as ledger:
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        await _execute_at_storage(ledger, shared_url, FULL)
        refused = done = 0
        while not refused:
            try:
                await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid=f"{done} {'x' * 100}")
                done += 1
            except StorageUnavailable:
                refused += 1
        head, candidates = await ledger.head(), await ledger.find_miners(6.0, GPU, 11)
        with pytest.raises(StorageUnavailable):
            # The same again: a smaller event might fit into the last page.
            await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid=f"{done} {'x' * 100}")
        assert await ledger.head() == head
        assert await ledger.find_miners(6.0, GPU, 11) == candidates
        await _execute_at_storage(ledger, shared_url, ROOM)
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        assert (await ledger.head()).position == head.position + 1
        assert len((await ledger.history(limit=1000)).items) == done + 2


def test_a_file_without_write_permission_is_not_changed() -> None:
    """Opening it for writing raises `StorageUnavailable`, and no byte of it changes."""
    script = """
    import asyncio, os, pathlib, sys
    from routing import StorageUnavailable
    from tests.support.logs import opened

    async def main(directory: str) -> None:
        async with opened("sqlite://"):
            pass  # Imports late modules now: the user below may be unable to read them.
        path = pathlib.Path(directory, "ledger.db")
        async with opened(f"sqlite:///{path}"):
            pass
        for name in ("ledger.db.lock", "ledger.db.lock-next", "ledger.db.lock-open"):
            (path.parent / name).unlink()
        before = path.read_bytes()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        if os.geteuid() == 0:
            os.setuid(65534)  # Root may write everything.
        try:
            async with opened(f"sqlite:///{path}"):
                raise SystemExit("it was opened")
        except StorageUnavailable:
            pass
        assert path.read_bytes() == before
        assert [each.name for each in path.parent.iterdir()] == ["ledger.db"]

    asyncio.run(main(sys.argv[1]))
    """
    # Directly below the temporary directory, which another user can enter.
    directory = tempfile.mkdtemp(prefix="allowance-")
    try:
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), directory], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
    finally:
        Path(directory).chmod(0o755)
        shutil.rmtree(directory)
