"""The rows of the streams on SQLite, the numbers that a store remembers, narrow columns, and the view of the log."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import Head, Lookup, Row, VersionConflict
from ledger.errors import CorruptLedger
from ledger.store.sqlite.columns import narrow, restored
from routing import StorageUnavailable, verify
from tests.support.logs import all_rows, append, append_in, head_at, opened, row_after, rows_after

A_UUID = "0190f5a0-91c3-7cc0-8a6e-1f2d3c4b5a69"
NOT_CANONICAL = [
    A_UUID.upper(),
    A_UUID.replace("-", ""),
    f"{{{A_UUID}}}",
    f"urn:uuid:{A_UUID}",
    A_UUID.replace("a", "g"),
    A_UUID.replace("1", "\u0661"),
    A_UUID + "\n",
    " " + A_UUID[1:],
    "x" * 36,
    "x" * 16,
    "",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def direct(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file without the library."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


# Narrow columns


@given(
    st.one_of(
        st.uuids().map(str),
        st.uuids().map(lambda uuid: str(uuid).upper()),
        st.text(max_size=40),
        st.from_regex(r"\A[0-9A-Fa-f-]{36}\Z"),
    )
)
def test_a_narrow_form_restores_its_text_exactly(text: str) -> None:
    """No two texts share a stored form, and only canonical UUIDs are narrow.

    Catches upper-case digits that are stored as bytes: they would come back in lower case, and fit no hash.
    """
    assert restored(narrow(text)) == text


def test_only_the_canonical_text_of_a_uuid_is_narrow() -> None:
    """Sixteen bytes instead of 36 characters."""
    assert narrow(A_UUID) == UUID(A_UUID).bytes
    assert [narrow(text) for text in NOT_CANONICAL] == NOT_CANONICAL
    assert narrow(None) is None


async def test_keys_and_jobs_come_back_as_their_text_and_are_found(path: Path, direct: sqlite3.Connection) -> None:
    """UUIDs are stored as 16 bytes, every other text as it is; both are unique, and found by exactly their text."""
    rows: list[Row] = []
    for text in (A_UUID, *NOT_CANONICAL):
        head = head_at(rows[-1]) if rows else Head()
        rows.append(row_after(head, "stream", len(rows) + 1, key=text, job_uuid=text, attempt=1))
    async with opened(f"sqlite:///{path}") as store:
        await append(store, rows)
        assert await all_rows(store) == rows
        lookup = Lookup()
        lookup.keys = {row.key for row in rows if row.key is not None}
        lookup.jobs = {row.job_uuid for row in rows if row.job_uuid is not None}
        found = await store.find(lookup)
        assert found.keys == found.jobs == {row.key: row for row in rows}
        with pytest.raises(StorageUnavailable):
            await append(store, [row_after(head_at(rows[-1]), "stream", len(rows) + 1, key=A_UUID)])
    stored = direct.execute("SELECT typeof(key), typeof(job_uuid), typeof(stream) FROM allowance_events").fetchall()
    assert stored == [("blob", "blob", "integer"), *[("text", "text", "integer")] * len(NOT_CANONICAL)]


async def test_the_view_shows_the_log_as_text(path: Path, direct: sqlite3.Connection) -> None:
    """`allowance_log` has the names of the streams, keys and jobs as text, and every event up to the head."""
    rows = [row_after(Head(), "5Anna\tgpu", 1, key=A_UUID, job_uuid=A_UUID, attempt=1, payload=b"{}")]
    rows.append(row_after(head_at(rows[0]), "chain", 1, key="a key", payload=b"{}"))
    async with opened(f"sqlite:///{path}") as store:
        await append(store, rows)
        shown = direct.execute("SELECT * FROM allowance_log ORDER BY position").fetchall()
    expected = [("validator-of-ours", *row._replace(payload=row.payload.decode())[:-1], row.hash.hex()) for row in rows]  # type: ignore[arg-type]  # as text
    assert shown == expected


# Versions


async def test_an_append_moves_each_stream_in_its_own_row(path: Path, direct: sqlite3.Connection) -> None:
    """One row per stream, numbered from 1, at the version of its newest event; a refused append leaves them."""
    async with opened(f"sqlite:///{path}") as store:
        rows = rows_after(Head(), 3, "one")
        rows += rows_after(head_at(rows[-1]), 2, "two")
        head = await append(store, rows)
        streams = "SELECT stream, name, version FROM allowance_streams ORDER BY stream"
        assert direct.execute(streams).fetchall() == [(1, "one", 3), (2, "two", 2)]
        both = rows_after(head, 1, "one", 4)
        both += rows_after(head_at(both[0]), 1, "two", 9)
        with pytest.raises(VersionConflict) as conflict:
            await append(store, both)
        assert [(each.stream, each.expected_version, each.actual_version) for each in conflict.value.conflicts] == [
            ("two", 8, 2)
        ]
        assert direct.execute(streams).fetchall() == [(1, "one", 3), (2, "two", 2)]


async def test_a_conflict_undoes_the_streams_that_had_moved_before_it(path: Path) -> None:
    """Of many streams the last one is behind: inside of the transaction the others are at their old versions again.

    Catches a conflict that names streams which only this append has moved.
    """
    async with opened(f"sqlite:///{path}") as store:
        head = Head()
        for name in ("one", "two", "three"):
            head = await append(store, [row_after(head, name)])
        rows = [row_after(head, "one", 2)]
        rows.append(row_after(head_at(rows[-1]), "two", 2))
        rows.append(row_after(head_at(rows[-1]), "three", 3))
        with pytest.raises(VersionConflict) as conflict:
            await append(store, rows)
    assert [each.stream for each in conflict.value.conflicts] == ["three"]


async def test_a_hole_in_the_versions_of_one_append_is_refused(path: Path) -> None:
    """The rows of a stream must be numbered on from the expected version, one by one."""
    async with opened(f"sqlite:///{path}") as store:
        first = row_after(Head(), "one", 1)
        for version in (1, 3):
            with pytest.raises(StorageUnavailable) as refused:
                await append(store, [first, row_after(head_at(first), "one", version)])
            assert isinstance(refused.value.__cause__, sqlite3.IntegrityError)
        assert await all_rows(store) == []


# Numbers that a store remembers


async def test_a_number_of_a_rolled_back_stream_is_forgotten(path: Path) -> None:
    """Another store gives the number to another stream; the first one then reads and appends under the right names.

    Catches a store that remembers the numbers of a transaction that was rolled back.
    """
    async with opened(f"sqlite:///{path}") as one, opened(f"sqlite:///{path}") as two:

        async def fail() -> None:
            async with one.transaction() as transaction:
                await append_in(transaction, [row_after(Head(), "rolled back")])
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        first = row_after(Head(), "another")
        head = await append(two, [first])
        assert await one.read(0) == [first]
        second = row_after(head, "rolled back")
        await append(one, [second])
        assert await all_rows(one) == await all_rows(two) == [first, second]


async def test_streams_of_another_process_are_learned(path: Path) -> None:
    """Each of two stores continues the streams that the other one created."""
    rows: list[Row] = []
    async with opened(f"sqlite:///{path}") as one, opened(f"sqlite:///{path}") as two:
        head = Head()
        for version in range(1, 4):
            for store, created in ((one, "by one"), (two, "by two")):
                for name in ("by one", "by two", f"{created} {version}"):
                    before = sum(row.stream == name for row in rows)
                    rows.append(row_after(head, name, before + 1))
                    head = await append(store, rows[-1:])
        assert await all_rows(one) == await all_rows(two) == rows


async def test_a_remembered_number_that_became_wrong_moves_nothing(path: Path, tmp_path: Path) -> None:
    """Somebody copies another log into the open file, in which the numbers belong to other streams.

    Catches an append that trusts the number, and writes the event into the wrong stream.
    """
    other = tmp_path / "other.db"
    async with opened(f"sqlite:///{other}") as store:
        there = [row_after(Head(), "two")]
        there.append(row_after(head_at(there[0]), "one"))
        head = await append(store, there)
    async with opened(f"sqlite:///{path}") as store:
        here = [row_after(Head(), "one")]
        here.append(row_after(head_at(here[0]), "two"))
        await append(store, here)
        with closing(sqlite3.connect(other)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
        row = row_after(head, "one", 2)
        await append(store, [row])
        assert await all_rows(store) == [*there, row]


async def test_a_lost_row_of_a_stream_is_damage(path: Path, direct: sqlite3.Connection) -> None:
    """Reading an event whose stream has no row raises `CorruptLedger`, and no other error."""
    async with opened(f"sqlite:///{path}") as store:
        await append(store, [row_after(Head(), "one")])
    direct.execute("DROP TRIGGER allowance_streams_no_delete")
    direct.execute("DELETE FROM allowance_streams")
    async with opened(f"sqlite:///{path}", read_only=True) as store:
        with pytest.raises(CorruptLedger, match="stream 1"):
            await store.read(0)


@pytest.mark.parametrize("statement", ["DELETE FROM allowance_streams", "UPDATE allowance_streams SET name = 'x'"])
async def test_the_database_refuses_to_delete_or_rename_a_stream(
    path: Path, direct: sqlite3.Connection, statement: str
) -> None:
    """Triggers refuse it, as a second defence."""
    async with opened(f"sqlite:///{path}") as store:
        await append(store, [row_after(Head(), "one")])
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        direct.execute(statement)


async def test_the_rows_of_some_streams_are_read_in_order(path: Path) -> None:
    """`read_streams` returns the rows of a stretch, and nothing for a stream that does not exist."""
    async with opened(f"sqlite:///{path}") as store:
        rows: list[Row] = []
        for n in range(30):
            name = f"stream {n % 3}"
            rows.append(row_after(head_at(rows[-1]) if rows else Head(), name, n // 3 + 1))
        await append(store, rows)
        found = await store.read_streams(["stream 0", "stream 2", "absent"], 4, 20)
        assert found == [row for row in rows[4:20] if row.stream != "stream 1"]
        assert await store.read_streams(["absent"], 0, 30) == []


@pytest.mark.parametrize(("change", "position"), [("version + 1", 3), ("version - 1", 2)])
async def test_verify_finds_a_wrong_version_in_a_streams_row(
    path: Path, direct: sqlite3.Connection, change: str, position: int
) -> None:
    """Every append to the stream is refused then, though each event is as it was written."""
    url = f"sqlite:///{path}"
    async with opened(url) as store:
        head = await append(store, rows_after(Head(), 2, "one"))
        direct.execute(f"UPDATE allowance_streams SET version = {change}")
        with pytest.raises(VersionConflict):
            await append(store, [row_after(head, "one", 3)])
    (report,) = await verify(url)
    assert [(each.position, each.rule) for each in report.findings] == [(position, "dense-versions")]
    direct.execute("UPDATE allowance_streams SET version = 2")
    (report,) = await verify(url)
    assert report.findings == []
