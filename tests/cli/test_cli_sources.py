"""The database of a reading command: a URL, the path of a SQLite file, or an export; whose ledger in it is meant."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import sqlite3
import sys
import tempfile
from pathlib import Path

import pytest

from routing import Allowance
from routing.cli.commands import COMMANDS
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, VALIDATOR, small_ledger

pytestmark = pytest.mark.compatibility

OTHER = "5Other"
READING = {
    "audit": (),
    "events": (),
    "explain": ("job-1",),
    "export": ("again.gz",),
    "health": (),
    "history": (),
    "miners": (),
    "policy": (),
    "replay": (),
    "settings": ("show",),
    "show": (),
    "verify": (),
    "why": ("5Anna", GPU),
}
"""The arguments of each reading command; `show` gets the reservation's id."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a ledger with one job's reservation."""
    path = tmp_path / "here" / "ledger.db"
    path.parent.mkdir()

    async def fill() -> None:
        async with small_ledger(url=f"sqlite:///{path}") as ledger:
            await ledger.reserve("5Anna", GPU, 6.0, 11, job_uuid="job-1")

    asyncio.run(fill())
    return path


@pytest.fixture
def allowance(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run `allowance` in an empty directory; the environment names another ledger, which does not exist."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    configure_ledger(monkeypatch, f"sqlite:///{tmp_path}/absent.db", OTHER)
    return command_line(capsys)


@pytest.fixture
def export(allowance: Command, path: Path) -> Path:
    """An export of the ledger."""
    assert allowance("export", "ledger.gz", "--database", path).code == 0
    return Path("ledger.gz")


@pytest.fixture
def with_two_ledgers(allowance: Command, path: Path) -> Path:
    """The file with a second ledger in it."""

    async def found() -> None:
        async with Allowance.open(f"sqlite:///{path}", validator_ss58=OTHER):
            pass

    asyncio.run(found())
    return path


@pytest.mark.parametrize("command", READING)
def test_every_reading_command_takes_a_file_and_an_export(
    allowance: Command, path: Path, export: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints for both what it prints for the URL, and it leaves no file behind, nor a temporary one.

    Catches: a command that has a way of its own to its ledger.
    """
    (reservation,) = allowance("history", "--database", path, "--json").documents
    arguments = (reservation["reservation_id"],) if command == "show" else READING[command]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    directories = [path.parent, temporary]
    before = [sorted(directory.glob("*")) for directory in directories]
    shown = []
    for source in (f"sqlite:///{path}", path, export):
        result = allowance(command, *arguments, "--database", source, "--json")
        assert result.code in (0, 1) if command == "health" else result.code == 0, result.err
        shown.append([without_moving_fields(document) for document in result.documents])
        Path("again.gz").unlink(missing_ok=True)
    assert shown[0] == shown[1] == shown[2]
    assert [sorted(directory.glob("*")) for directory in directories] == before


def without_moving_fields(document: dict[str, object]) -> dict[str, object]:
    """Return the document without ages and speeds, without its source's name, and without what only a database has."""
    moving = ("age_seconds", "per_second", "seconds", "at", "status", "problems", "database_url")
    database_only = ("lag", "history_position", "snapshots", "not_excluded")
    still = {name: value for name, value in document.items() if not name.endswith(moving + database_only)}
    if "failures" in still:
        # A failure tells the age of the newest block, in whole seconds.
        still["failures"] = re.sub(r"[\d,]+ s old", "some seconds old", str(still["failures"]))
    return still


def test_every_reading_command_is_listed_here() -> None:
    """So that a new one is tested above; the others found or change a ledger, or read a file of another kind."""
    others = {"demo", "import", "withdraw", "pick", "reserve", "spend", "release", "expire", "receipts", "restore"}
    others |= {"rebuild", "guide", "ledgers", "serve", "exclude", "readmit", "import-computehorde"}
    others |= {"collateral", "job-elsewhere", "incident"}
    assert {entry.name for entry in COMMANDS} - others == set(READING)


def test_health_of_an_export_names_the_export(allowance: Command, export: Path) -> None:
    """Not the temporary database, which is gone when somebody reads the output. Its history is projected.

    Catches: an export of a million events whose pages of the history would each fold all of them.
    """
    document = allowance("health", "--database", export, "--json").document
    assert (document["database_url"], document["projection_lag"]) == (str(export), 0)


