"""What operators reach for: expire, ledgers, overdue reservations, CSV, filters of `miners`, and helpful errors."""

from __future__ import annotations

import asyncio
import csv
import io
import shlex
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from routing import Allowance, Routing
from routing.cli.commands import COMMANDS
from routing.texts import block_ranges
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

pytestmark = pytest.mark.compatibility

ANNA = "5AnnaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
BERT = "5BertEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
OTHER_CLASS = "spin_up-4min.cpu-16gb"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a ledger from January 2024 with a spent and an overdue reservation; Bert offers one more class."""
    path = tmp_path / "ledger.db"

    async def fill() -> None:
        clock = Clock(START + timedelta(seconds=132))
        async with small_ledger(url=f"sqlite:///{path}", clock=clock, offers={ANNA: 2, BERT: 2}) as ledger:
            await ledger.record_manifests(11, {ANNA: {GPU: 2}, BERT: {GPU: 2, OTHER_CLASS: 1}})
            route = await Routing(ledger).pick_miner_for_job_request(job("job-spent", 12.0))
            assert route.allowance_reservation_id is not None
            await ledger.spend(route.allowance_reservation_id)
            await ledger.reserve(BERT, GPU, 12.0, 11, job_uuid="job-forgotten")

    asyncio.run(fill())
    return path


@pytest.fixture
def allowance(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `allowance` on that ledger."""
    configure_ledger(monkeypatch, f"sqlite:///{path}", VALIDATOR)
    return command_line(capsys)


def test_expire_lists_what_it_expired(allowance: Command) -> None:
    """Once; afterwards nothing is overdue, and the reservation can no longer be spent."""
    (overdue,) = allowance("history", "--status", "overdue", "--json").documents
    (expired,) = allowance("expire", "--json").documents
    assert (overdue["status"], expired["status"]) == ("reserved", "expired")
    assert overdue["reservation_id"] == expired["reservation_id"]
    again = allowance("expire")
    assert (again.code, again.out, again.err) == (0, "", "no reservation is overdue\n")
    assert allowance("history", "--status", "overdue", "--json").documents == []
    assert allowance("spend", expired["reservation_id"]).code == 1


def test_expire_with_a_key_repeats_its_result(allowance: Command) -> None:
    """A retry after a lost answer lists the same reservations."""
    first = allowance("expire", "--idempotency-key", "nightly")
    assert "job-forgotten" in first.out
    assert allowance("expire", "--idempotency-key", "nightly").out == first.out


