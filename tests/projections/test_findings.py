"""All findings are counted, and those of the lowest positions are listed."""

from __future__ import annotations

import random

import pytest

from projections import Rule
from projections.rules import Findings


@pytest.mark.parametrize("seed", range(20))
def test_the_findings_of_the_lowest_positions_are_listed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order of adding; those of one position in the order of adding.

    Fails if the first ones added are listed, or if nothing is added to a list that was full once.
    """
    draw = random.Random(seed)
    most = draw.choice([1, 2, 5, 30])
    monkeypatch.setattr("projections.rules.MOST_FINDINGS", most)
    made = [(draw.randrange(draw.choice([10, 1000])), str(number)) for number in range(draw.choice([0, 3, 60, 200]))]
    findings = Findings()
    for position, message in made:
        findings.add(position, Rule.HISTORY_MODEL, message)
        if draw.random() < 0.1:
            assert len(findings.listed) <= most
    expected = sorted(made, key=lambda each: each[0])[:most]
    assert [(each.position, each.message) for each in findings.listed] == expected
    assert findings.count == len(made)
