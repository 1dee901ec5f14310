"""Verify finds every change of a stored log at its first bad position, and changes no file itself.

The environment variable `TAMPER_CHANGES` sets the number of changes (10,000), `TAMPER_SEED` which ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ledger import Head, Row, StoredLedger
from ledger.codec import row_hash
from projections import verify_log
from routing import (
    Allowance,
    AllowanceException,
    CorruptLedger,
    InvalidInput,
    LedgerNotFound,
    NewerLedger,
    StorageUnavailable,
    verify,
)
from tests.support.engines import statement
from tests.support.log_mutations import OTHER_VALUES, Stored, StoredReader, changed
from tests.support.servers import connected
from tests.support.small import GPU, VALIDATOR, Clock, small_ledger
from tests.support.stories import SETTINGS, Story, events_of, seed_shown

SEED = int(os.environ.get("TAMPER_SEED", "20241125"))
CHANGES = int(os.environ.get("TAMPER_CHANGES", "10000"))
IN_SQLITE = max(300, CHANGES // 30)
IN_POSTGRES = max(100, CHANGES // 100)
BITS_OF_FILES = max(300, CHANGES // 30)

EVENTS = "ledger, position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
UNGUARDED = """
    DROP VIEW allowance_log;
    DROP TABLE allowance_events;
    DROP TRIGGER allowance_ledgers_no_step_back;
    DROP TRIGGER allowance_ledgers_no_delete;
    CREATE TABLE tampered (ledger INTEGER, validator_ss58 TEXT, position BIGINT, hash BLOB, recorded_at_ns BIGINT);
    INSERT INTO tampered SELECT ledger, validator_ss58, position, hash, recorded_at_ns FROM allowance_ledgers;
    DROP TABLE allowance_ledgers;
    ALTER TABLE tampered RENAME TO allowance_ledgers;
    CREATE TABLE allowance_events (ledger INTEGER, position BIGINT, stream TEXT, version BIGINT, recorded_at_ns BIGINT,
        key TEXT, job_uuid TEXT, attempt BIGINT, settles BIGINT, payload BLOB, hash BLOB,
        PRIMARY KEY (ledger, position)) WITHOUT ROWID"""


@contextmanager
def seeded() -> Iterator[random.Random]:
    """Yield a random generator; a failing test prints its seed."""
    sys.stdout.write(f"TAMPER_SEED={SEED}\n")
    with seed_shown(SEED):
        yield random.Random(SEED)


async def a_log(steps: int = 30) -> Stored:
    """Return the log of a short random story."""
    clock = Clock()
    async with Allowance.open("sqlite://", validator_ss58=VALIDATOR, clock_ns=clock, settings=SETTINGS) as ledger:
        await Story(ledger, clock, SEED).goes_on(steps)
        rows = await events_of(ledger)
        return Stored(rows, StoredLedger(1, VALIDATOR, *await ledger.head()))


async def test_an_honest_log_has_no_findings() -> None:
    """With and without noted heads; the report names what it cannot exclude, and nothing else."""
    log = await a_log()
    heads = [Head(row.position, row.hash, row.recorded_at_ns) for row in log.rows]
    report = await verify_log(StoredReader(log), log.head)
    assert (report.findings, report.position, report.hash) == ([], log.last, log.rows[-1].hash.hex())
    assert ["rewritten with" in said for said in report.not_excluded] == [True, False]
    assert ["cut off" in said for said in report.not_excluded] == [False, True]
    report = await verify_log(StoredReader(log), log.head, heads)
    assert (report.findings, report.not_excluded) == ([], [])
    assert report.noted == [row.position for row in log.rows]
    report = await verify_log(StoredReader(log), log.head, heads[:5])
    assert all("after position 5" in said for said in report.not_excluded)
    assert len(report.not_excluded) == 2


@pytest.mark.slow
async def test_every_change_is_found_at_the_first_bad_position() -> None:
    """Each of ten thousand random changes of rows and head row is found, and at the right position.

    Fails if a column is in no hash, a row is skipped, or the head row is not compared.
    """
    log = await a_log()
    kinds: dict[str, int] = {}
    with seeded() as draw:
        for number in range(CHANGES):
            kind, tampered = changed(log, draw)
            report = await verify_log(StoredReader(tampered), tampered.head, tampered.noted)
            assert report.first_bad_position == tampered.bad, (number, kind, tampered.bad, report.findings[:3])
            kinds[kind] = kinds.get(kind, 0) + 1
    assert min(kinds.values()) > CHANGES / 100, kinds


async def test_a_report_names_the_changes_that_only_a_noted_head_reveals() -> None:
    """A cut tail with a rewritten head row, and a rewritten log, have no findings without a head noted elsewhere.

    The report says that both may have happened, because hashes alone cannot exclude them.
    """
    log = await a_log()
    with seeded() as draw:
        for _ in range(200):
            kind, tampered = changed(log, draw)
            if not tampered.noted:
                continue
            report = await verify_log(StoredReader(tampered), tampered.head)
            assert report.findings == [], kind
            assert len(report.not_excluded) == 2


async def test_a_report_names_a_noted_head_that_disagrees() -> None:
    """If no noted head agrees, `not_excluded` names the one that does not.

    Fails if it says "no head noted elsewhere was given", below a finding about the head that was given.
    """
    log = await a_log()
    for position in (5, log.last + 3):
        report = await verify_log(StoredReader(log), log.head, [Head(position, b"\1" * 32)])
        assert report.findings
        assert f"does not contain the head noted elsewhere at {position}" in report.not_excluded[0]
        assert len(report.not_excluded) == 2
    report = await verify_log(StoredReader(log), log.head, [])
    assert "no head noted elsewhere was given" in report.not_excluded[0]


async def test_noted_heads_narrow_down_where_a_log_was_rewritten() -> None:
    """The finding is at the first noted head that the log does not contain, and names the last that it contains."""
    log = await a_log()
    heads = [Head(row.position, row.hash) for row in log.rows]
    rows, previous = list(log.rows), log.rows[9].hash
    for n in range(10, log.last):
        row = rows[n]._replace(payload=rows[n].payload + b" ")
        rows[n] = row._replace(hash=row_hash(previous, row))
        previous = rows[n].hash
    forged = Stored(rows, log.head._replace(hash=previous), [heads[4], heads[7], heads[14], heads[20]])
    report = await verify_log(StoredReader(forged), forged.head, forged.noted)
    assert (report.first_bad_position, report.noted) == (15, [5, 8])
    assert "after 8" in report.findings[0].message


@pytest.mark.slow
async def test_changes_in_a_sqlite_file_are_found(tmp_path: Path) -> None:
    """The same changes, if SQLite can store them, in real files without triggers or constraints.

    Fails if the reader omits a row or value: text that is not UTF-8, positions below 1, columns of any type.
    """
    log = await a_log()
    path, honest = tmp_path / "ledger.db", tmp_path / "honest.db"
    async with small_ledger(url=f"sqlite:///{honest}"):
        pass
    with seeded() as draw:
        found = 0
        while found < IN_SQLITE:
            kind, tampered = changed(log, draw)
            shutil.copyfile(honest, path)
            if not _store_in_sqlite(path, tampered):
                continue
            reports = await verify(f"sqlite:///{path}", heads=tampered.noted)
            assert [report.first_bad_position for report in reports] == [tampered.bad], (found, kind, reports)
            found += 1


def _store_in_sqlite(path: Path, tampered: Stored) -> bool:
    """Write a log into a file without constraints; return False if SQLite cannot store its values unchanged."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(f"PRAGMA synchronous = OFF; {UNGUARDED}; BEGIN")
        marks = ",".join(["CAST(? AS TEXT)" if name in ("stream", "key", "job_uuid") else "?" for name in Row._fields])
        for row in tampered.rows:
            values = [_raw(value) if at in (1, 4, 5) else value for at, value in enumerate(row)]
            connection.execute(f"INSERT INTO allowance_events ({EVENTS}) VALUES (1,{marks})", values)
        connection.execute("DELETE FROM allowance_ledgers")
        if tampered.head.has_head:
            head = [_raw(value) if at == 1 else value for at, value in enumerate(tampered.head[:5])]
            connection.execute("INSERT INTO allowance_ledgers VALUES (?, CAST(? AS TEXT), ?, ?, ?)", head)
        connection.text_factory = lambda stored: stored.decode("utf-8", "surrogateescape")
        stored = connection.execute(f"SELECT {', '.join(Row._fields)} FROM allowance_events").fetchall()
        connection.execute("COMMIT")
        return list(map(_typed, stored)) == list(map(_typed, tampered.rows))
    except (sqlite3.IntegrityError, OverflowError):
        return False
    finally:
        connection.close()


