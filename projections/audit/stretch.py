"""A stretch of a log, audited: from nothing on, or from where somebody else hands the log over.

A log that is long enough is audited by several processes at once, each a stretch of it. Whoever begins further on
follows the log up to there without a check, which costs a third as much. What it begins with counts only if it is
what the one before it has come to, and found nothing on the way: so everything is replayed from nothing all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from ledger import CorruptLedger, Head, Row, Store

from ..model import Place
from ..rules import Findings, Rule
from ..snapshots import Taken
from .history import HistoryCheck, HistoryPart
from .replay import Replay
from .report import AccountTotals, BlockUsage, totals_of, usage_of
from .states import States, dumped


class Assignment(NamedTuple):
    """What is audited, and what it is compared with."""

    validator_ss58: str
    head: Head
    until: int
    states: list[tuple[Rule, Taken]]
    history: Place
    usage_buckets: int = 0


class Part(NamedTuple):
    """What one stretch came to."""

    findings: Findings
    history: HistoryPart
    compared: dict[Rule, int]


class Ending(NamedTuple):
    """What the log comes to at the end of the last stretch."""

    position: int
    hash: bytes
    events: dict[str, int]
    totals: list[AccountTotals]
    usage: BlockUsage | None


class Stretch:
    """Audits a log in pieces as large as one likes; `passed` is told after each page how many rows were."""

    def __init__(self, store: Store, assignment: Assignment, passed: Callable[[int], None]) -> None:
        self._store = store
        self._assignment = assignment
        self._passed = passed
        self._replay = Replay(assignment.validator_ss58)
        self._states = States(assignment.states, self._replay.findings)
        self._history = HistoryCheck(store, assignment.history, assignment.until)
        self._first = self._after = 0
        """The positions before its first row, and before the next one to be read."""

    async def follow(self, border: int) -> bytes | None:
        """Takes the log as it is, up to a border, and answers with the seal of what it comes to.

        Raises whatever comes of a log that no ledger writes.
        """
        replay, until = self._replay, self._assignment.until
        while replay.position < until and not replay.is_at_border(border):
            rows = await self._store.read(self._after)
            for row in rows:
                replay.follow(row)
                if replay.position >= until or replay.is_at_border(border):
                    break
            if not rows:
                raise CorruptLedger(replay.position, "the log cannot be followed from here on")
            self._after = replay.position
            await self._pause(0)
        replay.page.clear()
        self._first = self._after
        self._history.start_after(self._first)
        return self._seal()

    async def audit(self, border: int) -> bytes | None:
        """Audits on up to a border, and answers with the seal of what it comes to; at the end there is none."""
        replay, until, awaited = self._replay, self._assignment.until, self._states.positions
        while not (border < until and replay.is_at_border(border)):
            rows = await self._rows()
            if not rows:
                return None  # What is open here, such as an expiry without its claim, is nobody else's to explain.
            last = rows[-1].position
            awaits = type(last) is not int or any(self._after < position <= last for position in awaited)
            ends_here = border < until and (type(last) is not int or border <= last)
            for row in rows:
                replay.take(row)
                if awaits and row.position in awaited:
                    self._states.compare(replay.world, replay.envelope, row.recorded_at_ns)
                if ends_here and replay.is_at_border(border):
                    last = row.position
                    break
            await self._history.take(replay.position, replay.page)
            replay.page.clear()
            self._after = last
            await self._pause(replay.position - self._first)
        return self._seal()

    async def end(self) -> Ending:
        """Checks what can be checked only at the end of what is audited."""
        replay, until, head = self._replay, self._assignment.until, self._assignment.head
        if replay.position < until:
            place = replay.position + 1
            message = f"the log ends at {replay.position}, while its head says that it reaches {until}"
            replay.findings.add(place, Rule.HEAD_ROW, message, expected=until)
        await self._history.take(until, ())
        replay.end(at_head=until == head.position)
        if until == head.position:
            self._states.end(until)
            _check_head(replay, head)
        buckets = self._assignment.usage_buckets
        return Ending(
            replay.position,
            replay.envelope.hash,
            {str(kind.__struct_config__.tag): count for kind, count in replay.counts.items()},
            totals_of(replay.world),
            usage_of(replay.world, buckets) if buckets else None,
        )

    def part(self) -> Part:
        """What it came to so far."""
        return Part(self._replay.findings, self._history.part(), self._states.compared)

    def _seal(self) -> bytes | None:
        """A digest of the state that the log comes to; None where anything was found, since nobody is to go on then.

        What is not in the digest follows from the facts, which everybody takes in full, or is worked out from the state
        when it is next asked for.
        """
        replay = self._replay
        if replay.findings.count:
            return None
        digest = blake2b(dumped(replay.world, replay.envelope, replay.recorded_at_ns))
        digest.update(repr(replay.envelope.versions()).encode("utf-8", "backslashreplace"))
        for piece in replay.remembered():
            digest.update(piece.encode("utf-8", "backslashreplace"))
        return digest.digest()

    async def _rows(self) -> list[Row]:
        """The next page of what is audited."""
        after, until = self._after, self._assignment.until
        rows = await self._store.read(after)
        if rows and rows[-1].position != min(after + len(rows), until):
            rows = [row for row in rows if not _is_beyond(row, until)]
        return rows

    async def _pause(self, audited: int) -> None:
        """A long audit lets others have the loop between pages."""
        self._passed(audited)
        await asyncio.sleep(0)


def _is_beyond(row: Row, until: int) -> bool:
    return type(row.position) is int and row.position > until


def _check_head(replay: Replay, head: Head) -> None:
    """The head row tells what the last row is; where rows are missing, that was noted before."""
    last = Head(replay.position, replay.envelope.hash, replay.recorded_at_ns)
    if replay.position == head.position and last != head:
        message = "the head row tells of another last event than the log has"
        details = {"recorded_at_ns": head.recorded_at_ns, "expected_ns": last.recorded_at_ns}
        replay.findings.add(head.position, Rule.HEAD_ROW, message, **details)
