"""Deciding a batch: each command on a state that already contains the earlier commands of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from ledger.domain.lookup import Lookup
from ledger.domain.reservation import status_after
from ledger.domain.state import LedgerState
from ledger.domain.unit_of_work import UnitOfWork
from ledger.store.contract import versions_before

from .call_queue import PendingCall
from .codec import Row, decode
from .counters import Counters
from .errors import AllowanceException, SealConflict
from .events import Settlement
from .live_state import LiveState


class Decider:
    """Decides batches, and counts what was decided and what was committed."""

    def __init__(self, clock_ns: Callable[[], int], live: LiveState[Any], counters: Counters) -> None:
        """`clock_ns` is trusted: pass a `Clock`, which validates each reading."""
        self.refusal: AllowanceException | None = None
        """Why no further change is accepted, until the ledger is opened again; None as long as changes are."""
        self._clock_ns = clock_ns
        self._counters = counters
        self._live = live

    def decide(self, unit_of_work: UnitOfWork, batch: list[PendingCall]) -> None:
        """Decide every call of a batch; set its result or error, and its rows."""
        for call in batch:
            before, moved_before = len(unit_of_work.rows), unit_of_work.moved_picks
            self._counters.attempts += 1
            call.attempts += 1
            # The batch may be decided a second time: nothing of the first time may remain.
            call.result = call.row = None
            call.first, call.moved = before, 0
            call.error = self.refusal
            if call.error is not None:
                continue
            try:
                # Inside: a clock that fails, fails for this command alone.
                unit_of_work.now_ns = self._clock_ns()
                call.result = call.work.decide(unit_of_work)
                call.row = unit_of_work.rows[-1] if len(unit_of_work.rows) > before else None
                call.moved = unit_of_work.moved_picks - moved_before
            except Exception as error:
                if len(unit_of_work.rows) != before:
                    # The command failed after it had appended: to commit half of a command would be wrong, and its rows
                    # are already part of the state. So the whole batch fails, and every caller in it gets this error.
                    raise
                # The command was refused before it appended. It fails alone.
                call.error = error
                if isinstance(error, SealConflict):
                    # Either the state in memory or the log's seal is wrong, so nothing more may be decided on them.
                    self.refusal = error
        self._counters.claims += unit_of_work.claims

    def note_committed(self, rows: Sequence[Row], calls: list[PendingCall]) -> None:
        """Count the rows that calls have appended, and remember that they are committed."""
        if rows:
            self._live.acknowledged.note(rows[-1].position, rows[-1].hash)
        self._counters.rows += len(rows)
        self._counters.moved_picks += sum(call.moved for call in calls if call.row is not None)
        if self._counters.batch is not None:
            _count_settlements(rows, self._counters.batch.settled)


def _count_settlements(rows: Sequence[Row], settled: dict[str, int]) -> None:
    """Add to the number of settlements by status."""
    for row in rows:
        if row.settles is not None:
            # Only a settlement refers to a reservation.
            status = status_after(cast("Settlement", decode(row.position, row.payload)))
            settled[status] = settled.get(status, 0) + 1


def look_up(state: LedgerState, batch: list[PendingCall]) -> Lookup:
    """Return what the commands of a batch need of the stored rows."""
    lookup = Lookup()
    for call in batch:
        call.work.add_lookups(state, lookup)
    return lookup


def expected_versions(unit_of_work: UnitOfWork, batch: list[PendingCall], *, locked: bool = False) -> dict[str, int]:
    """Return the versions at which the batch was decided: of the streams that it continues, and of those it read.

    A claim reads streams that most ledgers never have, such as that of the exclusions. Under the lock the state was
    caught up with the head, so the log cannot have such a stream either, and nobody looks for it.
    """
    expected = versions_before(unit_of_work.rows)
    # Commands of one kind mostly name the same streams, in equal tuples.
    for streams in {call.work.streams for call in batch if call.row is not None}:
        for stream in streams:
            version = unit_of_work.state.version(stream)
            if version or not locked:
                expected.setdefault(stream, version)
    return expected


def only_reports(unit_of_work: UnitOfWork, batch: list[PendingCall]) -> bool:
    """Whether a batch appends nothing and yet a call succeeds, which reports what is in the log already.

    Such a batch is decided under the lock, because only a COMMIT waits until what it read is as safe as an append of
    its own. A read shows rows that another process appended and that no standby has, if their commit's wait for the
    standby was cancelled.
    """
    return not unit_of_work.rows and any(call.error is None for call in batch)
