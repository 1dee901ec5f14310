"""`routing.sync`: the same classes and methods as `routing`, as blocking calls."""

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

# A router executes its command through this method; callers have no command of their own.
FOR_ROUTERS = {"execute"}


def public(class_: type) -> set[str]:
    return {name for name in dir(class_) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["Allowance", "Past", "Routing"])
def test_blocking_classes_have_all_methods_with_the_same_parameters(name: str) -> None:
    """Each blocking class has the public names of the asynchronous one, and its methods have the same parameters."""
    asynchronous_class, blocking_class = getattr(routing, name), getattr(blocking, name)
    methods = public(asynchronous_class) - FOR_ROUTERS
    assert methods <= public(blocking_class)
    for method in methods:
        blocking_method: Any = getattr(blocking_class, method)
        if inspect.isfunction(getattr(asynchronous_class, method)):
            parameters = inspect.signature(getattr(asynchronous_class, method)).parameters
            assert list(inspect.signature(blocking_method).parameters) == list(parameters), method


def test_the_past_can_be_queried_with_blocking_calls() -> None:
    """`at` returns the same results as the asynchronous one, and refuses a position out of range."""
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
