"""Bugs planted on purpose: each breaks one thing in this process, and the simulator must find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import ledger.call_queue
import ledger.domain.commands
import ledger.domain.correction_commands
import ledger.domain.fact_commands
import ledger.domain.miner_fact_commands
import ledger.domain.miner_facts
import ledger.domain.renumbering
import ledger.live_state
import ledger.optimistic_append
import projections.snapshots
import routing.pick
import tests.simulation.log_server
import tests.simulation.memory_store
from ledger import Head, LedgerWriter, Row
from ledger.codec import row_hash
from ledger.deciding import Decider
from ledger.domain.account import ActiveReservation
from ledger.domain.chain import Chain
from ledger.domain.miner_facts import MinerFacts
from ledger.domain.state import LedgerState
from ledger.domain.unit_of_work import UnitOfWork
from ledger.events import COLLATERAL_STREAM, ELSEWHERE_STREAM, EXCLUSIONS_STREAM, BlockWithdrawn
from ledger.settings import RecordedSettings
from ledger.store.contract import refuse_other_versions
from ledger.unknown_outcomes import UnknownOutcomes
from projections.snapshots import SnapshotStore
from tests.simulation.locking_store import LockingStore
from tests.simulation.log_server import LogServer
from tests.simulation.optimistic_store import OptimisticStore

Patches = list[tuple[Any, str, Any]]


class PlantedBug(NamedTuple):
    """What is wrong, and what replaces which attribute of what."""

    what: str
    patches: Callable[[], Patches]


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Plant a bug until the block is left; None plants none."""
    applied = [patch.object(*each) for each in (PLANTED[name].patches() if name is not None else [])]
    for each in applied:
        each.start()
    try:
        yield
    finally:
        for each in applied:
            each.stop()


def _no_fence() -> Patches:
    return [(OptimisticStore, "raise_fence", lambda self: None)]


def _lost_answer_is_failure() -> Patches:
    async def resolve_commit(self: Any, first: Row) -> bool:
        return False

    return [(OptimisticStore, "resolve_commit", resolve_commit), (LockingStore, "resolve_commit", resolve_commit)]


def _flush_is_read() -> Patches:
    async def resolve_commit(self: LockingStore, first: Row) -> bool:
        stored = [*self.server.read(first.position - 1, 1), *self.server.unproven]
        return bool(stored) and stored[0].hash == first.hash

    return [(LockingStore, "resolve_commit", resolve_commit)]


def _blind_retry() -> Patches:
    original = LedgerWriter._commit

    async def retry_later(self: Any, batch: Any, rows: object, cause: object) -> None:
        # The state's lock is held here, so the retry comes afterwards.
        self._live.discard()
        self.retry = True

    async def commit_and_retry(self: Any, batch: Any) -> None:
        self._unknown.retry = False
        await original(self, batch)
        while self._unknown.retry:
            self._unknown.retry = False
            await self._locked.commit(batch)

    return [(UnknownOutcomes, "resolve", retry_later), (LedgerWriter, "_commit", commit_and_retry)]


def _expiry_forgotten() -> Patches:
    original = UnitOfWork.reserve

    def reserve(self: UnitOfWork, account: Any, claim: Any, **more: Any) -> ActiveReservation:
        return original(self, account, claim._replace(overdue=[]), **more)

    return [(UnitOfWork, "reserve", reserve)]


def _stale_decision() -> Patches:
    def append_at(self: LogServer, head: Head, fence: int, rows: list[Row], expected: Any) -> bool:
        if self.fence != fence or self.refuses([row._replace(position=len(self.rows) + 1) for row in rows]):
            return False
        for row in rows:
            versions = [each.version for each in self.rows if each.stream == row.stream]
            moved = row._replace(position=len(self.rows) + 1, version=max(versions, default=0) + 1)
            self.append([moved._replace(hash=row_hash(self.head.hash, moved))])
        return True

    return [(LogServer, "append_at", append_at)]


def _catch_up_unchecked() -> Patches:
    return [(ledger.live_state, "row_hash", lambda previous, row: row.hash)]


def _keys_not_looked_up() -> Patches:
    skip = lambda key, lookup: None  # noqa: E731 - the same for both modules
    return [(ledger.domain.commands, "look_up_key", skip), (ledger.domain.fact_commands, "look_up_key", skip)]


def _jobs_not_looked_up() -> Patches:
    skip = lambda job_uuid, state, lookup: None  # noqa: E731 - the same for both modules
    return [(ledger.domain.commands, "look_up_job", skip), (routing.pick, "look_up_job", skip)]


def _answers_swapped() -> Patches:
    original = ledger.call_queue.resolve_futures

    def resolve_futures(calls: Any) -> None:
        done = [call for call in calls if call.error is None]
        if len(done) > 1:
            done[0].result, done[1].result = done[1].result, done[0].result
        original(calls)

    return [(ledger.call_queue, "resolve_futures", resolve_futures)]


