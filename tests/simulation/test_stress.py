"""The ledger keeps its promises under kills, races, cancellations and retries; the harness finds broken promises.

`python -m tests.stress` runs longer and with more processes. SIGKILL cannot show a commit that was not flushed, because
the kernel keeps the bytes that a killed process wrote. So one test counts the flushes themselves. No test shows that a
power cut loses nothing.
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

from ledger.events import (
    ELSEWHERE_STREAM,
    EXCLUSIONS_STREAM,
    INCIDENTS_STREAM,
    IncidentReported,
    JobElsewhereEnded,
    JobElsewhereRecorded,
    MinerExcluded,
    MinerReadmitted,
    account_stream,
    elsewhere_stream,
)
from tests.stress import Database, Plan, PostgresDatabase, Report, SqliteDatabase, run_stress_test
from tests.stress.diary import Diary, Outcome, Request, calls
from tests.stress.faults import FAULTS
from tests.stress.replay import Replay, Stored
from tests.support.log_builder import ANNA, BERT, GPU, LogBuilder
from tests.support.servers import PostgresServer

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("STRESS_SECONDS", "6"))
COMMITS = 40


def seed() -> int:
    """Return `STRESS_SEED` from the environment, or another seed each time."""
    return int(os.environ.get("STRESS_SEED", random.SystemRandom().randrange(10**9)))


def stressed(database: Database, directory: Path, **details: object) -> Report:
    """Run a plan; print the report, so that a failure shows it with its seed."""
    plan = Plan(url=database.url, directory=str(directory), seed=seed(), **details)  # type: ignore[arg-type]
    report = run_stress_test(plan, database)
    print(report)  # noqa: T201
    return report


def findings(fault: str, directory: Path, claims: int = 200, facts: int = 1) -> set[str]:
    """Return the kinds of findings in the log of workers with a defect."""
    details = {"seconds": 40.0, "claims": claims, "facts": facts, "miners": 10, "kills_per_second": 3.0}
    return stressed(SqliteDatabase(directory), directory, fault=fault, **details).kinds


def test_a_diary_that_was_cut_anywhere_tells_only_what_it_holds_whole(tmp_path: Path) -> None:
    """Catches: a cut last entry stops the judge, is taken for a whole one, or hides the entries before it."""
    path = tmp_path / "worker.jsonl"
    diary = Diary(path)
    diary.conclude(Outcome(diary.begin(Request("block"))))
    diary.begin(Request("sync"))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        ends = whole[:length].count(b"\n")
        known = [(call.request.operation, call.outcome is not None) for call in calls(tmp_path)]
        assert known == [[], [("block", False)], [("block", True)], [("block", True), ("sync", False)]][ends]


def test_the_replay_finds_miner_facts_that_break_a_rule() -> None:
    """A claim on an excluded miner, two reports of one incident, and a job elsewhere that hides its end."""
    log = LogBuilder()
    log.append(EXCLUSIONS_STREAM, MinerExcluded(ANNA, "slow"))
    log.append(EXCLUSIONS_STREAM, MinerExcluded(BERT, "slow"))
    log.append(EXCLUSIONS_STREAM, MinerReadmitted(BERT, "fast again"))
    log.route("job-1", BERT, 6, (1, 1))
    log.append(INCIDENTS_STREAM, IncidentReported(ANNA, GPU, "failed", "job-1"))
    log.append(INCIDENTS_STREAM, IncidentReported(BERT, GPU, "failed", "job-1"))
    log.append(ELSEWHERE_STREAM, JobElsewhereEnded("theirs"))
    right = found(log)
    log.route("job-2", ANNA, 6, (1, 1))
    log.append(INCIDENTS_STREAM, IncidentReported(BERT, GPU, "rejected", "job-1"))
    log.append(elsewhere_stream(account_stream(ANNA, GPU)), JobElsewhereRecorded("theirs", 1, 1))
    assert found(log) - right == {"excluded miner claimed", "reported twice", "wrong end"}


def found(log: LogBuilder) -> set[str]:
    """Return the kinds of findings of a replay."""
    return {finding.kind for finding in Replay([Stored(*row) for row in log.rows]).findings}


@pytest.mark.slow
@pytest.mark.parametrize("miners", [3, 60])
def test_a_stressed_sqlite_ledger_keeps_every_promise(miners: int, tmp_path: Path) -> None:
    """Four processes claim, settle, repeat and cancel while some are killed: nothing is lost, done twice or skipped.

    With few miners they compete for the same blocks, with many miners only for the head of the log.
    """
    report = stressed(SqliteDatabase(tmp_path), tmp_path, seconds=SECONDS, miners=miners, kills_per_second=4.0)

    assert not report.findings
    assert report.kills > 0
    assert report.retried > 0
    assert report.outcomes["pick: done"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("miners", [3, 60])
def test_a_stressed_postgres_ledger_keeps_every_promise(
    miners: int, server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """The same, while the harness terminates backends, and crashes the server, which then recovers."""
    report = stressed(
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
    assert report.outcomes["pick: done"] > 0


@pytest.mark.slow
def test_appending_without_a_lock_is_found(tmp_path: Path) -> None:
    """Two rows get one position: only the lock and the head separate the writers."""
    assert "positions" in findings("no-lock", tmp_path)


@pytest.mark.slow
def test_appending_without_comparing_the_head_is_found(
    server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """On PostgreSQL an append takes no lock before it, so only the comparison of the head separates the writers."""
    database = PostgresDatabase(postgres_url)
    report = stressed(database, tmp_path, fault="no-compare", seconds=40.0, claims=200, kills_per_second=0.5)

    assert "positions" in report.kinds


@pytest.mark.slow
def test_appending_without_comparing_the_streams_is_found(
    server: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """On PostgreSQL a decision is appended behind a head that has moved, so only the streams' versions refuse it."""
    database = PostgresDatabase(postgres_url)
    details = {"seconds": 40.0, "claims": 200, "processes": 6, "callers": 1, "miners": 2, "kills_per_second": 0.5}
    report = stressed(database, tmp_path, fault="no-stream-comparison", **details)

    assert "versions" in report.kinds


