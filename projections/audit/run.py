"""An audit of a ledger's log, from the first event to the head or to a position before it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from ledger import PositionOutOfRange, Store

from ..model import HistoryModel
from ..rules import Findings, Rule
from ..snapshots import ProgressReport, Snapshots, Taken
from .history import HistoryCheck
from .relay import audited
from .report import AuditReport
from .stretch import Assignment, Part


async def audit_log(
    store: Store,
    validator_ss58: str,
    until_position: int | None = None,
    progress: ProgressReport | None = None,
    *,
    live: Taken | None = None,
    usage_buckets: int = 0,
    database_url: str | None = None,
    processes: int = 1,
    timer: Callable[[], float] = time.perf_counter,
) -> AuditReport:
    """Checks every rule by replay from nothing; changes nothing, and believes nothing but the log itself.

    What is appended meanwhile is left for another time. `live` is a state that some process decides on.
    `usage_buckets` asks for `usage` as well, in so many buckets of blocks at the most. So many `processes` share the
    work of a long log, where others can open the database too, by the URL. Raises `PositionOutOfRange`, and
    `StorageUnavailable` where the log cannot be read.
    """
    started = timer()
    states = [(Rule.SNAPSHOTS, taken) for taken in (await Snapshots(store).stored()).values()]
    if live is not None:
        states.append((Rule.LIVE_STATE, live))
    head = await store.head()
    if until_position is not None and not 1 <= until_position <= head.position:
        raise PositionOutOfRange(f"position {until_position}", 1, head.position)
    until = head.position if until_position is None else until_position
    assignment = Assignment(validator_ss58, head, until, states, await HistoryModel(store).live(), usage_buckets)
    ending, parts = await audited(store, assignment, progress, database_url, processes)
    history = await _joined(store, assignment, parts)
    while not await history.is_still_live():
        # The model was made anew while it was compared: what was compared are rows that may have been gone.
        assignment = assignment._replace(states=[], history=await HistoryModel(store).live(), usage_buckets=0)
        _, parts_again = await audited(store, assignment, None, database_url, processes)
        history = await _joined(store, assignment, parts_again)
    findings, compared = Findings(), Counter[Rule]()
    for part in parts:
        findings.join(part.findings)
        compared.update(part.compared)
    findings.join(history.findings)
    elapsed_seconds = max(timer() - started, 1e-9)
    return AuditReport(
        validator_ss58,
        ending.position,
        ending.hash.hex(),
        findings.listed,
        findings.count,
        ending.events,
        ending.totals,
        history.until if history.place.generation else None,
        elapsed_seconds,
        ending.position / elapsed_seconds,
        ending.usage,
        compared[Rule.SNAPSHOTS],
        compared[Rule.LIVE_STATE] > 0,
    )


async def _joined(store: Store, assignment: Assignment, parts: list[Part]) -> HistoryCheck:
    """The comparison with the history, of all stretches together."""
    history = HistoryCheck(store, assignment.history, assignment.until)
    for part in parts:
        history.join(part.history)
    await history.end()
    return history
