"""The commands about the past: explain, why, replay, receipts, rebuild, audit, and the options that name a moment."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledger import RecordedSettings
from routing import Allowance, Routing
from tests.support import logs
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.engines import ENGINES, derived_statement, new_database, statement
from tests.support.fault_cases.choices import ANNAS_JOB, with_a_claim_that_names_its_choice
from tests.support.log_builder import VALIDATOR as BUILT_VALIDATOR
from tests.support.log_builder import LogBuilder
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger
from tests.support.stories import project, take_snapshot

on_sqlite = pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
"""For what a test does to the stored rows itself, or to a file."""


@dataclass
class FilledLedger:
    """A ledger with a routed and spent reservation, a released one without a router, and a later block."""

    url: str
    spent: int
    released: int
    before_release: int
    head: int


@pytest.fixture(params=ENGINES)
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> FilledLedger:
    """The ledger on each engine, unless a test selects one."""
    url = new_database(request.param, tmp_path)

    async def fill() -> FilledLedger:
        clock = Clock(START + timedelta(seconds=132))
        async with small_ledger(url=url, clock=clock, offers={"5Anna": 1, "5Bert": 2}) as ledger:
            route = await Routing(ledger).pick_miner_for_job_request(job("job-1"))
            assert route.allowance_reservation_id is not None
            await ledger.spend(route.allowance_reservation_id)
            released = await ledger.reserve("5Bert", GPU, 12.0, 11)
            before_release = (await ledger.head()).position
            await ledger.release(released.reservation_id)
            clock.advance(12)
            await record_blocks(ledger, 12, 12, ["5Anna"])
            await project(ledger)
            head = (await ledger.head()).position
            return FilledLedger(url, route.allowance_reservation_id, released.reservation_id, before_release, head)

    return asyncio.run(fill())


@pytest.fixture
def allowance(filled: FilledLedger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `allowance` on the filled ledger."""
    configure_ledger(monkeypatch, filled.url, VALIDATOR)
    return command_line(capsys)


