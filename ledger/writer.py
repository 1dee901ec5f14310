"""Group commit: one writer per process and ledger commits up to `BATCH_COMMANDS` waiting commands in one transaction.

The writer decides each command on a state that already contains the earlier commands of the batch, so callers in one
process never conflict with each other. No caller gets a result before the commit. If the commit fails, the writer
discards the state, and the next call folds it again from the stored log.

There are two ways to commit a batch:

- Optimistically, if the store can compare and set the head in one round trip: the writer decides on the state in
  memory, without reading the log first, and appends on the condition that the head is unchanged. If another process
  has appended, the writer reverts the batch and decides it again under the lock.
- Under the head's lock, in four steps: the writer locks the head and reads the rows that others appended, folds them,
  decides each command, and appends. Nobody else can append until the transaction ends, so this cannot conflict.

The writer runs on the runtime's loop. Callers wait on loops of their own, and the writer wakes each loop once per
batch. The writer runs queries on the committed state, also while a batch waits for the write lock. A short query runs
in the caller's thread if the state is free and equals the committed log, because a switch to another thread and back
takes longer than the query itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from ledger.domain.lookup import Lookup, LookupResult
from ledger.domain.state import LedgerState
from ledger.domain.unit_of_work import Command, UnitOfWork
from ledger.store.contract import (
    CommitOutcomeUnknown,
    RowExists,
    Store,
    Transaction,
    TransactionConflict,
    VersionConflict,
    versions_before,
)

from .acknowledged import Acknowledged
from .codec import Row, row_hash
from .counters import Counters
from .errors import (
    AllowanceException,
    CorruptLedger,
    LedgerClosed,
    LedgerOverloaded,
    OutcomeUnknown,
    SealConflict,
    StorageUnavailable,
)
from .runtime import Runtime

S = TypeVar("S", bound=LedgerState)
R = TypeVar("R")

# The bound keeps memory finite when the database is slower than the callers. 10,000 calls are about twenty full
# batches; a caller who would wait longer than that gets `LedgerOverloaded` at once.
QUEUE_CAPACITY = 10_000
# A bound on the size of one commit, so that the first caller of a long queue does not wait for the last.
BATCH_COMMANDS = 512
# After a conflict other processes are probably still appending, and an optimistic attempt would probably conflict
# again. So this many batches lock the head straight away. A stored key or job also reverts a batch, although nobody
# else need be appending then. That is rare, since it takes a retried call, and it costs these batches only the round
# trips of the lock; to tell the two apart would not be worth a second path.
LOCKED_BATCHES_AFTER_CONFLICT = 16
# Under the lock a batch is retried only if the database aborts the transaction in favour of another, or a query that
# could not read the log discards the state. Both are rare, so this many in a row mean a fault and not contention.
MOST_CONTENDED_ATTEMPTS = 20

log = logging.getLogger("allowance.ledger")


class _StateDiscarded(Exception):
    """A catch-up for a query failed and discarded the state while the writer waited for the lock.

    A query function that raises discards nothing: only its own caller gets the error.

    After a discard the writer gives the lock back and loads the state before it asks for the lock again: a load under
    the lock would keep all other writers waiting.
    """


class PendingCall:
    """A command or query that waits in a queue, and the future with which its caller waits."""

    __slots__ = ("error", "future", "loop", "result", "row", "work")

    def __init__(self, work: Any, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work = work
        # Futures are not thread-safe: only the caller's own loop may resolve this one.
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None
        # The last row that the command appended; None if it appended none.
        self.row: Row | None = None


class _StateLock:
    """A lock on the state for coroutines of the runtime's loop and for other threads.

    One lock is not enough. Coroutines must wait for each other without blocking the loop, which needs an asyncio
    lock; a caller's thread cannot use that one, because it belongs to the loop.
    """

    def __init__(self) -> None:
        self._among_coroutines = asyncio.Lock()
        self._among_threads = threading.Lock()

    async def acquire(self) -> None:
        """Wait for the lock; only on the runtime's loop."""
        await self._among_coroutines.acquire()
        # This blocks the whole loop while a thread has the lock. Threads run only short queries, which the loop would
        # otherwise have to run itself.
        self._among_threads.acquire()

    def release(self) -> None:
        """Release the lock after `acquire`."""
        self._among_threads.release()
        self._among_coroutines.release()

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free, without waiting; from any thread."""
        return self._among_threads.acquire(blocking=False)

    def release_try(self) -> None:
        """Release the lock after a successful `try_acquire`."""
        self._among_threads.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()


class LedgerWriter(Generic[S]):
    """The only writer of the log in this process, for one ledger, and the owner of its state.

    Only the writer changes the state. Callers' threads read it for short queries, under the state lock.
    """

    def __init__(
        self,
        store: Store,
        load_state: Callable[[], Awaitable[S]],
        clock_ns: Callable[[], int],
        runtime: Runtime,
        after_commit: Callable[[int, int], None] = lambda position, appended: None,
    ) -> None:
        """Call `after_commit` with the new position and the number of appended rows, after each batch.

        `clock_ns` is trusted: pass a `Clock`, which validates each reading. If it raises, only that caller fails.
        """
        self.store = store
        self.counters = Counters()
        self._load_state = load_state
        self._clock_ns = clock_ns
        self._runtime = runtime
        self._after_commit = after_commit
        self._acknowledged = Acknowledged()
        # None: the state is unknown after a failure and must be loaded again.
        self._state: S | None = None
        # A batch holds this from its decision to its commit, because the state is then ahead of the stored log.
        self._state_lock = _StateLock()
        self._locked_batches = 0
        # The keys and jobs of the calls whose outcome is unknown, until a batch is committed again.
        self._unknown: set[str] = set()
        self._closed = False
        # Why no further change is accepted, until the ledger is opened again; None as long as changes are.
        self._refusal: AllowanceException | None = None
        self._queries = _CallQueue(runtime, self._run_queries)
        self._commands = _CallQueue(runtime, self._commit_batch)

    async def query(self, query: Callable[[S, int], R], *, short: bool = False) -> R:
        """Return the result of a function of the committed state, caught up first, and the clock in ns.

        A short query reads a few entries of the state and never goes through all accounts or blocks, so it takes less
        time than a switch of threads. It may run in the caller's thread, and keeps the writer waiting meanwhile.
        """
        if short and not self._closed:
            found = self._query_in_caller(query)
            if found is not None:
                return found[0]
        result: R = await self._enqueue(self._queries, query)
        return result

    async def execute(self, command: Command) -> Any:
        """Return the result of a command once it is committed."""
        return await self._enqueue(self._commands, command)

    @property
    def idle_seconds(self) -> float:
        """For how long nobody has called; 0 while a call waits or is processed. On the runtime's loop."""
        return min(self._commands.idle_seconds, self._queries.idle_seconds)

    @property
    def refusal(self) -> AllowanceException | None:
        """Why no change is accepted until the ledger is opened again; None as long as changes are."""
        return self._refusal

    def take_over_acknowledged(self, other: LedgerWriter[S]) -> None:
        """Refuse a log that lacks what another writer, of the process that this one was forked from, acknowledged."""
        self._acknowledged = other._acknowledged

    def refuse_if_log_went_back(self) -> None:
        """Raise `LogWentBack` if the stored log was found to lack what this process has acknowledged."""
        self._acknowledged.refuse_if_lost()

    async def replace_state(self, state: S) -> None:
        """Continue with a state that was folded elsewhere, unless the current one is to be loaded anyway."""
        async with self._state_lock:
            if self._state is not None:
                self._state = state

    async def close(self) -> None:
        """Finish all queued calls and refuse new ones."""
        self._closed = True
        for queue in (self._commands, self._queries):
            await queue.finish()

    async def _enqueue(self, queue: _CallQueue, work: Any) -> Any:
        if self._closed:
            raise LedgerClosed
        loop = asyncio.get_running_loop()
        call = PendingCall(work, loop, loop.create_future())
        queue.put(call)
        return await call.future

    def _query_in_caller(self, query: Callable[[S, int], R]) -> tuple[R] | None:
        """Return the result in a tuple, or None if the state is in use or behind the stored log; from any thread."""
        if not self._state_lock.try_acquire():
            return None
        try:
            state, head = self._state, self.store.probe_head()
            # Another process may have appended, or the file may have been replaced. Only an equal head proves that the
            # state in memory is the committed one.
            if state is None or head is None or (state.position, state.hash) != (head.position, head.hash):
                return None
            return (query(state, self._clock_ns()),)
        finally:
            self._state_lock.release_try()

    async def _run_queries(self, waiting: deque[PendingCall]) -> list[PendingCall]:
        calls = [call for call in _drain(waiting) if not call.future.cancelled()]
        try:
            async with self._state_lock:
                state = await self._catch_up(self.store)
                for call in calls:
                    try:
                        call.result = call.work(state, self._clock_ns())
                    except Exception as error:
                        # The caller's function failed, not the ledger: the other queries are unaffected.
                        call.error = error
        except Exception as error:
            self._state = None
            _fail(calls, error)
        return calls

    async def _commit_batch(self, waiting: deque[PendingCall]) -> list[PendingCall]:
        batch = _next_batch(waiting)
        if not batch:
            return batch
        self.counters.batches += 1
        self.counters.commands += len(batch)
        rows_before = self.counters.rows
        try:
            if not (self.store.optimistic and await self._commit_optimistically(batch)):
                await self._commit_under_lock(batch)
        except Exception as error:
            # A caller without a result would wait for ever, so every unforeseen error must reach the callers.
            log.exception("a batch failed unexpectedly")
            self._state = None
            _fail(batch, error)
        if self._unknown:
            self._keep_unknown(batch)
        self._report_commit(self.counters.rows - rows_before)
        return batch

    def _keep_unknown(self, batch: list[PendingCall]) -> None:
        """Make sure that a retry which cannot be executed is not taken for the outcome of the first call.

        The retry changed nothing, but `StorageUnavailable` would tell its caller that the first call did not either.
        """
        if self._state is not None:
            self._unknown.clear()
            return
        for call in batch:
            known = [name for name in _names(call.work) if name in self._unknown]
            if known and isinstance(call.error, StorageUnavailable):
                call.error = OutcomeUnknown(known[0], call.work.operation)

    def _report_commit(self, appended: int) -> None:
        try:
            if self._state is not None:
                self._after_commit(self._state.position, appended)
        except Exception:
            # The batch is committed. A failure of the follow-up work must not turn the callers' success into an error.
            log.exception("the work after a commit failed")

    async def _commit_optimistically(self, batch: list[PendingCall]) -> bool:
        """Decide on the state in memory and append if the head is unchanged.

        Return True if the batch is finished, by success or failure; False if it must be decided under the lock.
        """
        if self._locked_batches > 0:
            self._locked_batches -= 1
            return False
        async with self._state_lock:
            state = self._state
            # If the head has changed, the batch must be reverted; a state can revert only some commands.
            if state is None or not all(call.work.revertible for call in batch):
                return False
            lookup = self._lookup(state, batch)
            # A settlement with a key, or of a reservation that is no longer active, is decided on stored rows. They
            # must be read at the head at which the batch is appended, so these commands wait for the lock.
            if lookup.positions:
                return False
            # `_decide` reads the clock for each command.
            unit_of_work = UnitOfWork(state, LookupResult(), state.recorded_at_ns)
            # `Exception` is enough here: nothing cancels the queue's task, see `_CallQueue.finish`.
            try:
                self._decide(unit_of_work, batch)
                only_reports = _only_reports(unit_of_work, batch)
                is_final = not only_reports and await self._append_if_unchanged(unit_of_work, lookup, batch)
            except CommitOutcomeUnknown as cause:
                await self._resolve_unknown_outcome(batch, unit_of_work, cause)
                return True
            except Exception as error:
                self._state = None
                _fail(batch, error)
                return True
            if not (is_final or only_reports):
                self._revert_conflict(unit_of_work, batch)
            return is_final

    async def _append_if_unchanged(self, unit_of_work: UnitOfWork, lookup: Lookup, batch: list[PendingCall]) -> bool:
        """Append if the head is unchanged; return True if the decision is final."""
        # The look-ups are skipped if every command appends a row: the unique indexes refuse a key or job that is
        # already stored, at no extra round trip. A command without a row, refused or with nothing to do, has no row
        # that they could refuse. It may be a retry of a call that succeeded, and must then return the first result.
        if lookup and any(call.row is None for call in batch):
            known = await self.store.find(lookup)
            if known.keys or known.jobs:
                return False
        if unit_of_work.rows:
            rows = unit_of_work.rows
            try:
                appended = await self.store.append(lambda _: rows, versions_before(rows), at=unit_of_work.head)
            except (RowExists, VersionConflict):
                return False
            if appended is not None:
                self._count_appended(unit_of_work)
            return appended is not None
        # Nothing to append, so no append compares the head: a refusal is right only on the newest state.
        head = await self.store.head()
        return (head.position, head.hash) == (unit_of_work.head.position, unit_of_work.head.hash)

    def _revert_conflict(self, unit_of_work: UnitOfWork, batch: list[PendingCall]) -> None:
        """Revert a batch whose decision is not final.

        Either the head has moved, or a stored row has a key or job of the batch: it was looked up, or a unique index
        refused the new row. In the second case the head may be unchanged.
        """
        unit_of_work.revert()
        self.counters.conflicts += 1
        self.counters.retries += len(batch)
        self._locked_batches = LOCKED_BATCHES_AFTER_CONFLICT

    async def _commit_under_lock(self, batch: list[PendingCall]) -> None:
        """Lock the head, decide and append; retry if the database aborts the transaction or the state is discarded."""
        for attempt in range(MOST_CONTENDED_ATTEMPTS):
            try:
                if self._state is None:
                    await self._catch_up_before_lock()
                await self._commit_at_head(batch)
                return
            except (TransactionConflict, _StateDiscarded) as error:
                self.counters.retries += len(batch)
                if attempt + 1 == MOST_CONTENDED_ATTEMPTS:
                    unavailable = StorageUnavailable(f"nothing was done in {MOST_CONTENDED_ATTEMPTS} attempts: {error}")
                    unavailable.__cause__ = error
                    _fail(batch, unavailable)
            except Exception as error:
                _fail(batch, error)
                return

    async def _commit_at_head(self, batch: list[PendingCall]) -> None:
        unit_of_work: UnitOfWork | None = None
        has_state_lock = False
        asked_ns = time.perf_counter_ns()
        try:
            # The usual order is first the database's lock, then the state's: queries go on while this batch waits to
            # write. If reads wait for writes, as in a memory database, that order would deadlock: this batch would
            # hold the transaction and wait for the state, and a query would hold the state and wait, in its read, for
            # the transaction to end. So there the state's lock comes first, as in queries. Such a store must not call
            # `_catch_up_before_lock`, which would wait for the state lock that this batch then holds already.
            if self.store.reads_wait_for_writes:
                await self._state_lock.acquire()
                has_state_lock = True
            async with self.store.transaction(self._catch_up_before_lock) as transaction:
                self.counters.lock_waits.add(time.perf_counter_ns() - asked_ns)
                if not has_state_lock:
                    await self._state_lock.acquire()
                    has_state_lock = True
                if self._state is None:
                    raise _StateDiscarded("the log could not be read for a query")
                state = await self._catch_up(transaction)
                lookup = self._lookup(state, batch)
                known = await transaction.find(lookup) if lookup else LookupResult()
                unit_of_work = UnitOfWork(state, known, state.recorded_at_ns)
                self._decide(unit_of_work, batch)
                if unit_of_work.rows:
                    await transaction.append(unit_of_work.rows, versions_before(unit_of_work.rows))
            self._count_appended(unit_of_work)
        except CommitOutcomeUnknown as cause:
            await self._resolve_unknown_outcome(batch, unit_of_work, cause)
        except BaseException:
            # The state may contain rows that were never committed. The next call loads it again.
            self._state = None
            raise
        finally:
            if has_state_lock:
                self._state_lock.release()

    async def _catch_up_before_lock(self) -> None:
        """Bring the state near the head before the lock is acquired, when the fold keeps no other writer waiting."""
        async with self._state_lock:
            await self._catch_up(self.store)

    def _decide(self, unit_of_work: UnitOfWork, batch: list[PendingCall]) -> None:
        for call in batch:
            before = len(unit_of_work.rows)
            self.counters.attempts += 1
            # The batch may be decided a second time: nothing of the first time may remain.
            call.result = call.row = None
            call.error = self._refusal
            if call.error is not None:
                continue
            try:
                # Inside: a clock that fails, fails for this command alone.
                unit_of_work.now_ns = self._clock_ns()
                call.result = call.work.decide(unit_of_work)
                call.row = unit_of_work.rows[-1] if len(unit_of_work.rows) > before else None
            except Exception as error:
                if len(unit_of_work.rows) != before:
                    # The command failed after it had appended: to commit half of a command would be wrong, and its rows
                    # are already part of the state. So the whole batch fails, and every caller in it gets this error.
                    raise
                # The command was refused before it appended. It fails alone.
                call.error = error
                if isinstance(error, SealConflict):
                    # Either the state in memory or the log's seal is wrong, so nothing more may be decided on them.
                    self._refusal = error
        self.counters.claims += unit_of_work.claims

    def _count_appended(self, unit_of_work: UnitOfWork) -> None:
        if unit_of_work.rows:
            self._note_committed(unit_of_work.rows)
        self.counters.rows += len(unit_of_work.rows)
        self.counters.moved_picks += unit_of_work.moved_picks

    def _note_committed(self, rows: list[Row]) -> None:
        self._acknowledged.note(rows[-1].position, rows[-1].hash)

    def _lookup(self, state: S, batch: list[PendingCall]) -> Lookup:
        lookup = Lookup()
        for call in batch:
            call.work.add_lookups(state, lookup)
        return lookup

    async def _catch_up(self, source: Store | Transaction) -> S:
        """Fold the tail of the log and return the state.

        The state is then at the head, or beyond it if `source` is no transaction and others append at the same time.
        Raises `LogWentBack` if the stored log lacks what this process has acknowledged, this time and ever after;
        `StorageUnavailable` if it does not continue the folded log, `CorruptLedger` if rows are missing. The callers of
        this method discard the state after an error.
        """
        state = self._state
        if state is None:
            await self._acknowledged.check(source)
            state = await self._load_state()
        head = await source.head()
        if state.position > head.position or (state.position == head.position and state.hash != head.hash):
            await self._acknowledged.check(source)
            raise StorageUnavailable(
                f"the stored log was replaced by one that ends at {head.position}; was the database restored?"
            )
        # A failure or cancellation in the middle of the fold must not leave a state that is half folded.
        self._state = None
        self.counters.foreign_rows += head.position - state.position
        while state.position < head.position:
            rows = await source.read(state.position)
            if not rows:
                raise CorruptLedger(state.position + 1, f"the log ends before it, its head says {head.position}")
            # The first row's hash covers the hash of the row before it. One check therefore proves that the tail
            # continues the log that was folded so far. `verify` and the audit check every hash.
            if row_hash(state.hash, rows[0]) != rows[0].hash:
                await self._acknowledged.check(source)
                raise StorageUnavailable(
                    f"the stored log was replaced by one that differs at {rows[0].position}; was the database restored?"
                )
            state.fold(rows)
        self._acknowledged.note(state.position, state.hash)
        self._state = state
        return state

    async def _resolve_unknown_outcome(
        self, batch: list[PendingCall], unit_of_work: UnitOfWork | None, cause: Exception
    ) -> None:
        """After a commit without a clear result, let the store find out whether the rows are stored.

        There are three outcomes. If the rows are stored, the results of the batch are valid. If they never will be,
        every call raises `StorageUnavailable` and nothing was done. If the store cannot know it yet, or if the batch
        only reported what is in the log, `_set_unknown_outcome` sets the errors.
        """
        self._state = None
        rows = unit_of_work.rows if unit_of_work is not None else []
        try:
            committed = await self.store.resolve_commit(rows[0]) if rows else None
        except Exception:
            committed = None
        if committed:
            self._note_committed(rows)
        elif committed is None:
            for call in batch:
                self._set_unknown_outcome(call, cause)
        else:
            unavailable = StorageUnavailable(f"the commit failed, nothing was done: {cause}")
            unavailable.__cause__ = cause
            _fail(batch, unavailable)

    def _set_unknown_outcome(self, call: PendingCall, cause: Exception) -> None:
        """Set the error of a call whose commit was not confirmed: `OutcomeUnknown`, if a key or job can find it out.

        A call that succeeded without a row repeats an earlier one, whose row is perhaps as little confirmed as this
        commit. To tell its caller that nothing was done could be wrong.
        """
        names = _names(call.work)
        if call.row is not None:
            names.insert(0, call.work.retry_key(call.row))
        elif call.error is not None:
            call.error = StorageUnavailable(f"the commit may have failed, this was not done: {cause}")
            return
        if names:
            self._unknown.update(names)
            call.error = OutcomeUnknown(names[0], call.work.operation)
        else:
            call.error = StorageUnavailable(f"the commit is not confirmed, its outcome is not known yet: {cause}")


