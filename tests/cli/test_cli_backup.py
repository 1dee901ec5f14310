"""The commands that carry ledgers: verify, export, restore, and the head that `health` shows."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from routing import Allowance
from routing.cli.main import main
from tests.support.small import GPU, VALIDATOR, small_ledger

pytestmark = pytest.mark.sqlalchemy

MUST_BE_URL = "must be sqlite:///path, sqlite:// (memory) or postgresql://…, got"


@dataclass
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Answer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger's file."""

    async def fill() -> None:
        async with small_ledger(url=f"sqlite:///{tmp_path}/ledger.db") as ledger:
            await ledger.reserve("5Anna", GPU, 6.0, 11)

    asyncio.run(fill())
    return tmp_path / "ledger.db"


@pytest.fixture
def allowance(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `allowance` with the ledger configured."""
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", VALIDATOR)

    def run(*words: object) -> Answer:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


def damage(path: Path, statement: str) -> None:
    """Executes a statement past the triggers."""
    connection = sqlite3.connect(path, isolation_level=None)
    for trigger in ("events_no_update", "events_no_delete", "ledgers_no_step_back"):
        connection.execute(f"DROP TRIGGER IF EXISTS allowance_{trigger}")
    connection.execute(statement)
    connection.close()


def test_a_head_goes_from_health_to_verify_as_it_stands(allowance: Command, path: Path) -> None:
    """What health shows is what --head takes; with it nothing is left open, without it that is said."""
    (health,) = allowance("health", "--json").documents
    assert health["head"] in allowance("health").out
    for source in ([], [path], [f"sqlite:///{path}"], ["--database", f"sqlite:///{path}"]):
        answer = allowance("verify", *source, "--head", health["head"])
        assert (answer.code, answer.err) == (0, "")
        assert "what is stored is what was written" in answer.out
        assert "agrees with the head noted at 14" in answer.out
        assert "not excluded" not in answer.out
    answer = allowance("verify")
    assert answer.code == 0
    assert answer.out.count("not excluded") == 2
    (document,) = allowance("verify", "--json").documents
    assert (document["head"], document["findings"], document["first_bad_position"]) == (health["head"], [], None)


def test_verify_names_the_first_bad_position(allowance: Command, path: Path) -> None:
    """Exit code 1, the position, the rule and what is wrong with it; as a document too."""
    damage(path, "UPDATE allowance_events SET payload = x'7b7d' WHERE position = 5")
    answer = allowance("verify")
    assert (answer.code, answer.err) == (1, "")
    assert "first bad position 5" in answer.out
    assert "hash-chain" in answer.out
    answer = allowance("verify", "--json")
    (document,) = answer.documents
    assert (answer.code, document["first_bad_position"], document["findings"][0]["rule"]) == (1, 5, "hash-chain")


def test_a_cut_tail_is_found_by_a_noted_head(allowance: Command, path: Path) -> None:
    """Two rows and the head row taken back: only --head tells, at the first position that is missing."""
    (health,) = allowance("health", "--json").documents
    damage(path, "DELETE FROM allowance_events WHERE position > 12")
    columns = "position, hash, recorded_at_ns"
    last = f"SELECT {columns} FROM allowance_events WHERE position = 12"
    damage(path, f"UPDATE allowance_ledgers SET ({columns}) = ({last})")
    assert allowance("verify").code == 0
    answer = allowance("verify", "--head", health["head"])
    assert answer.code == 1
    assert "first bad position 13" in answer.out


def test_many_findings_are_counted(allowance: Command, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are shown."""
    damage(path, "UPDATE allowance_events SET hash = x'00'")
    monkeypatch.setattr("routing.cli.commands.verify.MOST_LINES", 5)
    answer = allowance("verify")
    assert answer.code == 1
    assert "  … 15 findings in all" in answer.out
    assert answer.out.count("hash-chain") == 5


def test_an_export_is_verified_and_restored(allowance: Command, path: Path, tmp_path: Path) -> None:
    """Export, verify and restore say the same head, in words and in JSON."""
    (health,) = allowance("health", "--json").documents
    file, copy = tmp_path / "backup.jsonl.gz", tmp_path / "copy.db"
    (document,) = allowance("export", file, "--json").documents
    assert (document["position"], document["head"], document["file"]) == (14, health["head"], str(file))
    answer = allowance("export", file)
    assert answer.code == 2
    assert "not there yet" in answer.err
    assert allowance("verify", file, "--head", health["head"]).code == 0
    answer = allowance("restore", file, "--database", f"sqlite:///{copy}")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"{VALIDATOR}: restored 14 events; head {health['head']}\n"
    (document,) = allowance("restore", path, "--database", f"sqlite:///{copy}", "--json").documents
    assert (document["added"], document["head"]) == (0, health["head"])
    assert "everything was there already" in allowance("restore", file, "--database", f"sqlite:///{copy}").out
    assert allowance("verify", copy, "--head", health["head"]).code == 0


def test_an_export_goes_through_pipes(allowance: Command, path: Path, tmp_path: Path) -> None:
    """Bytes on standard output and nothing else; taken from standard input again, by verify and by restore."""
    command = [sys.executable, "-m", "routing.cli"]
    ran = subprocess.run([*command, "export", "-"], capture_output=True, check=True)
    assert ran.stdout[:2] == b"\x1f\x8b"
    assert b"exported 14 events" in ran.stderr
    for words in (["verify", "-"], ["restore", "-", "--database", f"sqlite:///{tmp_path}/copy.db"]):
        again = subprocess.run([*command, *words], input=ran.stdout, capture_output=True, check=True)
        assert b"head 14:" in again.stdout
    cut = subprocess.run([*command, "restore", "-"], input=ran.stdout[:-20], capture_output=True, check=False)
    assert cut.returncode == 2
    assert b"DamagedExport" in cut.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_export_ends_quietly_where_nobody_reads_on(
    allowance: Command, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    """`allowance export - | head -c 10`: exit code 0 and not a word, as with every command.

    Catches: the reader's going away told as a database that cannot be used; and, where Python keeps back what is
    written, an export that is told as done before it is out.
    """
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    command = [sys.executable, "-m", "routing.cli", "export", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as exporting:
        assert exporting.stdout
        exporting.stdout.close()
        assert exporting.stderr
        said = exporting.stderr.read()
        assert (exporting.wait(60), said) == (0, b"")


@pytest.mark.parametrize("name", ["nowhere/backup.gz", "/dev/full", "/", "a\0b", "."])
def test_an_export_that_cannot_be_written_is_told_by_its_name(allowance: Command, tmp_path: Path, name: str) -> None:
    """Exit code 2, the name as it was given, and nothing left behind.

    Catches: a wrong path told as a database that cannot be used, by the name of the file that was to become it.
    """
    answer = allowance("export", tmp_path / name, "--json")
    assert answer.code == 2
    error = answer.documents[0]["error"]
    assert (error["type"], error["fields"]["path"]) == ("UnwritableOutput", str(tmp_path / name))
    assert "partial" not in answer.err
    assert not list(tmp_path.glob(".*.partial"))


def test_an_export_that_ends_early_leaves_nothing(
    allowance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up is told by the name that was given, and there is no part of an export."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    answer = allowance("export", tmp_path / "backup.gz")
    assert answer.code == 2
    assert "backup.gz': No space left on device" in answer.err
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("ledger.db")] == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["verify", "--head", "14"], 2, "no head"),
        (["verify", "--head", "14:abc"], 2, "no head"),
        (["verify", "nowhere.db"], 2, "cannot read"),
        (["verify", "one.db", "--database", "sqlite:///two.db"], 2, "not both"),
        (["verify", "sqlite:///nowhere.db"], 3, "StorageUnavailable"),
        (["verify", "--database", "ledger.db"], 2, f"--database {MUST_BE_URL} 'ledger.db'"),
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
def test_what_cannot_be_done_is_told_by_the_exit_code(
    allowance: Command, words: list[str], code: int, said: str
) -> None:
    """Wrong input 2, no such ledger 1, no database 3; one line on standard error."""
    answer = allowance(*words)
    assert answer.code == code
    assert said in answer.err


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A database with the ledgers of 5Validator and of 5Other."""

    async def fill() -> None:
        for validator in (VALIDATOR, "5Other"):
            async with Allowance.open(f"sqlite:///{tmp_path}/two.db", validator_ss58=validator):
                pass

    asyncio.run(fill())
    return f"sqlite:///{tmp_path}/two.db"


def test_which_ledgers_are_verified(allowance: Command, two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator of the environment's, as `--help` says, wherever the ledgers are; of nobody's, all.

    Catches: `verify` with only the database configured, which failed on a validator without a name.
    """

    def verified(*words: str) -> list[str]:
        answer = allowance("verify", *words, "--json")
        assert answer.code == 0
        return [document["validator_ss58"] for document in answer.documents]

    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", two)
    for words in ((), (two,), ("--database", two)):
        assert verified(*words) == [VALIDATOR]
        assert verified(*words, "--validator", "5Other") == ["5Other"]
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "5Stranger")
    answer = allowance("verify", two)
    assert answer.code == 1
    assert "LedgerNotFound: there is no ledger of 5Stranger, whom ALLOWANCE_VALIDATOR_SS58 names" in answer.err
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    for words in ((), (two,), ("--database", two)):
        assert verified(*words) == [VALIDATOR, "5Other"]
    answer = allowance("verify", "--head", f"0:{'0' * 64}")
    assert (answer.code, "--validator must be " in answer.err, "5Other" in answer.err) == (2, True, True)


def test_which_of_several_ledgers_is_restored(
    allowance: Command, path: Path, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--validator`, or else the environment's, where there are several; a single one is meant whoever has it.

    Catches: `restore` that asks for a validator whom the environment names.
    """

    def restored(name: str, source: str, *words: str) -> str:
        answer = allowance("restore", source, "--database", f"sqlite:///{tmp_path}/{name}", "--json", *words)
        assert answer.code == 0, answer.err
        validator_ss58: str = answer.documents[0]["validator_ss58"]
        return validator_ss58

    assert restored("one.db", two) == VALIDATOR
    assert restored("other.db", two, "--validator", "5Other") == "5Other"
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "5Stranger")
    assert restored("single.db", str(path)) == VALIDATOR
    answer = allowance("restore", two, "--database", f"sqlite:///{tmp_path}/none.db")
    assert answer.code == 1
    assert "no ledger of 5Stranger, whom ALLOWANCE_VALIDATOR_SS58 names, in what SOURCE names" in answer.err
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "two\nlines")
    assert (
        "ALLOWANCE_VALIDATOR_SS58 must be "
        in allowance("restore", two, "--database", f"sqlite:///{tmp_path}/no.db").err
    )
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    answer = allowance("restore", two, "--database", f"sqlite:///{tmp_path}/none.db")
    assert (answer.code, "--validator must be " in answer.err) == (2, True)
    assert not list(tmp_path.glob("no*.db"))


@pytest.mark.parametrize("command", ["verify", "restore"])
def test_what_came_by_standard_input_goes_by_that_name(
    allowance: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Catches: an error that names a temporary file, which nobody gave and which is gone."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no export")))
    answer = allowance(command, "-")
    assert answer.code == 2
    assert "SOURCE must be a file that `allowance export` wrote, got 'standard input'" in answer.err


def test_a_restore_over_another_log_is_refused(allowance: Command, tmp_path: Path) -> None:
    """Exit code 1: the answer is no."""
    allowance("export", tmp_path / "backup.gz")

    async def other() -> None:
        async with small_ledger(url=f"sqlite:///{tmp_path}/other.db", blocks=3):
            pass

    asyncio.run(other())
    answer = allowance("restore", tmp_path / "backup.gz", "--database", f"sqlite:///{tmp_path}/other.db")
    assert answer.code == 1
    assert "another log" in answer.err


def test_an_export_is_no_text_for_a_terminal(allowance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where standard output is one."""
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["export", "-"]) == 2
