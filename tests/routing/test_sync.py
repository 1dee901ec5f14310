"""The blocking face: everything that the awaited one offers, with the same answers."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

import pytest

import routing
import routing.sync as blocking
from routing import Miner, PositionOutOfRange
from tests.support.small import GPU, START, VALIDATOR, Clock

pytestmark = pytest.mark.compatibility

FOR_ROUTERS = {"execute"}
"""What the library's own parts call each other by."""


def public(face: type) -> set[str]:
    return {name for name in dir(face) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Allowance", "Past", "Routing"])
def test_nothing_is_missing(name: str) -> None:
    """Each class has the same public names, and the methods the same parameters."""
    awaited, face = getattr(routing, name), getattr(blocking, name)
    assert public(awaited) - FOR_ROUTERS <= public(face)
    for method in public(awaited) - FOR_ROUTERS:
        mine: Any = getattr(face, method)
        if inspect.isfunction(getattr(awaited, method)):
            theirs = inspect.signature(getattr(awaited, method)).parameters
            assert list(inspect.signature(mine).parameters) == list(theirs), method


def test_the_past_is_asked_in_blocking_calls() -> None:
    """`at` answers as the awaited one does, and refuses what lies out of range."""
    with blocking.Allowance.open("sqlite://", validator_ss58=VALIDATOR, clock_ns=Clock()) as ledger:
        assert ledger.validator_ss58 == VALIDATOR
        first = ledger.record_manifests(1, {"5Anna": {GPU: 1}})
        for number in (1, 2, 3):
            at = START + timedelta(seconds=12 * number)
            ledger.record_block(number, at, [Miner("192.0.2.7", 4, 80, "5Anna")], {VALIDATOR: 1.0})
        assert ledger.at(block=2).current_block() == 2
        assert ledger.at(position=first).current_block() is None
        assert [each.total_seconds for each in ledger.at(block=2).find_miners(1.0, GPU, 2)] == [12.0]
        assert ledger.find_miners(1.0, GPU, 3)[0].total_seconds == 24.0
        with pytest.raises(PositionOutOfRange):
            ledger.at(position=99).head()
