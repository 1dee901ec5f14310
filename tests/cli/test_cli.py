"""The command line from end to end: its output, its streams and its exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import routing
from routing.cli.commands import COMMANDS, CommandEntry
from routing.cli.demo import network
from routing.cli.io.inputs import MOST_PAGE_ITEMS
from routing.cli.main import main
from routing.service.queries import MOST_ITEMS
from tests.support.cli import Command, Result, command_line, configure_ledger

pytestmark = pytest.mark.compatibility

ROOT = Path(__file__).parents[2]
SEED = 5
ME = network.hotkeys(SEED, "validator", 1)[0]
GPU = "always_on.gpu-24gb"


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def allowance(database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `allowance` on a new ledger, which the environment names."""
    for variable in list(os.environ):
        if variable.startswith(("ALLOWANCE_", "DEBUG_MINER_", "TRUSTED_MINER_")):
            monkeypatch.delenv(variable)
    configure_ledger(monkeypatch, database, ME)
    return command_line(capsys)


def chain(blocks: int = 60, **size: Any) -> list[str]:
    size = {"miners": 12, "validators": 3, "classes": 2, **size}
    return [json.dumps(line) for line in network.generate(SEED, blocks=blocks, **size)]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return written(tmp_path / "facts.jsonl", *chain())


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


@pytest.fixture
def filled(allowance: Command, facts: Path) -> Command:
    assert allowance("import", facts).code == 0
    return allowance


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    return written(tmp_path / "request.json", request())


def request(**fields: Any) -> str:
    job = {
        "uuid": "job-1",
        "executor_class": GPU,
        "download_time_limit": 2,
        "execution_time_limit": 10.5,
        "upload_time_limit": 2,
        "docker_image": "of no concern here",
    }
    return json.dumps({**job, **fields})


def stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def process(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "routing.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


# Help


def test_every_command_is_listed_in_help(allowance: Command) -> None:
    """`allowance --help` lists every command and explains the exit codes."""
    result = allowance("--help")

    assert result.code == 0
    for entry in COMMANDS:
        # A long name has a line of its own.
        assert re.search(rf"^    {re.escape(entry.name)}( |$)", result.out, re.MULTILINE)
    assert "Exit codes" in result.out


@pytest.mark.parametrize("entry", COMMANDS, ids=[entry.name for entry in COMMANDS])
def test_every_command_has_help_with_examples(allowance: Command, entry: CommandEntry) -> None:
    """The help of each command shows its examples and the common options, in lines of at most 120 characters."""
    result = allowance(entry.name, "--help")
    examples = entry.load().examples

    assert result.code == 0
    assert result.err == ""
    assert examples
    for example in examples:
        assert f"allowance {entry.name}" in example
        assert example in result.out
    for option in ("--database", "--validator", "--json"):
        assert option in result.out
    assert all(len(line) <= 120 for line in result.out.splitlines())


def test_every_example_in_help_is_valid() -> None:
    """The parser accepts the command line of every example."""
    import shlex

    from routing.cli.parser import build_parser

    for entry in COMMANDS:
        for example in entry.load().examples:
            arguments = shlex.split(example.partition("allowance ")[2].partition(" | ")[0].partition(" > ")[0])
            assert build_parser(arguments).parse_args(arguments).command == entry.name


NEEDED_BY_HELP = {
    *("ledger", "ledger.lazy_exports", "routing", "routing.cli", "routing.cli.commands", "routing.cli.io.errors"),
    *("routing.cli.io", "routing.cli.io.output", "routing.cli.main", "routing.cli.parser"),
    "routing.shadowing",
}
SLOW_TO_IMPORT = ("aiosqlite", "asyncio", "asyncpg", "msgspec", "socket", "sqlalchemy", "sqlite3")


def loaded_by(*arguments: str) -> set[str]:
    """Return the names of the modules that a new process has loaded after this command."""
    code = "import sys; from routing.cli.main import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(ran.stderr.split())


def test_help_loads_only_what_it_prints() -> None:
    """`allowance --help` imports no command, no database toolkit and not the library, so it starts quickly.

    Catches: an import at the top of a module that help needs, which slows every command down.
    """
    loaded = loaded_by("--help")

    assert {name for name in loaded if name.split(".")[0] in ("ledger", "projections", "routing")} == NEEDED_BY_HELP
    assert not loaded & set(SLOW_TO_IMPORT)


@pytest.mark.parametrize("entry", COMMANDS, ids=[entry.name for entry in COMMANDS])
def test_a_command_is_imported_alone(entry: CommandEntry) -> None:
    """The help of one command imports the module of that command and of no other, and no database toolkit."""
    loaded = loaded_by(entry.name, "--help")

    imported = {name for name in loaded if name.startswith("routing.cli.commands.")}
    assert imported == {f"routing.cli.commands.{entry.module}"}
    assert not loaded & {"aiosqlite", "asyncpg", "sqlalchemy", "sqlite3"}


def test_a_summary_is_written_once() -> None:
    """The details in a command's module do not repeat the summary of the table: help shows both."""
    for entry in COMMANDS:
        assert entry.summary not in entry.load().details


def test_the_table_lists_each_command_once() -> None:
    """Names are unique, and every summary is one sentence, which help shows without its full stop."""
    assert len({entry.name for entry in COMMANDS}) == len(COMMANDS)
    for entry in COMMANDS:
        assert entry.summary.endswith(".")
        assert entry.summary[0].isupper()


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("spend",),
        ("spend", "x"),
        ("spend", "-100"),
        ("release", "0"),
        ("show", str(10**30)),
        ("show", "True"),
        ("show", "1.0"),
        ("show", "1_000"),
        ("show", "٣"),
        ("miners", "--block", "7"),
        ("miners", "--executor-class", GPU, "--seconds", "nan"),
        ("miners", "--executor-class", GPU, "--seconds", "inf"),
        ("miners", "--executor-class", GPU, "--seconds", "-1"),
        ("miners", "--executor-class", GPU, "--seconds", "0"),
        ("miners", "--executor-class", GPU, "--seconds", "ten"),
        ("miners", "--executor-class", GPU, "--seconds", "10", "--block", "0"),
        ("reserve", "5Anna", GPU),
        ("reserve", "5Anna", GPU, "0"),
        ("reserve", "5Anna", GPU, "1", "--expected-version", "-1"),
        ("reserve", "5Anna", GPU, "1", "--expected-version", "new"),
        ("reserve", "5Anna", GPU, "1", "--block", "0"),
        ("history", "--from", "2024-01-01T12:00:00"),
        ("history", "--until", "yesterday"),
        ("history", "--status", "booked"),
        ("history", "--limit", "0"),
        ("history", "--all", "--limit", "7"),
        ("history", "--jason"),
        ("demo", "--miners", "0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_reported_in_one_line(allowance: Command, arguments: tuple[str, ...]) -> None:
    """Exit code 2 and one line that says what would be right; with `--json` the same as a document."""
    result = allowance(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("allowance: WrongUsage: ")
    assert result.err.count("\n") == 1

    result = allowance(*arguments, "--json")
    assert result.code == 2
    assert result.error["type"] == "WrongUsage"
    assert result.error["message"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("verify", ""), "SOURCE"),
        (("restore", ""), "SOURCE"),
        (("import", ""), "FACTS.jsonl"),
        (("export", ""), "FILE"),
        (("health", "--database", ""), "--database"),
        (("health", "--validator", ""), "--validator"),
        (("history", "--miner="), "--miner"),
        (("audit", "--html", ""), "--html"),
        (("demo", "--keep", ""), "--keep"),
    ],
    ids=lambda given: given if isinstance(given, str) else " ".join(given),
)
def test_an_empty_argument_does_not_count_as_left_out(filled: Command, arguments: tuple[str, ...], name: str) -> None:
    """`--database "$URL"` with an unset variable is refused by name.

    Catches: a command that silently verifies or restores into the default database.
    """
    result = filled(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"allowance: WrongUsage: argument {name}: is empty")


def test_invalid_names_are_refused(filled: Command) -> None:
    """A name with a NUL, or a name that is too long, does not reach the database."""
    for arguments in (
        ("miners", "--executor-class", "a\0b", "--seconds", "1"),
        ("history", "--miner", "a\0b"),
        ("history", "--job", "x" * 1000),
        ("history", "--after", "no-such-cursor"),
        ("spend", "1", "--idempotency-key", "\n"),
    ):
        result = filled(*arguments)
        assert result.code == 2
        assert result.err.startswith("allowance: InvalidInput: ")
        assert result.err[:-1].isprintable()


def test_a_missing_validator_is_refused(allowance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a validator there is no ledger to work on; the message says how to name one."""
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")

    result = allowance("spend", "1")

    assert result.code == 2
    assert "--validator" in result.err
    assert "ALLOWANCE_VALIDATOR_SS58" in result.err


def test_options_override_the_environment(
    filled: Command, database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`--database` and `--validator` name another ledger for one command."""
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", f"sqlite:///{tmp_path / 'none.db'}")
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", "nobody")

    assert filled("health").code == 3
    assert ME in filled("health", "--database", database, "--validator", ME).out
    assert filled("health", "--database", database, "--validator", "nobody").out == ""
    assert filled("spend", "1", "--database", database).code == 1


def test_an_invalid_variable_is_named(allowance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read the same environment as the library, and refuse the same values, settings excepted."""
    monkeypatch.setenv("TRUSTED_MINER_PORT", "high")

    result = allowance("health")

    assert result.code == 2
    assert "TRUSTED_MINER_PORT" in result.err


# Storage


def test_reading_creates_no_ledger(allowance: Command, tmp_path: Path) -> None:
    """A typing error in a path does not leave an empty ledger behind."""
    for arguments in (("health",), ("miners",), ("history",), ("show", "1")):
        result = allowance(*arguments)
        assert result.code == 3
        assert result.err.startswith("allowance: StorageUnavailable: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("spend", "1"), ("release", "1"), ("rebuild",), ("pick",)], ids=" ".join)
def test_only_import_and_demo_create_a_ledger(
    filled: Command, tmp_path: Path, request_file: Path, database: str, arguments: tuple[str, ...]
) -> None:
    """For a mistyped path or validator, writing commands fail as `health` does, and create nothing.

    Catches: `spend` with a typing error in `--database`, which left an empty ledger there.
    """
    arguments = (*arguments, str(request_file)) if arguments == ("pick",) else arguments
    there = sorted(tmp_path.iterdir())
    result = filled(*arguments, "--database", f"sqlite:///{tmp_path / 'mistyped.db'}", "--json")
    assert (result.code, result.error["type"]) == (3, "StorageUnavailable")
    assert "there is no file" in result.err
    result = filled(*arguments, "--validator", "5Mistyped", "--json")
    assert (result.code, result.error["type"]) == (1, "LedgerNotFound")
    assert sorted(tmp_path.iterdir()) == there
    with contextlib.closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as stored:
        assert stored.execute("SELECT validator_ss58 FROM allowance_ledgers").fetchall() == [(ME,)]


def test_a_file_that_is_no_database_stays_unchanged(allowance: Command, facts: Path, tmp_path: Path) -> None:
    """The command exits with code 3, and the file keeps its content."""
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam, " * 200)
    for arguments in (("health",), ("import", facts), ("spend", "1")):
        result = allowance(*arguments, "--database", f"sqlite:///{letter}", "--json")
        assert result.code == 3
        assert result.error["type"] == "StorageUnavailable"
    assert letter.read_text() == "Dear Sir or Madam, " * 200


def test_an_unsupported_database_is_wrong_input(allowance: Command) -> None:
    """A URL that the library cannot open is the caller's mistake: exit code 2."""
    assert allowance("health", "--database", "mysql://localhost/x").code == 2


def test_a_missing_directory_is_a_storage_failure(allowance: Command, facts: Path) -> None:
    """A ledger in a directory that cannot exist: exit code 3."""
    result = allowance("import", facts, "--database", "sqlite:////dev/null/x/ledger.db")

    assert result.code == 3


# Import


def test_import_reports_the_recorded_facts(allowance: Command, facts: Path) -> None:
    """Every fact of the file is recorded once, and the summary counts all of them."""
    result = allowance("import", facts, "--json")

    assert result.code == 0
    assert result.err == ""
    summary = result.document
    assert summary.pop("seconds") > 0
    assert summary == {
        "lines": 63,
        "blocks_recorded": 60,
        "blocks_repeated": 0,
        "syncs_recorded": 3,
        "syncs_repeated": 0,
        "reservations_imported": 0,
        "reservations_repeated": 0,
        "position": allowance("health", "--json").document["position"],
    }


def test_importing_twice_changes_nothing(filled: Command, facts: Path) -> None:
    """A repeated import counts every fact as repeated and leaves the log as it is."""
    position = filled("health", "--json").document["position"]

    summary = filled("import", facts, "--json").document

    assert (summary["blocks_recorded"], summary["syncs_recorded"]) == (0, 0)
    assert (summary["blocks_repeated"], summary["syncs_repeated"]) == (60, 3)
    assert summary["position"] == position
    assert filled("health", "--json").document["position"] == position


def test_importing_a_longer_file_records_only_new_facts(allowance: Command, facts: Path, tmp_path: Path) -> None:
    """A file that has grown can be imported again."""
    part = written(tmp_path / "part.jsonl", *chain()[:40])
    known = allowance("import", part, "--json").document

    summary = allowance("import", facts, "--json").document

    assert summary["blocks_repeated"] == known["blocks_recorded"]
    assert summary["blocks_recorded"] == 60 - known["blocks_recorded"]


def test_import_summary_as_text(allowance: Command, facts: Path) -> None:
    """Without `--json`, import writes one line on standard output."""
    result = allowance("import", facts)

    assert "60 blocks" in result.out
    assert "3 manifest syncs recorded" in result.out
    assert result.out.count("\n") == 1
    assert result.err == ""


def test_one_is_written_in_the_singular(filled: Command, tmp_path: Path) -> None:
    """A count of one line, block or sync has a singular noun.

    Catches: "1 lines", "1 blocks".
    """
    assert "1 line in" in filled("import", written(tmp_path / "sync.jsonl", chain()[0])).out
    whole = json.loads(next(line for line in chain() if '"miners"' in line))
    block = json.dumps({**whole, "number": 1060, "created_at": "2024-01-01T12:12:00Z"})
    result = filled("import", "--confirm", written(tmp_path / "block.jsonl", block))
    assert "1 line in" in result.out
    assert ": 1 block and 0 manifest syncs recorded" in result.out
    least = request(execution_time_limit=0, download_time_limit=0, upload_time_limit=0.001)
    reservation_id = picked(filled, written(tmp_path / "least.json", least))
    assert ": 0.001 s in 1 block of" in filled("spend", reservation_id).out


def test_import_reads_standard_input(allowance: Command, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads the facts from a pipe."""
    stdin(monkeypatch, facts.read_text())

    assert allowance("import", "-", "--json").document["blocks_recorded"] == 60


BLOCK_1060 = '{"type":"block","number":1060,"created_at":"2024-01-01T13:00:00Z"}'

BAD_LINES = {
    "malformed": '{"type":"block",,}',
    "truncated": BLOCK_1060[:40],
    "NUL in a name": '{"type":"manifests","block":1060,"manifests":{"a\\u0000b":{"x":1}}}',
    "NUL in a class": '{"type":"manifests","block":1060,"manifests":{"a":{"\\u0000":1}}}',
    "NUL": "\0",
    "a huge number": BLOCK_1060.replace("1060", str(10**30)),
    "a negative number": BLOCK_1060.replace("1060", "-100"),
    "true": BLOCK_1060.replace("1060", "true"),
    "NaN": BLOCK_1060.replace("1060", "NaN"),
    "naive time": BLOCK_1060.replace("Z", ""),
    "year 9999": BLOCK_1060.replace("2024", "9999"),
    "year 1": BLOCK_1060.replace("2024", "0001"),
    "a huge stake": BLOCK_1060.replace("Z", 'Z","stakes":{"a":1e300},"x":"').replace(',"x":""', ""),
    "a port beyond ports": BLOCK_1060.replace(
        "}", ',"miners":[{"hotkey_ss58":"a","address":"192.0.2.1","ip_version":4,"port":70000}]}'
    ),
    "an ip version of 5": BLOCK_1060.replace(
        "}", ',"miners":[{"hotkey_ss58":"a","address":"192.0.2.1","ip_version":5,"port":1}]}'
    ),
    "duplicate hotkeys": BLOCK_1060.replace(
        "}",
        ',"miners":[' + ",".join(['{"hotkey_ss58":"a","address":"192.0.2.1","ip_version":4,"port":1}'] * 2) + "]}",
    ),
}


@pytest.mark.parametrize("text", BAD_LINES.values(), ids=BAD_LINES)
def test_facts_before_a_bad_line_are_recorded(allowance: Command, tmp_path: Path, text: str) -> None:
    """The error names the bad line; that line and all later ones are not recorded; exit code 2."""
    file = written(tmp_path / "bad.jsonl", *chain(), text, BLOCK_1060)

    result = allowance("import", file, "--json")

    assert result.code == 2
    assert "line 64: " in result.err.splitlines()[-1]
    assert result.error["fields"]["line"] == 64
    assert result.error["fields"]["before"]["blocks_recorded"] == 60
    assert allowance("health", "--json").document["newest_block"] == 1059


def test_the_error_of_a_refused_fact_names_its_line(filled: Command, tmp_path: Path) -> None:
    """A fact that contradicts a recorded one stops the import with the ledger's own error."""
    lines = chain(70)
    conflicting = json.dumps({**json.loads(lines[-6]), "number": 1030})
    file = written(tmp_path / "conflict.jsonl", *lines[:-5], conflicting, *lines[-5:])

    result = filled("import", file, "--json")

    assert result.code == 2
    assert result.error["type"] == "ConflictingFact"
    assert result.error["fields"]["line"] == len(lines) - 4
    assert result.error["fields"]["before"]["blocks_recorded"] == 5
    assert filled("health", "--json").document["newest_block"] == 1064


def test_version_prints_the_release(allowance: Command) -> None:
    """A bug report can name the release."""
    result = allowance("--version")
    assert (result.code, result.out) == (0, f"allowance {routing.__version__}\n")


def test_an_implausible_fact_needs_confirm(filled: Command, tmp_path: Path) -> None:
    """A fact that looks like a mistake is recorded only with `--confirm`."""
    leap = BLOCK_1060.replace("1060", "900000").replace("2024", "2025")
    file = written(tmp_path / "leap.jsonl", *chain()[:2], leap)

    refused = filled("import", file)
    assert refused.code == 2
    assert "ImplausibleFact: line 3: " in refused.err
    assert "repeat with --confirm if it is right" in refused.err

    assert filled("import", file, "--confirm").code == 0
    assert filled("health", "--json").document["newest_block"] == 900000


def test_an_unreadable_file_is_wrong_input(allowance: Command, tmp_path: Path) -> None:
    """Importing a file that cannot be read creates no ledger."""
    for file in (tmp_path / "none.jsonl", tmp_path, "a\0b"):
        result = allowance("import", file, "--json")
        assert result.code == 2
        assert result.error["type"] == "UnreadableInput"
    assert list(tmp_path.iterdir()) == []


# Miners, pick, spend, release


def test_miners_lists_all_registered_miners(filled: Command) -> None:
    """Without a job, the command lists the registered miners with their axons and executors."""
    items = filled("miners", "--json").documents

    registered = [line["miners"] for line in map(json.loads, chain()) if "miners" in line][-1]
    assert {item["hotkey_ss58"] for item in items} == {miner["hotkey_ss58"] for miner in registered}
    assert {"hotkey_ss58", "address", "ip_version", "port", "executors"} == items[0].keys()
    assert all(count >= 0 for item in items for count in item["executors"].values())
    text = filled("miners")
    assert text.code == 0
    assert text.out.count("\n") == 1 + len(registered)


def test_miners_lists_candidates_best_first(filled: Command) -> None:
    """With a job, the command lists its candidates, ranked."""
    arguments = ("miners", "--executor-class", GPU, "--seconds", "30")

    items = filled(*arguments, "--json").documents

    assert [item["rank"] for item in items] == list(range(1, len(items) + 1))
    assert items[0].keys() == {
        "rank",
        "hotkey_ss58",
        "earliest_block",
        "available_seconds",
        "total_seconds",
        "share_left",
        "stream_version",
        "executor_class",
    }
    assert [item["earliest_block"] for item in items] == sorted(item["earliest_block"] for item in items)
    assert all(item["available_seconds"] >= 30 and item["share_left"] == 1 for item in items)
    text = filled(*arguments)
    assert items[0]["hotkey_ss58"] in text.out.splitlines()[1]
    assert "100.0 %" in text.out


def test_reserve_claims_at_the_version_that_miners_shows(filled: Command) -> None:
    """The first of two with one version reserves; the second is told the actual version: exit code 1, nothing recorded.

    Catches an option that is not passed on.
    """
    miners = ("miners", "--executor-class", GPU, "--seconds", "30")
    hotkey, version = (filled(*miners, "--json").documents[0][name] for name in ("hotkey_ss58", "stream_version"))
    assert filled(*miners).out.splitlines()[1].split()[-1] == str(version) == "0"
    reserve = ("reserve", hotkey, GPU, "30", "--expected-version", version)

    first = filled(*reserve, "--job-uuid", "by-hand", "--json")
    second = filled(*reserve, "--json")

    assert (first.code, first.document["status"], first.document["job_uuid"]) == (0, "reserved", "by-hand")
    assert (second.code, second.error["type"]) == (1, "StreamVersionConflict")
    assert second.error["fields"] == {"stream": f"{hotkey}\t{GPU}", "expected_version": 0, "actual_version": 1}
    assert len(filled("history", "--json").documents) == 1
    assert filled("reserve", hotkey, GPU, "1", "--expected-version", "1").code == 0


def test_reserve_starts_at_the_newest_block_and_retries_by_its_key(filled: Command) -> None:
    """`--block` names another start; the same key returns the same reservation, whatever version is expected then."""
    newest = filled("health", "--json").document["newest_block"]
    hotkey = filled("miners", "--executor-class", GPU, "--seconds", "30", "--json").documents[0]["hotkey_ss58"]
    first = filled(
        "reserve", hotkey, GPU, "2.5", "--idempotency-key", "once", "--expected-version", "0", "--json"
    ).document
    assert (first["job_start_block"], first["allowance_seconds"]) == (newest, 2.5)
    again = filled("reserve", hotkey, GPU, "2.5", "--idempotency-key", "once", "--expected-version", "0", "--json")
    assert (again.code, again.document) == (0, first)
    text = filled("reserve", hotkey, GPU, "2.5", "--block", newest - 3)
    assert f"job start block  {newest - 3}" in text.out
    assert filled("reserve", hotkey, GPU, "3600").code == 1
    assert filled("reserve", hotkey, GPU, "3601").code == 2


def test_candidates_depend_on_the_start_block(filled: Command) -> None:
    """A job that starts after all blocks have expired has no candidate: exit code 1."""
    arguments = ("miners", "--executor-class", GPU, "--seconds", "1", "--block")
    early = filled(*arguments, "1000", "--json").documents
    late = filled(*arguments, "1750", "--json").documents

    assert sum(item["total_seconds"] for item in early) > sum(item["total_seconds"] for item in late) > 0
    assert filled(*arguments, "100000").code == 1


def test_no_candidate_is_exit_code_1(filled: Command) -> None:
    """The error names the miner with the most allowance."""
    result = filled("miners", "--executor-class", GPU, "--seconds", "3600", "--json")

    assert result.code == 1
    assert result.error["type"] == "NotEnoughAllowanceException"
    assert result.error["fields"]["highest_available_allowance"] > 0
    assert result.err.startswith("allowance: NotEnoughAllowanceException: ")


def test_more_than_the_longest_job_is_wrong_input(filled: Command) -> None:
    """An amount that no miner can ever have is wrong input, not the answer no."""
    assert filled("miners", "--executor-class", GPU, "--seconds", "3601").code == 2


def test_an_empty_ledger_has_no_candidates(allowance: Command, tmp_path: Path) -> None:
    """Before the first fact, candidates are the answer no, and lists are empty."""
    assert allowance("import", written(tmp_path / "empty.jsonl")).code == 0

    assert allowance("miners", "--executor-class", GPU, "--seconds", "1").code == 1
    assert allowance("miners").code == 0
    assert allowance("history", "--json").documents == []


def picked(allowance: Command, request_file: Path) -> int:
    result = allowance("pick", request_file, "--json")
    assert result.code == 0
    reservation_id: int = result.document["allowance_reservation_id"]
    return reservation_id


def test_pick_returns_the_route(filled: Command, request_file: Path) -> None:
    """The route has the miner, the blocks that pay for the job, and the reservation's id."""
    route = filled("pick", request_file, "--json").document

    assert route.keys() == {"miner", "allowance_blocks", "allowance_reservation_id", "allowance_job_value"}
    assert route["miner"].keys() == {"hotkey_ss58", "address", "ip_version", "port"}
    assert route["allowance_job_value"] == 14.5
    assert route["allowance_blocks"] == sorted(route["allowance_blocks"])

    text = filled("pick", request_file)
    assert str(route["allowance_reservation_id"]) in text.out
    assert route["miner"]["hotkey_ss58"] in text.out
    assert text.err == ""  # The next step is for people who watch.


def test_pick_reads_standard_input(filled: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads the request from a pipe."""
    stdin(monkeypatch, request())

    assert filled("pick", "-", "--json").code == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\0",
        request().replace("10.5", "NaN"),
        request().replace("10.5", "1e999"),
        request().replace("10.5", "-100"),
        request().replace("10.5", "true"),
        request().replace("10.5", f"{10**30}"),
        request(uuid=17),
        request(uuid=""),
        request(uuid="a\0b"),
        request(uuid="x" * 1000),
        request(executor_class="\0"),
        request(on_trusted_miner="yes"),
        request().replace('"uuid"', '"id"'),
        "x" * (1 << 21),
    ],
    ids=lambda text: text[:60].replace("\0", "NUL"),
)
def test_pick_refuses_a_malformed_request(filled: Command, tmp_path: Path, text: str) -> None:
    """A malformed request is wrong input, is reported in one line, and reserves nothing."""
    result = filled("pick", written(tmp_path / "request.json", text), "--json")

    assert result.code == 2
    assert result.error["type"] in ("WrongInput", "InvalidInput")
    assert result.err.count("\n") == 1
    assert filled("history", "--json").documents == []


def test_pick_exits_with_1_if_the_job_cannot_be_routed(filled: Command, tmp_path: Path) -> None:
    """An unknown class, or other content for a known uuid, is the answer no."""
    unknown = written(tmp_path / "unknown.json", request(executor_class="abacus"))
    assert filled("pick", unknown, "--json").error["type"] == "NotEnoughAllowanceException"

    assert filled("pick", written(tmp_path / "one.json", request())).code == 0
    other = filled("pick", written(tmp_path / "two.json", request(upload_time_limit=3)), "--json")
    assert other.code == 1
    assert other.error["type"] == "JobRequestConflict"


def test_trusted_and_debug_miners_need_no_ledger(
    allowance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes without a reservation open no database and need no validator."""
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    file = written(tmp_path / "request.json", request(on_trusted_miner=True))

    trusted = allowance("pick", file, "--json").document
    assert trusted["miner"]["hotkey_ss58"] == "0" * 48
    assert trusted["allowance_blocks"] is None

    monkeypatch.setenv("DEBUG_MINER_KEY", "debug")
    debug = allowance("pick", file)
    assert "debug" in debug.out
    assert "nothing is reserved" in debug.err
    assert [path.name for path in tmp_path.iterdir()] == ["request.json"]


@pytest.mark.parametrize(
    ("how", "status", "again"),
    [("spend", "spent", "ReservationAlreadySpent"), ("release", "released", "ReservationAlreadyReleased")],
)
def test_a_reservation_is_settled_once(filled: Command, request_file: Path, how: str, status: str, again: str) -> None:
    """Settling returns the reservation; settling it again is refused with exit code 1."""
    reservation_id = picked(filled, request_file)

    settled = filled(how, reservation_id, "--json")
    assert settled.code == 0
    assert settled.document["status"] == status
    assert settled.document["settled_at"].endswith("Z")

    for repeated in ("spend", "release"):
        result = filled(repeated, reservation_id, "--json")
        assert result.code == 1
        assert result.error["type"] == again


def test_a_fact_is_withdrawn(filled: Command) -> None:
    """A withdrawal returns its position, also when it is repeated; an unknown fact is refused with exit code 1."""
    newest = filled("health", "--json").document["newest_block"]
    for fact, block in (("block", newest), ("manifests", 1)):
        unknown = filled("withdraw", fact, "999999", "--reason", "unknown", "--json")
        assert (unknown.code, unknown.error["type"]) == (1, "FactNotRecorded")
        recorded = filled("withdraw", fact, str(block), "--reason", "mistyped", "--json")
        if recorded.code == 0:
            assert recorded.document["reason"] == "mistyped"
            assert recorded.document["position"] > 0
            again = filled("withdraw", fact, str(block), "--reason", "mistyped")
            assert f"is withdrawn since position {recorded.document['position']}" in again.out
    assert filled("withdraw", "block", "1").code == 2


def test_settlement_as_text(filled: Command, request_file: Path) -> None:
    """Without `--json`, the output names the reservation, its status and its amount."""
    reservation_id = picked(filled, request_file)

    assert f"reservation {reservation_id} is spent: 14.500 s" in filled("spend", reservation_id).out


def test_an_idempotency_key_makes_settling_repeatable(filled: Command, request_file: Path) -> None:
    """Retrying with the same key is safe: it returns the same result."""
    reservation_id = picked(filled, request_file)
    arguments = ("spend", reservation_id, "--idempotency-key", "once", "--json")

    assert filled(*arguments).document == filled(*arguments).document


def test_an_unknown_reservation_is_exit_code_1(filled: Command) -> None:
    """Every command with a reservation's id reports an id that does not exist."""
    for command in ("spend", "release", "show"):
        result = filled(command, "4711", "--json")
        assert result.code == 1
        assert result.error["type"] == "ReservationNotFound"


# History, show, health


def test_show_prints_all_fields_of_a_reservation(filled: Command, request_file: Path) -> None:
    """Job, miner, amount, blocks and times, before and after settling."""
    reservation_id = picked(filled, request_file)
    assert "not yet" in filled("show", reservation_id).out

    filled("release", reservation_id)
    document = filled("show", reservation_id, "--json").document
    text = filled("show", reservation_id).out

    assert document["job_uuid"] == "job-1"
    assert document["status"] == "released"
    assert document["allowance_seconds"] == 14.5
    assert f"{document['blocks'][0]}-{document['blocks'][-1]}" in text
    assert "released at" in text
    assert document["miner_ss58"] in text


@pytest.fixture
def busy(filled: Command, tmp_path: Path) -> Command:
    """A ledger with five jobs: two spent, one released, two reserved."""
    for number in range(5):
        reservation_id = picked(filled, written(tmp_path / "job.json", request(uuid=f"job-{number}")))
        if number < 3:
            filled(("spend", "spend", "release")[number], reservation_id)
    return filled


def jobs(result: Result) -> list[str]:
    assert result.code == 0
    return [item["job_uuid"] for item in result.documents]


def test_history_lists_newest_first(busy: Command) -> None:
    """Each reservation is a row; `--oldest-first` reverses the order."""
    assert jobs(busy("history", "--json")) == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert jobs(busy("history", "--json", "--oldest-first")) == ["job-0", "job-1", "job-2", "job-3", "job-4"]
    assert busy("history").out.count("\n") == 6


def test_history_combines_filters(busy: Command) -> None:
    """Every filter narrows the list; if nothing matches, the list is empty."""
    one = busy("history", "--job", "job-2", "--json").documents[0]

    assert jobs(busy("history", "--status", "spent", "--json")) == ["job-1", "job-0"]
    assert "job-2" in jobs(busy("history", "--miner", one["miner_ss58"], "--executor-class", GPU, "--json"))
    assert "job-2" in jobs(busy("history", "--block", one["blocks"][0], "--json"))
    assert jobs(busy("history", "--block", "1", "--json")) == []
    assert jobs(busy("history", "--from", "2024-01-01T00:00:00Z", "--json")) != []
    assert jobs(busy("history", "--until", "2024-01-01T00:00:00+01:00", "--json")) == []
    assert jobs(busy("history", "--job", "job-2", "--status", "spent", "--json")) == []
    nothing = busy("history", "--status", "expired")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "no reservation matches\n")


def test_history_continues_after_a_page(busy: Command) -> None:
    """A note on standard error gives the cursor, and `--after` continues there until the end."""
    seen: list[str] = []
    arguments: tuple[str, ...] = ()
    for more in (True, True, False):
        page = busy("history", "--limit", "2", "--json", *arguments)
        seen += jobs(page)
        assert bool(page.err) is more
        arguments = ("--after", page.err.partition("--after ")[2].partition(",")[0])

    assert seen == ["job-4", "job-3", "job-2", "job-1", "job-0"]


def test_history_limits_the_page_size(busy: Command) -> None:
    """The parser accepts the same page sizes as the library; the error of a larger one names the option and its range.

    Catches: an error about `limit`, a name that the user did not type, after an error with a larger range.
    """
    assert MOST_PAGE_ITEMS == MOST_ITEMS
    assert len(jobs(busy("history", "--limit", MOST_ITEMS, "--json"))) == 5
    for wrong in (0, MOST_ITEMS + 1, 2**63):
        result = busy("history", "--limit", wrong)
        assert result.code == 2
        assert f"argument --limit: '{wrong}' is not a whole number from 1 to 10000" in result.err


def test_history_all_lists_every_page(busy: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--all` reads page after page."""
    from routing.cli.commands import history

    monkeypatch.setattr(history, "PAGE_ITEMS", 2)

    result = busy("history", "--all", "--json")

    assert jobs(result) == ["job-4", "job-3", "job-2", "job-1", "job-0"]
    assert result.err == ""


def test_history_all_writes_one_table(busy: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages share one header and one layout, although they are written page by page.

    Catches: a header before each page, in the middle of the input of `sort` or `less`.
    """
    from routing.cli.commands import history

    whole = busy("history", "--limit", "10")
    monkeypatch.setattr(history, "PAGE_ITEMS", 2)
    result = busy("history", "--all")
    assert (result.out, result.err) == (whole.out, "")
    assert result.out.count("reserved at") == 1


def test_health_reports_position_newest_block_and_reservations(busy: Command) -> None:
    """The text uses the same names as the JSON document; the exit code says that the feed of its old blocks is dead."""
    from routing.cli.commands.health import _SHOWN_TOGETHER

    document = busy("health", "--json").document

    assert document["newest_block"] == 1059
    assert document["reserved"] == 2
    text = busy("health")
    assert text.code == 1
    # The age may have grown by a second between the two.
    status = re.escape(re.sub(r"[\d,]+ s old", "AGE s old", document["status"])).replace("AGE", r"[\d,]+")
    assert re.search(rf"^status            {status}$", text.out, re.MULTILINE)
    for name in document.keys() - _SHOWN_TOGETHER:
        assert name.replace("_", " ") in text.out
    assert document["missing_triggers"] == []
    assert "missing triggers  none\n" in text.out
    assert f"newest block      1059, {document['newest_block_age_seconds']:,.3f} s old"[:20] in text.out


def test_health_fails_beyond_a_limit(busy: Command) -> None:
    """Exit code 1, with the limit in the text and in the document; without limits on what is well, exit code 0."""
    made_up_chain = ("--max-block-age", "1e12")
    assert busy("health", *made_up_chain).code == 0
    exceeded = busy("health", *made_up_chain, "--max-unverified", "86400")
    assert exceeded.code == 1
    assert "status            the last verification is missing, and must be at most 86,400 s old\n" in exceeded.out
    document = busy("health", *made_up_chain, "--max-lag", "0", "--max-overdue", "5", "--json").document
    assert document["failures"] == [f"the history is {document['projection_lag']} events behind, more than 0"]
    assert busy("health", "--database", "sqlite:///none.db", *made_up_chain).code == 3


# Processes


def test_a_closed_pipe_is_no_error(filled: Command, database: str) -> None:
    """`allowance … | head` ends quietly with exit code 0."""
    env = {"ALLOWANCE_DATABASE_URL": database, "ALLOWANCE_VALIDATOR_SS58": ME}
    with process("miners", "--json", env=env) as listing:
        assert listing.stdout
        listing.stdout.close()
        assert listing.stderr
        output = listing.stderr.read()
        code = listing.wait(30)

    assert (code, output) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_an_error(filled: Command, database: str) -> None:
    """If the disk is full, `allowance … > file` exits with code 3 and one line on standard error."""
    env = {**os.environ, "ALLOWANCE_DATABASE_URL": database, "ALLOWANCE_VALIDATOR_SS58": ME}
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "routing.cli", "health"]
        result = subprocess.run(command, cwd=ROOT, env=env, check=False, stdout=full, stderr=subprocess.PIPE)

    assert result.returncode == 3
    assert b"No space left" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_closed_streams_are_no_error(filled: Command, database: str) -> None:
    """A command runs to its end even if the shell closed its output streams."""
    env = {**os.environ, "ALLOWANCE_DATABASE_URL": database, "ALLOWANCE_VALIDATOR_SS58": ME}
    command = f'"{sys.executable}" -m routing.cli miners >&- 2>&-'

    assert subprocess.run(command, shell=True, cwd=ROOT, env=env, check=False).returncode == 0


def test_an_interrupted_import_keeps_the_earlier_facts(facts: Path, allowance: Command, database: str) -> None:
    """Control-C during a live feed: exit code 130, and the facts that arrived before are recorded."""
    env = {"ALLOWANCE_DATABASE_URL": database, "ALLOWANCE_VALIDATOR_SS58": ME}
    with process("import", "-", env=env, stdin=subprocess.PIPE) as importing:
        assert importing.stdin
        importing.stdin.write(facts.read_bytes())
        importing.stdin.flush()
        deadline = time.monotonic() + 30
        while newest_block(allowance) != 1059:
            assert time.monotonic() < deadline
        importing.send_signal(signal.SIGINT)
        _, output = importing.communicate(timeout=30)

    assert importing.returncode == 130
    assert output == b"allowance: interrupted\n"
    assert newest_block(allowance) == 1059


def newest_block(allowance: Command) -> int | None:
    result = allowance("health", "--json")
    newest: int | None = result.document.get("newest_block")
    return newest


# Demo

SMALL = ("--miners", "20", "--validators", "3", "--classes", "2", "--blocks", "120", "--jobs", "60", "--callers", "8")


def test_demo_finds_no_block_taken_twice(allowance: Command) -> None:
    """The whole product at work: every reservation is settled, and no block pays for two jobs."""
    result = allowance("demo", *SMALL, "--json")

    assert result.code == 0
    report = result.document
    assert report["import"]["blocks_recorded"] == 120
    assert report["routing"]["jobs"] == 60
    assert report["routing"]["answered_differently"] == 0
    assert sum(report["reservations"].values()) + sum(report["routing"]["refused"].values()) == 60
    assert "reserved" not in report["reservations"]
    assert report["check"]["held_twice"] == 0
    assert report["check"]["blocks"] > 0
    assert report["audit"]["findings"] == 0
    assert report["audit"]["events"] > report["check"]["reservations"]
    assert report["window"]["columns"]


def test_demo_narrates_each_step(allowance: Command) -> None:
    """Each step has a heading; without a terminal there are no escape sequences."""
    result = allowance("demo", *SMALL)

    assert result.code == 0
    assert result.err == ""
    for step in ("1. ", "2. ", "3. ", "4. ", "5. "):
        assert f"\n{step}" in result.out
    assert "0 of them taken twice" in result.out
    assert "\x1b" not in result.out


def test_demo_does_not_write_to_the_configured_ledger(allowance: Command, tmp_path: Path) -> None:
    """Made-up facts never get into a real ledger."""
    assert allowance("demo", *SMALL, "--json").code == 0

    assert list(tmp_path.iterdir()) == []


def test_demo_keeps_its_files_if_asked(allowance: Command, tmp_path: Path) -> None:
    """The other commands can read the kept ledger, and a second demo does not overwrite it."""
    kept = tmp_path / "kept"
    report = allowance("demo", *SMALL, "--keep", kept, "--json").document
    ledger = ("--database", f"sqlite:///{kept / 'demo.db'}", "--validator", report["validator_ss58"])

    listed = allowance("history", *ledger, "--all", "--json").documents
    assert len(listed) == sum(report["reservations"].values())
    assert allowance("import", kept / "facts.jsonl", *ledger, "--json").document["blocks_recorded"] == 0
    again = allowance("demo", *SMALL, "--keep", kept)
    assert again.code == 2
    assert "name another directory" in again.err


def test_demo_reports_the_kept_files(allowance: Command, tmp_path: Path) -> None:
    """The report names the database only if the demo created it in that directory."""
    output = allowance("demo", *SMALL, "--keep", tmp_path / "both").out
    assert (
        f"Kept in {tmp_path / 'both'}: facts.jsonl and demo.db, for `allowance history` and other commands." in output
    )
    named = ("--database", f"sqlite:///{tmp_path / 'elsewhere.db'}", "--validator", "demo-validator")
    output = allowance("demo", *SMALL, *named, "--keep", tmp_path / "facts").out
    assert f"Kept in {tmp_path / 'facts'}: facts.jsonl." in output


def test_demo_can_use_a_given_database(allowance: Command, database: str) -> None:
    """With `--database`, the demo's ledger has its own validator beside other ledgers."""
    assert allowance("demo", *SMALL, "--database", database, "--validator", "demo-validator", "--json").code == 0

    assert '"validator_ss58":"demo-validator"' in allowance("health", "--validator", "demo-validator", "--json").out
    assert allowance("health").code == 1


def test_demo_on_a_chain_without_allowance(allowance: Command) -> None:
    """A single block grants nothing yet: every job is refused, and the demo says so."""
    result = allowance("demo", "--miners", "1", "--validators", "1", "--classes", "1", "--blocks", "1", "--jobs", "3")

    assert result.code == 0
    assert "3 jobs were refused: NotEnoughAllowanceException" in result.out


def test_a_swallowed_interrupt_still_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If a finalizer swallows the exception of Control-C, the exit code is still 130.

    Catches: an exit code that reports success.
    """

    from routing.cli.commands import health

    def swallow(*_: object) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr("routing.cli.commands.health.COMMAND", health.COMMAND._replace(run=swallow))
    assert main(["health"]) == 130
    assert "interrupted" in capsys.readouterr().err
