"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from projections import Rule
from tests.forged import Forged

Forgery = Callable[[Forged], object]


class Plant(NamedTuple):
    """A fault, what it is found as, and the words and numbers that the finding of its own rule must bear.

    `at` counts from the last position of the honest log: the first row that is forged is at 1.
    """

    name: str
    rule: Rule
    at: int
    says: tuple[str, ...]
    also: tuple[tuple[int, Rule], ...]
    make: Forgery
    logs: Callable[[], Forged]


class Plants(list[Plant]):
    """Collects plants: `@plants(Rule.DUE_TIME, says="…")` over the function that forges."""

    def __call__(
        self,
        rule: Rule,
        *says: str,
        at: int = 1,
        also: Iterable[tuple[int, Rule]] = (),
        logs: Callable[[], Forged] = Forged,
    ) -> Callable[[Forgery], Forgery]:
        def collect(make: Forgery) -> Forgery:
            self.append(Plant(make.__name__, rule, at, says, tuple(also), make, logs))
            return make

        return collect