@pytest.mark.parametrize("filled", ["postgresql"], indirect=True)
def test_health_names_the_kind_of_database(
    allowance: Command, filled: FilledLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both spellings of a PostgreSQL URL give the same name."""
    assert filled.url.startswith("postgresql://")
    for url in (filled.url, filled.url.replace("postgresql://", "postgres://")):
        monkeypatch.setenv("ALLOWANCE_DATABASE_URL", url)
        assert allowance("health", "--json").documents[0]["database"] == "postgresql"


@pytest.mark.parametrize("filled", ["postgresql"], indirect=True)
def test_the_error_of_a_refused_url_names_its_option(
    allowance: Command, filled: FilledLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the option, the argument or the variable that the URL came from.

    Catches: an error about `database_url`, which is no option of any command.
    """
    wrong = f"{filled.url}&no_such_parameter=1"
    for arguments, named in (
        (("health", "--database", wrong), "--database"),
        (("verify", wrong), "SOURCE"),
        (("restore", wrong, "--database", filled.url), "SOURCE"),
        (("restore", filled.url, "--database", wrong), "--database"),
    ):
        result = allowance(*arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"allowance: InvalidInput: {named} must be "), result.err
        assert "no_such_parameter" in result.err
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", wrong)
    assert "ALLOWANCE_DATABASE_URL must be " in allowance("health").err


def test_explain_shows_the_candidates_in_order(allowance: Command, filled: FilledLedger) -> None:
    """The output has each candidate's verdict and the reservation that was made."""
    result = allowance("explain", "job-1")
    assert (result.code, result.err) == (0, "")
    assert "claimed" in result.out
    assert "not reached" in result.out
    assert f"{filled.spent}, spent" in result.out

    (document,) = allowance("explain", "job-1", "--json").documents
    assert document["reservation"]["reservation_id"] == filled.spent
    assert [each["verdict"] for each in document["candidates"]] == ["claimed", "not reached"]
    assert document["routed"] is True


def test_explain_omits_most_candidates_that_were_not_reached(
    allowance: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note counts the omitted candidates, and `--all` shows them."""
    monkeypatch.setattr("routing.cli.commands.explain.SHOWN_AFTER", 0)
    result = allowance("explain", "job-1")
    assert "not reached" not in result.out
    assert "1 more candidate: repeat with --all" in result.err
    assert "not reached" in allowance("explain", "job-1", "--all").out


def test_explain_of_an_unknown_job_is_exit_code_1(allowance: Command) -> None:
    """The error is `ReservationNotFound`."""
    result = allowance("explain", "nobody's")
    assert result.code == 1
    assert result.err.startswith("allowance: ReservationNotFound: ")


def test_why_shows_sums_and_reservations(allowance: Command, filled: FilledLedger) -> None:
    """For now, and for each of the three kinds of moment."""
    result = allowance("why", "5Bert", GPU)
    assert result.code == 0
    (now,) = allowance("why", "5Bert", GPU, "--json").documents
    (then,) = allowance("why", "5Bert", GPU, "--at-position", filled.before_release, "--json").documents
    assert [each["reservation_id"] for each in then["reservations"]].count(filled.released) == 1
    assert filled.released not in [each["reservation_id"] for each in now["reservations"]]
    assert str(filled.released) in allowance("why", "5Bert", GPU, "--at-position", filled.before_release).out
    (at_block,) = allowance("why", "5Bert", GPU, "--at-block", 11, "--json").documents
    (at_time,) = allowance("why", "5Bert", GPU, "--at-time", "2024-01-01T00:02:12Z", "--json").documents
    assert at_block == at_time
    assert now["total_seconds"] == at_block["total_seconds"] + 12.0
    assert "no reservation has taken blocks" in allowance("why", "5Bert", GPU).err


def test_replay_shows_the_state_at_a_moment(allowance: Command, filled: FilledLedger) -> None:
    """At the end of the log, or at any earlier moment; no progress is written into a pipe."""
    result = allowance("replay")
    assert (result.code, result.err) == (0, "")
    assert GPU in result.out
    (end,) = allowance("replay", "--json").documents
    assert (end["position"], end["newest_block"], end["reserved"]) == (filled.head, 12, 0)
    (then,) = allowance("replay", "--at-position", filled.before_release, "--json").documents
    assert (then["position"], then["newest_block"], then["reserved"]) == (filled.before_release, 11, 1)
    assert [each["executor_class"] for each in then["classes"]] == [GPU]
    (at_block,) = allowance("replay", "--at-block", 5, "--json").documents
    assert at_block["newest_block"] == 5


def test_miners_history_and_show_accept_a_moment(allowance: Command, filled: FilledLedger) -> None:
    """`--at-…` names the moment; the form of the output is the same as without."""
    at = ("--at-position", filled.before_release, "--json")
    assert [each["hotkey_ss58"] for each in allowance("miners", *at).documents] == ["5Anna", "5Bert"]
    assert [each["hotkey_ss58"] for each in allowance("miners", "--json").documents] == ["5Anna"]
    candidates = allowance("miners", "--executor-class", GPU, "--seconds", 5, *at).documents
    assert {each["hotkey_ss58"] for each in candidates} == {"5Anna", "5Bert"}
    reserved = allowance("history", "--status", "reserved", *at).documents
    assert [each["reservation_id"] for each in reserved] == [filled.released]
    assert allowance("history", "--status", "reserved", "--json").documents == []
    (then,) = allowance("show", filled.released, *at).documents
    assert then["status"] == "reserved"
    (now,) = allowance("show", filled.released, "--json").documents
    assert now["status"] == "released"


def test_history_filters_by_every_field(allowance: Command, filled: FilledLedger) -> None:
    """Miner, class, job, status, block and times."""
    for arguments, expected in (
        (("--miner", "5Bert", "--status", "released"), [filled.released]),
        (("--executor-class", GPU, "--job", "job-1"), [filled.spent]),
        (("--block", 1, "--oldest-first"), [filled.spent, filled.released]),
        (("--from", "2024-01-01T00:02:12Z", "--until", "2024-01-01T00:02:12.000001Z"), [filled.released, filled.spent]),
        (("--until", "2024-01-01T00:02:12Z"), []),
    ):
        result = allowance("history", *arguments, "--json")
        if arguments[0] == "--block":
            assert {each["reservation_id"] for each in result.documents} <= set(expected)
        else:
            assert [each["reservation_id"] for each in result.documents] == expected, arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", "--at-position", "1", "--at-block", "1"),
        ("replay", "--at-position", "0"),
        ("replay", "--at-time", "2024-01-01T12:00:00"),
        ("why", "5Anna"),
        ("history", "--at-block", "x"),
        ("show", "1", "--at-position", "1", "--at-block", "1"),
        ("explain",),
        ("receipts",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_reported(allowance: Command, arguments: tuple[str, ...]) -> None:
    """Exit code 2, in one line."""
    result = allowance(*arguments)
    assert result.code == 2
    assert result.err.startswith("allowance: WrongUsage: ")


def test_a_moment_out_of_range_is_exit_code_1(allowance: Command, filled: FilledLedger) -> None:
    """The ledger has no such past: `PositionOutOfRange`."""
    for arguments in (("replay", "--at-position", filled.head + 1), ("miners", "--at-time", "2020-01-01T00:00:00Z")):
        result = allowance(*arguments)
        assert result.code == 1
        assert result.err.startswith("allowance: PositionOutOfRange: ")


# Rebuild


def take_snapshot_of(filled: FilledLedger) -> None:
    """Seal the ledger's state and save a snapshot of it."""

    async def take() -> None:
        async with Allowance.open(filled.url, validator_ss58=VALIDATOR) as ledger:
            await take_snapshot(ledger)

    asyncio.run(take())


@on_sqlite
def test_rebuild_reports_and_repairs_differences(allowance: Command, filled: FilledLedger) -> None:
    """Exit code 0 if there is no difference, otherwise 1; a second rebuild finds none."""
    take_snapshot_of(filled)
    result = allowance("rebuild")
    assert (result.code, result.err) == (0, "")
    assert "the stored history and snapshots agreed with the log" in result.out
    derived_statement(filled.url, "UPDATE allowance_reservations SET status = 'expired'")
    derived_statement(filled.url, "UPDATE allowance_snapshots SET payload = X'00'")

    result = allowance("rebuild")

    assert result.code == 1
    assert "status was expired, is spent" in result.out
    assert "snapshot at position" in result.out
    assert "3 differences; the stored data is replaced" in result.out
    (document,) = allowance("rebuild", "--json").documents
    assert (document["different"], document["reservations"], document["position"]) == (0, 2, filled.head + 1)


@on_sqlite
def test_a_damaged_event_among_the_newest_is_named_and_how_to_go_on(allowance: Command, filled: FilledLedger) -> None:
    """`health` and `rebuild` refuse the log at the damaged event, and neither recommends to rebuild."""
    take_snapshot_of(filled)
    assert allowance("health", "--json").documents[0]["projection_error"] is None
    assert allowance("rebuild").code == 0
    statement(filled.url, "DROP TRIGGER allowance_events_no_update")
    statement(filled.url, "UPDATE allowance_events SET payload = X'00' WHERE position = 5")
    for command in ("health", "rebuild"):
        result = allowance(command)
        assert result.code == 3
        assert result.err.startswith("allowance: CorruptLedger: ")
        assert "position 5" in result.err
        assert "allowance verify" in result.err
        assert "allowance rebuild" not in result.err
        (document,) = allowance(command, "--json").documents
        assert document["error"]["fields"]["position"] == 5


# Receipts


def receipt(**fields: Any) -> str:
    fields_of_receipt = {
        "validator_ss58": "5Other",
        "miner_ss58": "5Anna",
        "executor_class": GPU,
        "started_at": "2024-01-01T00:02:00Z",
        "blocks": [2, 3],
        "allowance_seconds": 12,
    }
    return json.dumps({**fields_of_receipt, **fields})


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_receipts_are_checked_in_order(allowance: Command, tmp_path: Path) -> None:
    """One line per receipt; exit code 1 if any is refused.

    Catches: documents of one list with different keys.
    """
    good = written(tmp_path / "good.jsonl", receipt(), "", receipt(blocks=[4], allowance_seconds=6))
    result = allowance("receipts", good)
    assert result.code == 0
    assert result.out.splitlines() == [
        "line 1: spent 2-3, 12.000 s for 12.000 s",
        "line 3: spent 4, 6.000 s for 6.000 s",
    ]
    assert "2 receipts, 0 of them refused" in result.err

    bad = written(
        tmp_path / "bad.jsonl", receipt(), receipt(blocks=[3, 4, 900]), receipt(started_at="2030-01-01T00:00:00Z")
    )
    result = allowance("receipts", bad)
    assert result.code == 1
    first, second, third = result.out.splitlines()
    assert first.startswith("line 1: spent")
    assert second == "line 2: refused, 6.000 s for 12.000 s; 3: spent by an earlier receipt; 900: 890 blocks too new"
    assert third.startswith("line 3: refused, TimeOutOfRange: ")

    documents = allowance("receipts", bad, "--json").documents
    assert [(each["line"], each["spent"], each["blocks"]) for each in documents] == [
        (1, True, [2, 3]),
        (2, False, []),
        (3, False, []),
    ]
    assert documents[0].keys() == documents[1].keys() == documents[2].keys()
    assert documents[2]["spendable_seconds"] is None
    assert documents[1]["double_spent"] == [3]
    assert documents[2]["error"]["type"] == "TimeOutOfRange"


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "{}",
        receipt(blocks=["1"]),
        receipt(blocks=[-1]),
        receipt(started_at="2024-01-01T00:02:00"),
        receipt(allowance_seconds=-1),
        receipt(miner_ss58="a\0b"),
        receipt(unknown=1),
        receipt()[:-1] + ',"blocks":[1]}',
    ],
)
def test_the_error_of_a_malformed_receipt_names_its_line(allowance: Command, tmp_path: Path, line: str) -> None:
    """The receipts before it are reported; exit code 2."""
    result = allowance("receipts", written(tmp_path / "receipts.jsonl", receipt(), "", line, receipt(blocks=[5])))
    assert result.code == 2
    assert [line.split(":")[0] for line in result.out.splitlines()] == ["line 1"]
    assert result.err.startswith("allowance: BadLine: line 3: ")
    assert result.err.count("\n") == 1


