"""An audit of a ledger's log, from the first event to the head or to a position before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ledger import Head, PositionOutOfRange, Row, Store

from ..rules import MOST_FINDINGS, Finding, Findings, Rule
from ..snapshots import ProgressReport, Snapshots, Taken
from .history import HistoryCheck
from .replay import Replay
from .report import AuditReport, totals_of, usage_of
from .states import States


async def audit_log(
    store: Store,
    validator_ss58: str,
    until_position: int | None = None,
    progress: ProgressReport | None = None,
    *,
    live: Taken | None = None,
    usage_buckets: int = 0,
    timer: Callable[[], float] = time.perf_counter,
) -> AuditReport:
    """Checks every rule by replay from nothing; changes nothing, and believes nothing but the log itself.

    What is appended meanwhile is left for another time. `live` is a state that some process decides on.
    `usage_buckets` asks for `usage` as well, in so many buckets of blocks at the most. Raises `PositionOutOfRange`,
    and `StorageUnavailable` where the log cannot be read.
    """
    started = timer()
    snapshots = await Snapshots(store).stored()
    head = await store.head()
    if until_position is not None and not 1 <= until_position <= head.position:
        raise PositionOutOfRange(f"position {until_position}", 1, head.position)
    until = head.position if until_position is None else until_position
    replay = Replay(validator_ss58)
    states = States(snapshots.values(), live, replay.findings)
    history = await HistoryCheck.begin(store, until)
    await _replay(store, replay, until, states, history, progress)
    replay.end(at_head=until == head.position)
    if until == head.position:
        states.end(until)
        _check_head(replay, head)
    if not await history.is_still_live():
        history = await _compared_again(store, validator_ss58, until)
    findings = _merged(replay.findings, history.findings)
    elapsed_seconds = max(timer() - started, 1e-9)
    return AuditReport(
        validator_ss58,
        replay.position,
        replay.envelope.hash.hex(),
        findings[:MOST_FINDINGS],
        replay.findings.count + history.findings.count,
        {str(kind.__struct_config__.tag): count for kind, count in replay.counts.items()},
        totals_of(replay.world),
        history.until if history.place.generation else None,
        elapsed_seconds,
        replay.position / elapsed_seconds,
        usage_of(replay.world, usage_buckets) if usage_buckets else None,
        states.compared[Rule.SNAPSHOTS],
        states.compared[Rule.LIVE_STATE] > 0,
    )


async def _replay(
    store: Store, replay: Replay, until: int, states: States, history: HistoryCheck, progress: ProgressReport | None
) -> None:
    after, take, awaited = 0, replay.take, states.positions
    while replay.position < until:
        rows = await store.read(after)
        if rows and rows[-1].position != min(after + len(rows), until):
            rows = [row for row in rows if not _is_beyond(row, until)]
        if not rows:
            break
        last = rows[-1].position
        awaits = type(last) is not int or any(after < position <= last for position in awaited)
        for row in rows:
            take(row)
            if awaits and row.position in awaited:
                states.compare(replay.world, replay.envelope, row.recorded_at_ns)
        await history.take(replay.position, replay.page)
        replay.page.clear()
        after = rows[-1].position
        if progress is not None:
            progress(replay.position, until)
        await asyncio.sleep(0)  # A long audit lets others have the loop between pages.
    if replay.position < until:
        place = replay.position + 1
        message = f"the log ends at {replay.position}, while its head says that it reaches {until}"
        replay.findings.add(place, Rule.HEAD_ROW, message, expected=until)
    await history.take(until, ())
    await history.end()


async def _compared_again(store: Store, validator_ss58: str, until: int) -> HistoryCheck:
    """The comparison with the history anew, where its model was made anew while it was compared."""
    while True:
        history = await HistoryCheck.begin(store, until)
        replay = Replay(validator_ss58)
        await _replay(store, replay, until, States((), None, replay.findings), history, None)
        if await history.is_still_live():
            return history


def _is_beyond(row: Row, until: int) -> bool:
    return type(row.position) is int and row.position > until


def _check_head(replay: Replay, head: Head) -> None:
    """The head row tells what the last row is; where rows are missing, that was noted before."""
    last = Head(replay.position, replay.envelope.hash, replay.recorded_at_ns)
    if replay.position == head.position and last != head:
        message = "the head row tells of another last event than the log has"
        details = {"recorded_at_ns": head.recorded_at_ns, "expected_ns": last.recorded_at_ns}
        replay.findings.add(head.position, Rule.HEAD_ROW, message, **details)


def _merged(*all_findings: Findings) -> list[Finding]:
    return sorted(
        (finding for findings in all_findings for finding in findings.listed), key=lambda finding: finding.position
    )
