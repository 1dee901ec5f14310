"""Whatever is killed, raced, cancelled or repeated, the ledger keeps its promises; and where it does not, that shows.

`python -m tests.stress` runs longer, with more processes, and until somebody stops believing. What SIGKILL cannot
show is a commit that was not flushed: the kernel keeps what a killed process wrote. So the flushes themselves are
counted here; that a power cut loses nothing is not tested.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stress import Database, Plan, PostgresDatabase, Report, SqliteDatabase, torture
from tests.stress.faults import FAULTS
from tests.support.servers import PostgresServer

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("TORTURE_SECONDS", "6"))
COMMITS = 40


def seed() -> int:
    """`TORTURE_SEED`, or another one each time."""
    return int(os.environ.get("TORTURE_SEED", random.SystemRandom().randrange(10**9)))


def tortured(database: Database, directory: Path, **details: object) -> Report:
    """The report of a run, printed so that a failure shows it with its seed."""
    plan = Plan(url=database.url, directory=str(directory), seed=seed(), **details)  # type: ignore[arg-type]
    report = torture(plan, database)
    print(report)  # noqa: T201
    return report


def findings(fault: str, directory: Path, claims: int = 200, facts: int = 1) -> set[str]:
    """The kinds of what is found wrong where the workers have a defect."""
    details = {"seconds": 40.0, "claims": claims, "facts": facts, "miners": 10, "kills_per_second": 3.0}
    return tortured(SqliteDatabase(directory), directory, fault=fault, **details).kinds


@pytest.mark.slow
@pytest.mark.parametrize("miners", [3, 60])
def test_a_tortured_sqlite_ledger_keeps_every_promise(miners: int, tmp_path: Path) -> None:
    """Four processes claim, settle, repeat and cancel while they are killed: nothing is lost, done twice or skipped.

    Over few miners they fight for the same blocks, over many for the log's head alone.
    """
    report = tortured(SqliteDatabase(tmp_path), tmp_path, seconds=SECONDS, miners=miners, kills_per_second=4.0)

    assert not report.findings
    assert report.kills > 0
    assert report.asked_again > 0
    assert report.ends["pick: done"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("miners", [3, 60])
def test_a_tortured_postgres_ledger_keeps_every_promise(
    miners: int, server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """The same, while backends are terminated and the server itself crashes and recovers."""
    report = tortured(
        PostgresDatabase(postgres_url, server),
        tmp_path,
        seconds=SECONDS,
        miners=miners,
        kills_per_second=2.0,
        disturbances_per_second=1.5,
    )

    assert not report.findings
    assert report.kills > 0
    assert report.disturbances > 0
    assert report.ends["pick: done"] > 0


@pytest.mark.slow
def test_appending_without_a_lock_is_found(tmp_path: Path) -> None:
    """Two rows at one position: nothing but the lock and the head keep writers apart."""
    assert "positions" in findings("no-lock", tmp_path)


@pytest.mark.slow
def test_appending_without_comparing_the_head_is_found(
    server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """On PostgreSQL, where an append takes no lock beforehand, the comparison alone keeps writers apart."""
    database = PostgresDatabase(postgres_url)
    report = tortured(database, tmp_path, fault="no-compare", seconds=40.0, claims=200, kills_per_second=0.5)

    assert "positions" in report.kinds


@pytest.mark.slow
def test_claims_that_do_not_check_their_accounts_version_are_found(tmp_path: Path) -> None:
    """One version twice. The first time ends the run where the other processes read it, and refuse the log."""
    assert "versions" in findings("no-version-check", tmp_path)


@pytest.mark.slow
def test_claims_that_are_not_decided_again_are_found(tmp_path: Path) -> None:
    """Blocks that two reservations hold, where a claim whose account had moved on was given its next version only."""
    assert "block held twice" in findings("keep-blocks", tmp_path)


@pytest.mark.slow
def test_claims_that_outrun_a_drop_are_found(tmp_path: Path) -> None:
    """A claim was decided on its own account's newest version, but on facts that a drop had overtaken."""
    assert "invalidated block claimed" in findings("outrun-drops", tmp_path, claims=1200, facts=5)