def _raw(value: Any) -> Any:
    """Return a text as bytes, which may not be UTF-8."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _typed(row: Any) -> list[tuple[str, Any]]:
    return [(type(value).__name__, value) for value in row]


async def test_changes_in_postgresql_are_found(postgres_url: str) -> None:
    """The same changes, if PostgreSQL's columns can store them, without triggers and constraints.

    In tables of schema version 2: a row of version 3 could not name a stream that is no text.
    """
    log = await a_log()
    async with small_ledger(url=postgres_url):
        pass
    async with connected(postgres_url) as connection:
        await connection.execute(_WITHOUT_CONSTRAINTS)
        with seeded() as draw:
            found = 0
            while found < IN_POSTGRES:
                kind, tampered = changed(log, draw)
                if not await _store_in_postgres(connection, tampered):
                    continue
                reports = await verify(postgres_url, heads=tampered.noted)
                assert [report.first_bad_position for report in reports] == [tampered.bad], (found, kind, reports)
                found += 1


_WITHOUT_CONSTRAINTS = """
    SET session_replication_role = replica;
    DROP VIEW allowance_log;
    DROP TABLE allowance_streams;
    ALTER TABLE allowance_events ALTER COLUMN stream TYPE TEXT;
    UPDATE allowance_schema SET version = 2;
    ALTER TABLE allowance_events DROP CONSTRAINT allowance_events_pkey CASCADE;
    ALTER TABLE allowance_events DROP CONSTRAINT allowance_events_check;
    DROP INDEX allowance_events_key, allowance_events_job_uuid, allowance_events_settles;
    """ + "".join(
    f"ALTER TABLE allowance_{table} ALTER COLUMN {column} DROP NOT NULL;"
    for table, columns in {
        "events": ("position", "stream", "version", "recorded_at_ns", "payload", "hash"),
        "ledgers": ("validator_ss58", "position", "hash", "recorded_at_ns"),
    }.items()
    for column in columns
)


async def _store_in_postgres(connection: asyncpg.Connection, tampered: Stored) -> bool:
    """Write a log into the database without constraints; return False if the columns cannot store its values."""
    if any(row.position is None for row in tampered.rows):
        return False  # PostgreSQL sorts NULL last, SQLite first.
    try:
        async with connection.transaction():
            await connection.execute("DELETE FROM allowance_events; DELETE FROM allowance_ledgers")
            marks = ",".join(f"${n}" for n in range(1, 12))
            rows = [(1, *row) for row in tampered.rows]
            await connection.executemany(f"INSERT INTO allowance_events ({EVENTS}) VALUES ({marks})", rows)
            if tampered.head.has_head:
                columns = "ledger, validator_ss58, position, hash, recorded_at_ns"
                statement = f"INSERT INTO allowance_ledgers ({columns}) VALUES ($1, $2, $3, $4, $5)"
                await connection.execute(statement, *tampered.head[:5])
            columns = ", ".join(Row._fields)
            stored = await connection.fetch(f"SELECT {columns} FROM allowance_events ORDER BY position")
            head = await connection.fetch("SELECT * FROM allowance_ledgers")
    except (asyncpg.DataError, UnicodeError):
        return False
    head_is_stored = [_typed(each[:5]) for each in head] == [_typed(tampered.head[:5])][: tampered.head.has_head]
    return head_is_stored and list(map(_typed, stored)) == list(map(_typed, tampered.rows))


async def test_a_flipped_bit_of_a_database_file_is_found_or_harmless(tmp_path: Path) -> None:
    """A flipped bit gives a finding or a typed error, or the log is unchanged.

    Fails if an error of the driver escapes, or if a damaged page makes a log look shorter.
    """
    honest, path = tmp_path / "honest.db", tmp_path / "ledger.db"
    async with small_ledger(url=f"sqlite:///{honest}", blocks=60) as ledger:
        head = await ledger.head()
    whole = honest.read_bytes()
    outcomes = {"found": 0, "refused": 0, "same": 0}
    with seeded() as draw:
        for _ in range(BITS_OF_FILES):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            try:
                (report,) = await verify(f"sqlite:///{path}", validator_ss58=VALIDATOR, heads=[head])
            except (StorageUnavailable, LedgerNotFound, NewerLedger, CorruptLedger):
                outcomes["refused"] += 1
                continue
            if report.findings:
                outcomes["found"] += 1
                continue
            assert (report.position, report.hash) == (head.position, head.hash.hex())
            outcomes["same"] += 1
    assert outcomes["found"] > 10, outcomes
    assert outcomes["refused"] > 0, outcomes


async def test_events_without_a_head_row_are_found(tmp_path: Path) -> None:
    """A row that was moved to another ledger is missing in its own, and the other ledger has no head row."""
    path = tmp_path / "ledger.db"
    async with small_ledger(url=f"sqlite:///{path}"):
        pass
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER allowance_events_no_update")
    connection.execute("UPDATE allowance_events SET ledger = 7 WHERE position = 4")
    connection.close()
    reports = await verify(f"sqlite:///{path}")
    assert [(report.validator_ss58, report.first_bad_position) for report in reports] == [(VALIDATOR, 4), (None, 1)]
    reports = await verify(f"sqlite:///{path}", validator_ss58=VALIDATOR)
    assert [report.first_bad_position for report in reports] == [4]


@pytest.mark.parametrize("table", ["allowance_events", "allowance_ledgers"])
async def test_a_lost_table_is_damage(shared_url: str, table: str) -> None:
    """A database with some but not all of the tables is damaged; a database with none has no ledger."""
    async with small_ledger(url=shared_url):
        pass
    drop = f"DROP TABLE {table}" + (" CASCADE" if shared_url.startswith("postgres") else "")
    await asyncio.to_thread(statement, shared_url, drop)
    with pytest.raises(CorruptLedger, match=f"lost the table {table}"):
        await verify(shared_url)


async def test_verify_refuses_heads_and_validators_that_fit_no_ledger(tmp_path: Path) -> None:
    """It refuses unknown validators, heads for several ledgers at once, and heads of another type."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url) as ledger:
        head = await ledger.head()
    async with Allowance.open(url, validator_ss58="5Other"):
        pass
    assert [report.validator_ss58 for report in await verify(url)] == [VALIDATOR, "5Other"]
    with pytest.raises(LedgerNotFound):
        await verify(url, validator_ss58="5Stranger")
    with pytest.raises(InvalidInput):
        await verify(url, heads=[head])
    with pytest.raises(InvalidInput):
        await verify(url, validator_ss58=VALIDATOR, heads=[(3, b"x")])  # type: ignore[list-item]  # wrong on purpose
    (report,) = await verify(url, validator_ss58=VALIDATOR, heads=[head])
    assert report.noted == [head.position]


