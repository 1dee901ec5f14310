"""`allowance settings`, settings in the environment of commands, and which commands found a ledger."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from routing import Settings
from routing.sync import Allowance
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, START

ME = "5Validator"
OTHER = "5Vaildator"


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def allowance(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `allowance` on a ledger that the environment names."""
    for variable in list(os.environ):
        if variable.startswith("ALLOWANCE_"):
            monkeypatch.delenv(variable)
    configure_ledger(monkeypatch, database, ME)
    return command_line(capsys)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Three blocks of one miner."""
    miners = [{"hotkey_ss58": "5Anna", "address": "192.0.2.7", "ip_version": 4, "port": 8000}]
    lines: list[dict[str, object]] = [{"type": "manifests", "block": 1, "manifests": {"5Anna": {GPU: 3}}}]
    for number in (1, 2, 3):
        created_at = START.replace(second=12 * number).isoformat()
        block: dict[str, object] = {"type": "block", "number": number, "created_at": created_at, "miners": miners}
        block["stakes"] = {ME: 1.0}
        lines.append(block)
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def configured(allowance: Command, database: str, facts: Path) -> Command:
    """The command on a ledger that a program opened with settings in code."""
    settings = Settings(block_expiry_blocks=500, longest_job_seconds=60)
    with Allowance.open(database, validator_ss58=ME, settings=settings):
        pass
    assert allowance("import", facts).code == 0
    return allowance


def request_file(tmp_path: Path) -> Path:
    request = {
        "uuid": "job-1", "executor_class": GPU, "download_time_limit": 1, "execution_time_limit": 5,
        "upload_time_limit": 0,
    }  # fmt: skip
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    return path


def test_a_stray_variable_changes_no_settings(
    configured: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command in a shell with a setting in its environment leaves a live validator's settings alone.

    Catches `ALLOWANCE_NEWEST_BLOCK_MAX_AGE_SECONDS=600 allowance pick …`, which recorded it together with the defaults
    of all other fields, and then refused the pick because the newest block was older.
    """
    before = configured("settings", "show", "--json").document
    monkeypatch.setenv("ALLOWANCE_NEWEST_BLOCK_MAX_AGE_SECONDS", "600")
    monkeypatch.setenv("ALLOWANCE_LONGEST_JOB_SECONDS", "long")
    picked = configured("pick", request_file(tmp_path), "--json")
    assert picked.code == 0
    reservation = picked.document["allowance_reservation_id"]
    for arguments in (("spend", reservation), ("rebuild",), ("miners",)):
        assert configured(*arguments).code == 0
    assert configured("settings", "show", "--json").document == before
    assert len(configured("settings", "show", "--changes", "--json").documents) == 1


def test_an_unknown_variable_is_refused_by_name(configured: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled variable is wrong input for every command, with the name that was meant."""
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS85", "5Another")
    result = configured("health")
    assert result.code == 2
    assert "ALLOWANCE_VALIDATOR_SS85" in result.err
    assert "did you mean ALLOWANCE_VALIDATOR_SS58?" in result.err
    assert "5Another" not in result.err


def test_settings_set_changes_the_named_fields(configured: Command) -> None:
    """`set` writes the settings as they are then; `show` and `--changes` agree with it."""
    before = configured("settings", "show", "--json").document
    changed = configured(
        "settings", "set", "block_expiry_blocks=400", "newest_block_max_age_seconds=600",
        f'executors_max_per_class={{"{GPU}": 2}}', "allowance_multiplier=3/2", "--json",
    )  # fmt: skip
    assert changed.code == 0
    expected = {
        **before,
        "block_expiry_blocks": 400,
        "newest_block_max_age_seconds": 600.0,
        "executors_max_per_class": {GPU: 2},
        "allowance_multiplier": "3/2",
    }
    assert changed.document == configured("settings", "show", "--json").document == expected
    assert configured("settings", "set", "newest_block_max_age_seconds=none", "--json").document == {
        **expected,
        "newest_block_max_age_seconds": None,
    }
    founded, first, second = configured("settings", "show", "--changes", "--json").documents
    assert (founded["position"], founded["changes"]["block_expiry_blocks"]) == (1, [None, 500])
    assert first["changes"]["block_expiry_blocks"] == [500, 400]
    assert second["changes"] == {"newest_block_max_age_seconds": [600.0, None]}


def test_settings_set_changes_the_tie_break(configured: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command changes it, shows it and lists the change; a variable for it, which would do nothing, is refused."""
    assert configured("settings", "show", "--json").document["tie_break"] == "uuid_and_hash"
    assert configured("settings", "set", "tie_break=uuid", "--json").document["tie_break"] == "uuid"
    assert "tie_break                        uuid\n" in configured("settings", "show").out
    last = configured("settings", "show", "--changes", "--json").documents[-1]
    assert last["changes"] == {"tie_break": ["uuid_and_hash", "uuid"]}
    monkeypatch.setenv("ALLOWANCE_TIE_BREAK", "uuid_and_hash")
    result = configured("settings", "show")
    assert result.code == 2
    assert "ALLOWANCE_TIE_BREAK must be unset" in result.err
    assert "allowance settings set" in result.err


def test_an_import_records_hashes(configured: Command, tmp_path: Path) -> None:
    """`health` shows the newest; importing again, with and without hashes, changes nothing; another hash is refused."""
    assert configured("health", "--json").document["newest_block_hash"] is None
    miners = [{"hotkey_ss58": "5Anna", "address": "192.0.2.7", "ip_version": 4, "port": 8000}]
    at = START.replace(second=48).isoformat()
    line = {"type": "block", "number": 4, "created_at": at, "miners": miners, "stakes": {ME: 1.0}}

    def imported(**more: str) -> Any:
        path = tmp_path / "hashed.jsonl"
        path.write_text(json.dumps({**line, **more}) + "\n")
        return configured("import", path, "--json")

    first, *repeats = [imported(block_hash=f"0x{'C0' * 32}"), imported(), imported(block_hash="c0" * 32)]
    assert first.document["blocks_recorded"] == 1
    assert [each.document["blocks_repeated"] for each in repeats] == [1, 1]
    assert configured("health", "--json").document["newest_block_hash"] == "c0" * 32
    assert re.search(rf"newest block +4, .* old, hash {'c0' * 32}\n", configured("health").out)
    refused = imported(block_hash="f0" * 32)
    assert refused.code == 2
    assert "c0" * 32 in refused.err
    assert "f0" * 32 in refused.err


def test_settings_are_shown_as_text(configured: Command) -> None:
    """A field per line, and a block of lines per change."""
    assert configured("settings", "set", "longest_job_seconds=30").out == configured("settings", "show").out
    shown = configured("settings", "show")
    assert "longest_job_seconds              30.0" in shown.out
    changes = configured("settings", "show", "--changes").out
    assert "the ledger was founded" in changes
    assert "  longest_job_seconds: 60.0 → 30.0" in changes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "show|set"),
        (("drop",), "invalid choice"),
        (("set",), "at least one FIELD=VALUE"),
        (("set", "block_expiry_blocks"), "is no FIELD=VALUE"),
        (("set", "block_expiry=5"), "the fields are block_expiry_blocks"),
        (("set", "block_expiry_blocks=5", "block_expiry_blocks=6"), "given twice"),
        (("set", "block_expiry_blocks=5", "--changes"), "no --changes"),
        (("show", "block_expiry_blocks=5"), "takes no FIELD=VALUE"),
        (("set", "block_expiry_blocks=many"), "block_expiry_blocks must be a whole number of blocks"),
        (("set", "block_expiry_blocks="), "block_expiry_blocks must be a whole number of blocks"),
        (("set", "longest_job_seconds=-1"), "longest_job_seconds must be a finite number from 0"),
        (("set", "tie_break=hash"), "tie_break must be uuid_and_hash or uuid"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else None,
)
def test_wrong_usage_of_settings_changes_nothing(configured: Command, arguments: tuple[str, ...], says: str) -> None:
    """Exit code 2, with what would be right."""
    result = configured("settings", *arguments)
    assert result.code == 2
    assert says in result.err
    assert len(configured("settings", "show", "--changes", "--json").documents) == 1


