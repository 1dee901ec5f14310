"""The audit's page: whole, self-contained, and deaf to what strangers wrote into the log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from routing import RULES, AccountTotals, AccountUsage, AuditReport, BlockUsage, Finding
from routing.cli.audit_page import page
from routing.cli.svg import Area, chart, ticks

VOID = {"meta", "line"}
HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J\"'&"


class Tree(HTMLParser):
    """Which tags there are and with what attributes; refuses what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID and tag != "br":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def a_report(accounts: list[AccountUsage], starts: list[int], **fields: Any) -> AuditReport:
    totals = [
        AccountTotals(each.miner_ss58, each.executor_class, sum(each.granted), sum(each.spent), 0, 0, 0, 0)
        for each in accounts
    ]
    given: dict[str, Any] = {
        "validator_ss58": "5Validator",
        "position": 7,
        "head_hash": "ab" * 32,
        "findings": [],
        "findings_count": 0,
        "events": {"block-recorded": 7},
        "totals": totals,
        "history_position": None,
        "elapsed_seconds": 0.5,
        "events_per_second": 14.0,
        "usage": BlockUsage(starts, accounts),
    }
    return AuditReport(**{**given, **fields})


def network(miners: int, classes: int, buckets: int) -> tuple[list[AccountUsage], list[int]]:
    """Accounts that use their allowance unevenly."""
    starts = [1 + 10 * place for place in range(buckets + 1)]
    accounts = [
        AccountUsage(
            f"5{'Miner' * 9}{number:02}",
            f"class-{name}",
            [120.0] * buckets,
            [float((place * number) % 90) for place in range(buckets)],
            [float(place % 11) for place in range(buckets)],
            [float((place + number) % 7) for place in range(buckets)],
        )
        for number in range(miners)
        for name in range(classes)
    ]
    return accounts, starts


def references(tree: Tree) -> Iterator[str]:
    for tag, attributes in tree.tags:
        assert tag not in {"link", "script", "img", "iframe", "object", "base"}
        yield from (name for name in attributes if name in {"src", "href", "srcset", "action", "xlink:href"})


def test_the_page_needs_nothing_but_itself() -> None:
    """Well-formed, with no reference that a browser would follow and no script: it opens without a network."""
    text = page(a_report(*network(3, 2, 12)))
    tree = Tree(text)
    assert not list(references(tree))
    assert not re.search(r"url\(|@import|https?:", text)
    assert [tag for tag, _ in tree.tags].count("svg") == 1 + 2 + 6


def test_what_stands_in_the_log_stays_text() -> None:
    """Names and messages that would be tags, or would turn the reading direction, are shown and do nothing.

    Catches a place where a name enters the page unescaped.
    """
    accounts, starts = network(1, 1, 2)
    hostile = AccountUsage(HOSTILE, HOSTILE, *([1.0, 2.0] for _ in range(4)))
    finding = Finding(3, HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    report = a_report(
        [*accounts, hostile],
        starts,
        validator_ss58=HOSTILE,
        head_hash=HOSTILE,
        events={HOSTILE: 1},
        findings=[finding],
        findings_count=1,
    )
    text = page(report)
    tree = Tree(text)
    assert not list(references(tree))
    assert not {"\u202e", "\x1b"} & set(text)
    assert sum("<script>alert(1)</script>" in each for each in tree.text) >= 8


def test_every_finding_and_every_rule_is_told() -> None:
    """Findings by position with their facts; each rule with how often it was broken."""
    rules = list(RULES)
    findings = [Finding(n, rules[n].value, f"message {n}", {"fact": n}) for n in range(len(rules))]
    text = page(a_report(*network(1, 1, 3), findings=findings, findings_count=99_999))
    for n, rule in enumerate(rules):
        assert f"message {n}<" in text
        assert text.count(f">{rule.value}<") == 2
    assert f"99,999 findings, the first {len(rules)} of them listed" in text
    assert "✓" not in text


@pytest.mark.parametrize("usage", [None, BlockUsage([], []), BlockUsage([1, 2], [])])
def test_a_ledger_with_nothing_in_it_has_a_page(usage: BlockUsage | None) -> None:
    """Nothing granted, or no accounts: no chart fails."""
    Tree(page(a_report([], [], usage=usage)))


def test_the_charts_are_told_in_numbers() -> None:
    """What a chart's key and description say is the sum of what it draws."""
    text = page(a_report(*network(4, 1, 9)))
    spent = sum(float((place * number) % 90) for number in range(4) for place in range(9))
    held = 4 * sum(float(place % 11) for place in range(9))
    assert text.count(f"spent {spent:,.3f} s") == 4
    assert text.count(f"held {held:,.3f} s") == 4


def test_a_chart_draws_what_it_is_given() -> None:
    """Layers stand on each other: the second begins where the first ends, and the highest reaches the top."""
    drawn = chart([0, 10, 20], [Area("spent", [1.0, 0.0]), Area("free", [1.0, 4.0])], "title", "description")
    spent, free = re.findall(r'<path class="\w+" d="([^"]+)"/>', drawn)
    assert spent == "M64 212V162H506V212H948V212H64Z"
    assert free == "M64 212V112H506V12H948V212H506V162H64Z"


def test_ticks_are_round_and_few() -> None:
    """Whatever the range, no more than asked for, and at numbers that people count in."""
    for high in (0.003, 1, 7, 99, 1234, 10**9):
        found = ticks(0, high, 5)
        assert 2 <= len(found) <= 6
        assert found[0] == 0
        assert found[-1] <= high
    assert ticks(5, 5, 5) == []


def test_a_large_network_makes_a_page_of_a_few_megabytes() -> None:
    """250 miners in five classes, each with a row of its own."""
    assert len(page(a_report(*network(250, 5, 120)))) < 5_000_000
