"""The commands that record miner facts, and what other commands show of them; another policy."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from routing import Routing
from tests.support.cli import Command, command_line, configure_ledger
from tests.support.small import GPU, START, VALIDATOR, Clock, job, small_ledger

WEI = 10**19
RUNNING = ("--miner", "5Anna", "--executor-class", GPU, "--started-at", "2024-01-01T00:00:00Z", "--ttl", "60")


@pytest.fixture
def allowance(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `allowance` on a ledger with one routed job."""
    url = f"sqlite:///{tmp_path}/ledger.db"

    async def fill() -> None:
        async with small_ledger(url=url, clock=Clock(START + timedelta(seconds=132))) as ledger:
            await ledger.spend(
                (await Routing(ledger).pick_miner_for_job_request(job("job"))).allowance_reservation_id or 0
            )

    asyncio.run(fill())
    configure_ledger(monkeypatch, url, VALIDATOR)
    return command_line(capsys)


def test_each_fact_is_recorded_once(allowance: Command) -> None:
    """A repeat prints the position of the first event; each command changes the log by one event."""
    commands = (
        ("exclude", "5Anna", "--reason", "wrong results"),
        ("collateral", f"5Anna={WEI}", "5Bert=0"),
        ("job-elsewhere", "theirs", *RUNNING),
        ("job-elsewhere", "theirs", "--ended"),
        ("incident", "5Anna", GPU, "failed", "job"),
        ("readmit", "5Anna", "--reason", "our mistake"),
    )
    before = allowance("health", "--json").document["position"]
    for number, command in enumerate(commands, start=1):
        assert allowance(*command, "--json").document["position"] == before + number
    assert allowance(*commands[1], "--json").document["position"] == before + 2
    kinds = [each["event"]["type"] for each in allowance("events", "--last", "6", "--json").documents]
    assert kinds == [
        "miner-excluded",
        "collateral-recorded",
        "job-elsewhere-recorded",
        "job-elsewhere-ended",
        "incident-reported",
        "miner-readmitted",
    ]


def test_why_shows_what_else_is_known_of_the_miner(allowance: Command) -> None:
    """An account may have allowance and yet get no job; catches a `why` that shows the allowance alone."""
    allowance("exclude", "5Anna", "--reason", "wrong results")
    allowance("collateral", f"5Anna={WEI}")
    allowance("incident", "5Anna", GPU, "failed", "job")
    shown = allowance("why", "5Anna", GPU)
    assert "wrong results, until it is readmitted" in shown.out
    assert f"{WEI:,} wei" in shown.out
    known = allowance("why", "5Anna", GPU, "--json").document["known"]
    assert (known["excluded"], known["unfit"], known["collateral_wei"]) == (True, "excluded", WEI)


@pytest.mark.parametrize(
    "command",
    [
        ("collateral", "5Anna"),
        ("collateral", "5Anna=-1"),
        ("collateral", "5Anna=1", "5Anna=2"),
        ("job-elsewhere", "theirs"),
        ("job-elsewhere", "theirs", "--ended", "--ttl", "3"),
        ("incident", "5Anna", GPU, "slow", "job"),
        ("exclude", "5Anna", "--reason", "late", "--until", "2023-01-01T00:00:00Z"),
        ("policy", "no_such_setting=1"),
    ],
    ids=" ".join,
)
def test_wrong_input_exits_with_2_and_records_nothing(allowance: Command, command: tuple[str, ...]) -> None:
    """The message says what would be right."""
    before = allowance("health", "--json").document["position"]
    result = allowance(*command)
    assert (result.code, result.out) == (2, "")
    assert allowance("health", "--json").document["position"] == before


def test_a_miner_that_was_never_excluded_is_not_readmitted(allowance: Command) -> None:
    """The answer is no, and not a wrong input."""
    assert allowance("readmit", "5Anna", "--reason", "well again").code == 1


def test_the_policy_of_the_log_gives_the_same_choices(allowance: Command) -> None:
    """Text and JSON; another policy shows what it would have changed."""
    document = allowance("policy", "--json").document
    assert (document["jobs"], document["same_miner"]) == (1, 1)
    shown = allowance("policy", "allowance_multiplier=1/1000")
    assert "refused" in shown.out
    assert "1 NotEnoughAllowanceException" in shown.out
