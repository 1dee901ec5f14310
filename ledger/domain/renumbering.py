"""Decisions that stand although the head has moved: which they are, and their rows behind another head.

A claim depends on the streams that its command read and on those to which it appends. If only other streams have moved,
the claim is still right; its rows only need other positions, hashes and, perhaps, recorded times.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ledger.codec import Row, encode, row_hash
from ledger.events import MOST_EVENTS_SINCE_CHOICE, AllowanceReserved, Event

from .lookup import Head
from .unit_of_work import UnitOfWork


class ChoiceTooOld(Exception):
    """Too many events have been appended since a router chose its miner; it must choose anew."""


class Decision(NamedTuple):
    """What one command decided: its rows as they were numbered at first, with their events.

    `touched` has the executor classes and the jobs of the rows.
    """

    rows: list[Row]
    events: list[Event]
    touched: frozenset[tuple[str, str]]


class Renumbering:
    """Numbers decisions behind a head that only the store knows; `rows` and `events` are those of the last time."""

    def __init__(self, decided_at: Head, decisions: Iterable[Decision]) -> None:
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.last_rows: list[Row] = []
        """The last row of each decision."""
        self._decided_at = decided_at
        self._decisions = list(decisions)

    def rows_behind(self, head: Head) -> list[Row]:
        """Return the rows that follow a head. Raises `ChoiceTooOld`."""
        self.rows, self.events, self.last_rows = [], [], []
        for decision in self._decisions:
            chosen_at = None if head.position == self._decided_at.position else self._decided_at.position
            for decided, event in zip(decision.rows, decision.events, strict=True):
                row, changed = _renumbered(decided, event, head, chosen_at)
                self.rows.append(row)
                self.events.append(changed)
                head = Head(row.position, row.hash, row.recorded_at_ns)
            self.last_rows.append(self.rows[-1])
        return self.rows


def decision_of(unit_of_work: UnitOfWork, first: int, end: int, jobs: dict[int, str]) -> Decision:
    """Return the decision whose rows are these of a unit of work; `jobs` as from `UnitOfWork.jobs`."""
    rows = unit_of_work.rows[first:end]
    classes = (("class", row.stream.partition("\t")[2]) for row in rows)
    jobs_of_rows = (("job", jobs[row.position]) for row in rows if row.position in jobs)
    return Decision(rows, unit_of_work.events[first:end], frozenset((*classes, *jobs_of_rows)))


def _renumbered(decided: Row, event: Event, head: Head, chosen_at: int | None) -> tuple[Row, Event]:
    """Return a row and its event behind a head; `chosen_at` is where its command was decided, None if that is there."""
    # The clock that decided does not change, but the log's time may be ahead of it by now.
    clock_ns = decided.recorded_at_ns if event.decided_at_ns is None else event.decided_at_ns
    recorded_at_ns = max(head.recorded_at_ns, clock_ns)
    event = _at_time(event, clock_ns, is_ahead=recorded_at_ns != clock_ns)
    if isinstance(event, AllowanceReserved) and event.axon is not None:
        event = _routed(event, head.position + 1, chosen_at)
    row = decided._replace(position=head.position + 1, recorded_at_ns=recorded_at_ns, payload=encode(event))
    return row._replace(hash=row_hash(head.hash, row)), event


def _at_time(event: Event, clock_ns: int, *, is_ahead: bool) -> Event:
    if is_ahead == (event.decided_at_ns is not None):
        return event
    event = msgspec.structs.replace(event, decided_at_ns=clock_ns if is_ahead else None)
    if isinstance(event, AllowanceReserved):
        event = msgspec.structs.replace(event, due_by_clock=is_ahead)
    return event


def _routed(event: AllowanceReserved, position: int, chosen_at: int | None) -> AllowanceReserved:
    if event.chosen_at is None and chosen_at is not None:
        event = msgspec.structs.replace(event, chosen_at=chosen_at)
    if event.chosen_at is not None and position - event.chosen_at > MOST_EVENTS_SINCE_CHOICE:
        raise ChoiceTooOld
    return event