def appended(url: str, log: LogBuilder) -> tuple[str, ...]:
    """Append a log that was written by hand to a new database; return the options that name it."""

    async def append() -> None:
        async with logs.opened(url, BUILT_VALIDATOR) as store:
            await logs.append(store, log.rows)

    asyncio.run(append())
    return "--database", url, "--validator", BUILT_VALIDATOR


AUDIT_KEYS = {
    *("validator_ss58", "position", "head_hash", "findings", "findings_count", "events", "totals"),
    *("history_position", "snapshots", "live_state", "elapsed_seconds", "events_per_second"),
    *("seals", "from_seal", "not_proved", "first_cause", "findings_by_rule", "unproved_choices"),
    *("first_recorded_at", "last_recorded_at", "fairness", "strict"),
}


def test_audit_of_a_sound_ledger_has_no_finding(allowance: Command, filled: FilledLedger, tmp_path: Path) -> None:
    """Counts and totals as text, one JSON document, a page if one is wanted; exit code 0."""
    result = allowance("audit")
    assert result.code == 0
    assert f"no finding in {filled.head} events" in result.out
    assert "allowance-reserved" in result.out
    assert GPU in result.out
    assert "5Anna" not in result.out
    assert "5Anna" in allowance("audit", "--accounts").out

    page = tmp_path / "audit.html"
    result = allowance("audit", "--json", "--html", page)
    (document,) = result.documents
    assert result.code == 0
    assert set(document) == AUDIT_KEYS
    assert (document["position"], document["findings"]) == (filled.head, [])
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert allowance("audit", "--at-position", 5, "--json").documents[0]["position"] == 5