class _CallQueue:
    """A bounded queue of calls from any thread, and the task on the runtime's loop that processes it."""

    def __init__(self, runtime: Runtime, process: Callable[[deque[PendingCall]], Any]) -> None:
        """Let `process` remove the calls that it handles from the queue; it returns them with result or error."""
        self._runtime = runtime
        self._process = process
        self._waiting: deque[PendingCall] = deque()
        self._woken = False
        self._running: asyncio.Task[None] | None = None
        self._emptied_at = runtime.loop.time()

    @property
    def idle_seconds(self) -> float:
        """For how long the queue has been empty; 0 while a call waits or is processed."""
        is_running = self._running is not None and not self._running.done()
        return 0.0 if is_running or self._waiting else self._runtime.loop.time() - self._emptied_at

    def put(self, call: PendingCall) -> None:
        """Append a call; from any thread. Raises `LedgerOverloaded` if the queue is full."""
        if len(self._waiting) >= QUEUE_CAPACITY:
            raise LedgerOverloaded(len(self._waiting))
        self._waiting.append(call)
        # To wake another thread's loop costs a system call, so only the first call after a pause does it.
        if not self._woken:
            self._woken = True
            try:
                self._runtime.loop.call_soon_threadsafe(self._wake)
            except RuntimeError as cause:
                # The loop is closed. Without the reset, the next call would trust this wake-up and wait for ever.
                self._woken = False
                raise LedgerClosed from cause

    async def finish(self) -> None:
        """Process all waiting calls, even if the caller is cancelled."""
        self._wake()
        # `wait` does not pass a cancellation on to the task, unlike a plain `await`. A cancelled task would leave the
        # callers of its batch without a result, and they would wait for ever. The cancellation itself is dropped here:
        # the ledger must still close its store, and the cancelled caller does not wait for that.
        while self._running is not None and not self._running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._running])

    def _wake(self) -> None:
        if self._running is None or self._running.done():
            self._running = self._runtime.loop.create_task(self._run_until_empty())

    async def _run_until_empty(self) -> None:
        while True:
            # Cleared before the check, not after it: a call that another thread appends after the check then wakes
            # the queue again, and is not lost.
            self._woken = False
            if not self._waiting:
                self._emptied_at = self._runtime.loop.time()
                return
            resolve_futures(await self._process(self._waiting))
            # On SQLite a whole batch may run without waiting for anything. Without this, a queue that is never empty
            # would keep the loop from all other work, queries among it.
            await asyncio.sleep(0)


