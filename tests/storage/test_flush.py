"""On SQLite nothing is believed that the disk has not confirmed.

The system calls of real processes fail (`strace`), and the disk after a power cut is built from their record. Every
test that runs a process this way is skipped if `strace` is missing or not allowed.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ledger import CommitOutcomeUnknown, Head
from ledger.store.sqlite import lock_files, wal_size
from ledger.store.sqlite.durability import Durability
from routing import Allowance
from tests.support.logs import append, opened, row_after, rows_after
from tests.support.small import GPU, VALIDATOR, small_ledger
from tests.support.traced_disk import TracedDisk, why_no_strace

traced = pytest.mark.skipif(why_no_strace() is not None, reason=why_no_strace() or "")

NOBODY = 65534
"""The user that has no rights."""

PRELUDE = """
import asyncio, json, os, signal, sqlite3, sys
from contextlib import suppress
from routing import Allowance, OutcomeUnknown, StorageUnavailable
from tests.support.small import GPU, VALIDATOR, Clock, START, timedelta

PATH = {path!r}

def opened():
    clock = Clock(START + timedelta(seconds=12 * 31))
    return Allowance.open("sqlite:///" + PATH, validator_ss58=VALIDATOR, clock_ns=clock)

def say(**fields):
    print(json.dumps(fields), flush=True)

async def attempt(name, call):
    try:
        await call
        say(name=name, outcome="done")
    except OutcomeUnknown as unknown:
        say(name=name, outcome="unknown", key=unknown.idempotency_key)
        return unknown.idempotency_key
    except StorageUnavailable as failed:
        say(name=name, outcome="failed", reason=failed.reason)

def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""

TWELVE_RESERVATIONS = """
async def main():
    ledger = await opened()
    # Opens a second connection, the head probe's.
    await ledger.find_miners(1.0, GPU, 31)
    for n in range(12):
        await attempt(f"job-{n}", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid=f"job-{n}"))
        await ledger.find_miners(1.0, GPU, 31)
    die()

asyncio.run(main())
"""