async def test_an_open_ledger_verifies_itself(database_url: str) -> None:
    """On every engine, in memory too, while it is in use; the report's head can be noted for the next time."""
    async with small_ledger(url=database_url) as ledger:
        noted = await ledger.head()
        await ledger.reserve("5Anna", GPU, 6.0, 11)
        report = await ledger.verify([noted])
        assert (report.findings, report.noted) == ([], [noted.position])
        now = await ledger.head()
        assert report.head == Head(now.position, now.hash)
        assert (await ledger.health()).head == f"{now.position}:{now.hash.hex()}"


def _copied(kind: str, directory: Path, live: Path) -> Path:
    """Copy a ledger's files as a crash, or an incomplete backup, leaves them; return the path to open."""
    path = directory / "ledger.db"
    for suffix in {"live": (), "crashed": ("", "-wal", "-shm"), "without -shm": ("", "-wal"), "without -wal": ("",)}[
        kind
    ]:
        shutil.copyfile(f"{live}{suffix}", f"{path}{suffix}")
    return live if kind == "live" else path


@pytest.mark.parametrize("kind", ["live", "crashed", "without -shm", "without -wal"])
@pytest.mark.parametrize("opened", [False, True])
async def test_verify_changes_no_file(tmp_path: Path, kind: str, opened: bool) -> None:
    """It creates, changes and removes no file, whether the ledger is open, has crashed, or was copied in part.

    Fails if SQLite does what it does by default: create or recover a database's other files even for a reader.
    `opened`: the same for a ledger opened for reading only. Catches: an auditor who left a `-shm` beside the WAL of a
    killed writer, and could not read such a file in a directory that nobody may write to.
    """
    live, elsewhere = tmp_path / "live.db", tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with small_ledger(url=f"sqlite:///{live}", blocks=30) as ledger:
        head = await ledger.head()
        if kind == "without -wal":
            _checkpoint(live)
        path = _copied(kind, elsewhere, live)
        before = _traces(path.parent)
        if opened:
            async with Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR, read_only=True) as auditor:
                assert await auditor.head() == head
                assert (await auditor.verify([head])).findings == []
                assert len((await auditor.history()).items) == 0
        else:
            (report,) = await verify(f"sqlite:///{path}", heads=[head])
            assert (report.findings, report.noted) == ([], [head.position])
        assert _traces(path.parent) == before