@pytest.mark.slow
def test_claims_that_do_not_check_their_accounts_version_are_found(tmp_path: Path) -> None:
    """Two rows get one version. The run ends soon after, because the other processes read them and refuse the log."""
    assert "versions" in findings("no-version-check", tmp_path)


@pytest.mark.slow
def test_claims_that_are_not_decided_again_are_found(tmp_path: Path) -> None:
    """Two reservations take one block, because a claim on a changed account got a new version but no new decision."""
    assert "block taken twice" in findings("stale-blocks", tmp_path)


@pytest.mark.slow
def test_claims_that_outrun_a_drop_are_found(tmp_path: Path) -> None:
    """A claim was decided on the newest version of its account, but on facts from before a drop."""
    assert "invalidated block claimed" in findings("outrun-drops", tmp_path, claims=1200, facts=5)


@pytest.mark.slow
def test_ignored_drops_are_found(tmp_path: Path) -> None:
    """The judge works out for itself which blocks a drop invalidates."""
    assert "invalidated block claimed" in findings("forget-drops", tmp_path)


@pytest.mark.slow
def test_acknowledging_before_the_commit_is_found(tmp_path: Path) -> None:
    """Callers got results that were lost with the process, because it was killed before its commit."""
    assert "acknowledged but absent" in findings("acknowledge-before-commit", tmp_path)


@pytest.mark.slow
def test_serving_what_failed_to_commit_is_found(tmp_path: Path) -> None:
    """The writer acknowledged a batch that had been rolled back."""
    assert "acknowledged but absent" in findings("serve-failed-commits", tmp_path)


@pytest.mark.slow
def test_ids_returned_twice_are_found(tmp_path: Path) -> None:
    """Two jobs got the same reservation id."""
    assert "id twice" in findings("reuse-ids", tmp_path)


@pytest.mark.slow
def test_forgotten_keys_are_found(tmp_path: Path) -> None:
    """A call that was repeated with its key changed the ledger twice."""
    assert "key twice" in findings("forget-keys", tmp_path)


@pytest.mark.slow
def test_forgotten_jobs_are_found(tmp_path: Path) -> None:
    """A job has two active reservations after a repeated pick, or after picks by two processes at once."""
    assert "job twice" in findings("forget-jobs", tmp_path)


@pytest.mark.slow
def test_gaps_that_fill_later_are_found(tmp_path: Path) -> None:
    """The reader received an event before an earlier one, although in the end all of them are stored."""
    assert "reader" in findings("show-gaps", tmp_path)


@pytest.mark.slow
def test_a_rewritten_past_is_found(tmp_path: Path) -> None:
    """A row differs from the row that the reader received, and the hash chain is broken."""
    assert {"reader", "hash chain"} <= findings("rewrite-the-past", tmp_path)


@pytest.mark.slow
def test_a_broken_hash_chain_is_found(tmp_path: Path) -> None:
    """Each hash covers only its own row."""
    assert "hash chain" in findings("break-the-chain", tmp_path)


def test_every_fault_has_a_test() -> None:
    """Each defect in the list has a test that shows a finding."""
    source = Path(__file__).read_text(encoding="utf-8")

    assert set(re.findall(r'(?:findings\(|fault=)"([a-z-]+)"', source)) == set(FAULTS)


@pytest.mark.parametrize("mode", ["FULL", "NORMAL"])
def test_every_sqlite_commit_is_flushed(mode: str, tmp_path: Path) -> None:
    """Forty commits flush at least forty times. With `synchronous = NORMAL` they do not, and the count shows it."""
    strace = shutil.which("strace")
    if (
        strace is None
        or subprocess.run([strace, "-o", "/dev/null", "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("strace counts the flushes, and it is missing or may not trace")
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

with Allowance.open("sqlite:///{tmp_path}/ledger.db", validator_ss58="5Validator") as ledger:
    for block in range({COMMITS}):
        ledger.record_manifests(block + 1, {{"5Anna": {{"gpu": 1 + block % 2}}}})
"""
    calls = tmp_path / "calls"
    command = [strace, "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(calls), sys.executable, "-c", script]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    flushes = len(re.findall(r"f(?:data)?sync\(", calls.read_text(encoding="utf-8")))

    assert (flushes >= COMMITS) == (mode == "FULL")
