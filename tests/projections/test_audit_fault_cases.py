"""Every fault case is found: at its position, under its rule's name, with the numbers, and nothing else is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from projections import RULES, Finding, Rule
from tests.support.fault_cases import FAULT_CASES, FaultCase
from tests.support.log_builder import LogBuilder, audited

FOUND_ELSEWHERE = {
    Rule.HEAD_ROW,
    Rule.GRANTS_FOLLOW,
    Rule.HISTORY_MODEL,
    Rule.SNAPSHOTS,
    Rule.LIVE_STATE,
    Rule.CHOICE_PROVED,
}
"""Rules about the head row, derived tables and folded states, which no log can break; see `test_audit.py`. The last is
that of a strict audit; see `test_fairness.py`."""


def words(finding: Finding) -> str:
    """Return the message and the details of a finding as one text."""
    return f"{finding.message} " + " ".join(f"{name} {value}" for name, value in finding.details.items())


@pytest.mark.parametrize("case", FAULT_CASES, ids=lambda case: f"{case.rule.value}: {case.name}")
async def test_a_fault_case_is_found(tmp_path: Path, case: FaultCase) -> None:
    """The audit reports exactly the findings that the case lists."""
    log = case.logs()
    honest = log.position
    case.make(log)

    report = await audited(tmp_path, log.rows)

    expected = sorted([(honest + case.at, case.rule.value), *((honest + at, rule.value) for at, rule in case.also)])
    assert sorted((each.position, each.rule) for each in report.findings) == expected
    shown = words(next(each for each in report.findings if each.rule == case.rule))
    for text in case.says:
        assert text in shown
    assert report.findings_count == len(report.findings)


@pytest.mark.parametrize("make", {case.logs for case in FAULT_CASES if case.at > 0}, ids=lambda make: make.__name__)
async def test_a_fault_cases_log_without_its_fault_has_no_finding(tmp_path: Path, make: type[LogBuilder]) -> None:
    """The logs to which fault cases add their faults are honest."""
    report = await audited(tmp_path, make().rows)
    assert report.findings == []


def test_every_rule_has_a_fault_case() -> None:
    """A rule without a case that breaks it may check nothing, so a new rule needs a fault case."""
    assert {case.rule for case in FAULT_CASES} | FOUND_ELSEWHERE == set(RULES) == set(Rule)
    assert {case.rule for case in FAULT_CASES}.isdisjoint(FOUND_ELSEWHERE)