def test_ledgers_lists_every_ledger_of_a_database(
    allowance: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With head, events and newest block, whatever validator the environment names; `--validator` selects one."""
    (alone,) = allowance("ledgers", "--json").documents
    health = allowance("health", "--json").document
    assert (alone["validator_ss58"], alone["events"], alone["head"]) == (VALIDATOR, health["position"], health["head"])
    assert (alone["newest_block"], alone["problem"]) == (11, None)
    assert alone["file_bytes"] == path.stat().st_size

    async def found() -> None:
        async with Allowance.open(f"sqlite:///{path}", validator_ss58="5Other"):
            pass

    asyncio.run(found())
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    listed = allowance("ledgers", "--json").documents
    assert [(each["validator_ss58"], each["newest_block"]) for each in listed] == [("5Other", None), (VALIDATOR, 11)]
    assert len(allowance("ledgers", "--validator", "5Other", "--json").documents) == 1
    assert "5Other" in allowance("ledgers").out


def test_ledgers_of_an_export_and_of_nothing(allowance: Command, path: Path, tmp_path: Path) -> None:
    """An export has one; a database without a ledger is exit code 1, a missing one 3."""
    export = tmp_path / "ledger.gz"
    assert allowance("export", export).code == 0
    document = allowance("ledgers", "--database", export, "--json").document
    assert (document["validator_ss58"], document["file_bytes"]) == (VALIDATOR, export.stat().st_size)
    assert allowance("ledgers", "--validator", "5Nobody").code == 1
    assert allowance("ledgers", "--database", f"sqlite:///{tmp_path}/none.db").code == 3


def test_history_writes_csv(allowance: Command) -> None:
    """A header and one line for each reservation, with the values of `--json`; blocks are ranges."""
    documents = allowance("history", "--json").documents
    rows = list(csv.DictReader(io.StringIO(allowance("history", "--csv").out)))
    assert len(rows) == len(documents) == 2
    for row, document in zip(rows, documents, strict=True):
        assert row.keys() == document.keys() - {"checked"}
        for name in ("reservation_id", "status", "miner_ss58", "job_uuid", "reserved_at", "allowance_seconds"):
            assert row[name] == str(document[name])
        assert row["blocks"] == block_ranges(document["blocks"])
    assert [row["settled_at"] == "" for row in rows] == [True, False]
    assert allowance("history", "--job", "nobody's", "--csv").out.startswith("reservation_id,")
    assert allowance("history", "--csv", "--json").code == 2


def test_history_shows_the_columns_that_are_asked_for(allowance: Command) -> None:
    """In their order, in each of the three forms; an unknown one is refused with all that there are."""
    columns = ("--columns", "job_uuid,settled_at")
    assert allowance("history", *columns).out.split("\n")[0].split("  ")[0] == "job"
    assert allowance("history", *columns, "--csv").out.splitlines()[0] == "job_uuid,settled_at"
    assert list(allowance("history", *columns, "--json").documents[0]) == ["job_uuid", "settled_at", "checked"]
    for wrong in ("job", "job_uuid,job_uuid", "job_uuid,"):
        refused = allowance("history", "--columns", wrong)
        assert (refused.code, "expires_at" in refused.err) == (2, True)


def test_miners_takes_either_filter_alone(allowance: Command) -> None:
    """A class lists all that have any allowance in it; an amount lists the candidates of each class."""

    def found(*arguments: object) -> set[tuple[str, str]]:
        documents = allowance("miners", *arguments, "--json").documents
        return {(each["hotkey_ss58"], each["executor_class"]) for each in documents}

    assert found("--executor-class", GPU) == {(ANNA, GPU), (BERT, GPU)}
    assert found("--seconds", 5) == {(ANNA, GPU), (BERT, GPU)}
    result = allowance("miners", "--seconds", 3000)
    assert (result.code, result.out) == (1, "")
    assert "NotEnoughAllowanceException" in result.err
    assert GPU in allowance("miners", "--seconds", 5).out
    assert GPU not in allowance("miners", "--seconds", 5, "--executor-class", GPU).out


@pytest.mark.parametrize(
    "arguments",
    [
        ("history", "--miner", "5Carl"),
        ("history", "--miner", "5Carl", "--csv"),
        ("why", "5Carl", GPU),
        ("reserve", "5Carl", GPU, "5"),
    ],
    ids=" ".join,
)
def test_an_unknown_miner_is_named(allowance: Command, arguments: tuple[str, ...]) -> None:
    """Exit code 1. Catches: a mistyped hotkey that looks like a miner without reservations."""
    result = allowance(*arguments)
    assert result.code == 1
    assert "UnknownMiner: the ledger has never seen the miner 5Carl" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("history", "--executor-class", "gpu"),
        ("why", ANNA, "gpu"),
        ("miners", "--executor-class", "gpu"),
        ("miners", "--executor-class", "gpu", "--seconds", "5"),
        ("reserve", ANNA, "gpu", "5"),
    ],
    ids=" ".join,
)
def test_an_unknown_executor_class_is_named(allowance: Command, arguments: tuple[str, ...]) -> None:
    """Exit code 1, with the classes that the ledger knows."""
    result = allowance(*arguments, "--json")
    assert (result.code, result.error["type"]) == (1, "UnknownExecutorClass")
    assert f"it knows {GPU}, {OTHER_CLASS}" in result.error["message"]


def test_a_known_name_without_reservations_is_an_empty_answer(allowance: Command) -> None:
    """Exit code 0: the ledger knows the miner and the class, and nothing matches."""
    for filters in (("--miner", ANNA, "--status", "released"), ("--executor-class", OTHER_CLASS)):
        result = allowance("history", *filters)
        assert (result.code, result.err) == (0, "no reservation matches\n")
    assert allowance("why", BERT, OTHER_CLASS).code == 0


@pytest.mark.parametrize(
    ("typed", "meant"), [(ANNA[:9], ANNA), ("5AnnaE…utQY", ANNA), (ANNA[:-1] + "Z", ANNA), ("5", None)]
)
def test_the_hotkey_that_was_meant_is_named(allowance: Command, typed: str, meant: str | None) -> None:
    """By its beginning, by the two ends that a table shows, or by likeness; never one of several."""
    result = allowance("history", "--miner", typed)
    assert result.code == 1
    assert (f"did you mean {meant}?" in result.err) if meant else ("did you mean" not in result.err)


def test_a_file_without_its_option_is_recognized(allowance: Command, path: Path) -> None:
    """As in `allowance audit ledger.db`, which `verify` would take."""
    result = allowance("audit", path)
    assert result.code == 2
    assert "name a database or an export with --database" in result.err


def test_the_command_that_was_meant_is_named(allowance: Command) -> None:
    """A short error instead of the list of all commands."""
    for typed, meant in (("histroy", "history"), ("ledger", "ledgers"), ("xyz", None)):
        result = allowance(typed)
        assert result.code == 2
        assert f"there is no command '{typed}'" in result.err
        assert (f"did you mean `allowance {meant}`?" if meant else "`allowance --help` lists all") in result.err


@pytest.mark.parametrize("arguments", [("health",), ("spend", "1"), ("ledgers",)], ids=" ".join)
def test_without_any_database_the_error_says_how_to_name_one(
    allowance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Exit code 2. Catches: a first command of a new user that complains about a file nobody has heard of."""
    monkeypatch.delenv("ALLOWANCE_DATABASE_URL")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    result = allowance(*arguments)
    assert result.code == 2
    assert "give --database or set ALLOWANCE_DATABASE_URL" in result.err
    assert not (tmp_path / "home").exists()


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Run a command on a terminal; return the next steps that it says."""
    from routing.cli.main import main

    notes = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Terminal())
        patched.setattr(sys, "stderr", notes)
        main(list(arguments))
    return [line for line in notes.getvalue().splitlines() if "next: " in line]


def test_a_next_step_can_be_typed_as_it_stands(allowance: Command, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the same ledger, and the command exists. Catches: a hint that works only for the default ledger."""
    ledger = ("--database", str(path), "--validator", VALIDATOR)
    monkeypatch.delenv("ALLOWANCE_DATABASE_URL")
    monkeypatch.delenv("ALLOWANCE_VALIDATOR_SS58")
    names = {entry.name for entry in COMMANDS}
    for arguments in (
        ("history",), ("show", spent_id(allowance, ledger)), ("explain", "job-spent"), ("why", BERT, GPU), ("health",),
        ("ledgers",), ("replay",), ("miners",), ("settings", "show"), ("verify",), ("expire",),
    ):  # fmt: skip
        (step,) = watched(monkeypatch, *arguments, *ledger)
        words = shlex.split(step.split("`")[1])
        assert words[0] == "allowance"
        assert words[1] in names
        assert allowance(*words[1:]).code in (0, 1), step


def spent_id(allowance: Command, ledger: tuple[str, ...]) -> str:
    return str(allowance("history", "--status", "spent", "--json", *ledger).document["reservation_id"])


def test_a_next_step_is_for_people_only(allowance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with JSON nor into a pipe."""
    assert len(watched(monkeypatch, "history")) == 1
    assert watched(monkeypatch, "history", "--json") == []
    assert "next" not in allowance("history").err


def test_a_next_step_shows_no_password() -> None:
    """Catches: a database's password on the screen, and in whatever records it."""
    from argparse import Namespace

    from routing.cli.io.next_steps import next_command

    arguments = Namespace(database="postgresql://user:secret@host/db", validator=None)
    assert next_command(arguments, "show", 7) == "`allowance show 7 --database 'postgresql://…'`"