@on_sqlite
def test_audit_from_a_seal_says_what_it_does_not_prove(allowance: Command, filled: FilledLedger) -> None:
    """As text and as JSON; a position without a seal is refused, and the error names one that has a seal."""
    take_snapshot_of(filled)
    result = allowance("audit", "--from-seal", filled.head)
    assert result.code == 0
    assert "no finding in 1 event" in result.out
    assert "not proved: that the sealed state follows from the events up to its position" in result.out
    (document,) = allowance("audit", "--from-seal", filled.head, "--json").documents
    assert document["from_seal"] == filled.head
    assert len(document["not_proved"]) > 3
    assert f"the newest are {filled.head}" in allowance("audit", "--from-seal", 5).err


@on_sqlite
def test_audit_counts_the_choices_that_are_not_proved(allowance: Command, tmp_path: Path) -> None:
    """Claims that an earlier release marked as kept: a line of the text, a number in the document, no finding."""
    log = LogBuilder(RecordedSettings(respect_executor_count=False))
    log.reserve("5Anna", 6, (1, 1))
    log.route("job", "5Anna", 6, (2, 2), kept=True)
    source = appended(new_database("sqlite", tmp_path), log)
    result = allowance("audit", *source)
    assert result.code == 0
    assert "not proved: the choice of the miner of 1 route, whose claim names no position" in result.out
    assert allowance("audit", *source, "--json").document["unproved_choices"] == 1
    explained = allowance("explain", "job", *source)
    assert explained.code == 0
    assert "outrun" in explained.out
    assert "the choice is not proved" in explained.err


