"""The optimistic append: decide on the state in memory, and let the log compare the streams that the decision is about.

    decide → append at this head → otherwise append behind the head, at these versions → otherwise decide again

Nothing is locked before the append, and nothing is read. Only the store compares: the head at first, which takes one
round trip; if it has moved, the versions of the streams. Decisions whose streams have not moved stand: their rows are
numbered and hashed behind the head that the log has by then. The others are decided again on what the log has now.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ledger.domain.lookup import Lookup, LookupResult
from ledger.domain.renumbering import ChoiceTooOld, Decision, Renumbering, decision_of
from ledger.domain.unit_of_work import UnitOfWork
from ledger.store.contract import (
    CommitOutcomeUnknown,
    RowExists,
    Store,
    TransactionConflict,
    VersionConflict,
    versions_before,
)

from .call_queue import PendingCall, fail
from .codec import Row
from .counters import Counters
from .deciding import Decider, expected_versions, look_up, only_reports
from .live_state import LiveState, Tail
from .unknown_outcomes import UnknownOutcomes

# After the head has moved, other processes are probably still appending, and it will have moved again. So this many
# batches do not try to append at the head that they know.
BATCHES_AFTER_MOVED_HEAD = 16
# Each round decides again what conflicted in the round before. Under the lock nothing can conflict.
MOST_ROUNDS = 4


class _Left(NamedTuple):
    """The calls that are left after a round, and whether they must be decided under the lock."""

    calls: list[PendingCall]
    needs_lock: bool


_NOTHING_LEFT = _Left([], needs_lock=False)


class _Standing(NamedTuple):
    """A call whose decision stands unless one of the streams has moved, with their versions."""

    call: PendingCall
    decision: Decision
    expected: dict[str, int]


class OptimisticAppend:
    """Commits batches without a lock, as far as that is possible."""

    def __init__(
        self, store: Store, live: LiveState[Any], decider: Decider, unknown: UnknownOutcomes, counters: Counters
    ) -> None:
        self._store = store
        self._live = live
        self._decider = decider
        self._unknown = unknown
        self._counters = counters
        self._batches_behind = 0

    async def commit(self, batch: list[PendingCall]) -> list[PendingCall]:
        """Decide and append; return the calls that must be decided under the lock."""
        self._batches_behind = max(0, self._batches_behind - 1)
        for _ in range(MOST_ROUNDS):
            # In a batch most commands depend on earlier ones, and would be decided again one after the other.
            if self._batches_behind and (len(batch) > 1 or not batch[0].work.stands):
                break
            async with self._live.lock:
                batch, needs_lock = await self._decide_and_append(batch)
            if needs_lock or not batch:
                break
        return batch

    async def _decide_and_append(self, batch: list[PendingCall]) -> _Left:
        state = self._live.current
        # A batch whose append is refused must be reverted; a state can revert only some commands.
        if state is None or not all(call.work.revertible for call in batch):
            return _Left(batch, needs_lock=True)
        lookup = look_up(state, batch)
        # A settlement with a key, or of a reservation that is no longer active, is decided on stored rows. They must be
        # read at the head at which the batch is appended, so these commands wait for the lock.
        if lookup.positions:
            return _Left(batch, needs_lock=True)
        unit_of_work = UnitOfWork(state, LookupResult(), state.recorded_at_ns)
        # `Exception` is enough here: nothing cancels the queue's task, see `CallQueue.finish`.
        try:
            self._decider.decide(unit_of_work, batch)
            return await self._append(unit_of_work, lookup, batch)
        except CommitOutcomeUnknown as cause:
            await self._unknown.resolve(batch, unit_of_work.rows, cause)
        except Exception as error:
            self._live.discard()
            fail(batch, error)
        return _NOTHING_LEFT

    async def _append(self, unit_of_work: UnitOfWork, lookup: Lookup, batch: list[PendingCall]) -> _Left:
        if only_reports(unit_of_work, batch):
            return _Left(batch, needs_lock=True)
        if await self._is_stored(lookup, batch):
            return self._revert(unit_of_work, batch, needs_lock=True)
        try:
            if await self._append_at_head(unit_of_work, batch):
                self._decider.note_committed(unit_of_work.rows, batch)
                return _NOTHING_LEFT
            return await self._append_behind(unit_of_work, batch)
        except (RowExists, TransactionConflict):
            # A key, a job's attempt or a settlement is stored already: the stored rows are looked up under the lock.
            # Or the database aborted the transaction in favour of another one.
            return self._revert(unit_of_work, batch, needs_lock=True)
        except VersionConflict:
            # The head has not moved, and yet a stream has: the state is not the log's.
            self._counters.conflicts += 1
            self._counters.retries += len(batch)
            self._live.discard()
            return _Left(batch, needs_lock=True)

    async def _is_stored(self, lookup: Lookup, batch: list[PendingCall]) -> bool:
        """Return whether a key or job of the batch is stored, unless every command appends a row.

        The look-ups are skipped then: the unique indexes refuse a key or job that is already stored, at no extra round
        trip. A command without a row, refused or with nothing to do, has no row that they could refuse. It may be a
        retry of a call that succeeded, and must then return the first result.
        """
        if not lookup or all(call.row is not None for call in batch):
            return False
        known = await self._store.find(lookup)
        return bool(known.keys or known.jobs)

    async def _append_at_head(self, unit_of_work: UnitOfWork, batch: list[PendingCall]) -> bool:
        """Append if the head is the one at which the batch was decided; return whether the decision is final."""
        rows, head = unit_of_work.rows, unit_of_work.head
        if not rows:
            # Nothing to append, so no append compares the head: a refusal is right only on the newest state.
            stored = await self._store.head()
            return (stored.position, stored.hash) == (head.position, head.hash)
        if self._batches_behind:
            return False
        expected, began_ns = expected_versions(unit_of_work, batch), self._counters.commit_begins()
        if await self._store.append(lambda _: rows, expected, at=head) is not None:
            self._counters.commit_ended(began_ns)
            return True
        self._batches_behind = BATCHES_AFTER_MOVED_HEAD
        return False

    async def _append_behind(self, unit_of_work: UnitOfWork, batch: list[PendingCall]) -> _Left:
        """Append the decisions that stand behind the head that the log has now; return the other calls."""
        standing = _standing(unit_of_work, batch)
        while standing:
            sent, tail = Renumbering(unit_of_work.head, [each.decision for each in standing]), Tail()
            expected = {stream: version for each in standing for stream, version in each.expected.items()}
            began_ns = self._counters.commit_begins()
            try:
                appended = await self._store.append(
                    sent.rows_behind, expected, since=unit_of_work.head, read_tail=tail.read
                )
            except VersionConflict as conflict:
                self._counters.conflicts += 1
                standing = _without_moved(standing, conflict)
            except ChoiceTooOld:
                standing = []
            except CommitOutcomeUnknown as cause:
                await self._unknown.resolve(_renumbered(standing, sent), sent.rows, cause)
                return _Left(_others(batch, standing), needs_lock=True)
            else:
                if appended is not None:
                    self._counters.commit_ended(began_ns)
                    return self._appended(unit_of_work, batch, standing, sent, tail)
                # The log was replaced. Loading the state again finds out what that means.
                self._live.discard()
                return _Left(batch, needs_lock=True)
        left = self._revert(unit_of_work, batch, needs_lock=not unit_of_work.rows)
        if not left.needs_lock:
            await self._live.catch_up(self._store)
        return left

    def _appended(
        self,
        unit_of_work: UnitOfWork,
        batch: list[PendingCall],
        standing: list[_Standing],
        sent: Renumbering,
        tail: Tail,
    ) -> _Left:
        """Set the results of the calls whose rows were appended, and bring the state to these rows."""
        unit_of_work.revert()
        self._decider.note_committed(sent.rows, _renumbered(standing, sent))
        if sent.rows[0].position != unit_of_work.head.position + 1:
            self._counters.renumbered += len(standing)
        self._live.follow(tail, sent.rows, sent.events)
        others = _others(batch, standing)
        self._counters.retries += len(others)
        return _Left(others, needs_lock=False)

    def _revert(self, unit_of_work: UnitOfWork, batch: list[PendingCall], *, needs_lock: bool) -> _Left:
        unit_of_work.revert()
        self._counters.retries += len(batch)
        return _Left(batch, needs_lock)


def _standing(unit_of_work: UnitOfWork, batch: list[PendingCall]) -> list[_Standing]:
    """Return the calls whose decision depends on no earlier one of the batch: nobody touched its classes and jobs."""
    standing: list[_Standing] = []
    touched: set[tuple[str, str]] = set()
    jobs = unit_of_work.jobs()
    for call in batch:
        if call.row is None:
            continue
        end = call.row.position - unit_of_work.head.position
        decision = decision_of(unit_of_work, call.first, end, jobs)
        if call.work.stands and touched.isdisjoint(decision.touched):
            standing.append(_Standing(call, decision, _expected(unit_of_work, call, decision.rows)))
        touched |= decision.touched
    return standing


def _expected(unit_of_work: UnitOfWork, call: PendingCall, rows: list[Row]) -> dict[str, int]:
    expected = versions_before(rows)
    return expected | {stream: unit_of_work.state.version(stream) for stream in call.work.streams}


def _without_moved(standing: list[_Standing], conflict: VersionConflict) -> list[_Standing]:
    """Return the decisions that do not depend on a stream that has moved."""
    moved = {each.stream for each in conflict.conflicts}
    remaining = [each for each in standing if moved.isdisjoint(each.expected)]
    if len(remaining) == len(standing):
        raise AssertionError(f"the store names streams that no decision expects: {conflict}") from conflict
    return remaining


def _renumbered(standing: list[_Standing], sent: Renumbering) -> list[PendingCall]:
    """Set the results and rows of the calls to those of the rows that were sent; return the calls."""
    for (call, _, _), row in zip(standing, sent.last_rows, strict=True):
        call.result, call.row = call.work.renumbered(call.result, row), row
    return [each.call for each in standing]


def _others(batch: list[PendingCall], standing: list[_Standing]) -> list[PendingCall]:
    stood = {id(each.call) for each in standing}
    return [call for call in batch if id(call) not in stood]
