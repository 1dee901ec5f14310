"""The commands that look back: explain, why, replay, receipts, rebuild, and the options that name a moment."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routing import Allowance, Routing
from routing.cli.main import main
from tests.support.engines import ENGINES, new_database, statement
from tests.support.small import GPU, START, VALIDATOR, Clock, job, record_blocks, small_ledger
from tests.support.stories import project

pytestmark = pytest.mark.sqlalchemy


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
on_sqlite = pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
"""For what a test does to the stored rows itself, or to a file."""


@dataclass
class Filled:
    """A ledger with a routed job that was spent, one by hand that was released, and a block after both."""

    url: str
    spent: int
    released: int
    before_release: int
    head: int


@pytest.fixture(params=ENGINES)
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Filled:
    """On each engine, unless a test says otherwise."""
    url = new_database(request.param, tmp_path)

    async def fill() -> Filled:
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
            return Filled(url, route.allowance_reservation_id, released.reservation_id, before_release, head)

    return asyncio.run(fill())


@pytest.fixture
def allowance(filled: Filled, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `allowance` on the filled ledger."""
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", filled.url)
    monkeypatch.setenv("ALLOWANCE_VALIDATOR_SS58", VALIDATOR)

    def run(*words: object) -> Answer:
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.mark.parametrize("filled", ["postgresql"], indirect=True)
def test_health_calls_a_database_by_its_name(
    allowance: Command, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way its URL is spelled."""
    assert filled.url.startswith("postgresql://")
    for url in (filled.url, filled.url.replace("postgresql://", "postgres://")):
        monkeypatch.setenv("ALLOWANCE_DATABASE_URL", url)
        assert allowance("health", "--json").documents[0]["database"] == "postgresql"


@pytest.mark.parametrize("filled", ["postgresql"], indirect=True)
def test_a_url_that_only_a_server_refuses_goes_by_the_name_of_its_option(
    allowance: Command, filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the option, or of the variable, whichever gave it; a source is no database that the command works on.

    Catches a refusal of a `database_url` that no command has.
    """
    wrong = f"{filled.url}&no_such_parameter=1"
    for words, named in (
        (("health", "--database", wrong), "--database"),
        (("verify", wrong), "SOURCE"),
        (("restore", wrong, "--database", filled.url), "SOURCE"),
        (("restore", filled.url, "--database", wrong), "--database"),
    ):
        answer = allowance(*words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith(f"allowance: InvalidInput: {named} must be "), answer.err
        assert "no_such_parameter" in answer.err
    monkeypatch.setenv("ALLOWANCE_DATABASE_URL", wrong)
    assert "ALLOWANCE_DATABASE_URL must be " in allowance("health").err


def test_explain_shows_the_candidates_in_order(allowance: Command, filled: Filled) -> None:
    """Which was claimed, what each had, and of which decision it was."""
    answer = allowance("explain", "job-1")
    assert (answer.code, answer.err) == (0, "")
    assert "claimed" in answer.out
    assert "not reached" in answer.out
    assert f"{filled.spent}, spent" in answer.out

    (document,) = allowance("explain", "job-1", "--json").documents
    assert document["reservation"]["reservation_id"] == filled.spent
    assert [each["verdict"] for each in document["candidates"]] == ["claimed", "not reached"]
    assert document["routed"] is True


def test_explain_shortens_what_came_after(allowance: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many candidates those that were never reached are counted, unless all are asked for."""
    monkeypatch.setattr("routing.cli.commands.explain.SHOWN_AFTER", 0)
    answer = allowance("explain", "job-1")
    assert "not reached" not in answer.out
    assert "1 more candidate: repeat with --all" in answer.err
    assert "not reached" in allowance("explain", "job-1", "--all").out


def test_explain_of_a_job_that_is_not_there(allowance: Command) -> None:
    """The answer is no."""
    answer = allowance("explain", "nobody's")
    assert answer.code == 1
    assert answer.err.startswith("allowance: ReservationNotFound: ")


def test_why_shows_sums_and_who_took_what(allowance: Command, filled: Filled) -> None:
    """Now, and at each of three kinds of moment."""
    answer = allowance("why", "5Bert", GPU)
    assert answer.code == 0
    (now,) = allowance("why", "5Bert", GPU, "--json").documents
    (then,) = allowance("why", "5Bert", GPU, "--position", filled.before_release, "--json").documents
    assert [each["reservation_id"] for each in then["reservations"]].count(filled.released) == 1
    assert filled.released not in [each["reservation_id"] for each in now["reservations"]]
    assert str(filled.released) in allowance("why", "5Bert", GPU, "--position", filled.before_release).out
    (at_block,) = allowance("why", "5Bert", GPU, "--block", 11, "--json").documents
    (at_time,) = allowance("why", "5Bert", GPU, "--time", "2024-01-01T00:02:12Z", "--json").documents
    assert at_block == at_time
    assert now["total_seconds"] == at_block["total_seconds"] + 12.0
    assert "nothing is taken" in allowance("why", "5Nobody", GPU).err


def test_replay_shows_the_state_there(allowance: Command, filled: Filled) -> None:
    """At the log's end, or anywhere before it; no progress goes into a pipe."""
    answer = allowance("replay")
    assert (answer.code, answer.err) == (0, "")
    assert GPU in answer.out
    (end,) = allowance("replay", "--json").documents
    assert (end["position"], end["newest_block"], end["reserved"]) == (filled.head, 12, 0)
    (then,) = allowance("replay", "--position", filled.before_release, "--json").documents
    assert (then["position"], then["newest_block"], then["reserved"]) == (filled.before_release, 11, 1)
    assert [each["executor_class"] for each in then["classes"]] == [GPU]
    (at_block,) = allowance("replay", "--block", 5, "--json").documents
    assert at_block["newest_block"] == 5


def test_miners_history_and_show_answer_about_the_past(allowance: Command, filled: Filled) -> None:
    """`--at-…` names the moment; everything else is as it is without."""
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


def test_history_takes_all_filters(allowance: Command, filled: Filled) -> None:
    """Miner, class, status, block and times."""
    for words, expected in (
        (("--miner", "5Bert", "--status", "released"), [filled.released]),
        (("--executor-class", GPU, "--job", "job-1"), [filled.spent]),
        (("--executor-class", "abacus"), []),
        (("--block", 1, "--oldest-first"), [filled.spent, filled.released]),
        (("--from", "2024-01-01T00:02:12Z", "--until", "2024-01-01T00:02:12.000001Z"), [filled.released, filled.spent]),
        (("--until", "2024-01-01T00:02:12Z"), []),
    ):
        answer = allowance("history", *words, "--json")
        if words[0] == "--block":
            assert {each["reservation_id"] for each in answer.documents} <= set(expected)
        else:
            assert [each["reservation_id"] for each in answer.documents] == expected, words


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "--position", "1", "--block", "1"),
        ("replay", "--position", "0"),
        ("replay", "--time", "2024-01-01T12:00:00"),
        ("why", "5Anna"),
        ("history", "--at-block", "x"),
        ("show", "1", "--at-position", "1", "--at-block", "1"),
        ("explain",),
        ("receipts",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told(allowance: Command, words: tuple[str, ...]) -> None:
    """Exit code 2, in one line."""
    answer = allowance(*words)
    assert answer.code == 2
    assert answer.err.startswith("allowance: WrongUsage: ")


def test_a_moment_out_of_range_is_no(allowance: Command, filled: Filled) -> None:
    """The ledger does not have that past."""
    for words in (("replay", "--position", filled.head + 1), ("miners", "--at-time", "2020-01-01T00:00:00Z")):
        answer = allowance(*words)
        assert answer.code == 1
        assert answer.err.startswith("allowance: PositionOutOfRange: ")


# Rebuild


@on_sqlite
def test_rebuild_tells_what_was_wrong(allowance: Command, filled: Filled) -> None:
    """Exit code 0 where nothing was, 1 where something was; then it is mended."""
    answer = allowance("rebuild")
    assert (answer.code, answer.err) == (0, "")
    assert "what was there was what the log says" in answer.out
    statement(filled.url, "UPDATE allowance_reservations SET status = 'expired'")
    statement(filled.url, "UPDATE allowance_snapshots SET payload = X'00'")

    answer = allowance("rebuild")

    assert answer.code == 1
    assert "status was expired, is spent" in answer.out
    assert "snapshot at position" in answer.out
    assert "3 differences: what was there is replaced" in answer.out
    (document,) = allowance("rebuild", "--json").documents
    assert (document["different"], document["reservations"], document["position"]) == (0, 2, filled.head)


@on_sqlite
def test_health_tells_what_stops_the_history(allowance: Command, filled: Filled) -> None:
    """An event that it cannot take is named; `rebuild` cannot take it either, and does not advise to rebuild."""
    assert allowance("health", "--json").documents[0]["projection_error"] is None
    assert allowance("rebuild").code == 0
    statement(filled.url, "UPDATE allowance_checkpoints SET model_version = 0")
    statement(filled.url, "DROP TRIGGER allowance_events_no_update")
    statement(filled.url, "UPDATE allowance_events SET payload = X'00' WHERE position = 5")
    (document,) = allowance("health", "--json").documents
    assert "position 5" in document["projection_error"]
    answer = allowance("rebuild")
    assert answer.code == 3
    assert answer.err.startswith("allowance: ProjectionStopped: the history stopped before position 5")
    assert "allowance verify" in answer.err
    assert "allowance rebuild" not in answer.err
    (document,) = allowance("rebuild", "--json").documents
    assert document["error"]["fields"]["position"] == 5


# Receipts


def receipt(**fields: Any) -> str:
    told = {
        "validator_ss58": "5Other",
        "miner_ss58": "5Anna",
        "executor_class": GPU,
        "started_at": "2024-01-01T00:02:00Z",
        "blocks": [2, 3],
        "allowance_seconds": 12,
    }
    return json.dumps({**told, **fields})


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_receipts_are_taken_in_order(allowance: Command, tmp_path: Path) -> None:
    """One line each; exit code 1 if any is refused.

    Catches: documents of one list with different keys.
    """
    good = written(tmp_path / "good.jsonl", receipt(), "", receipt(blocks=[4], allowance_seconds=6))
    answer = allowance("receipts", good)
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "line 1: spent 2-3, 12.000 s for 12.000 s",
        "line 3: spent 4, 6.000 s for 6.000 s",
    ]
    assert "2 receipts, 0 of them refused" in answer.err

    bad = written(
        tmp_path / "bad.jsonl", receipt(), receipt(blocks=[3, 4, 900]), receipt(started_at="2030-01-01T00:00:00Z")
    )
    answer = allowance("receipts", bad)
    assert answer.code == 1
    first, second, third = answer.out.splitlines()
    assert first.startswith("line 1: spent")
    assert second == "line 2: refused, 6.000 s for 12.000 s; outside range: 900; double spent: 3"
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
        receipt(allowance_seconds=0),
        receipt(miner_ss58="a\0b"),
        receipt(unknown=1),
        receipt()[:-1] + ',"blocks":[1]}',
    ],
)
def test_a_malformed_receipt_is_named_by_its_line(allowance: Command, tmp_path: Path, line: str) -> None:
    """What stands before it has been answered; exit code 2."""
    answer = allowance("receipts", written(tmp_path / "receipts.jsonl", receipt(), "", line, receipt(blocks=[5])))
    assert answer.code == 2
    assert [told.split(":")[0] for told in answer.out.splitlines()] == ["line 1"]
    assert answer.err.startswith("allowance: BadLine: line 3: ")
    assert answer.err.count("\n") == 1


