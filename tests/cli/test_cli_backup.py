"""The commands that copy and check whole ledgers: verify, export, restore, and the head that `health` shows."""

from __future__ import annotations

import asyncio
import io
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from routing import Allowance
from routing.cli.main import main
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, VALIDATOR, small_ledger

pytestmark = pytest.mark.compatibility

MUST_BE_URL = "must be sqlite:///path, sqlite:// (memory) or postgresql://…, got"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a ledger with one reservation."""

    async def fill() -> None:
        async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db") as ledger:
            await ledger.reserve("5Anna", GPU, 6.0, 11)

    asyncio.run(fill())
    return tmp_path / "ledger.db"


@pytest.fixture
def allowance(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `allowance` with that ledger configured."""
    configure_ledger(monkeypatch, f"sqlite:///{path}", VALIDATOR)
    return command_line(capsys)


def damage(path: Path, statement: str) -> None:
    """Execute a statement after removing the triggers that would refuse it."""
    connection = sqlite3.connect(path, isolation_level=None)
    for trigger in ("events_no_update", "events_no_delete", "ledgers_no_step_back"):
        connection.execute(f"DROP TRIGGER IF EXISTS allowance_{trigger}")
    connection.execute(statement)
    connection.close()


def test_verify_accepts_the_head_that_health_shows(allowance: Command, path: Path) -> None:
    """With `--head` nothing remains unchecked; without it, `verify` lists what it cannot exclude."""
    (health,) = allowance("health", "--json").documents
    assert health["head"] in allowance("health").out
    for source in ([], [path], [f"sqlite:///{path}"], ["--database", f"sqlite:///{path}"]):
        result = allowance("verify", *source, "--head", health["head"])
        assert (result.code, result.err) == (0, "")
        assert "every stored event is as it was written" in result.out
        assert "agrees with the head noted at 14" in result.out
        assert "not excluded" not in result.out
    result = allowance("verify")
    assert result.code == 0
    assert result.out.count("not excluded") == 2
    (document,) = allowance("verify", "--json").documents
    assert (document["head"], document["findings"], document["first_bad_position"]) == (health["head"], [], None)


def test_verify_names_the_first_bad_position(allowance: Command, path: Path) -> None:
    """Exit code 1, with the position, the rule and the problem, as text and as a document."""
    damage(path, "UPDATE allowance_events SET payload = x'7b7d' WHERE position = 5")
    result = allowance("verify")
    assert (result.code, result.err) == (1, "")
    assert "first bad position 5" in result.out
    assert "hash-chain" in result.out
    result = allowance("verify", "--json")
    (document,) = result.documents
    assert (result.code, document["first_bad_position"], document["findings"][0]["rule"]) == (1, 5, "hash-chain")


def test_a_noted_head_reveals_a_truncated_log(allowance: Command, path: Path) -> None:
    """After a truncation that also rewrites the head and the streams, only `--head` finds the first missing position.

    Catches a `verify` that reports a stream whose row is behind nothing.
    """
    (health,) = allowance("health", "--json").documents
    damage(path, "DELETE FROM allowance_events WHERE position > 12")
    columns = "position, hash, recorded_at_ns"
    last = f"SELECT {columns} FROM allowance_events WHERE position = 12"
    damage(path, f"UPDATE allowance_ledgers SET ({columns}) = ({last})")
    result = allowance("verify")
    assert (result.code, "dense-versions" in result.out) == (1, True)
    newest = "SELECT max(version) FROM allowance_events AS events WHERE events.stream = allowance_streams.stream"
    damage(path, f"UPDATE allowance_streams SET version = coalesce(({newest}), 0)")
    assert allowance("verify").code == 0
    result = allowance("verify", "--head", health["head"])
    assert result.code == 1
    assert "first bad position 13" in result.out