async def yield_to_writers() -> None:
    """Let waiting commands go first; for work on the runtime's loop that writes in several transactions.

    The first round of the loop runs `_wake`, which starts the command queue's task. In the second one the task's batch
    begins its transaction, or queues for it ahead of the work that called this. The third round is for a command that
    arrives while this function is called: its thread has queued it, but calls for `_wake` only a moment later.
    """
    for _ in range(3):
        await asyncio.sleep(0)


def _drain(waiting: deque[PendingCall]) -> list[PendingCall]:
    calls = []
    while waiting:
        calls.append(waiting.popleft())
    return calls


def _next_batch(waiting: deque[PendingCall]) -> list[PendingCall]:
    """Remove and return the next commands, without cancelled ones; at most one per idempotency key.

    A second command with the same key waits for the next batch. Stored keys are looked up once per batch, before the
    first command is decided, so in the same batch the second would not find the first.
    """
    batch: list[PendingCall] = []
    postponed: list[PendingCall] = []
    keys: set[str] = set()
    while waiting and len(batch) < BATCH_COMMANDS:
        call = waiting.popleft()
        key = call.work.key
        if call.future.cancelled():
            continue
        if key is not None and key in keys:
            postponed.append(call)
            continue
        if key is not None:
            keys.add(key)
        batch.append(call)
    waiting.extendleft(reversed(postponed))
    return batch