AUDIT_KEYS = {
    *("validator_ss58", "position", "head_hash", "findings", "findings_count", "events", "totals"),
    *("history_position", "snapshots", "live_state", "elapsed_seconds", "events_per_second"),
}


def test_audit_finds_nothing_in_a_sound_ledger(allowance: Command, filled: Filled, tmp_path: Path) -> None:
    """Counts and totals for people, one document for programs, a page where one is asked for; exit code 0."""
    answer = allowance("audit")
    assert answer.code == 0
    assert f"no finding in {filled.head} events" in answer.out
    assert "allowance-reserved" in answer.out
    assert GPU in answer.out
    assert "5Anna" not in answer.out
    assert "5Anna" in allowance("audit", "--accounts").out

    page = tmp_path / "audit.html"
    answer = allowance("audit", "--json", "--html", page)
    (document,) = answer.documents
    assert answer.code == 0
    assert set(document) == AUDIT_KEYS
    assert (document["position"], document["findings"]) == (filled.head, [])
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert allowance("audit", "--until", 5, "--json").documents[0]["position"] == 5


@on_sqlite
def test_audit_names_what_it_finds(allowance: Command, filled: Filled) -> None:
    """A changed row is named by position and rule, in text and in JSON; exit code 1."""
    connection = sqlite3.connect(filled.url.removeprefix("sqlite:///"), isolation_level=None)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute("UPDATE allowance_events SET recorded_at_ns = recorded_at_ns + 1 WHERE position = 5")
    connection.close()

    answer = allowance("audit")
    assert answer.code == 1
    assert "position 5: hash-chain: " in answer.out
    (document,) = allowance("audit", "--json").documents
    first = document["findings"][0]
    assert (first["position"], first["rule"]) == (5, "hash-chain")