@pytest_asyncio.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The file of a small ledger that is closed, alone in its directory."""
    (tmp_path / "disk").mkdir()
    path = tmp_path / "disk" / "ledger.db"
    async with small_ledger(url=f"sqlite:///{path}", offers={"5Anna": 20}, blocks=31) as ledger:
        await ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="held")
    for lock in path.parent.glob("*.lock*"):
        lock.unlink()
    yield path


def run(disk: TracedDisk, path: Path, script: str, *faults: str) -> list[dict[str, Any]]:
    """Run a script that ends by killing itself or normally; return what it said."""
    ran = disk.run(PRELUDE.format(path=str(path)) + textwrap.dedent(script), *faults)
    assert ran.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def named(said: list[dict[str, Any]], outcome: str) -> set[str]:
    return {each["name"] for each in said if each["outcome"] == outcome}


async def jobs_in(path: Path) -> set[str | None]:
    """Return the jobs of all reservations in a file that is opened anew, after verifying its log."""
    async with Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR) as ledger:
        assert not (await ledger.verify()).findings
        assert not (await ledger.audit()).findings
        return {each.job_uuid for each in (await ledger.history(limit=1000)).items}


FAULTS = [
    "fdatasync:error=EIO:when=3+",
    "fdatasync:error=ENOSPC:when=3+",
    "fdatasync:error=EIO:when=3..4",
    "fdatasync:error=ENOSPC:when=5",
    "fdatasync:error=EIO:when=1",
    "fdatasync:error=EIO:when=2",
    "fsync:error=EIO:when=1",
    "pwrite64:error=EIO:when=20+",
    "pwrite64:error=ENOSPC:when=20+",
    "pwrite64:error=ENOSPC:when=30..33",
    "pwrite64:error=EIO:when=41",
]


@traced
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_reported_is_true_after_a_crash_and_after_a_power_cut(
    path: Path, tmp_path: Path, fault: str
) -> None:
    """A call that was acknowledged is in the log, one that was reported as failed is not, whatever the machine lost.

    Catches a failed COMMIT that is answered from a read through a new connection (a failed flush is acknowledged), and
    one that is answered from a read while a second connection hides the rows (a failed call is there after a crash).
    """
    disk = TracedDisk(path.parent)
    said = run(disk, path, TWELVE_RESERVATIONS, fault)
    assert len(said) == 12
    done, failed = named(said, "done"), named(said, "failed")
    if "+" in fault:
        assert named(said, "unknown"), "the fault has hit no change"
    else:
        assert said[-1]["outcome"] == "done", "the storage works again, but no change is accepted"
    for left in (disk.after_power_cut(tmp_path / "cut") / "ledger.db", path):
        found = await jobs_in(left)
        assert done <= found, left
        assert not failed & found, left


@traced
async def test_a_failed_spend_is_not_spent_after_a_crash(path: Path) -> None:
    """One flush fails while a second connection is open: the spend is reported as failed, and stays undone.

    Catches frames of a failed commit that stay hidden until the next open recovers them.
    """
    script = """
    async def main():
        ledger = await opened()
        await ledger.find_miners(1.0, GPU, 31)
        (held,) = (await ledger.history()).items
        await attempt("spend", ledger.spend(held.reservation_id))
        die()

    asyncio.run(main())
    """
    said = run(TracedDisk(path.parent), path, script, "fdatasync:error=EIO:when=3")
    assert named(said, "failed") == {"spend"}
    async with Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR) as ledger:
        assert [each.status for each in (await ledger.history()).items] == ["reserved"]


@traced
async def test_a_retry_that_cannot_be_executed_does_not_decide_an_unknown_outcome(path: Path) -> None:
    """While the disk fails, a retry by key or by job is unknown as well; another call is refused for certain.

    Catches a retry that raises `StorageUnavailable`, after which its caller would believe that nothing was done.
    """
    script = """
    async def main():
        ledger = await opened()
        key = await attempt("first", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="job"))
        await attempt("by key", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="job", idempotency_key=key))
        await attempt("by job", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="job"))
        await attempt("other", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="other"))
        die()

    asyncio.run(main())
    """
    said = run(TracedDisk(path.parent), path, script, "fdatasync:error=EIO:when=3+")
    assert named(said, "unknown") == {"first", "by key", "by job"}
    assert named(said, "failed") == {"other"}
    assert "other" not in await jobs_in(path)


@traced
async def test_the_first_to_open_makes_durable_what_a_crash_left_in_the_cache(path: Path, tmp_path: Path) -> None:
    """A process dies of a flush that fails; a new one finds the reservation and returns it as the result of a retry.

    The retry appends nothing, so only the check at opening can have made the reservation durable. Catches a check that
    flushes the WAL without writing it again: Linux took the pages for clean. The checkpoint then copies them into the
    database, and after the power cut the durable part of the WAL overwrites them.
    """
    lost = """
    async def main():
        ledger = await opened()
        await attempt("kept", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="kept"))
        await attempt("lost", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="lost"))
        die()

    asyncio.run(main())
    """
    retry = lost.replace('attempt("lost"', 'attempt("retry"')
    disk = TracedDisk(path.parent)
    assert named(run(disk, path, lost, "fdatasync:error=EIO:signal=KILL:when=4"), "done") == {"kept"}
    assert disk.flushes_failed == 1
    assert await jobs_in(disk.after_power_cut(tmp_path / "before") / "ledger.db") == {"held", "kept"}
    assert named(run(disk, path, retry), "done") == {"kept", "retry"}
    assert "lost" in await jobs_in(disk.after_power_cut(tmp_path / "after") / "ledger.db")


@traced
@pytest.mark.parametrize(
    "fault", ["fsync:error=EIO:when=1+", "fdatasync:error=EIO:when=1+", "pwrite64:error=EIO:when=9+"]
)
async def test_a_log_that_cannot_be_proved_is_not_opened(path: Path, tmp_path: Path, fault: str) -> None:
    """If the check at opening fails, the opening fails and copies nothing out of the WAL, and the next one succeeds.

    Catches a connection whose close copies frames into the database that are only in the cache: a power cut would leave
    newer pages under an older WAL.
    """
    lost = TWELVE_RESERVATIONS.replace("range(12)", "range(2)")
    disk = TracedDisk(path.parent)
    run(disk, path, lost, "fdatasync:error=EIO:when=4+")
    database = path.read_bytes()
    opening = """
    async def main():
        await attempt("opening", opened())

    asyncio.run(main())
    """
    assert named(run(disk, path, opening, fault), "failed") == {"opening"}
    assert path.read_bytes() == database
    assert path.with_name("ledger.db-wal").stat().st_size
    before = await jobs_in(disk.after_power_cut(tmp_path / "cut") / "ledger.db")
    assert "job-0" in before
    assert await jobs_in(path) >= before


@traced
async def test_a_ledger_that_is_closed_in_doubt_leaves_the_wal(path: Path) -> None:
    """After a failed commit that could not be settled, closing copies nothing into the database and keeps the WAL.

    The next process finds the outcome: asking with the key changes nothing twice. Catches a plain close.
    """
    script = """
    async def main():
        ledger = await opened()
        await attempt("job", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="job", idempotency_key="key"))
        await ledger.close()

    asyncio.run(main())
    """
    said = run(TracedDisk(path.parent), path, script, "fdatasync:error=EIO:when=3..6")
    assert named(said, "unknown") == {"job"}
    assert path.with_name("ledger.db-wal").stat().st_size
    async with Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR) as ledger:
        found = [each for each in (await ledger.history()).items if each.job_uuid == "job"]
        again = await ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="job", idempotency_key="key")
        assert [each.reservation_id for each in found] in ([], [again.reservation_id])
    assert not path.with_name("ledger.db-wal").exists()


@traced
def test_health_says_that_the_storage_has_not_proved_itself(path: Path) -> None:
    """A commit failed, and so did the fence: `health` must not be "ok" while every change is refused."""
    script = """
    async def main():
        ledger = await opened()
        await attempt("job", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="job", idempotency_key="key"))
        say(name="health", outcome=(await ledger.health()).status)
        die()

    asyncio.run(main())
    """
    said = run(TracedDisk(path.parent), path, script, "fdatasync:error=EIO:when=3..6")
    assert "no change is accepted until the storage has proved itself" in said[-1]["outcome"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, to whom permissions apply")
def test_a_directory_that_cannot_be_listed_can_hold_a_ledger(tmp_path: Path) -> None:
    """Catches a flush of the directory's entries that takes "permission denied" for a failed commit."""
    script = f"""
    import os, sys
    from routing.sync import Allowance

    def position(directory):
        with Allowance.open(f"sqlite:///{{directory}}/a.db", validator_ss58="5V") as ledger:
            return ledger.head().position

    # The first ledger imports all modules, which the other user may not be allowed to read.
    print(position(sys.argv[1]))
    os.seteuid({NOBODY})
    print(position(sys.argv[2]))
    """
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o711)
    visible, hidden = tmp_path / "visible", tmp_path / "hidden"
    visible.mkdir()
    hidden.mkdir()
    os.chown(hidden, NOBODY, NOBODY)
    hidden.chmod(0o300)
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(visible), str(hidden)]
    ran = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("1\n1\n", 0), ran.stderr


