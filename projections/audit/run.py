"""An audit of a ledger's log, from the first event to the head or to an earlier position."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from ledger import Head, Row, Store
from ledger.errors import PositionOutOfRange
from ledger.values import LARGEST_INTEGER, instant
from projections.audit.checks.history import HistoryCheck
from projections.audit.checks.snapshots import SnapshotCheck
from projections.history.model import Checkpoint, HistoryModel
from projections.rules import Rule
from projections.snapshots import ProgressReport, Snapshot, SnapshotStore, sealed_positions

from .causes import first_cause, marked
from .fairness import fairness_of
from .read_ahead import LaterClaim, ReadAhead
from .replay import Replay
from .report import AuditReport, usage_of
from .start import NOT_PROVED, replay_from, sealed_start
from .totals import totals_of

SHORTEST_SECONDS = 1e-9
"""Avoids a division by zero if the timer did not advance."""


async def audit_log(
    store: Store,
    validator_ss58: str,
    until_position: int | None = None,
    progress: ProgressReport | None = None,
    *,
    from_seal: int = 0,
    live: Snapshot | None = None,
    usage_buckets: int = 0,
    strict: bool = False,
    timer: Callable[[], float] = time.perf_counter,
) -> AuditReport:
    """Check every rule by replaying the log from its first event; trust nothing but the log, and change nothing.

    Events appended during the audit are not audited. `live` is the state on which a process decides; it is compared as
    well. `usage_buckets` is the number of buckets of blocks in the report's `usage`; 0 leaves `usage` out. `from_seal`
    is a sealed position at which to begin; the report lists what is not proved then. Raises `PositionOutOfRange`,
    `InvalidInput` and `SealConflict` for a position without a right seal, and `StorageUnavailable` if the log cannot be
    read. `strict` makes each reservation whose choice of a miner is not proved a finding.
    """
    started = timer()
    # The snapshots are read before the head, so that none of them can be newer than the head.
    states = [(Rule.SNAPSHOTS, snapshot) for snapshot in (await SnapshotStore(store).all()).values()]
    if live is not None:
        states.append((Rule.LIVE_STATE, live))
    head = await store.head()
    # After the head, so that no seal of the audited log is missing: a process may seal at any moment.
    sealed = await sealed_positions(store)
    if until_position is not None and not 1 <= until_position <= head.position:
        raise PositionOutOfRange(f"position {until_position}", 1, head.position)
    until = head.position if until_position is None else until_position
    if from_seal and not from_seal < until:
        raise PositionOutOfRange(f"the seal of position {from_seal}", 1, until - 1)
    while True:
        if from_seal:
            start = await sealed_start(store, from_seal, progress)
            after_seal = [each for each in sealed if each >= from_seal]
            replay = await replay_from(start, store, Replay(validator_ss58, after_seal, strict=strict))
        else:
            replay = Replay(validator_ss58, sealed, strict=strict)
        audit = LogAudit(store, replay, head, until, states, await HistoryModel(store).live())
        await audit.run(progress)
        if await audit.history.is_still_live():
            break
        # A rebuild replaced the history during the comparison, which may have read rows that were being deleted.
    elapsed_seconds = max(timer() - started, SHORTEST_SECONDS)
    findings, totals = marked(replay.findings.listed), totals_of(replay.state)
    incidents = Counter({stream: len(times) for stream, times in replay.miner_facts.incidents.items()})
    return AuditReport(
        validator_ss58,
        replay.position,
        replay.row_checker.hash.hex(),
        findings,
        replay.findings.count,
        {str(kind.__struct_config__.tag): count for kind, count in replay.counts.items()},
        totals,
        audit.history.until if audit.history.checkpoint.generation else None,
        elapsed_seconds,
        (replay.position - from_seal) / elapsed_seconds,
        usage_of(replay.state, usage_buckets) if usage_buckets else None,
        audit.states.compared[Rule.SNAPSHOTS],
        audit.states.compared[Rule.LIVE_STATE] > 0,
        replay.seals.compared,
        from_seal,
        list(NOT_PROVED) if from_seal else [],
        first_cause(findings),
        dict(sorted(replay.findings.by_rule.items())),
        replay.unproved_choices,
        _instant(audit.first_recorded_at_ns),
        _instant(replay.recorded_at_ns),
        fairness_of(replay.state, replay.fairness, totals, incidents),
        strict,
    )


class LogAudit:
    """One replay of a log, compared on the way with snapshots, the live state, and one generation of the history."""

    def __init__(
        self,
        store: Store,
        replay: Replay,
        head: Head,
        until: int,
        states: Sequence[tuple[Rule, Snapshot]],
        history: Checkpoint,
    ) -> None:
        self.replay = replay
        self.states = SnapshotCheck(states, self.replay.findings)
        self.history = HistoryCheck(store, history, until, replay.findings, start=replay.position)
        self.first_recorded_at_ns = 0
        self._store = store
        self._head = head
        self._until = until

    async def run(self, progress: ProgressReport | None) -> None:
        """Replay the log page by page, then run the checks that need the whole log."""
        replay = self.replay
        ahead = ReadAhead(self._read, replay.position)
        while rows := await ahead.next_page():
            # The choices at the replay's start; those at the ends of pages were repeated with the pages.
            replay.repeat_choices(ahead.claims_by_choice.pop(replay.position, ()))
            self._process(rows, ahead.claims_by_choice)
            # The history is compared page by page, so that neither side of the comparison is in memory as a whole.
            await self.history.compare(replay.position, replay.page_changes)
            replay.page_changes.clear()
            if progress is not None:
                progress(replay.position, self._until)
            await asyncio.sleep(0)  # Processing a page blocks the event loop, so other tasks get a turn in between.
        await self._finish()

    def _process(self, rows: list[Row], claims_by_choice: dict[int, list[LaterClaim]]) -> None:
        replay, seals = self.replay, self.replay.seals
        self.first_recorded_at_ns = self.first_recorded_at_ns or rows[0].recorded_at_ns
        positions = self.states.positions | seals.positions
        last = rows[-1].position
        # Few pages contain such a position, so the others need no look-up per row. A position that is not an integer (a
        # damaged row) cannot be compared with, so its page is looked up.
        has_state = type(last) is not int or any(replay.position < position <= last for position in positions)
        for row in rows:
            replay.process(row)
            if claims_by_choice and row.position in claims_by_choice:
                replay.repeat_choices(claims_by_choice.pop(row.position))
            if not has_state:
                continue
            if row.position in seals.positions:
                seals.reach(replay.state, replay.miner_facts, replay.row_checker, row.recorded_at_ns)
            if row.position in self.states.positions:
                self.states.compare(replay.state, replay.miner_facts, replay.row_checker, row.recorded_at_ns)

    async def _finish(self) -> None:
        replay, until, head = self.replay, self._until, self._head
        replay.findings.stream = None
        if replay.position < until:
            message = f"the log ends at position {replay.position}, but the head row is at {until}"
            replay.findings.add(replay.position + 1, Rule.HEAD_ROW, message, expected=until)
        await self.history.compare(until, ())
        replay.finish(at_head=until == head.position)
        if until == head.position:
            self.states.finish(until)
            self._check_head()
        await self.history.finish()

    def _check_head(self) -> None:
        """Compare the head row with the last row. If rows are missing, that was reported, and there is no last row."""
        replay, head = self.replay, self._head
        last = Head(replay.position, replay.row_checker.hash, replay.recorded_at_ns)
        if replay.position == head.position and last != head:
            message = "the head row has another hash or recorded time than the log's last row"
            details = {"recorded_at_ns": head.recorded_at_ns, "expected_ns": last.recorded_at_ns}
            replay.findings.add(head.position, Rule.HEAD_ROW, message, **details)

    async def _read(self, after: int) -> list[Row]:
        """Return the next page of rows, without those after the last position to audit."""
        rows = await self._store.read(after)
        if rows and rows[-1].position != min(after + len(rows), self._until):
            # A damaged row may have a position that is not a number. SQLite sorts it after all numbers; it stays in the
            # page and becomes a finding.
            rows = [row for row in rows if not (type(row.position) is int and row.position > self._until)]
        return rows


def _instant(at_ns: object) -> datetime | None:
    """Return a recorded time in public form; None for 0, which stands for none, and for what damage left there."""
    return instant(at_ns) if isinstance(at_ns, int) and 0 < at_ns <= LARGEST_INTEGER else None
