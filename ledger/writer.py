"""Group commit: one writer per process and ledger commits up to `BATCH_COMMANDS` waiting commands in one transaction.

The writer decides each command on a state that already contains the earlier commands of the batch, so callers in one
process never conflict with each other. No caller gets a result before the commit. If the commit fails, the writer
discards the state, and the next call folds it again from the stored log.

There are two ways to commit a batch. The store compares the versions of the streams in both.

- `optimistic_append`, if the store can compare and append in one round trip: decide on the state in memory, without
  reading the log first.
- `locked_append`: lock the head, fold what others appended, decide, and append. Nobody else can append until the
  transaction ends.

The writer runs on the runtime's loop. It runs queries on the committed state, also while a batch waits for the write
lock. A short query runs in the caller's thread if the state is free and equals the committed log, because a switch to
another thread and back takes longer than the query itself.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from ledger.domain.state import LedgerState
from ledger.domain.unit_of_work import Command
from ledger.store.contract import Store

from . import observers
from .call_queue import CallQueue, PendingCall, drain, fail, next_batch
from .counters import Counters
from .deciding import Decider
from .errors import AllowanceException, LedgerClosed
from .live_state import LiveState
from .locked_append import LockedAppend
from .optimistic_append import OptimisticAppend
from .runtime import Runtime, running_loop
from .unknown_outcomes import UnknownOutcomes

S = TypeVar("S", bound=LedgerState)
R = TypeVar("R")

log = logging.getLogger("allowance.ledger")


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
        self._clock_ns = clock_ns
        self._runtime = runtime
        self._after_commit = after_commit
        self._live: LiveState[S] = LiveState(store, load_state, self.counters)
        self._decider = Decider(clock_ns, self._live, self.counters)
        self._unknown = UnknownOutcomes(store, self._live, self._decider)
        self._optimistic = OptimisticAppend(store, self._live, self._decider, self._unknown, self.counters)
        self._locked = LockedAppend(store, self._live, self._decider, self._unknown, self.counters)
        self._closed = False
        self._queries = CallQueue(runtime, self._run_queries)
        self._commands = CallQueue(runtime, self._commit_batch)

    async def query(self, query: Callable[[S, int], R], *, short: bool = False) -> R:
        """Return the result of a function of the committed state, caught up first, and the clock in ns.

        A short query reads a few entries of the state and never goes through all accounts or blocks, so it takes less
        time than a switch of threads. It may run in the caller's thread, and keeps the writer waiting meanwhile.
        """
        if short and not self._closed:
            found = self._query_in_caller(query)
            if found is not None:
                return found[0]
        result: R = await self._submit(self._queries, query).future
        return result

    async def execute(self, command: Command) -> Any:
        """Return the result of a command once it is committed."""
        return await self.submit(command).future

    def submit(self, command: Command) -> PendingCall:
        """Queue a command; its caller awaits the future of the returned call. Raises `LedgerClosed`."""
        return self._submit(self._commands, command)

    def has_class(self, executor_class: str | None) -> bool:
        """Whether the state in memory has accounts of a class; from any thread."""
        # One look-up in a dict, which needs no lock.
        state = self._live.current
        return state is not None and executor_class in state.chain.classes

    @property
    def queue_length(self) -> int:
        """How many commands wait; from any thread."""
        return self._commands.length

    @property
    def idle_seconds(self) -> float:
        """For how long nobody has called; 0 while a call waits or is processed. On the runtime's loop."""
        return min(self._commands.idle_seconds, self._queries.idle_seconds)

    @property
    def refusal(self) -> AllowanceException | None:
        """Why no change is accepted until the ledger is opened again; None as long as changes are."""
        return self._decider.refusal

    def take_over_acknowledged(self, other: LedgerWriter[S]) -> None:
        """Refuse a log that lacks what another writer, of the process that this one was forked from, acknowledged."""
        self._live.acknowledged = other._live.acknowledged

    def refuse_if_log_went_back(self) -> None:
        """Raise `LogWentBack` if the stored log was found to lack what this process has acknowledged."""
        self._live.acknowledged.refuse_if_lost()

    async def replace_state(self, state: S) -> None:
        """Continue with a state that was folded elsewhere, unless the current one is to be loaded anyway."""
        async with self._live.lock:
            if self._live.current is not None:
                self._live.current = state

    async def close(self) -> None:
        """Finish all queued calls and refuse new ones."""
        self._closed = True
        for queue in (self._commands, self._queries):
            await queue.finish()

    def _submit(self, queue: CallQueue, work: Any) -> PendingCall:
        if self._closed:
            raise LedgerClosed
        loop = running_loop()
        call = PendingCall(work, loop, loop.create_future())
        queue.put(call)
        return call

    def _query_in_caller(self, query: Callable[[S, int], R]) -> tuple[R] | None:
        """Return the result in a tuple, or None if the state is in use or behind the stored log; from any thread."""
        if not self._live.lock.try_acquire():
            return None
        try:
            state, head = self._live.current, self.store.probe_head()
            # Another process may have appended, or the file may have been replaced. Only an equal head proves that the
            # state in memory is the committed one.
            if state is None or head is None or (state.position, state.hash) != (head.position, head.hash):
                return None
            return (query(state, self._clock_ns()),)
        finally:
            self._live.lock.release_try()

    async def _run_queries(self, waiting: deque[PendingCall]) -> list[PendingCall]:
        calls = [call for call in drain(waiting) if not call.future.cancelled()]
        try:
            async with self._live.lock:
                state = await self._live.catch_up(self.store)
                for call in calls:
                    try:
                        call.result = call.work(state, self._clock_ns())
                    except Exception as error:
                        # The caller's function failed, not the ledger: the other queries are unaffected.
                        call.error = error
        except Exception as error:
            self._live.discard()
            fail(calls, error)
        return calls

    async def _commit_batch(self, waiting: deque[PendingCall]) -> list[PendingCall]:
        batch = next_batch(waiting)
        if not batch:
            return batch
        self.counters.begin_batch(len(batch))
        rows_before = self.counters.rows
        try:
            await self._commit(batch)
        except Exception as error:
            # A caller without a result would wait for ever, so every unforeseen error must reach the callers.
            log.exception("a batch failed unexpectedly")
            self._live.discard()
            fail(batch, error)
        self._unknown.keep(batch)
        observed = self.counters.end_batch()
        if observed is not None:
            # Afterwards, so that no caller waits for an observer.
            self._runtime.loop.call_soon(observers.batch_ended, observed)
        self._report_commit(self.counters.rows - rows_before)
        return batch

    async def _commit(self, batch: list[PendingCall]) -> None:
        left = await self._optimistic.commit(batch) if self.store.optimistic else batch
        if left:
            await self._locked.commit(left)

    def _report_commit(self, appended: int) -> None:
        try:
            if self._live.current is not None:
                self._after_commit(self._live.current.position, appended)
        except Exception:
            # The batch is committed. A failure of the follow-up work must not turn the callers' success into an error.
            log.exception("the work after a commit failed")
