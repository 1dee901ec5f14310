"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from projections import Rule
from tests.support.log_builder import LogBuilder

Change = Callable[[LogBuilder], object]


class FaultCase(NamedTuple):
    """A fault, what it is found as, and the words and numbers that the finding of its own rule must bear.

    `at` counts from the last position of the honest log: the first row that is forged is at 1.
    """

    name: str
    rule: Rule
    at: int
    says: tuple[str, ...]
    also: tuple[tuple[int, Rule], ...]
    make: Change
    logs: Callable[[], LogBuilder]


class FaultCases(list[FaultCase]):
    """Collects plants: `@plants(Rule.DUE_TIME, says="…")` over the function that forges."""

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