def _checkpoint(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    connection.close()


def _traces(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file's bytes and time, except the bytes of `-shm`, which readers of a live ledger change."""
    return {
        file.name: (b"" if file.name == "live.db-shm" else file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(directory.iterdir())
        if file.is_file()
    }


@pytest.mark.parametrize("kind", ["crashed", "without -shm", "without -wal"])
async def test_verify_needs_no_permission_to_write(tmp_path: Path, kind: str) -> None:
    """It works for a user who can write neither to the files nor to their directory."""
    live = tmp_path / "live.db"
    directory = Path(tempfile.mkdtemp(prefix="allowance-test-"))
    try:
        async with small_ledger(url=f"sqlite:///{live}") as ledger:
            if kind == "without -wal":
                _checkpoint(live)
            path = _copied(kind, directory, live)
            head = await ledger.head()
        for file in directory.iterdir():
            file.chmod(0o444)
        directory.chmod(0o555)
        script = f"""
        import os
        from routing import Head
        from routing.sync import verify
        verify({str(f"sqlite:///{live}")!r})  # Import all modules while they can be read.
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        assert not os.access({str(path)!r}, os.W_OK)
        (report,) = verify({f"sqlite:///{path}"!r}, heads=[Head({head.position}, {head.hash!r})])
        assert not report.findings and report.noted == [{head.position}], report
        """
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
    finally:
        directory.chmod(0o755)
        shutil.rmtree(directory)


async def test_a_write_during_verify_is_not_reported_as_damage(tmp_path: Path, monkeypatch: Any) -> None:
    """A file that nobody has open is read without locks; if a process begins to write to it, verify raises an error.

    Fails if pages of two different moments become findings.
    """
    from ledger.store.sqlite.reader import SqliteReader

    url = f"sqlite:///{tmp_path}/ledger.db"
    async with small_ledger(url=url):
        pass
    pages = SqliteReader.pages

    async def pages_and_a_write(self: SqliteReader, stored: StoredLedger, after: int | None = None) -> Any:
        async for page in pages(self, stored):
            yield page
            async with small_ledger(url=url, blocks=20):
                pass

    monkeypatch.setattr(SqliteReader, "pages", pages_and_a_write)
    with pytest.raises(StorageUnavailable, match="began to write"):
        await verify(url)
    monkeypatch.undo()
    assert [report.findings for report in await verify(url)] == [[]]


def test_a_fork_waits_for_verify(tmp_path: Path) -> None:
    """A forked child inherits no SQLite connection that is in use: the fork waits until it is closed.

    Fails if the runtime does not know of a reader; see `Runtime.add_fork_pause`.
    """
    script = f"""
    import asyncio, os, threading
    import ledger.store.sqlite.reader
    from ledger import Head
    from routing.sync import Allowance, verify
    from tests.support.logs import append, opened, rows_after

    ledger.store.sqlite.reader.PAGE_ROWS = 5
    url = "sqlite:///{tmp_path}/ledger.db"

    async def fill() -> None:
        async with opened(url) as store:
            await append(store, rows_after(Head(), 5000))

    asyncio.run(fill())
    begun, seen = threading.Event(), []

    def show(done: int, total: int) -> None:
        seen.append(done)
        begun.set()

    verifying = threading.Thread(target=lambda: verify(url, progress=show))
    verifying.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        with Allowance.open(url, validator_ss58="5Child") as ledger:
            os._exit(0 if seen[-1] == 5000 and ledger.head().position == 1 else 1)
    verifying.join()
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


async def test_verify_on_a_database_without_a_ledger(shared_url: str) -> None:
    """It raises a typed error, and creates nothing."""
    with pytest.raises((LedgerNotFound, StorageUnavailable)) as refused:
        await verify(shared_url)
    assert isinstance(refused.value, AllowanceException)
    with pytest.raises((LedgerNotFound, StorageUnavailable)):
        await verify(shared_url)


@pytest.mark.parametrize("value", OTHER_VALUES)
@pytest.mark.parametrize("column", Row._fields)
async def test_any_value_in_any_column_is_a_finding(column: str, value: Any) -> None:
    """In the first row, in the last one, and in all of them."""
    log = await a_log(5)
    every = [row._replace(**{column: value}) for row in log.rows]
    for rows in ([every[0], *log.rows[1:]], [*log.rows[:-1], every[-1]], every):
        if rows != log.rows:
            assert (await verify_log(StoredReader(Stored(rows, log.head)), log.head)).findings
