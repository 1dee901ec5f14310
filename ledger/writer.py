"""Group commit: one actor per process and ledger takes whatever is queued, decides it, and commits it at once.

A batch goes through four steps: read the tail, fold it, decide, append. Every command of a batch is decided at the
position where its events will stand, on a state that already has the commands before it in the batch. So callers
in one process never collide, and a claim is never decided on facts that have moved. Nobody hears of anything before
the commit; where it fails, the state is thrown away and folded anew from what is stored.

The actor lives on the runtime's loop; callers wait on loops of their own and are woken once per batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from .draft import Command, Draft
from .errors import LedgerClosed, LedgerOverloaded, OutcomeUnknown, StorageUnavailable
from .log import CommitUncertain, Known, Lookup, Store, Transaction
from .runtime import Runtime
from .state import LedgerState

S = TypeVar("S", bound=LedgerState)
R = TypeVar("R")

QUEUE_CAPACITY = 10_000
BATCH_COMMANDS = 512
"""At most so many commands in a commit, so that the first of a long queue is not kept waiting for the last."""

log = logging.getLogger("allowance.ledger")


class Ticket:
    """One caller's request and the future it waits on, in the loop it waits in."""

    __slots__ = ("error", "future", "loop", "result", "work")

    def __init__(self, work: Any, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work = work
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


class Query(Generic[S]):
    """A question to the committed state: a function of the state and the clock."""

    __slots__ = ("ask",)

    def __init__(self, ask: Callable[[S, int], Any]) -> None:
        self.ask = ask


class Counters:
    """What the actor has done since it was opened."""

    __slots__ = ("attempts", "batches", "commands", "conflicts", "foreign_rows", "retries", "rows")

    def __init__(self) -> None:
        self.batches = 0
        self.commands = 0
        self.rows = 0
        self.attempts = 0
        """Claims decided, again or not."""
        self.conflicts = 0
        """Batches that found the head moved by others."""
        self.retries = 0
        """Commands decided again because of it."""
        self.foreign_rows = 0
        """Rows of other processes that were folded."""

    def to_dict(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class LedgerActor(Generic[S]):
    """The one that reads and writes a ledger in this process."""

    def __init__(
        self, store: Store, make_state: Callable[[], S], clock_ns: Callable[[], int], runtime: Runtime
    ) -> None:
        self.store = store
        self.counters = Counters()
        self._make_state = make_state
        self._clock_ns = clock_ns
        self._runtime = runtime
        self._state: S | None = None
        self._inbox: deque[Ticket] = deque()
        self._woken = False
        self._running: asyncio.Task[None] | None = None
        self._closed = False

    async def ask(self, ask: Callable[[S, int], R]) -> R:
        """The answer of a function of the committed state, brought up to date first, and the clock."""
        answer: R = await self._call(Query(ask))
        return answer

    async def change(self, command: Command[S]) -> Any:
        """The outcome of a command, once it is committed."""
        return await self._call(command)

    async def close(self) -> None:
        """Finishes what is queued, then takes no more."""
        self._closed = True
        if self._running is not None:
            with suppress(asyncio.CancelledError):
                await self._running
        self._refuse_waiting(LedgerClosed())

    async def _call(self, work: Any) -> Any:
        if self._closed:
            raise LedgerClosed
        if len(self._inbox) >= QUEUE_CAPACITY:
            raise LedgerOverloaded(len(self._inbox))
        loop = asyncio.get_running_loop()
        ticket = Ticket(work, loop, loop.create_future())
        self._inbox.append(ticket)
        if not self._woken:
            self._woken = True
            try:
                self._runtime.loop.call_soon_threadsafe(self._wake)
            except RuntimeError as cause:
                raise LedgerClosed from cause
        return await ticket.future

    def _wake(self) -> None:
        if self._running is None or self._running.done():
            self._running = self._runtime.loop.create_task(self._work())

    async def _work(self) -> None:
        while True:
            # Cleared before looking: a caller who comes after this line wakes us again.
            self._woken = False
            queries, commands = self._take()
            if not queries and not commands:
                return
            try:
                await self._answer(queries)
                await self._commit(commands)
            except Exception as error:
                log.exception("a batch failed unexpectedly")
                self._state = None
                _fail([*queries, *commands], error)
            deliver([*queries, *commands])

    def _take(self) -> tuple[list[Ticket], list[Ticket]]:
        """The next batch; of two commands with one key, the second stays for the batch after."""
        queries: list[Ticket] = []
        commands: list[Ticket] = []
        kept: list[Ticket] = []
        keys: set[str] = set()
        inbox = self._inbox
        while inbox and len(commands) < BATCH_COMMANDS:
            ticket = inbox.popleft()
            if ticket.future.cancelled():
                continue
            if isinstance(ticket.work, Query):
                queries.append(ticket)
                continue
            key = ticket.work.key
            if key is not None and key in keys:
                kept.append(ticket)
                continue
            if key is not None:
                keys.add(key)
            commands.append(ticket)
        inbox.extendleft(reversed(kept))
        return queries, commands

    async def _answer(self, queries: list[Ticket]) -> None:
        if not queries:
            return
        try:
            state = await self._caught_up(self.store)
        except Exception as error:
            _fail(queries, error)
            return
        for ticket in queries:
            try:
                ticket.result = ticket.work.ask(state, self._clock_ns())
            except Exception as error:
                ticket.error = error

    async def _commit(self, commands: list[Ticket]) -> None:
        if not commands:
            return
        draft: Draft[S] | None = None
        try:
            async with self.store.transaction() as transaction:
                state = await self._caught_up(transaction)
                known = await self._look_up(transaction, state, commands)
                draft = Draft(state, known, self._clock_ns())
                self._decide(draft, commands)
                if draft.rows:
                    await transaction.append(draft.rows)
        except CommitUncertain as cause:
            await self._find_out(commands, draft, cause)
        except Exception as error:
            self._state = None
            _fail(commands, error)
        else:
            self.counters.batches += 1
            self.counters.commands += len(commands)
            self.counters.rows += len(draft.rows)

    def _decide(self, draft: Draft[S], commands: list[Ticket]) -> None:
        for ticket in commands:
            draft.now_ns = self._clock_ns()
            before = len(draft.rows)
            self.counters.attempts += 1
            try:
                ticket.result = ticket.work.execute(draft)
            except Exception as error:
                if len(draft.rows) != before:
                    raise  # Half a change may not stand: the whole batch is given up.
                ticket.error = error

    async def _look_up(self, transaction: Transaction, state: S, commands: list[Ticket]) -> Known:
        lookup = Lookup()
        for ticket in commands:
            ticket.work.needs(state, lookup)
        return await transaction.find(lookup) if lookup else Known()

    async def _caught_up(self, source: Store | Transaction) -> S:
        """The state at the log's head."""
        head = await source.head()
        state = self._state
        if state is not None and head.position == state.position:
            return state
        if state is None:
            state = self._make_state()
        else:
            self.counters.conflicts += 1
            self.counters.foreign_rows += head.position - state.position
        self._state = None
        while state.position < head.position:
            rows = await source.read(state.position)
            if not rows:
                raise StorageUnavailable(f"the log ends at {state.position}, its head says {head.position}")
            state.fold(rows)
        self._state = state
        return state

    async def _find_out(self, commands: list[Ticket], draft: Draft[S] | None, cause: Exception) -> None:
        """After a commit without a clear answer, reads from the log whether the batch stands."""
        self._state = None
        rows = draft.rows if draft is not None else []
        try:
            stored = await self.store.read(rows[0].position - 1) if rows else []
        except Exception:
            for ticket in commands:
                if ticket.error is None:
                    ticket.error = OutcomeUnknown(ticket.work.key or "", type(ticket.work).__name__)
            return
        if not stored or stored[0].hash != rows[0].hash:
            unavailable = StorageUnavailable(f"the commit failed, nothing was done: {cause}")
            unavailable.__cause__ = cause
            _fail(commands, unavailable)

    def _refuse_waiting(self, error: Exception) -> None:
        waiting = [*self._inbox]
        self._inbox.clear()
        _fail(waiting, error)
        deliver(waiting)


def _fail(tickets: list[Ticket], error: Exception) -> None:
    for ticket in tickets:
        ticket.result, ticket.error = None, error


def deliver(tickets: list[Ticket]) -> None:
    """Tells the callers, waking each of their loops once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        by_loop.setdefault(ticket.loop, []).append(ticket)
    for loop, theirs in by_loop.items():
        with suppress(RuntimeError):  # their loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_tell, theirs)


def _tell(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        if ticket.future.done():
            continue
        if ticket.error is not None:
            ticket.future.set_exception(ticket.error)
        else:
            ticket.future.set_result(ticket.result)