# Founding a ledger


def test_a_mistyped_validator_does_not_found_a_second_ledger(configured: Command, facts: Path, database: str) -> None:
    """`import` into a database that has ledgers of others names them, and needs `--new`.

    Catches a typing error in `--validator`: the facts of a live chain would go into another ledger without a word.
    """
    refused = configured("import", facts, "--validator", OTHER, "--json")
    assert refused.code == 2
    assert refused.error["type"] == "WrongUsage"
    assert refused.error["fields"] == {"validator_ss58": OTHER, "validators": [ME]}
    assert "--new" in refused.error["message"]
    assert configured("health", "--validator", OTHER).code == 1

    assert configured("import", facts, "--validator", OTHER, "--new").code == 0
    assert configured("import", facts, "--validator", OTHER).code == 0
    assert configured("miners", "--validator", OTHER).code == 0


def test_a_new_ledger_needs_a_named_validator(
    configured: Command, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an `import --new` that takes the only ledger of the database for the one that is meant."""
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    before = configured("health", "--validator", ME, "--json").document["position"]
    assert configured("import", facts, "--new").code == 2
    assert configured("health", "--validator", ME, "--json").document["position"] == before


def test_an_import_founds_the_first_ledger_of_a_database(allowance: Command, facts: Path, database: str) -> None:
    """A missing file, or a database without a ledger, needs no `--new`."""
    assert allowance("import", facts).code == 0
    assert allowance("health", "--json").document["newest_block"] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("pick",), ("spend", "1"), ("release", "1"), ("rebuild",), ("settings", "show"),
        ("settings", "set", "block_expiry_blocks=5"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_other_command_founds_a_ledger(
    configured: Command, arguments: tuple[str, ...], tmp_path: Path, database: str
) -> None:
    """On a missing file they exit with code 3, in a database without this ledger with 1, and leave nothing behind."""
    if arguments == ("pick",):
        arguments = ("pick", str(request_file(tmp_path)))
    missing = tmp_path / "missing.db"
    assert configured(*arguments, "--database", f"sqlite:///{missing}").code == 3
    assert not missing.exists()
    absent = configured(*arguments, "--validator", OTHER, "--json")
    assert (absent.code, absent.error["type"]) == (1, "LedgerNotFound")
    assert configured("health", "--validator", OTHER).code == 1


def test_the_only_ledger_of_a_database_needs_no_validator(
    configured: Command, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one ledger it is the one that is meant; with several, the error lists them."""
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    assert configured("miners").code == 0
    assert configured("pick", request_file(tmp_path)).code == 0
    assert configured("import", facts).code == 0
    assert configured("import", facts, "--validator", OTHER, "--new").code == 0

    for arguments in (("health",), ("pick", request_file(tmp_path)), ("import", facts)):
        several = configured(*arguments, "--json")
        assert several.code == 2
        assert several.error["fields"] == {"validators": sorted([ME, OTHER])}
        assert "--validator" in several.error["message"]
