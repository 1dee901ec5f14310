"""Group commit: one actor per process and ledger takes whatever is queued, decides it, and commits it at once.

A batch goes through four steps: read the tail, fold it, decide, append. Every command of a batch is decided on a
state that already has the commands before it in the batch, so callers in one process never collide. Nobody hears
of anything before the commit; where it fails, the state is thrown away and folded anew from what is stored.

Where the engine can compare and set the head in one round trip, a batch is first decided on the state at hand and
appended on the condition that the head has not moved. Where it has, the batch is taken back and decided again
under the head's lock, on the tail that came in between. Under the lock nothing can move any more.

The actor lives on the runtime's loop; callers wait on loops of their own and are woken once per batch. Questions
are answered on committed state, while a batch waits for its turn to write. A brief one is answered in the thread that
asks it, if nobody else has the state just then and nothing was committed that the state has not: to be woken by
another thread takes longer than the answer.
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
from ledger.store.contract import CommitOutcomeUnknown, Store, Transaction, TransactionConflict

from .codec import Row, row_hash
from .counters import Counters
from .errors import CorruptLedger, LedgerClosed, LedgerOverloaded, OutcomeUnknown, StorageUnavailable
from .runtime import Runtime

S = TypeVar("S", bound=LedgerState)
R = TypeVar("R")

QUEUE_CAPACITY = 10_000
BATCH_COMMANDS = 512
"""At most so many commands in a commit, so that the first of a long queue is not kept waiting for the last."""
LOCKED_BATCHES_AFTER_CONFLICT = 16
"""After the head was found moved, so many batches take the lock at once: others are likely still writing."""
MOST_CONTENDED_ATTEMPTS = 20

log = logging.getLogger("allowance.ledger")


class _StateDiscarded(Exception):
    """The state was thrown away while the lock was waited for; it is folded anew before the lock, not under it."""


class PendingCall:
    """One caller's request and the future it waits on, in the loop it waits in."""

    __slots__ = ("error", "future", "loop", "result", "row", "work")

    def __init__(self, work: Any, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None
        self.row: Row | None = None
        """The last row that the request appends."""


class _StateLock:
    """Held by whoever may touch the state: a coroutine of the runtime's loop, or a thread beside it."""

    def __init__(self) -> None:
        self._among_coroutines = asyncio.Lock()
        self._among_threads = threading.Lock()

    async def acquire(self) -> None:
        """Waits for it, on the runtime's loop; for a thread beside it, which is brief, with the whole loop."""
        await self._among_coroutines.acquire()
        self._among_threads.acquire()

    def release(self) -> None:
        """Gives back what `acquire` took."""
        self._among_threads.release()
        self._among_coroutines.release()

    def try_acquire(self) -> bool:
        """Takes it in any thread, if nobody has it."""
        return self._among_threads.acquire(blocking=False)

    def release_try(self) -> None:
        """Gives back what `acquire_beside` took."""
        self._among_threads.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()


class LedgerWriter(Generic[S]):
    """The one that reads and writes a ledger in this process."""

    def __init__(
        self,
        store: Store,
        load_state: Callable[[], Awaitable[S]],
        clock_ns: Callable[[], int],
        runtime: Runtime,
        committed: Callable[[int, int], None] = lambda position, appended: None,
    ) -> None:
        self.store = store
        self.counters = Counters()
        self._load_state = load_state
        self._clock_ns = clock_ns
        self._runtime = runtime
        self._committed = committed
        self._state: S | None = None
        self._state_lock = _StateLock()
        """Held while the state is ahead of what is committed."""
        self._locked_batches = 0
        self._closed = False
        self._questions = _CallQueue(runtime, self._answer)
        self._changes = _CallQueue(runtime, self._change_batch)

    async def query(self, question: Callable[[S, int], R], *, brief: bool = False) -> R:
        """The answer of a function of the committed state, brought up to date first, and the clock.

        A brief question may be answered in the caller's thread.
        """
        if brief and not self._closed:
            answered = self._query_in_caller(question)
            if answered is not None:
                return answered[0]
        answer: R = await self._enter(self._questions, question)
        return answer

    async def execute(self, command: Command) -> Any:
        """The outcome of a command, once it is committed."""
        return await self._enter(self._changes, command)

    async def replace_state(self, state: S) -> None:
        """Goes on from a state that was folded elsewhere, instead of its own."""
        async with self._state_lock:
            if self._state is not None:
                self._state = state

    async def close(self) -> None:
        """Finishes what is queued, then takes no more."""
        self._closed = True
        for inbox in (self._changes, self._questions):
            await inbox.finish()

    async def _enter(self, inbox: _CallQueue, work: Any) -> Any:
        if self._closed:
            raise LedgerClosed
        loop = asyncio.get_running_loop()
        ticket = PendingCall(work, loop, loop.create_future())
        inbox.put(ticket)
        return await ticket.future

    def _query_in_caller(self, question: Callable[[S, int], R]) -> tuple[R] | None:
        """The answer, if the state is nobody's just now and is what is committed; in any thread."""
        if not self._state_lock.try_acquire():
            return None
        try:
            state, head = self._state, self.store.probe_head()
            if state is None or head is None or (state.position, state.hash) != (head.position, head.hash):
                return None
            return (question(state, self._clock_ns()),)
        finally:
            self._state_lock.release_try()

    async def _answer(self, inbox: deque[PendingCall]) -> list[PendingCall]:
        questions = [ticket for ticket in _drained(inbox) if not ticket.future.cancelled()]
        try:
            async with self._state_lock:
                state = await self._catch_up(self.store)
                for ticket in questions:
                    try:
                        ticket.result = ticket.work(state, self._clock_ns())
                    except Exception as error:
                        ticket.error = error
        except Exception as error:
            self._state = None
            _fail(questions, error)
        return questions

    async def _change_batch(self, inbox: deque[PendingCall]) -> list[PendingCall]:
        commands = _batch(inbox)
        if not commands:
            return commands
        self.counters.batches += 1
        self.counters.commands += len(commands)
        rows_before = self.counters.rows
        try:
            if not await self._commit_optimistically(commands):
                await self._commit_under_lock(commands)
        except Exception as error:
            # Whatever it is, nobody may be left waiting.
            log.exception("a batch failed unexpectedly")
            self._state = None
            _fail(commands, error)
        try:
            if self._state is not None:
                self._committed(self._state.position, self.counters.rows - rows_before)
        except Exception:
            log.exception("what follows a commit failed")
        return commands

    async def _commit_optimistically(self, commands: list[PendingCall]) -> bool:
        """Decides on the state at hand and appends if the head has not moved; whether that settled the batch."""
        if not self.store.optimistic or self._locked_batches > 0:
            self._locked_batches -= 1
            return False
        async with self._state_lock:
            state = self._state
            if state is None or not all(ticket.work.revertible for ticket in commands):
                return False
            lookup = self._lookup(state, commands)
            if lookup.positions:
                return False
            unit_of_work = UnitOfWork(state, LookupResult(), self._clock_ns())
            try:
                self._decide(unit_of_work, commands)
                answered = any(ticket.row is None for ticket in commands)
                settled = await self._append_if_unchanged(unit_of_work, lookup, answered=answered)
            except CommitOutcomeUnknown as cause:
                await self._resolve_unknown_outcome(commands, unit_of_work, cause)
                settled = True
            except Exception as error:
                self._state = None
                _fail(commands, error)
                settled = True
            if not settled:
                unit_of_work.revert()
                self.counters.conflicts += 1
                self.counters.retries += len(commands)
                self._locked_batches = LOCKED_BATCHES_AFTER_CONFLICT
            return settled

    async def _append_if_unchanged(self, unit_of_work: UnitOfWork, lookup: Lookup, *, answered: bool) -> bool:
        """Appends a draft if the head is where it was decided; whether what was decided stands."""
        # Keys and jobs are not looked up before: the database refuses one that is there already. But a command that
        # was refused, or answered, without a row has none to be refused; it may have been done before, and then that
        # is the answer.
        if lookup and answered:
            known = await self.store.find(lookup)
            if known.keys or known.jobs:
                return False
        if unit_of_work.rows:
            appended = await self.store.compare_and_append(unit_of_work.head, unit_of_work.rows)
            if appended:
                self._count(unit_of_work)
            return appended
        head = await self.store.head()
        return (head.position, head.hash) == (unit_of_work.head.position, unit_of_work.head.hash)

    async def _commit_under_lock(self, commands: list[PendingCall]) -> None:
        """Decides at the head, alone on the ledger, and appends."""
        for attempt in range(MOST_CONTENDED_ATTEMPTS):
            try:
                if self._state is None:
                    await self._follow()
                await self._commit_at_head(commands)
                return
            except (TransactionConflict, _StateDiscarded) as error:
                self.counters.retries += len(commands)
                if attempt + 1 == MOST_CONTENDED_ATTEMPTS:
                    unavailable = StorageUnavailable(f"the database kept refusing the transaction: {error}")
                    unavailable.__cause__ = error
                    _fail(commands, unavailable)
            except Exception as error:
                _fail(commands, error)
                return

    async def _commit_at_head(self, commands: list[PendingCall]) -> None:
        unit_of_work: UnitOfWork | None = None
        alone = False
        asked_ns = time.perf_counter_ns()
        try:
            if self.store.readers_block_writers:
                # A question holds the state while it waits for its turn to read: in that order here too.
                await self._state_lock.acquire()
                alone = True
            async with self.store.transaction(self._follow) as transaction:
                self.counters.lock_waits.add(time.perf_counter_ns() - asked_ns)
                if not alone:
                    await self._state_lock.acquire()
                    alone = True
                if self._state is None:
                    raise _StateDiscarded("a question failed meanwhile")
                state = await self._catch_up(transaction)
                lookup = self._lookup(state, commands)
                known = await transaction.find(lookup) if lookup else LookupResult()
                unit_of_work = UnitOfWork(state, known, self._clock_ns())
                self._decide(unit_of_work, commands)
                if unit_of_work.rows:
                    await transaction.append(unit_of_work.rows)
            self._count(unit_of_work)
        except CommitOutcomeUnknown as cause:
            await self._resolve_unknown_outcome(commands, unit_of_work, cause)
        except BaseException:
            self._state = None
            raise
        finally:
            if alone:
                self._state_lock.release()

    async def _follow(self) -> None:
        """Brings the state near the head before the lock is taken: what is folded then keeps nobody waiting."""
        async with self._state_lock:
            await self._catch_up(self.store)

    def _decide(self, unit_of_work: UnitOfWork, commands: list[PendingCall]) -> None:
        for ticket in commands:
            unit_of_work.now_ns = self._clock_ns()
            before = len(unit_of_work.rows)
            self.counters.attempts += 1
            ticket.result = ticket.error = ticket.row = None
            try:
                ticket.result = ticket.work.decide(unit_of_work)
                ticket.row = unit_of_work.rows[-1] if len(unit_of_work.rows) > before else None
            except Exception as error:
                if len(unit_of_work.rows) != before:
                    raise  # Half a change may not stand: the whole batch is given up.
                ticket.error = error
        self.counters.claims += unit_of_work.claims

    def _count(self, unit_of_work: UnitOfWork) -> None:
        self.counters.rows += len(unit_of_work.rows)
        self.counters.moved_picks += unit_of_work.moved_picks

    def _lookup(self, state: S, commands: list[PendingCall]) -> Lookup:
        lookup = Lookup()
        for ticket in commands:
            ticket.work.add_lookups(state, lookup)
        return lookup

    async def _catch_up(self, source: Store | Transaction) -> S:
        """The state at the log's head, or beyond where others append meanwhile."""
        state = self._state
        if state is None:
            state = await self._load_state()
        head = await source.head()
        if state.position > head.position or (state.position == head.position and state.hash != head.hash):
            raise StorageUnavailable(f"the log was replaced by one that ends at {head.position}: was it restored?")
        self._state = None
        self.counters.foreign_rows += head.position - state.position
        while state.position < head.position:
            rows = await source.read(state.position)
            if not rows:
                raise CorruptLedger(state.position + 1, f"the log ends before it, its head says {head.position}")
            if row_hash(state.hash, rows[0]) != rows[0].hash:
                raise StorageUnavailable(
                    f"the log was replaced by one that differs at {rows[0].position}: was it restored?"
                )
            state.fold(rows)
        self._state = state
        return state

    async def _resolve_unknown_outcome(
        self, commands: list[PendingCall], unit_of_work: UnitOfWork | None, cause: Exception
    ) -> None:
        """After a commit without a clear answer, reads from the log whether the batch stands."""
        self._state = None
        rows = unit_of_work.rows if unit_of_work is not None else []
        try:
            stored = await self.store.read(rows[0].position - 1) if rows else []
        except Exception:
            for ticket in commands:
                if ticket.row is None:
                    # It was answered from what the batch would have made true, and nobody knows whether that is.
                    ticket.error = StorageUnavailable(f"the commit may have failed, this was not done: {cause}")
                else:
                    ticket.error = OutcomeUnknown(ticket.work.retry_key(ticket.row), ticket.work.operation)
            return
        if not stored or stored[0].hash != rows[0].hash:
            unavailable = StorageUnavailable(f"the commit failed, nothing was done: {cause}")
            unavailable.__cause__ = cause
            _fail(commands, unavailable)


class _CallQueue:
    """What waits for the actor, and the task that works it off."""

    def __init__(self, runtime: Runtime, work: Callable[[deque[PendingCall]], Any]) -> None:
        self._runtime = runtime
        self._work = work
        self._waiting: deque[PendingCall] = deque()
        self._woken = False
        self._running: asyncio.Task[None] | None = None

    def put(self, ticket: PendingCall) -> None:
        """Queues a request; from any thread."""
        if len(self._waiting) >= QUEUE_CAPACITY:
            raise LedgerOverloaded(len(self._waiting))
        self._waiting.append(ticket)
        if not self._woken:
            self._woken = True
            try:
                self._runtime.loop.call_soon_threadsafe(self._wake)
            except RuntimeError as cause:
                raise LedgerClosed from cause

    async def finish(self) -> None:
        """Works off what is queued."""
        self._wake()
        if self._running is not None:
            with suppress(asyncio.CancelledError):
                await self._running

    def _wake(self) -> None:
        if self._running is None or self._running.done():
            self._running = self._runtime.loop.create_task(self._work_off())

    async def _work_off(self) -> None:
        while True:
            # Cleared before looking: a caller who comes after this line wakes us again.
            self._woken = False
            if not self._waiting:
                return
            resolve_futures(await self._work(self._waiting))
            # Where nothing else makes it wait, a busy inbox would keep the loop from all others.
            await asyncio.sleep(0)


async def yield_to_writers() -> None:
    """Lets changes that were asked for meanwhile go first, for whoever writes pieces on the actor's loop.

    One round of the loop wakes the inbox, the next begins the transaction or queues for it, in front of the caller's.
    """
    for _ in range(3):
        await asyncio.sleep(0)


def _drained(inbox: deque[PendingCall]) -> list[PendingCall]:
    tickets = []
    while inbox:
        tickets.append(inbox.popleft())
    return tickets


def _batch(inbox: deque[PendingCall]) -> list[PendingCall]:
    """The next commands; of two with one key, the second stays for the batch after."""
    commands: list[PendingCall] = []
    kept: list[PendingCall] = []
    keys: set[str] = set()
    while inbox and len(commands) < BATCH_COMMANDS:
        ticket = inbox.popleft()
        key = ticket.work.key
        if ticket.future.cancelled():
            continue
        if key is not None and key in keys:
            kept.append(ticket)
            continue
        if key is not None:
            keys.add(key)
        commands.append(ticket)
    inbox.extendleft(reversed(kept))
    return commands


def _fail(tickets: list[PendingCall], error: Exception) -> None:
    for ticket in tickets:
        ticket.result, ticket.error = None, error


def resolve_futures(tickets: list[PendingCall]) -> None:
    """Tells the callers, waking each of their loops once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[PendingCall]] = {}
    for ticket in tickets:
        by_loop.setdefault(ticket.loop, []).append(ticket)
    for loop, theirs in by_loop.items():
        with suppress(RuntimeError):  # their loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, theirs)


def _resolve(tickets: list[PendingCall]) -> None:
    for ticket in tickets:
        if ticket.future.done():
            continue
        if ticket.error is not None:
            ticket.future.set_exception(ticket.error)
        else:
            ticket.future.set_result(ticket.result)
