"""`allowance events`: ranges of the log, its schema, and following it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.codec import EVENT_TAGS
from routing import Allowance
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, VALIDATOR, small_ledger

HEAD = 13
"""The opening, a sync, and eleven blocks."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a small ledger."""
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def fill() -> None:
        async with small_ledger(url=url):
            pass

    asyncio.run(fill())
    return url


@pytest.fixture
def allowance(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `allowance` on that ledger."""
    configure_ledger(monkeypatch, url, VALIDATOR)
    return command_line(capsys)


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ((), 1, HEAD),
        (("--after", "0", "--until", "2"), 1, 2),
        (("--after", "5"), 6, HEAD),
        (("--last", "3"), HEAD - 2, HEAD),
        (("--last", "99"), 1, HEAD),
        (("--after", "13"), 14, HEAD),
    ],
)
def test_a_range_of_the_log(allowance: Command, options: tuple[str, ...], first: int, last: int) -> None:
    """Each line of JSON is one event, in order; `--after 0` is the whole log."""
    found = [each["position"] for each in allowance("events", *options, "--json").documents]
    assert found == list(range(first, last + 1))


def test_text_names_each_event(allowance: Command) -> None:
    """An operator recognizes the event without reading JSON."""
    shown = allowance("events", "--last", "1").out.splitlines()
    assert shown[0].split() == ["position", "recorded", "at", "event", "about"]
    assert shown[1].split()[0] == str(HEAD)
    assert shown[1].endswith("block-recorded  block 11")


@pytest.mark.parametrize("options", [("--after", "99"), ("--until", "99")])
def test_a_position_beyond_the_head_is_named(allowance: Command, options: tuple[str, ...]) -> None:
    """The answer is no, and says how far the log goes."""
    result = allowance("events", *options)
    assert (result.code, result.out) == (1, "")
    assert "covers 0 to 13" in result.err


def test_the_schema_names_all_types(allowance: Command) -> None:
    """It needs no ledger."""
    document = allowance("events", "--schema").document
    assert all(tag in json.dumps(document) for tag in EVENT_TAGS)


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_a_followed_log_is_printed_as_it_grows(url: str, as_json: bool) -> None:
    """The line of an event arrives although the output is a pipe; Control-C ends the command.

    Catches lines that wait in a buffer until it is full.
    """

    async def reserve() -> int:
        async with Allowance.open(url, validator_ss58=VALIDATOR) as ledger:
            return (await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id

    command = [sys.executable, "-m", "routing.cli", "events", "--last", "1", "--follow", "--database", url]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*command, *["--json"] * as_json], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=buffered
    ) as followed:
        assert followed.stdout is not None
        try:
            if not as_json:
                followed.stdout.readline()  # the headers
            assert str(HEAD) in followed.stdout.readline()
            reservation_id = asyncio.run(reserve())
            seen = followed.stdout.readline()
        finally:
            followed.send_signal(signal.SIGINT)
            # Before the pipes are closed: writing to a closed one would be a failure of its own.
            followed.communicate()
    assert str(HEAD + 1) in seen
    assert str(reservation_id) in seen
    assert followed.returncode == 130