@pytest.mark.slow
def test_ignored_drops_are_found(tmp_path: Path) -> None:
    """The harness knows by itself which blocks a drop takes away."""
    assert "invalidated block claimed" in findings("forget-drops", tmp_path)


@pytest.mark.slow
def test_acknowledging_before_the_commit_is_found(tmp_path: Path) -> None:
    """What callers were told is gone with the process that was killed before its commit."""
    assert "acknowledged but absent" in findings("acknowledge-before-commit", tmp_path)


@pytest.mark.slow
def test_serving_what_failed_to_commit_is_found(tmp_path: Path) -> None:
    """A rolled-back batch was acknowledged all the same."""
    assert "acknowledged but absent" in findings("serve-failed-commits", tmp_path)


@pytest.mark.slow
def test_ids_given_twice_are_found(tmp_path: Path) -> None:
    """Two jobs were told the same reservation."""
    assert "id twice" in findings("reuse-ids", tmp_path)


@pytest.mark.slow
def test_forgotten_keys_are_found(tmp_path: Path) -> None:
    """A call that was repeated with its key was done twice."""
    assert "key twice" in findings("forget-keys", tmp_path)


@pytest.mark.slow
def test_forgotten_jobs_are_found(tmp_path: Path) -> None:
    """A job that was routed again, or by two processes at once, holds two reservations."""
    assert "job twice" in findings("forget-jobs", tmp_path)


@pytest.mark.slow
def test_gaps_that_fill_later_are_found(tmp_path: Path) -> None:
    """The reader was shown an event before the one ahead of it, although in the end all of them are there."""
    assert "reader" in findings("show-gaps", tmp_path)


@pytest.mark.slow
def test_a_rewritten_past_is_found(tmp_path: Path) -> None:
    """A row that the reader had received is another one now, and the hashes no longer follow."""
    assert {"reader", "hash chain"} <= findings("rewrite-the-past", tmp_path)


@pytest.mark.slow
def test_a_broken_hash_chain_is_found(tmp_path: Path) -> None:
    """Hashes that cover their own row alone."""
    assert "hash chain" in findings("break-the-chain", tmp_path)


def test_every_fault_is_tried() -> None:
    """No defect stands in the list without a test that shows it found."""
    source = Path(__file__).read_text(encoding="utf-8")

    assert set(re.findall(r'(?:findings\(|fault=)"([a-z-]+)"', source)) == set(FAULTS)


@pytest.mark.parametrize("mode", ["FULL", "NORMAL"])
def test_every_sqlite_commit_is_flushed(mode: str, tmp_path: Path) -> None:
    """Forty commits flush forty times at the least; with `synchronous = NORMAL` they would not, and that shows."""
    strace = shutil.which("strace")
    if (
        strace is None
        or subprocess.run([strace, "-o", "/dev/null", "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("flushes are counted by strace, which is not here or may not trace")
    script = f"""
import ledger.store.sqlite.store
from ledger.store.sqlite.store import SqliteStore
from routing.sync import Allowance

connect = SqliteStore._connect
def connect_in_mode(self):
    connection = connect(self)
    if {mode!r} != "FULL":
        connection.execute("PRAGMA synchronous = {mode}")
    return connection
SqliteStore._connect = connect_in_mode

with Allowance.open("sqlite:///{tmp_path}/ledger.db", validator_ss58="5Validator") as book:
    for block in range({COMMITS}):
        book.record_manifests(block + 1, {{"5Anna": {{"gpu": 1 + block % 2}}}})
"""
    calls = tmp_path / "calls"
    command = [strace, "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(calls), sys.executable, "-c", script]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    flushes = len(re.findall(r"f(?:data)?sync\(", calls.read_text(encoding="utf-8")))

    assert (flushes >= COMMITS) == (mode == "FULL")