def _any_snapshot() -> Patches:
    async def is_sealed(self: SnapshotStore, snapshot: object, state: object, digest: bytes) -> bool:
        return True

    return [(SnapshotStore, "_is_sealed", is_sealed)]


def _seal_unchecked() -> Patches:
    return [(projections.snapshots, "proves", lambda seal, position, digest: True)]


def _correction_ignored() -> Patches:
    def withdraw_block(self: Chain, position: int, event: BlockWithdrawn) -> None:
        if event.returns_to:
            self.last_metagraph = self._metagraph_after(event)

    return [(Chain, "withdraw_block", withdraw_block)]


def _block_in_use_withdrawn() -> Patches:
    return [(ledger.domain.correction_commands, "_refuse_block_in_use", lambda state, number: None)]


def _due_by_recorded_time() -> Patches:
    original = UnitOfWork.reserve

    def reserve(self: UnitOfWork, *arguments: Any, **more: Any) -> ActiveReservation:
        now_ns, self.now_ns = self.now_ns, self.recorded_at_ns
        try:
            return original(self, *arguments, **more)
        finally:
            self.now_ns = now_ns

    return [(UnitOfWork, "reserve", reserve)]


def _settings_lost() -> Patches:
    original = Chain.apply_settings

    def apply_settings(self: Chain, settings: RecordedSettings) -> None:
        if self.settings == RecordedSettings():
            original(self, settings)

    return [(Chain, "apply_settings", apply_settings)]


def _state_kept() -> Patches:
    original = UnknownOutcomes.resolve

    async def resolve(self: Any, *arguments: Any) -> None:
        state = self._live.current
        await original(self, *arguments)
        self._live.current = state

    return [(UnknownOutcomes, "resolve", resolve)]


def _cancelled_half_done() -> Patches:
    original = Decider.decide

    def decide(self: Any, unit_of_work: UnitOfWork, batch: Any) -> None:
        original(self, unit_of_work, batch)
        if any(call.future.cancelled() for call in batch):
            del unit_of_work.rows[-1:]

    return [(Decider, "decide", decide)]


def _expired_by_recorded_time() -> Patches:
    original = LedgerState.overdue

    def overdue(self: LedgerState, now_ns: int) -> list[ActiveReservation]:
        return original(self, max(now_ns, self.recorded_at_ns))

    return [(LedgerState, "overdue", overdue)]


def _revert_forgotten() -> Patches:
    return [(LedgerState, "revert", lambda self, active, event: None)]


def _versions_not_compared() -> Patches:
    skip = lambda expected, actual: None  # noqa: E731 - the same for both modules
    modules = (tests.simulation.memory_store, tests.simulation.log_server)
    return [(module, "refuse_other_versions", skip) for module in modules]


def _read_streams_not_compared() -> Patches:
    def refuse_own_streams(expected: Any, actual: Any) -> None:
        refuse_other_versions({stream: version for stream, version in expected.items() if "\t" in stream}, actual)

    return [(tests.simulation.memory_store, "refuse_other_versions", refuse_own_streams)]


def _lost_log_not_noticed() -> Patches:
    return [(LogServer, "has", lambda self, head: True)]


def _old_number_returned() -> Patches:
    def renumbered(standing: Any, sent: Any) -> list[Any]:
        return [each.call for each in standing]

    return [(ledger.optimistic_append, "_renumbered", renumbered)]


def _choice_not_named() -> Patches:
    return [(ledger.domain.renumbering, "_routed", lambda event, position, chosen_at: event)]


def _clock_not_named() -> Patches:
    return [(ledger.domain.renumbering, "_at_time", lambda event, clock_ns, is_ahead: event)]


def _dependents_stand() -> Patches:
    original = ledger.domain.renumbering.decision_of

    def decision_of(*arguments: Any) -> Any:
        return original(*arguments)._replace(touched=frozenset())

    return [(ledger.optimistic_append, "decision_of", decision_of)]


def _not_expected(stream_begins: str) -> Callable[[], Patches]:
    original = routing.pick._streams

    def streams(*arguments: Any) -> tuple[str, ...]:
        return tuple(each for each in original(*arguments) if not each.startswith(stream_begins))

    return lambda: [(routing.pick, "_streams", streams)]


def _job_elsewhere_counted_twice() -> Patches:
    original = MinerFacts.running_elsewhere

    def running_elsewhere(self: MinerFacts, stream: str, counted: Any, now_ns: int) -> int:
        return original(self, stream, (), now_ns)

    return [(MinerFacts, "running_elsewhere", running_elsewhere)]


def _end_forgotten() -> Patches:
    command = ledger.domain.miner_fact_commands.RecordJobElsewhere
    # Without its own look-up: that of its base class looks for the job, and not for its end.
    return [(command, "add_lookups", command.__mro__[1].add_lookups)]  # type: ignore[attr-defined]


