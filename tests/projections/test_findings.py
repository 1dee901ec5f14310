"""Findings: all are counted, those with the lowest positions are listed."""

from __future__ import annotations

import random

import pytest

from projections import Rule
from projections.rules import Findings


@pytest.mark.parametrize("seed", range(20))
def test_the_findings_with_the_lowest_positions_are_listed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for any order of additions; findings at one position are listed in the order of their addition.

    Catches a list of the findings that were added first, and one that accepts no more once it is full.
    """
    draw = random.Random(seed)
    most = draw.choice([1, 2, 5, 30])
    monkeypatch.setattr("projections.rules.MOST_FINDINGS", most)
    added = [(draw.randrange(draw.choice([10, 1000])), str(number)) for number in range(draw.choice([0, 3, 60, 200]))]
    findings = Findings()
    for position, message in added:
        findings.add(position, Rule.HISTORY_MODEL, message)
        if draw.random() < 0.1:
            assert len(findings.listed) <= most
    expected = sorted(added, key=lambda each: each[0])[:most]
    assert [(each.position, each.message) for each in findings.listed] == expected
    assert findings.count == len(added)
