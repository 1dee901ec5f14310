"""An audit of a ledger's log, from the first event to the head or to an earlier position."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from ledger import Head, Row, Store
from ledger.errors import PositionOutOfRange
from projections.audit.checks.history import HistoryCheck
from projections.audit.checks.snapshots import SnapshotCheck
from projections.history.model import Checkpoint, HistoryModel
from projections.rules import Findings, Rule
from projections.snapshots import ProgressReport, Snapshot, SnapshotStore

from .replay import Replay
from .report import AuditReport, totals_of, usage_of


async def audit_log(
    store: Store,
    validator_ss58: str,
    until_position: int | None = None,
    progress: ProgressReport | None = None,
    *,
    live: Snapshot | None = None,
    usage_buckets: int = 0,
    timer: Callable[[], float] = time.perf_counter,
) -> AuditReport:
    """Check every rule by replaying the log from its first event; trust nothing but the log, and change nothing.

    Events appended during the audit are not audited. `live` is the state that a process decides on, compared as well.
    `usage_buckets`: the number of buckets of blocks in the report's `usage`; 0 leaves `usage` out. Raises
    `PositionOutOfRange`, and `StorageUnavailable` if the log cannot be read.
    """
    started = timer()
    states = [(Rule.SNAPSHOTS, taken) for taken in (await SnapshotStore(store).all()).values()]
    if live is not None:
        states.append((Rule.LIVE_STATE, live))
    head = await store.head()
    if until_position is not None and not 1 <= until_position <= head.position:
        raise PositionOutOfRange(f"position {until_position}", 1, head.position)
    until = head.position if until_position is None else until_position
    audit = LogAudit(store, validator_ss58, head, until, states, await HistoryModel(store).live())
    await audit.run(progress)
    history = audit.history
    while not await history.is_still_live():
        # The history was rebuilt during the comparison, which therefore may have read rows that were being deleted.
        again = LogAudit(store, validator_ss58, head, until, (), await HistoryModel(store).live())
        await again.run(None)
        history = again.history
    findings = Findings()
    findings.join(audit.replay.findings)
    findings.join(history.findings)
    elapsed_seconds = max(timer() - started, 1e-9)
    replay = audit.replay
    return AuditReport(
        validator_ss58,
        replay.position,
        replay.row_checker.hash.hex(),
        findings.listed,
        findings.count,
        {str(kind.__struct_config__.tag): count for kind, count in replay.counts.items()},
        totals_of(replay.state),
        history.until if history.place.generation else None,
        elapsed_seconds,
        replay.position / elapsed_seconds,
        usage_of(replay.state, usage_buckets) if usage_buckets else None,
        audit.states.compared[Rule.SNAPSHOTS],
        audit.states.compared[Rule.LIVE_STATE] > 0,
    )


class LogAudit:
    """One replay of a log, compared on the way with snapshots, the live state, and one generation of the history."""

    def __init__(
        self,
        store: Store,
        validator_ss58: str,
        head: Head,
        until: int,
        states: Sequence[tuple[Rule, Snapshot]],
        history: Checkpoint,
    ) -> None:
        self.replay = Replay(validator_ss58)
        self.states = SnapshotCheck(states, self.replay.findings)
        self.history = HistoryCheck(store, history, until)
        self._store = store
        self._head = head
        self._until = until

    async def run(self, progress: ProgressReport | None) -> None:
        """Replay page by page, then check everything that only the end can show."""
        replay, after = self.replay, 0
        while rows := await self._read(after):
            after = rows[-1].position
            self._take(rows)
            await self.history.take(replay.position, replay.page)
            replay.page.clear()
            if progress is not None:
                progress(replay.position, self._until)
            await asyncio.sleep(0)  # A long audit yields the event loop after each page.
        await self._end()

    def _take(self, rows: list[Row]) -> None:
        replay, awaited = self.replay, self.states.positions
        last = rows[-1].position
        awaits = type(last) is not int or any(replay.position < position <= last for position in awaited)
        for row in rows:
            replay.take(row)
            if awaits and row.position in awaited:
                self.states.compare(replay.state, replay.row_checker, row.recorded_at_ns)

    async def _end(self) -> None:
        replay, until, head = self.replay, self._until, self._head
        if replay.position < until:
            message = f"the log ends at {replay.position}, while its head says that it reaches {until}"
            replay.findings.add(replay.position + 1, Rule.HEAD_ROW, message, expected=until)
        await self.history.take(until, ())
        replay.end(at_head=until == head.position)
        if until == head.position:
            self.states.end(until)
            self._check_head()
        await self.history.end()

    def _check_head(self) -> None:
        """Compare the head row with the last row; missing rows are a finding of their own."""
        replay, head = self.replay, self._head
        last = Head(replay.position, replay.row_checker.hash, replay.recorded_at_ns)
        if replay.position == head.position and last != head:
            message = "the head row tells of another last event than the log has"
            details = {"recorded_at_ns": head.recorded_at_ns, "expected_ns": last.recorded_at_ns}
            replay.findings.add(head.position, Rule.HEAD_ROW, message, **details)

    async def _read(self, after: int) -> list[Row]:
        """The next page of the rows to audit."""
        rows = await self._store.read(after)
        if rows and rows[-1].position != min(after + len(rows), self._until):
            rows = [row for row in rows if not (type(row.position) is int and row.position > self._until)]
        return rows