def test_verify_lists_the_first_findings_and_counts_all(
    allowance: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger with many findings does not fill the terminal."""
    damage(path, "UPDATE allowance_events SET hash = x'00'")
    monkeypatch.setattr("routing.cli.commands.verify.MOST_LISTED", 5)
    result = allowance("verify")
    assert result.code == 1
    assert "  … 15 findings in all" in result.out
    assert result.out.count("hash-chain") == 5


def test_an_export_can_be_verified_and_restored(allowance: Command, path: Path, tmp_path: Path) -> None:
    """Export, verify and restore report the same head, as text and as JSON."""
    (health,) = allowance("health", "--json").documents
    file, copy = tmp_path / "backup.jsonl.gz", tmp_path / "copy.db"
    (document,) = allowance("export", file, "--json").documents
    assert (document["position"], document["head"], document["file"]) == (14, health["head"], str(file))
    result = allowance("export", file)
    assert result.code == 2
    assert "expected a new file" in result.err
    assert allowance("verify", file, "--head", health["head"]).code == 0
    result = allowance("restore", file, "--database", f"sqlite:///{copy}")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"{VALIDATOR}: restored 14 events; head {health['head']}\n"
    (document,) = allowance("restore", path, "--database", f"sqlite:///{copy}", "--json").documents
    assert (document["added"], document["head"]) == (0, health["head"])
    assert "the database has every event already" in allowance("restore", file, "--database", f"sqlite:///{copy}").out
    assert allowance("verify", copy, "--head", health["head"]).code == 0


def test_an_export_can_go_through_pipes(allowance: Command, path: Path, tmp_path: Path) -> None:
    """Standard output has only the bytes of the export; verify and restore read them from standard input."""
    command = [sys.executable, "-m", "routing.cli"]
    ran = subprocess.run([*command, "export", "-"], capture_output=True, check=True)
    assert ran.stdout[:2] == b"\x1f\x8b"
    assert b"exported 14 events" in ran.stderr
    for arguments in (["verify", "-"], ["restore", "-", "--database", f"sqlite:///{tmp_path}/copy.db"]):
        again = subprocess.run([*command, *arguments], input=ran.stdout, capture_output=True, check=True)
        assert b"head 14:" in again.stdout
    cut = subprocess.run([*command, "restore", "-"], input=ran.stdout[:-20], capture_output=True, check=False)
    assert cut.returncode == 2
    assert b"DamagedExport" in cut.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_export_into_a_closed_pipe_ends_quietly(
    allowance: Command, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    """`allowance export - | head -c 10`: exit code 0 and nothing on standard error, as with every command.

    Catches: a closed pipe that is reported as an unusable database; and an export that is reported as done while
    Python still buffers its bytes.
    """
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "routing.cli", "export", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as exporting:
        assert exporting.stdout
        exporting.stdout.close()
        assert exporting.stderr
        output = exporting.stderr.read()
        assert (exporting.wait(60), output) == (0, b"")


@pytest.mark.parametrize("name", ["nowhere/backup.gz", "/dev/full", "/", "a\0b", "."])
def test_the_error_of_an_unwritable_export_names_the_file(allowance: Command, tmp_path: Path, name: str) -> None:
    """Exit code 2, the name as the user gave it, and no file left behind.

    Catches: a wrong path that is reported as an unusable database, or by the name of the temporary file.
    """
    result = allowance("export", tmp_path / name, "--json")
    assert result.code == 2
    error = result.documents[0]["error"]
    assert (error["type"], error["fields"]["path"]) == ("UnwritableOutput", str(tmp_path / name))
    assert "partial" not in result.err
    assert not list(tmp_path.glob(".*.partial"))


def test_a_failed_export_leaves_no_file(allowance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full, the error names the file, and no part of the export remains."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    result = allowance("export", tmp_path / "backup.gz")
    assert result.code == 2
    assert "backup.gz': No space left on device" in result.err
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("ledger.db")] == []


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["verify", "--head", "14"], 2, "no head"),
        (["verify", "--head", "14:abc"], 2, "no head"),
        (["verify", "nowhere.db"], 2, "cannot read"),
        (["verify", "one.db", "--database", "sqlite:///two.db"], 2, "not both"),
        (["verify", "sqlite:///nowhere.db"], 3, "StorageUnavailable"),
        (["verify", "--database", "nowhere.db"], 2, "cannot read"),
        (["spend", "1", "--database", "nowhere.db"], 2, f"--database {MUST_BE_URL} 'nowhere.db'"),
        (["verify", "mysql://db"], 2, f"SOURCE {MUST_BE_URL} 'mysql://db'"),
        (["verify", __file__], 2, "`allowance export` wrote"),
        (["verify", "--validator", "5Stranger"], 1, "LedgerNotFound"),
        (["export", "-", "--json"], 2, "with --json"),
        (["restore", "nowhere.gz"], 2, "cannot read"),
        (["restore", "mysql://db"], 2, f"SOURCE {MUST_BE_URL} 'mysql://db'"),
        (["restore", __file__, "--database", "copy.db"], 2, f"--database {MUST_BE_URL} 'copy.db'"),
        (["restore", __file__, "--validator", "\n"], 2, "--validator must be "),
        (["restore", __file__], 2, "`allowance export` wrote"),
    ],
)
def test_the_exit_code_tells_wrong_input_from_no_ledger_and_no_storage(
    allowance: Command, arguments: list[str], code: int, problem: str
) -> None:
    """Wrong input 2, no such ledger 1, no database 3; the error is on standard error."""
    result = allowance(*arguments)
    assert result.code == code
    assert problem in result.err


@pytest.fixture
def two_ledgers(tmp_path: Path) -> str:
    """A database with the ledgers of 5Validator and of 5Other."""

    async def fill() -> None:
        for validator in (VALIDATOR, "5Other"):
            async with Allowance.open(f"sqlite:///{tmp_path}/two.db", validator_ss58=validator):
                pass

    asyncio.run(fill())
    return f"sqlite:///{tmp_path}/two.db"


def test_verify_selects_ledgers_by_validator(
    allowance: Command, two_ledgers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--validator` or else the environment selects one ledger; without both, all are verified.

    Catches: `verify` that fails because no validator is configured.
    """

    def verified(*arguments: str) -> list[str]:
        result = allowance("verify", *arguments, "--json")
        assert result.code == 0
        return [document["validator_ss58"] for document in result.documents]

    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", two_ledgers)
    for arguments in ((), (two_ledgers,), ("--database", two_ledgers)):
        assert verified(*arguments) == [VALIDATOR]
        assert verified(*arguments, "--validator", "5Other") == ["5Other"]
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "5Stranger")
    result = allowance("verify", two_ledgers)
    assert result.code == 1
    assert "LedgerNotFound: there is no ledger of 5Stranger, whom ALLOWANCE_VALIDATOR_SS58 names" in result.err
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    for arguments in ((), (two_ledgers,), ("--database", two_ledgers)):
        assert verified(*arguments) == [VALIDATOR, "5Other"]
    result = allowance("verify", "--head", f"0:{'0' * 64}")
    assert (result.code, "--validator must be " in result.err, "5Other" in result.err) == (2, True, True)