def _only_reports(unit_of_work: UnitOfWork, batch: list[PendingCall]) -> bool:
    """Whether a batch appends nothing and yet a call succeeds, which reports what is in the log already.

    Such a batch is decided under the lock, because only a COMMIT waits until what it read is as safe as an append of
    its own. A read shows rows that another process appended and that no standby has, if their commit's wait for the
    standby was cancelled.
    """
    return not unit_of_work.rows and any(call.error is None for call in batch)


def _names(command: Command) -> list[str]:
    """Return what a retry of the command would have in common with it: its key and its job, if it has them."""
    return [name for name in (command.key, getattr(command, "job_uuid", None)) if name is not None]


def _fail(calls: list[PendingCall], error: Exception) -> None:
    for call in calls:
        call.result, call.error = None, error


def resolve_futures(calls: list[PendingCall]) -> None:
    """Pass results and errors to the callers, and wake each of their loops once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[PendingCall]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    for loop, calls_of_loop in by_loop.items():
        with suppress(RuntimeError):  # The loop is closed, so nobody waits for these results.
            loop.call_soon_threadsafe(_resolve, calls_of_loop)


def _resolve(calls: list[PendingCall]) -> None:
    for call in calls:
        if call.future.done():
            continue  # The caller was cancelled after its batch had begun. The command stays committed.
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)