@traced
async def test_a_reader_delays_the_proof_and_not_the_outcome(path: Path) -> None:
    """Beside an old reader a failed commit is still settled; changes are refused until the reader has ended.

    Catches a store that accepts changes before a complete checkpoint, and one that waits for the reader.
    """
    script = """
    async def main():
        ledger = await opened()
        await attempt("before", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="before"))
        reader = sqlite3.connect(PATH, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM allowance_ledgers").fetchall()
        await attempt("hit", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="hit"))
        await attempt("refused", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="refused"))
        reader.close()
        await attempt("after", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="after"))
        die()

    asyncio.run(main())
    """
    said = run(TracedDisk(path.parent), path, script, "fdatasync:error=EIO:when=4")
    assert {each["name"]: each["outcome"] for each in said} == {
        "before": "done",
        "hit": "failed",
        "refused": "failed",
        "after": "done",
    }
    assert "reads the database" in said[2]["reason"]
    assert await jobs_in(path) == {"held", "before", "after"}


@traced
async def test_another_process_may_commit_over_hidden_frames(path: Path, tmp_path: Path) -> None:
    """Another process commits while this one is in doubt; then the storage works again, and this one asks with the key.

    Catches a proof that would cut off what others have committed since.
    """
    other = PRELUDE.format(path=str(path)) + textwrap.dedent("""
    async def main():
        ledger = await opened()
        await attempt("other", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="other"))
        die()

    asyncio.run(main())
    """)
    script = f"""
    import subprocess

    async def main():
        ledger = await opened()
        await attempt("before", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="before"))
        key = await attempt("first", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="first"))
        print(subprocess.run([sys.executable, "-c", {other!r}], stdout=subprocess.PIPE, text=True).stdout, end="")
        await attempt("again", ledger.reserve("5Anna", GPU, 1.0, 31, job_uuid="first", idempotency_key=key))
        die()

    asyncio.run(main())
    """
    disk = TracedDisk(path.parent)
    # strace counts the calls of each thread apart, so the other process's only flush succeeds. Of this one's, the
    # commit fails, the fence, the checkpoint that would make room for it, and the fence again.
    said = run(disk, path, script, "fdatasync:error=EIO:when=4..7")
    assert [(each["name"], each["outcome"]) for each in said] == [
        ("before", "done"),
        ("first", "unknown"),
        ("other", "done"),
        ("again", "done"),
    ]
    for left in (disk.after_power_cut(tmp_path / "cut") / "ledger.db", path):
        assert await jobs_in(left) == {"held", "before", "first", "other"}