def test_restore_selects_a_ledger_only_if_there_are_several(
    allowance: Command, path: Path, two_ledgers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a source has several ledgers, `--validator` or else the environment selects one; a single ledger is restored
    whatever its validator.

    Catches: `restore` that demands `--validator` although the environment names the validator.
    """

    def restored(name: str, source: str, *arguments: str) -> str:
        result = allowance("restore", source, "--database", f"sqlite:///{tmp_path}/{name}", "--json", *arguments)
        assert result.code == 0, result.err
        validator_ss58: str = result.documents[0]["validator_ss58"]
        return validator_ss58

    assert restored("one.db", two_ledgers) == VALIDATOR
    assert restored("other.db", two_ledgers, "--validator", "5Other") == "5Other"
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "5Stranger")
    assert restored("single.db", str(path)) == VALIDATOR
    result = allowance("restore", two_ledgers, "--database", f"sqlite:///{tmp_path}/none.db")
    assert result.code == 1
    assert "no ledger of 5Stranger, whom ALLOWANCE_VALIDATOR_SS58 names, in what SOURCE names" in result.err
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "two\nlines")
    assert (
        "ALLOWANCE_VALIDATOR_SS58 must be "
        in allowance("restore", two_ledgers, "--database", f"sqlite:///{tmp_path}/no.db").err
    )
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    result = allowance("restore", two_ledgers, "--database", f"sqlite:///{tmp_path}/none.db")
    assert (result.code, "--validator must be " in result.err) == (2, True)
    assert not list(tmp_path.glob("no*.db"))


@pytest.mark.parametrize("command", ["verify", "restore"])
def test_errors_name_standard_input_and_not_its_copy(
    allowance: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Catches: an error that names a temporary file, which the user does not know and which is deleted."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no export")))
    result = allowance(command, "-")
    assert result.code == 2
    assert "SOURCE must be a file that `allowance export` wrote, got 'standard input'" in result.err


def test_a_restore_over_another_log_is_refused(allowance: Command, tmp_path: Path) -> None:
    """Exit code 1: the answer is no."""
    allowance("export", tmp_path / "backup.gz")

    async def other() -> None:
        async with small_ledger(url=f"sqlite:///{tmp_path}/other.db", blocks=3):
            pass

    asyncio.run(other())
    result = allowance("restore", tmp_path / "backup.gz", "--database", f"sqlite:///{tmp_path}/other.db")
    assert result.code == 1
    assert "another log" in result.err


def test_an_export_is_not_written_to_a_terminal(allowance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 if standard output is a terminal."""
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["export", "-"]) == 2


def test_a_timer_verifies_what_is_new(allowance: Command, path: Path) -> None:
    """`verify --since` checks everything once, then only what came since, and `health` shows the result.

    It also works on a ledger that is too damaged to be opened, and then exits with 1.
    """
    assert allowance("health", "--json").document["verified_position"] is None
    assert allowance("verify", "--since", "--json").document["events"] == 14
    assert allowance("verify", "--since", "--json").document["events"] == 0
    assert allowance("health", "--json").document["verified_position"] == 14
    later = allowance("verify", "--since", "10")
    assert later.code == 0
    assert "up to position 10 were not checked" in later.out
    assert "PositionOutOfRange" in allowance("verify", "--since", "15").err
    for wrong in ((str(path), "--since"), ("--since", "0", "--head", f"1:{'0' * 64}")):
        assert allowance("verify", *wrong).code == 2
    damage(path, "UPDATE allowance_events SET recorded_at_ns = 1 WHERE position = 13")
    assert allowance("health").code == 3
    assert allowance("verify", "--since").code == 0
    found = allowance("verify", "--since", "0", "--json")
    assert (found.code, found.document["first_bad_position"]) == (1, 13)


def test_an_audit_begins_with_the_first_cause(allowance: Command, path: Path) -> None:
    """The text names where to look first, and counts the findings of each rule."""
    damage(path, "UPDATE allowance_events SET hash = x'00' WHERE position = 13")
    result = allowance("audit")
    assert result.code == 1
    assert "first cause: position 13: hash-chain" in result.out
    document = allowance("audit", "--json").document
    assert document["first_cause"]["position"] == 13
    assert sum(document["findings_by_rule"].values()) == document["findings_count"]
