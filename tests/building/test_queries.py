"""The page on queries: its views have the columns that it lists, and its queries give the figures of the ledger."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from routing.cli.main import main
from routing.contrib.testing import MovableClock, SmallNetwork
from routing.sync import Allowance, Routing
from tests.support.engines import derived_url

PAGE = (Path(__file__).parents[2] / "routing" / "guide" / "queries.md").read_text()
_row = re.compile(r"^\| (?P<columns>`.*?) \|", re.MULTILINE)
_python = re.compile(r"^```python\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)

NETWORK = SmallNetwork()
JOBS = 7
SPENT = 4


def documented_columns(view: str) -> list[str]:
    """The columns in the table of the view's section, in order."""
    (text,) = (section for section in PAGE.split("\n## ") if section.split("\n")[0].endswith(f"`{view}`"))
    return [name for row in _row.finditer(text) for name in re.findall(r"`(\w+)`", row["columns"])]


def stored_columns(url: str, view: str) -> list[str]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            return [column[0] for column in connection.execute(f"SELECT * FROM {view}").description]

    async def columns() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            return [each.name for each in (await connection.prepare(f"SELECT * FROM {view}")).get_attributes()]
        finally:
            await connection.close()

    return asyncio.run(columns())


def fill(url: str) -> list[tuple[str, float]]:
    """Make a ledger in which some jobs are spent; return miner and seconds of each of these."""
    clock = MovableClock()
    with Allowance.open(url, validator_ss58=NETWORK.validator_ss58, clock_ns=clock) as ledger:
        ledger.record_facts(NETWORK.facts(clock.now))
        for number in range(JOBS):
            route = Routing(ledger).pick_miner_for_job_request(NETWORK.job(12.5 + number))
            clock.advance(0.5)
            ledger.settle(route, "spend" if number < SPENT else "release")
        ledger.rebuild()
        spent = ledger.history(status="spent").items
        return [(each.miner_ss58, each.allowance_seconds) for each in spent]


def test_the_view_of_the_log_has_the_columns_that_the_page_lists(any_url: str) -> None:
    """On both engines, in this order; a column cannot be renamed without the page."""
    fill(any_url)
    assert stored_columns(any_url, "allowance_log") == documented_columns("allowance_log")


def test_the_view_of_reservations_has_the_columns_that_the_page_lists(url: str) -> None:
    """On SQLite, which alone has this view."""
    fill(url)
    assert stored_columns(derived_url(url), "allowance_history") == documented_columns("allowance_history")


def test_the_queries_of_the_page_agree_with_the_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """SQL on the views, DuckDB and pandas count the same jobs and sum the same amounts as the ledger itself."""
    monkeypatch.chdir(tmp_path)
    spent = fill("sqlite:///demo.db")
    seconds = sum(amount for _, amount in spent)
    ledger = ["--database", "sqlite:///demo.db", "--validator", NETWORK.validator_ss58]
    assert main(["events", "--json", *ledger]) == 0
    (tmp_path / "events.jsonl").write_text(capfd.readouterr().out)

    found: dict[str, Any] = {}
    by_view, by_history, by_duckdb, by_pandas = (block["text"] for block in _python.finditer(PAGE))
    exec(by_view, found)
    assert {miner: jobs for miner, jobs, _ in found["spent_by_miner"]} == Counter(miner for miner, _ in spent)
    assert sum(amount for _, _, amount in found["spent_by_miner"]) == pytest.approx(seconds)
    exec(by_history, found)
    assert ("spent", SPENT, pytest.approx(seconds)) in [row[1:] for row in found["by_class"]]
    exec(by_duckdb, found)
    assert [row[1:] for row in found["spent_by_day"]] == [(NETWORK.executor_class, SPENT, pytest.approx(seconds))]
    exec(by_pandas, found)
    assert list(found["by_class"].loc[NETWORK.executor_class])[:2] == [SPENT, round(seconds * 10**9)]
    assert found["by_class"]["longest"].max().total_seconds() == 0.5
    found["log"].close()
    found["history"].close()
