"""The dashboard, the alert rules and the guide name metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # Its stubs are not among the requirements.
from prometheus_client import CollectorRegistry

from routing.metrics import ALERTS, DASHBOARD, disable, enable, exposition
from tests.metrics.test_metrics import COMPUTEHORDE, Feeder, State
from tests.support.scrapes import names
from tests.support.small import small_ledger

GUIDE = Path(__file__).parents[2] / "routing" / "guide" / "metrics.md"
METRIC = re.compile(r"\b(?:allowance|validator)_[a-z_]*[a-z]\b")
LABELS = {"validator_ss58"}


def dashboard_queries() -> list[str]:
    """Return every query of the dashboard: of its panels, and of its variables."""
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return queries + [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]


def alert_rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def named(query: str) -> set[str]:
    """Return the metrics that a query names, without labels and what stands in quotes."""
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', query))) - LABELS


async def existing() -> set[str]:
    """Return all names of a real scrape, with a feeder and ComputeHorde's names."""
    import asyncio

    enable(registry=CollectorRegistry(), computehorde_names=True)
    try:
        async with small_ledger() as ledger:
            feeds = [Feeder(State())]
            body, _ = await asyncio.to_thread(exposition, [ledger], feeds=feeds, computehorde_names=True)
    finally:
        disable()
    return names(body.decode())


async def test_every_query_names_a_metric_that_exists() -> None:
    """Catches a panel or a rule whose metric was renamed: it would stay empty, and never fire."""
    queries = dashboard_queries() + [rule["expr"] for rule in alert_rules()]
    assert len(queries) > 30
    found = await existing()
    for query in queries:
        assert named(query), query
        assert named(query) <= found, query


def test_each_query_is_well_formed() -> None:
    """Brackets pair up; a rate is of a counter over a range."""
    for query in dashboard_queries() + [rule["expr"] for rule in alert_rules()]:
        for opening, closing in ("()", "[]", "{}"):
            assert query.count(opening) == query.count(closing), query
        for rated in re.findall(r"\b(?:rate|increase)\(([a-z_]+)", query):
            assert rated.endswith(("_total", "_bucket", "_sum", "_count")), query


def test_each_rule_says_what_to_do() -> None:
    """A rule has a severity, a summary and a description; the issue's conditions all have one."""
    rules = {rule["alert"]: rule for rule in alert_rules()}
    for rule in rules.values():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}
    stale, verified = {"AllowanceFeedStale", "AllowanceManifestsStale"}, "AllowanceNotVerified"
    waits = {"AllowanceProjectionLag", "AllowanceOverdueReservations", "AllowanceWriteLockWait"}
    assert stale | waits | {verified, "AllowancePicksRefused"} <= set(rules)


def test_panels_do_not_overlap() -> None:
    """Each panel has a place of its own on Grafana's grid of 24 columns, and a number of its own."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert cells.isdisjoint(taken), panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


async def test_the_guide_lists_every_metric() -> None:
    """Catches a metric that is added and not documented, and one that is documented and gone."""
    rows = re.findall(r"^\| `([a-z_]+)`", GUIDE.read_text(), re.MULTILINE)
    documented = {row for row in rows if row.startswith(("allowance_", "validator_"))}
    found = {name for name in await existing() if not name.endswith("_created")}
    histograms = {name.removesuffix("_bucket") for name in found if name.endswith("_bucket")}
    parts = {f"{histogram}_{part}" for histogram in histograms for part in ("bucket", "sum", "count")}
    assert documented == found - parts | histograms
    assert set(COMPUTEHORDE) <= documented


@pytest.mark.parametrize("file", [DASHBOARD, ALERTS])
def test_the_files_are_shipped_with_the_package(file: Path) -> None:
    """They are in the package, and so in the wheel."""
    assert file.parent.name == "metrics"
    assert file.read_text()