def test_an_export_comes_from_standard_input(allowance: Command, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads an export from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(export.read_bytes())))
    assert "5Anna" in allowance("history", "--database", "-").out


def test_a_damaged_export_is_refused(allowance: Command, export: Path) -> None:
    """Nobody is shown an export that is not as it was written; `verify` says where."""
    export.write_bytes(export.read_bytes()[:-40])
    for command in ("history", "health", "audit"):
        result = allowance(command, "--database", export)
        assert (result.code, result.out) == (2, "")


def test_an_export_cannot_be_changed(allowance: Command, export: Path) -> None:
    """A change would be made to a temporary database, and lost."""
    result = allowance("spend", "1", "--database", export, "--validator", VALIDATOR)
    assert (result.code, result.out) == (2, "")
    assert "--database must be sqlite:///path" in result.err
    limits = {"download_time_limit": 1, "execution_time_limit": 1, "upload_time_limit": 1}
    Path("request.json").write_text(json.dumps({"uuid": "job-1", "executor_class": GPU, **limits}))
    assert "--database must be sqlite:///path" in allowance("pick", "request.json", "--database", export).err


def test_a_database_without_a_ledger_says_so(allowance: Command, tmp_path: Path) -> None:
    """Exit code 1, with or without a named validator."""
    empty = tmp_path / "empty.db"
    with contextlib.closing(sqlite3.connect(empty)) as connection:
        connection.execute("CREATE TABLE other (id)")
    for arguments in ((), ("--validator", VALIDATOR)):
        result = allowance("health", "--database", empty, *arguments, "--json")
        assert (result.code, result.error["type"]) == (1, "LedgerNotFound")
    assert allowance("ledgers", "--database", empty).code == 1


def test_a_sqlite_file_is_named_by_its_path_for_changes_too(allowance: Command, path: Path) -> None:
    """Who reads `--database ledger.db` expects to settle with the same words."""
    (reservation,) = allowance("history", "--database", path, "--json").documents
    arguments = ("--database", path, "--validator", VALIDATOR)
    assert allowance("spend", reservation["reservation_id"], *arguments).code == 0


def test_a_single_ledger_is_meant_whatever_validator_the_environment_names(
    allowance: Command, path: Path, with_two_ledgers: Path
) -> None:
    """The environment's validator is that of the environment's database; with several ledgers it chooses its own.

    Catches: a file that somebody sent, and that could be read only after `unset ALLOWANCE_VALIDATOR_SS58`.
    """
    assert allowance("health", "--database", with_two_ledgers, "--json").document["validator_ss58"] == OTHER
    assert allowance("export", "one.gz", "--database", path, "--validator", VALIDATOR).code == 0
    assert allowance("health", "--database", "one.gz", "--json").document["validator_ss58"] == VALIDATOR


def test_a_change_never_takes_another_ledger_than_the_named_one(allowance: Command, path: Path) -> None:
    """Catches: `spend` on the only ledger of a database although the environment names another validator."""
    (reservation,) = allowance("history", "--database", path, "--json").documents
    result = allowance("spend", reservation["reservation_id"], "--database", path, "--json")
    assert (result.code, result.error["type"]) == (1, "LedgerNotFound")
    assert result.error["fields"] == {"validator_ss58": OTHER, "validators": [VALIDATOR]}
    assert allowance("history", "--database", path, "--json").document["status"] == "reserved"


def test_the_error_lists_the_ledgers_of_the_database(
    allowance: Command, with_two_ledgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no validator is named and there are several, and if the named one is not among them."""
    absent = allowance("health", "--database", with_two_ledgers, "--validator", "5Nobody", "--json")
    assert (absent.code, absent.error["type"]) == (1, "LedgerNotFound")
    assert absent.error["fields"]["validators"] == sorted([OTHER, VALIDATOR])
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    several = allowance("health", "--database", with_two_ledgers, "--json")
    assert (several.code, several.error["fields"]["validators"]) == (2, sorted([OTHER, VALIDATOR]))


def test_the_variable_takes_a_url_only(allowance: Command, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs read it too, and a path that only some commands take would surprise their users."""
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", str(path))
    result = allowance("health")
    assert result.code == 2
    assert "ALLOWANCE_DATABASE_URL must be sqlite:///path" in result.err