def test_audit_refuses_what_it_cannot_do(allowance: Command, filled: Filled, tmp_path: Path) -> None:
    """A position that the log has not is out of range; a page that cannot be written is wrong input."""
    answer = allowance("audit", "--until", filled.head + 1)
    assert answer.code == 1
    assert "PositionOutOfRange" in answer.err
    answer = allowance("audit", "--html", tmp_path / "nowhere" / "audit.html")
    assert answer.code == 2
    assert "cannot write" in answer.err
    assert "UnwritableOutput" in answer.err


@on_sqlite
def test_a_page_takes_the_place_of_a_page_and_of_nothing_else(
    allowance: Command, filled: Filled, tmp_path: Path
) -> None:
    """The audited database, a letter and a directory stay as they are; an earlier page is replaced, nothing is left.

    Catches: `--html` with the ledger's own path, which wrote a page over the ledger.
    """
    database = Path(filled.url.removeprefix("sqlite:///"))
    letter = written(tmp_path / "letter.html", "<!doctype html>", "<title>Dear Sir or Madam</title>")
    before = {path: path.read_bytes() for path in (database, letter)}
    there = sorted(tmp_path.rglob("*"))
    for path in (database, letter, tmp_path, "-", ""):
        answer = allowance("audit", "--html", path, "--json")
        assert answer.code == 2
        assert answer.documents[0]["error"]["type"] in ("UnwritableOutput", "WrongUsage")
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(tmp_path.rglob("*")) == there

    page = tmp_path / "page.html"
    for until in (5, filled.head):
        assert allowance("audit", "--until", until, "--html", page).code == 0
        assert f", {until} events</title>" in page.read_text("utf-8")
    assert sorted(tmp_path.rglob("*")) == sorted([*there, page])


def test_a_page_that_cannot_be_written_throws_no_audit_away(
    allowance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be known is told before the audit; where writing fails after it, what was found is told all the same.

    Catches: an audit of an hour that is lost since its page has no place.
    """

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("audited in vain")

    with monkeypatch.context() as patched:
        patched.setattr(Allowance, "audit", refuse)
        assert allowance("audit", "--html", tmp_path / "nowhere" / "audit.html").code == 2
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    answer = allowance("audit", "--html", tmp_path / "audit.html")
    assert answer.code == 2
    assert "no finding in" in answer.out
    assert "No space left on device" in answer.err
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".*.partial"))
