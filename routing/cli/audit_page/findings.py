"""What is wrong, by position, and which rules that breaks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from routing.cli.io.render import counted

from .markup import NUMBER, STACKED, Markup, element, joined, table, text

if TYPE_CHECKING:
    from routing import AuditReport, Finding

MOST_OPEN = 50
"""Findings beyond these are folded away, so that what follows is not out of reach."""


def findings_section(report: AuditReport) -> Markup:
    """Broken rules with what they demand, then the findings; nothing where there are none."""
    findings = report.findings
    if not report.findings_count:
        return Markup()
    listed = "" if _all_listed(report) else f", of which the first {len(findings):,} are listed"
    parts = [
        element("h2", "Findings"),
        element("p", f"{counted(report.findings_count, 'finding')}{listed}, by position in the log."),
        _broken_rules(findings),
        _findings_table("Findings", findings[:MOST_OPEN]),
    ]
    if folded := findings[MOST_OPEN:]:
        summary = element("summary", f"{counted(len(folded), 'more finding')}")
        parts.append(element("details", summary, _findings_table("More findings", folded)))
    return element("section", *parts)


def rules_section(report: AuditReport) -> Markup:
    """Every rule, what it demands, and whether it holds."""
    from routing import RULES

    broken = _by_rule(report.findings)
    rows = [
        (_mark(len(broken[rule.value]), _is_known(report, rule.value)), _rule(rule.value), demand)
        for rule, demand in RULES.items()
    ]
    return element(
        "section",
        element("h2", "Rules"),
        element("p", f"The {len(RULES)} rules that the log was held against, each at every event that it is about."),
        table("Rules", ("Holds", "Rule", "What it demands"), rows, of=STACKED),
    )


def _broken_rules(findings: Sequence[Finding]) -> Markup:
    from routing import RULES

    demands = {rule.value: demand for rule, demand in RULES.items()}
    rows = [
        (f"{len(theirs):,}", f"{theirs[0].position:,}", _rule(name), demands.get(name, ""))
        for name, theirs in sorted(_by_rule(findings).items(), key=lambda each: -len(each[1]))
    ]
    headers = ("Findings", "First at", "Rule", "What it demands")
    return table("Broken rules", headers, rows, (NUMBER, NUMBER), of=STACKED)


def _findings_table(caption: str, findings: Sequence[Finding]) -> Markup:
    rows = ((f"{each.position:,}", _rule(each.rule), text(each.message), _details(each.details)) for each in findings)
    return table(caption, ("Position", "Rule", "What is wrong", "Details"), rows, (NUMBER, "", "message"), of=STACKED)


def _details(details: dict[str, object]) -> Markup:
    return joined(
        element("div", text(name), ": ", element("code", text(_value(value))), class_="detail")
        for name, value in details.items()
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _by_rule(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    by_rule: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_rule[finding.rule].append(finding)
    return by_rule


def _rule(name: str) -> Markup:
    return element("span", text(name), class_="rule")


def _mark(broken: int, is_known: bool) -> Markup:
    if broken:
        return element("span", f"✗ {counted(broken, 'finding')}", class_="bad rule")
    return element("span", "✓", class_="good") if is_known else element("span", "not known", class_="soft rule")


def _is_known(report: AuditReport, rule: str) -> bool:
    """Whether no finding listed means that there is none."""
    compared = {
        "history-model": report.history_position is not None,
        "snapshots": report.snapshots > 0,
        "live-state": report.live_state,
    }
    return _all_listed(report) and compared.get(rule, True)


def _all_listed(report: AuditReport) -> bool:
    return report.findings_count == len(report.findings)