def _window_ignores_the_clock() -> Patches:
    original = MinerFacts.incidents_within

    def incidents_within(self: MinerFacts, stream: str, after_ns: int, until_ns: int) -> int:
        return original(self, stream, 0, until_ns)

    return [(MinerFacts, "incidents_within", incidents_within)]


def _exclusion_for_good() -> Patches:
    def is_excluded(self: MinerFacts, miner_ss58: str, now_ns: int) -> bool:
        exclusion = self.exclusions.get(miner_ss58)
        return exclusion is not None and exclusion.until_ns > 0

    return [(MinerFacts, "is_excluded", is_excluded)]


def _incident_by_recorded_time() -> Patches:
    return [(ledger.domain.miner_facts, "decided_at_ns", lambda recorded_at_ns, event: recorded_at_ns)]


PLANTED = {
    "exclusions-not-expected": PlantedBug(
        "a claim does not expect the version of the exclusions", _not_expected(EXCLUSIONS_STREAM)
    ),
    "collateral-not-expected": PlantedBug(
        "a claim does not expect the version of the collateral", _not_expected(COLLATERAL_STREAM)
    ),
    "jobs-elsewhere-not-expected": PlantedBug(
        "a claim does not expect the version of its account's jobs elsewhere", _not_expected(ELSEWHERE_STREAM)
    ),
    "job-elsewhere-counted-twice": PlantedBug(
        "a job counts as our own and as one from elsewhere", _job_elsewhere_counted_twice
    ),
    "end-forgotten": PlantedBug("a job elsewhere runs although its end was recorded before it", _end_forgotten),
    "window-ignores-the-clock": PlantedBug("incidents count for ever", _window_ignores_the_clock),
    "exclusion-for-good": PlantedBug("an exclusion never ends", _exclusion_for_good),
    "incident-by-recorded-time": PlantedBug(
        "a miner fact counts from the log's time, not from the clock that decided it", _incident_by_recorded_time
    ),
    "versions-not-compared": PlantedBug("the log compares no versions of streams", _versions_not_compared),
    "read-streams-not-compared": PlantedBug(
        "the log compares only the streams to which it appends, and not those of the facts", _read_streams_not_compared
    ),
    "lost-log-not-noticed": PlantedBug(
        "what was decided on a log that was replaced is appended to the other one", _lost_log_not_noticed
    ),
    "old-number-returned": PlantedBug(
        "a caller whose claim was renumbered is told the number that it had at first", _old_number_returned
    ),
    "choice-not-named": PlantedBug("a renumbered claim does not name the position of its choice", _choice_not_named),
    "clock-not-named": PlantedBug(
        "a claim that was renumbered behind a later recorded time does not name its clock", _clock_not_named
    ),
    "dependents-stand": PlantedBug(
        "a decision stands although an earlier one of its batch touched its class", _dependents_stand
    ),
    "no-fence": PlantedBug(
        "a request that arrives late is appended after its caller was told that it failed", _no_fence
    ),
    "lost-answer-is-failure": PlantedBug("an answer that was lost is taken for a failure", _lost_answer_is_failure),
    "flush-is-read": PlantedBug("after a failed flush the rows that can be read are acknowledged", _flush_is_read),
    "blind-retry": PlantedBug("after an unknown outcome the batch is committed again", _blind_retry),
    "expiry-forgotten": PlantedBug("a claim takes overdue blocks without an expiry", _expiry_forgotten),
    "stale-decision": PlantedBug("after a conflict the old decision is appended at the new head", _stale_decision),
    "catch-up-unchecked": PlantedBug("a replaced log is folded into the old state", _catch_up_unchecked),
    "keys-not-looked-up": PlantedBug("a retry with its key is decided like a new call", _keys_not_looked_up),
    "jobs-not-looked-up": PlantedBug("a job's earlier reservations are not looked up", _jobs_not_looked_up),
    "answers-swapped": PlantedBug("two callers of a batch get each other's result", _answers_swapped),
    "any-snapshot": PlantedBug("a snapshot of another log is accepted", _any_snapshot),
    "seal-unchecked": PlantedBug("a snapshot is accepted whatever its seal says", _seal_unchecked),
    "correction-ignored": PlantedBug("a withdrawn block stays recorded", _correction_ignored),
    "block-in-use-withdrawn": PlantedBug(
        "a block is withdrawn although a reservation holds it", _block_in_use_withdrawn
    ),
    "due-by-recorded-time": PlantedBug("a due time counts from the log's time", _due_by_recorded_time),
    "settings-lost": PlantedBug("a change of settings is recorded, but not applied", _settings_lost),
    "state-kept": PlantedBug("the state is kept although its rows may not be stored", _state_kept),
    "cancelled-half-done": PlantedBug("the last row of a cancelled caller's batch is dropped", _cancelled_half_done),
    "expired-by-recorded-time": PlantedBug(
        "expire_due goes by the log's time, not by the clock", _expired_by_recorded_time
    ),
    "revert-forgotten": PlantedBug("after a conflict the state keeps the batch's reservations", _revert_forgotten),
}
