"""Appending under the head's lock: read what others appended, decide on it, append; nobody can come in between.

The usual way on SQLite. On PostgreSQL it is for what cannot be decided or reverted in memory, and for batches that the
optimistic append gives back.
"""

from __future__ import annotations

import time
from typing import Any

from ledger.domain.lookup import LookupResult
from ledger.domain.unit_of_work import UnitOfWork
from ledger.store.contract import CommitOutcomeUnknown, Store, TransactionConflict, VersionConflict

from .call_queue import PendingCall, fail
from .counters import Counters
from .deciding import Decider, expected_versions, look_up
from .errors import CorruptLedger, StorageUnavailable
from .live_state import LiveState
from .unknown_outcomes import UnknownOutcomes

# Under the lock a batch is retried only if the database aborts the transaction in favour of another, or a query that
# could not read the log discards the state. Both are rare, so this many in a row mean a fault and not contention.
MOST_CONTENDED_ATTEMPTS = 20


class _StateDiscarded(Exception):
    """A catch-up for a query failed and discarded the state while the writer waited for the lock.

    A query function that raises discards nothing: only its own caller gets the error.

    After a discard the writer gives the lock back and loads the state before it asks for the lock again: a load under
    the lock would keep all other writers waiting.
    """


class LockedAppend:
    """Commits batches under the head's lock."""

    def __init__(
        self, store: Store, live: LiveState[Any], decider: Decider, unknown: UnknownOutcomes, counters: Counters
    ) -> None:
        self._store = store
        self._live = live
        self._decider = decider
        self._unknown = unknown
        self._counters = counters

    async def commit(self, batch: list[PendingCall]) -> None:
        """Lock the head, decide and append; retry if the database aborts the transaction or the state is discarded."""
        was_stale = False
        for attempt in range(MOST_CONTENDED_ATTEMPTS):
            try:
                if self._live.current is None:
                    await self._live.catch_up_before_lock()
                await self._commit_at_head(batch)
                return
            except VersionConflict as conflict:
                self._counters.conflicts += 1
                if was_stale:
                    fail(batch, _corrupt(conflict, batch))
                    return
                # Nobody can have appended since the state was caught up, so it is not the log's. It is discarded, and
                # loaded from the log for one more decision.
                was_stale = True
                self._counters.retries += len(batch)
            except (TransactionConflict, _StateDiscarded) as error:
                self._counters.retries += len(batch)
                if attempt + 1 == MOST_CONTENDED_ATTEMPTS:
                    unavailable = StorageUnavailable(f"nothing was done in {MOST_CONTENDED_ATTEMPTS} attempts: {error}")
                    unavailable.__cause__ = error
                    fail(batch, unavailable)
            except Exception as error:
                fail(batch, error)
                return

    async def _commit_at_head(self, batch: list[PendingCall]) -> None:
        live = self._live
        unit_of_work: UnitOfWork | None = None
        has_state_lock = False
        asked_ns = time.perf_counter_ns()
        try:
            # The usual order is first the database's lock, then the state's: queries go on while this batch waits to
            # write. If reads wait for writes, as in a memory database, that order would deadlock: this batch would
            # hold the transaction and wait for the state, and a query would hold the state and wait, in its read, for
            # the transaction to end. So there the state's lock comes first, as in queries. Such a store must not call
            # `catch_up_before_lock`, which would wait for the state lock that this batch then holds already.
            if self._store.reads_wait_for_writes:
                await live.lock.acquire()
                has_state_lock = True
            async with self._store.transaction(live.catch_up_before_lock) as transaction:
                self._counters.note_lock_wait(time.perf_counter_ns() - asked_ns)
                if not has_state_lock:
                    await live.lock.acquire()
                    has_state_lock = True
                if live.current is None:
                    raise _StateDiscarded("the log could not be read for a query")
                state = await live.catch_up(transaction)
                lookup = look_up(state, batch)
                known = await transaction.find(lookup) if lookup else LookupResult()
                unit_of_work = UnitOfWork(state, known, state.recorded_at_ns)
                self._decider.decide(unit_of_work, batch)
                began_ns = self._counters.commit_begins()
                if unit_of_work.rows:
                    await transaction.append(unit_of_work.rows, expected_versions(unit_of_work, batch, locked=True))
            if unit_of_work.rows:
                self._counters.commit_ended(began_ns)
            self._decider.note_committed(unit_of_work.rows, batch)
        except CommitOutcomeUnknown as cause:
            await self._unknown.resolve(batch, unit_of_work.rows if unit_of_work is not None else [], cause)
        except BaseException:
            # The state may contain rows that were never committed. The next call loads it again.
            live.discard()
            raise
        finally:
            if has_state_lock:
                live.lock.release()


def _corrupt(conflict: VersionConflict, batch: list[PendingCall]) -> CorruptLedger:
    """Return the error for a state that was just folded from the log, and yet has other versions than the log."""
    position = min(call.row.position for call in batch if call.row is not None)
    error = CorruptLedger(position, f"its stored versions differ from its events: {conflict}")
    error.__cause__ = conflict
    return error