@on_sqlite
def test_explain_shows_the_choice_where_the_claim_names_it(allowance: Command, tmp_path: Path) -> None:
    """The candidates are those at that position, and a note says so; `chosen_at` is in the document."""
    log = with_a_claim_that_names_its_choice()
    source = appended(new_database("sqlite", tmp_path), log)
    result = allowance("explain", ANNAS_JOB, *source)
    assert result.code == 0
    assert [line.split()[2] for line in result.out.splitlines()[-3:]] == ["claimed", "not", "not"]
    assert "5Anna" in result.out.splitlines()[-3]
    assert "chosen on the log up to  13" in result.out
    assert "chosen at position 13, as shown" in result.err
    document = allowance("explain", ANNAS_JOB, *source, "--json").document
    assert (document["chosen_at"], document["position"], document["kept"]) == (13, 13, False)


@on_sqlite
def test_audit_names_position_and_rule_of_a_finding(allowance: Command, filled: FilledLedger) -> None:
    """A changed row is reported as text and as JSON; exit code 1."""
    connection = sqlite3.connect(filled.url.removeprefix("sqlite:///"), isolation_level=None)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute("UPDATE allowance_events SET recorded_at_ns = recorded_at_ns + 1 WHERE position = 5")
    connection.close()

    result = allowance("audit")
    assert result.code == 1
    assert "position 5: hash-chain: " in result.out
    (document,) = allowance("audit", "--json").documents
    first = document["findings"][0]
    assert (first["position"], first["rule"]) == (5, "hash-chain")


def test_audit_refuses_a_wrong_position_and_an_unwritable_page(
    allowance: Command, filled: FilledLedger, tmp_path: Path
) -> None:
    """A position beyond the log is out of range; a page that cannot be written is wrong input."""
    result = allowance("audit", "--at-position", filled.head + 1)
    assert result.code == 1
    assert "PositionOutOfRange" in result.err
    result = allowance("audit", "--html", tmp_path / "nowhere" / "audit.html")
    assert result.code == 2
    assert "cannot write" in result.err
    assert "UnwritableOutput" in result.err


@on_sqlite
def test_a_page_replaces_only_an_earlier_page(allowance: Command, filled: FilledLedger, tmp_path: Path) -> None:
    """The audited database, other files and directories stay as they are, and no temporary file remains.

    Catches: `--html` with the ledger's own path, which wrote a page over the ledger.
    """
    database = Path(filled.url.removeprefix("sqlite:///"))
    letter = written(tmp_path / "letter.html", "<!doctype html>", "<title>Dear Sir or Madam</title>")
    before = {path: path.read_bytes() for path in (database, letter)}
    there = sorted(tmp_path.rglob("*"))
    for path in (database, letter, tmp_path, "-", ""):
        result = allowance("audit", "--html", path, "--json")
        assert result.code == 2
        assert result.documents[0]["error"]["type"] in ("UnwritableOutput", "WrongUsage")
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(tmp_path.rglob("*")) == there

    page = tmp_path / "page.html"
    for until in (5, filled.head):
        assert allowance("audit", "--at-position", until, "--html", page).code == 0
        assert f", {until} events</title>" in page.read_text("utf-8")
    assert sorted(tmp_path.rglob("*")) == sorted([*there, page])


def test_an_unwritable_page_does_not_lose_the_audit(
    allowance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong name is refused before the audit; if writing fails after it, the findings are still reported.

    Catches: an audit of an hour whose result is lost because its page cannot be written.
    """

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("audited in vain")

    with monkeypatch.context() as patched:
        patched.setattr(Allowance, "audit", refuse)
        assert allowance("audit", "--html", tmp_path / "nowhere" / "audit.html").code == 2
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    result = allowance("audit", "--html", tmp_path / "audit.html")
    assert result.code == 2
    assert "no finding in" in result.out
    assert "No space left on device" in result.err
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".*.partial"))