# Opening


def write_and_die(path: Path, statement: str) -> None:
    """Execute a statement in a process that leaves its WAL behind."""
    script = f"import os, sqlite3; c = sqlite3.connect({str(path)!r}, isolation_level=None); c.execute({statement!r})"
    subprocess.run([sys.executable, "-c", f"{script}; os._exit(0)"], check=True)


def count_proofs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Count the fences; each is True if the WAL was written again for it."""
    fence, counted = Durability._fence, list[bool]()

    def counting(self: Durability, connection: sqlite3.Connection, *, write_wal_again: bool = False) -> None:
        counted.append(write_wal_again)
        fence(self, connection, write_wal_again=write_wal_again)

    monkeypatch.setattr(Durability, "_fence", counting)
    return counted


async def test_only_the_first_to_open_a_left_wal_proves_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One proof after a killed process; none for a second store beside the first, none after a clean close."""
    script = PRELUDE.format(path=str(path)) + TWELVE_RESERVATIONS
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert path.with_name("ledger.db-wal").stat().st_size
    proofs = count_proofs(monkeypatch)
    url = f"sqlite:///{path}"
    async with opened(url, VALIDATOR) as first:
        assert proofs == [True]
        async with opened(url, VALIDATOR) as second:
            assert await second.head() == await first.head()
        await append(first, [row_after(await first.head(), "other")])
        async with opened(url, VALIDATOR):
            assert path.with_name("ledger.db-wal").stat().st_size
    assert not path.with_name("ledger.db-wal").exists()
    async with opened(url, VALIDATOR):
        assert proofs == [True]


