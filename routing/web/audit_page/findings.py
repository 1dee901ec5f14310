"""The findings by position, the rules that they break, and the list of all rules."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from routing.texts import counted
from routing.web.parts.markup import NUMBER, STACKED, Markup, element, joined, table, text

if TYPE_CHECKING:
    from routing import AuditReport, Finding

MOST_UNFOLDED = 50
"""Further findings are folded, so that the sections after them stay in reach."""


def findings_section(report: AuditReport) -> Markup:
    """Return the broken rules and the findings; nothing if there are no findings."""
    findings = report.findings
    if not report.findings_count:
        return Markup()
    listed = "" if _all_listed(report) else f", of which the first {len(findings):,} are listed"
    parts = [
        element("h2", "Findings"),
        element("p", f"{counted(report.findings_count, 'finding')}{listed}, by position in the log."),
        _first_cause(report),
        _broken_rules(report),
        _findings_table("Findings", findings[:MOST_UNFOLDED]),
    ]
    if folded := findings[MOST_UNFOLDED:]:
        summary = element("summary", f"{counted(len(folded), 'more finding')}")
        parts.append(element("details", summary, _findings_table("More findings", folded)))
    return element("section", *parts)


def rules_section(report: AuditReport) -> Markup:
    """Return a table of all rules that shows whether each holds."""
    from routing import RULES

    broken = _by_rule(report.findings)
    rows = [
        (_mark(len(broken[rule.value]), _is_known(report, rule.value)), _rule(rule.value), requirement)
        for rule, requirement in RULES.items()
    ]
    return element(
        "section",
        element("h2", "Rules"),
        element("p", f"The audit checked these {len(RULES)} rules at every event to which they apply."),
        table("Rules", ("Holds", "Rule", "Requirement"), rows, of=STACKED),
    )


def _first_cause(report: AuditReport) -> Markup:
    cause = report.first_cause
    if cause is None:
        return Markup()
    follow = sum(each.follows for each in report.findings)
    found = text(f"First cause: position {cause.position:,}, {cause.message}. ")
    return element("p", found, text(f"{counted(follow, 'finding')} below may follow from an earlier one."))


def _broken_rules(report: AuditReport) -> Markup:
    from routing import RULES

    findings = report.findings

    requirements = {rule.value: requirement for rule, requirement in RULES.items()}
    rows = [
        (
            f"{report.findings_by_rule.get(name, len(of_rule)):,}",
            f"{of_rule[0].position:,}",
            _rule(name),
            requirements.get(name, ""),
        )
        for name, of_rule in sorted(_by_rule(findings).items(), key=lambda each: -len(each[1]))
    ]
    headers = ("Findings", "First at", "Rule", "Requirement")
    return table("Broken rules", headers, rows, (NUMBER, NUMBER), of=STACKED)


def _findings_table(caption: str, findings: Sequence[Finding]) -> Markup:
    rows = ((f"{each.position:,}", _rule(each.rule), _message(each), _details(each.details)) for each in findings)
    return table(caption, ("Position", "Rule", "Finding", "Details"), rows, (NUMBER, "", "message"), of=STACKED)


def _message(finding: Finding) -> Markup:
    return text(f"{finding.message} (follows from an earlier finding)" if finding.follows else finding.message)


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
    return element("span", "✓", class_="good") if is_known else element("span", "unknown", class_="soft rule")


def _is_known(report: AuditReport, rule: str) -> bool:
    """Return whether the rule holds if no finding of it is listed.

    It is unknown if some findings are only counted, if there was nothing to compare, if choices are not proved, or if
    the audit was not strict.
    """
    compared = {
        "routing-decision": report.unproved_choices == 0,
        "history-model": report.history_position is not None,
        "snapshots": report.snapshots > 0,
        "live-state": report.live_state,
        "choice-proved": report.strict,
    }
    return _all_listed(report) and compared.get(rule, True)


def _all_listed(report: AuditReport) -> bool:
    return report.findings_count == len(report.findings)
