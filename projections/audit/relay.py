"""An audit in stretches, each by a process of its own, handed over at borders from each to the next.

Somebody takes over only where nothing was found before, and from just what the one before has come to. Otherwise, and
where a helper is lost, the one before goes on itself: what is found is what one alone finds, and in the same order.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

from ledger import Store

from ..snapshots import ProgressReport
from .helper import Task
from .process import Helper, HelperLost
from .stretch import Assignment, Ending, Part, Stretch

FOLLOWING_COSTS = 0.3
"""What it takes to follow an event, of what it takes to audit it: a quarter to a third, as measured."""
LEAST_EVENTS = 25_000
"""Worth a process of its own, which takes a quarter of a second to start."""

log = logging.getLogger("allowance.ledger")


class Runner(Protocol):
    """Whoever audits a stretch."""

    begin: int
    """The position before its stretch."""
    passed: int
    """How many rows it has audited."""

    async def audit(self, border: int) -> bytes | None:
        """Audits on up to a border; the seal of what it comes to, None where something was found."""
        ...

    async def part(self) -> Part:
        """What it came to; it is done."""
        ...

    async def end(self) -> tuple[Ending, Part]:
        """What it came to, as the one who came to the end of the log; it is done."""
        ...


class Here:
    """Audits in this process, from nothing on."""

    def __init__(self, store: Store, assignment: Assignment, passed: Callable[[], None]) -> None:
        self.begin = self.passed = 0
        self._passed = passed
        self._stretch = Stretch(store, assignment, self._note)

    async def audit(self, border: int) -> bytes | None:
        """See `Runner`."""
        return await self._stretch.audit(border)

    async def part(self) -> Part:
        """See `Runner`."""
        return self._stretch.part()

    async def end(self) -> tuple[Ending, Part]:
        """See `Runner`."""
        return await self._stretch.end(), self._stretch.part()

    def _note(self, audited: int) -> None:
        self.passed = audited
        self._passed()


async def audited(
    store: Store, assignment: Assignment, progress: ProgressReport | None, database_url: str | None, processes: int
) -> tuple[Ending, list[Part]]:
    """Audits what was assigned, in as many processes as are worth it; others open the database by its URL."""
    until = assignment.until
    relay = _Relay(store, assignment, progress)
    borders = borders_of(until, processes)
    if database_url is not None and borders and sys.executable and not getattr(sys, "frozen", False):
        try:
            return await relay.run(database_url, borders)
        except HelperLost:
            log.warning("a process that helped with an audit ended before its work did: the audit begins anew, alone")
    return await relay.run("", [])


def borders_of(until: int, processes: int) -> list[int]:
    """Where each but the first begins, so that all come to their ends at about the same time.

    There are as many stretches as there may be, none of them too short for a process of its own.
    """
    shares = [(1 - FOLLOWING_COSTS) ** place for place in range(processes)]
    while len(shares) > 1 and until * shares[-1] < LEAST_EVENTS * sum(shares):
        shares.pop()
    return [int(until * share / sum(shares)) for share in accumulate(shares[:-1])]


class _Relay:
    """All who take part in an audit."""

    def __init__(self, store: Store, assignment: Assignment, progress: ProgressReport | None) -> None:
        self._store = store
        self._assignment = assignment
        self._progress = progress
        self._most = 0
        self._runners: list[Runner] = []

    async def run(self, database_url: str, borders: Sequence[int]) -> tuple[Ending, list[Part]]:
        """Audits, with a helper from each border on."""
        until = self._assignment.until
        parts: list[Part] = []
        runner: Runner = Here(self._store, self._assignment, self._tell)
        self._runners = [runner]
        helpers: list[Helper] = []
        try:
            self._start(helpers, database_url, borders)
            for helper in helpers:
                seal = await runner.audit(helper.begin)
                if seal is None:
                    break  # Nor will anybody else take over from here on.
                if seal == await helper.begins():
                    parts.append(await runner.part())
                    runner = helper
                else:
                    self._dismiss([helper])
            self._dismiss([helper for helper in helpers if helper.begin > runner.begin])
            await runner.audit(until)
            ending, part = await runner.end()
            return ending, [*parts, part]
        finally:
            self._dismiss(helpers)
            for helper in helpers:
                await helper.gone()

    def _start(self, helpers: list[Helper], database_url: str, borders: Sequence[int]) -> None:
        try:
            for begin, end in pairwise([*borders, self._assignment.until]):
                helpers.append(Helper(Task(database_url, self._assignment, begin, end), self._tell))
        except (OSError, RuntimeError) as refused:
            log.warning("no more than %d processes can be started to help with an audit: %s", len(helpers), refused)
        self._runners += helpers

    def _dismiss(self, helpers: Sequence[Helper]) -> None:
        for helper in helpers:
            helper.stop()
            if helper in self._runners:
                self._runners.remove(helper)

    def _tell(self) -> None:
        audited = sum(runner.passed for runner in self._runners)
        if audited > self._most and self._progress is not None:
            self._most = audited
            self._progress(audited, self._assignment.until)