async def test_a_store_that_was_paused_for_a_fork_checks_the_wal_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection was closed, so another process may have been killed since: the next change checks the file."""
    proofs = count_proofs(monkeypatch)
    async with opened(f"sqlite:///{tmp_path}/ledger.db") as store:
        head = await append(store, [row_after(Head())])
        async with store.paused_for_fork() as close:
            close()
            write_and_die(tmp_path / "ledger.db", "PRAGMA user_version = 7")
        await append(store, [row_after(head, "other")])
    assert proofs == [True]


async def test_a_failed_commit_is_not_forgotten_while_the_connection_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is paused for a fork before it could settle the commit; another one keeps the frames hidden meanwhile.

    Catches a store that forgets the failed commit with its connection.
    """
    path = tmp_path / "ledger.db"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(f"sqlite:///{path}") as store, opened(f"sqlite:///{path}"):
        head = await append(store, [row_after(Head())])
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("ledger.db-wal").stat().st_size, hard))
        try:
            with pytest.raises(CommitOutcomeUnknown):
                await append(store, [row_after(head, "other")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        async with store.paused_for_fork() as close:
            close()
        proofs = count_proofs(monkeypatch)
        assert not await store.resolve_commit(row_after(head, "other"))
        assert proofs == [False]


async def test_a_database_of_a_newer_release_is_not_proved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older release writes nothing to it, not even to a WAL that a killed process left."""
    write_and_die(path, "UPDATE allowance_schema SET version = version + 100")
    wal = path.with_name("ledger.db-wal").read_bytes()
    assert wal
    with pytest.raises(Exception, match="newer"):
        await Allowance.open(f"sqlite:///{path}", validator_ss58=VALIDATOR)
    assert path.with_name("ledger.db-wal").read_bytes() == wal


# The size of the WAL


async def test_a_wal_that_a_reader_keeps_growing_is_named_and_shrinks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning with the size while the reader is there, not one at every look; afterwards the file is cut.

    Catches a WAL that keeps its largest size for as long as a process has the ledger open.
    """
    limit = 1 << 20
    monkeypatch.setattr(wal_size, "WAL_WARNING_BYTES", limit)
    monkeypatch.setattr(wal_size, "COMMITS_BETWEEN_LOOKS", 4)
    monkeypatch.setattr("ledger.store.sqlite.connection.WAL_LIMIT_BYTES", limit)
    monkeypatch.setattr("ledger.store.sqlite.connection.PAGES_BETWEEN_CHECKPOINTS", 100)
    caplog.set_level(logging.WARNING, "allowance.ledger")
    path, wal = tmp_path / "ledger.db", tmp_path / "ledger.db-wal"
    async with opened(f"sqlite:///{path}") as store:
        head = Head()

        async def commit(count: int) -> None:
            nonlocal head
            for _ in range(count):
                head = await append(store, rows_after(head, 200, f"stream-{head.position}"))

        await commit(4)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM allowance_ledgers").fetchall()
            await commit(60)
            largest = wal.stat().st_size
            warned = [record for record in caplog.records if "read transaction" in record.message]
            assert 1 <= len(warned) <= 5
            assert all(record.__dict__["wal_bytes"] >= limit for record in warned)
        await commit(8)
        assert wal.stat().st_size <= limit < largest


async def test_one_large_transaction_is_no_readers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The WAL of a restore is large for one commit and starts again with the next: no warning."""
    monkeypatch.setattr(wal_size, "WAL_WARNING_BYTES", 5 << 20)
    monkeypatch.setattr(wal_size, "COMMITS_BETWEEN_LOOKS", 1)
    monkeypatch.setattr("ledger.store.sqlite.connection.WAL_LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr("ledger.store.sqlite.connection.PAGES_BETWEEN_CHECKPOINTS", 1000)
    async with opened(f"sqlite:///{tmp_path}/ledger.db") as store:
        head = await append(store, rows_after(Head(), 60_000))
        assert (tmp_path / "ledger.db-wal").stat().st_size > 5 << 20
        for _ in range(4):
            head = await append(store, [row_after(head, f"stream-{head.position}")])
    assert not [record for record in caplog.records if "read transaction" in record.message]


# Fork hooks


async def test_opening_a_ledger_leaves_no_fork_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hook per process closes the lock files in a child; it forgets the stores that are gone.

    Catches a hook per opening, which can never be removed.
    """
    registered: list[object] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: registered.append(hooks))
    gc.collect()
    before = len(lock_files._users)
    for _ in range(5):
        async with opened(f"sqlite:///{tmp_path}/ledger.db"):
            assert len(lock_files._users) > before
    gc.collect()
    assert len(lock_files._users) == before
    assert not registered


async def test_a_forked_child_closes_the_lock_files_that_it_inherited(tmp_path: Path) -> None:
    """After a fork past the library, only the parent has them open: its end releases its locks."""
    async with opened(f"sqlite:///{tmp_path}/ledger.db"):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            files = [each.readlink().name for each in Path("/proc/self/fd").iterdir() if each.exists()]
            os.write(write, b"%d" % sum(".lock" in file for file in files))
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10) == b"0"
        os.close(read)
        os.close(write)
