"""The type of a fault case, and the decorator that collects them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from projections import Rule
from tests.support.log_builder import LogBuilder

Change = Callable[[LogBuilder], object]


class FaultCase(NamedTuple):
    """A fault and the findings that an audit must report for it.

    `logs` creates the honest log, `make` adds the fault. The finding of `rule` must contain the texts `says`. `at` is
    its position relative to the end of the honest log, so 1 is the first added row. `also` lists further findings as
    (relative position, rule).
    """

    name: str
    rule: Rule
    at: int
    says: tuple[str, ...]
    also: tuple[tuple[int, Rule], ...]
    make: Change
    logs: Callable[[], LogBuilder]


class FaultCases(list[FaultCase]):
    """A list that works as a decorator: `@FAULT_CASES(Rule.DUE_TIME, "expected text")` above the function `make`."""

    def __call__(
        self,
        rule: Rule,
        *says: str,
        at: int = 1,
        also: Iterable[tuple[int, Rule]] = (),
        logs: Callable[[], LogBuilder] = LogBuilder,
    ) -> Callable[[Change], Change]:
        def collect(make: Change) -> Change:
            self.append(FaultCase(make.__name__, rule, at, says, tuple(also), make, logs))
            return make

        return collect
