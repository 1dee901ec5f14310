"""Whatever breaks a rule is found: at its position, under the rule's name, with the numbers, and nothing beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from projections import RULES, Finding, Rule
from tests.support.fault_cases import FAULT_CASES, FaultCase
from tests.support.log_builder import LogBuilder, audited

FOUND_ELSEWHERE = {Rule.HEAD_ROW, Rule.GRANTS_FOLLOW, Rule.HISTORY_MODEL, Rule.SNAPSHOTS, Rule.LIVE_STATE}
"""What is not in the log: the head row, what is derived, and what the ledger makes of the log; see `test_audit.py`."""


def words(finding: Finding) -> str:
    """What a finding says, numbers included."""
    return f"{finding.message} " + " ".join(f"{name} {value}" for name, value in finding.details.items())


@pytest.mark.parametrize("plant", FAULT_CASES, ids=lambda plant: f"{plant.rule.value}: {plant.name}")
async def test_a_planted_fault_is_found(tmp_path: Path, plant: FaultCase) -> None:
    """Just it, and what goes with it."""
    log = plant.logs()
    honest = log.position
    plant.make(log)

    report = await audited(tmp_path, log.rows)

    expected = sorted([(honest + plant.at, plant.rule.value), *((honest + at, rule.value) for at, rule in plant.also)])
    assert sorted((each.position, each.rule) for each in report.findings) == expected
    said = words(next(each for each in report.findings if each.rule == plant.rule))
    for what in plant.says:
        assert what in said
    assert report.findings_count == len(report.findings)


@pytest.mark.parametrize("make", {plant.logs for plant in FAULT_CASES if plant.at > 0}, ids=lambda make: make.__name__)
async def test_without_its_fault_a_log_is_honest(tmp_path: Path, make: type[LogBuilder]) -> None:
    """What plants are told on has no fault of its own."""
    report = await audited(tmp_path, make().rows)
    assert report.findings == []


def test_every_rule_has_a_planted_fault() -> None:
    """A rule that nothing was seen to break may check nothing; a new one needs a plant."""
    assert {plant.rule for plant in FAULT_CASES} | FOUND_ELSEWHERE == set(RULES) == set(Rule)
    assert {plant.rule for plant in FAULT_CASES}.isdisjoint(FOUND_ELSEWHERE)
