"""The simulated stores: clients of a `LogServer` that keep the contract of `ledger/store/contract.py`, and its faults.

`OptimisticStore` behaves like PostgreSQL: requests and answers travel, and may be late or lost; the head is compared; a
fence settles what an answer that was lost leaves open. `LockingStore` behaves like SQLite: reads are immediate, writers
queue, and a commit whose flush fails is unproven until a checkpoint.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NoReturn, TypeVar

from ledger import Head, Lookup, Row
from ledger.domain.lookup import LookupResult
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.store.contract import CommitOutcomeUnknown, TransactionConflict, Value, WhileWaiting, do_nothing
from tests.simulation.log_server import LogServer, Session
from tests.simulation.scheduler import SimulatedLoop

R = TypeVar("R")

PAGE_ROWS = 16
"""Few, so that a short log has several pages."""
TIMEOUT_SECONDS = 40.0
"""How long a client waits for an answer."""
BROKEN_SECONDS = 20.0
"""After how long at most the server notices that a client is gone."""


class Faults:
    """How often what fails, and how long messages travel; `counts` counts what happened."""

    def __init__(self, chance: Random, probability: float) -> None:
        self.chance = chance
        self.probability = probability
        self.counts: Counter[str] = Counter()

    def happens(self, what: str, share: float = 1.0) -> bool:
        """Whether this fault happens now."""
        if self.chance.random() >= self.probability * share:
            return False
        self.counts[what] += 1
        return True

    def delay(self) -> float:
        """Return the seconds that a message travels."""
        return self.chance.expovariate(200.0)


class SimulatedStore:
    """What both stores share; `kill_now` ends the store's process where it stands."""

    optimistic = False
    reads_wait_for_writes = False
    ledger = 1

    def __init__(
        self, server: LogServer, loop: SimulatedLoop, faults: Faults, validator_ss58: str, kill_now: Callable[[], None]
    ) -> None:
        self.validator_ss58 = validator_ss58
        self.server = server
        self.loop = loop
        self.faults = faults
        self.kill_now = kill_now
        self.session = Session(loop)
        self.process_lock = asyncio.Lock()

    async def open(self, create: object) -> Head:
        await self.travel()
        if self.faults.happens("opening refused"):
            raise StorageUnavailable("simulated: cannot connect")
        if create is not None:
            self.server.created = True
        if not self.server.created:
            raise LedgerNotFound(self.validator_ss58)
        return await self.head()

    async def close(self) -> None:
        """Leave the server alone: a closed session has nothing there."""

    @asynccontextmanager
    async def paused_for_fork(self) -> AsyncIterator[Callable[[], None]]:
        """Yield a function that does nothing: no simulated process forks."""
        yield lambda: None

    def probe_head(self) -> Head | None:
        return None

    async def travel(self) -> None:
        """Let a message travel."""

    async def answered(self, work: Callable[[], R]) -> R:
        """Return the result of a read on the server."""
        return work()

    async def head(self) -> Head:
        return await self.answered(lambda: self.server.head)

    async def read(self, after: int) -> list[Row]:
        return await self.answered(lambda: self.server.read(after, PAGE_ROWS))

    async def find(self, lookup: Lookup) -> LookupResult:
        return await self.answered(lambda: self.server.find(lookup))

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        return await self.answered(lambda: self.server.models.execute(statement).fetchall())

    @asynccontextmanager
    async def write_read_models(self) -> AsyncIterator[MemoryReadModels]:
        """Begin a transaction on the snapshots; its statements do not suspend, so no other can come in between."""
        await self.travel()
        if self.faults.happens("read models refused"):
            raise StorageUnavailable("simulated: the read models cannot be written")
        models = MemoryReadModels(self.server)
        yield models
        models.commit()
        await self.travel()

    def reader(self) -> NoReturn:
        """Refuse: exports and verifications are not simulated."""
        raise NotImplementedError

    def read_connection(self) -> NoReturn:
        """Refuse: queries of the history are not simulated."""
        raise StorageUnavailable("simulated: the history is not simulated")

    async def locked(self) -> Session:
        """Wait for the head's lock and return the session that has it."""
        session, has_lock = self.session, self.loop.create_future()

        def granted() -> None:
            if session.broken:
                self.server.loop.call_later(self.faults.delay(), self.server.release_lock, session)
            else:
                self.loop.call_soon_threadsafe(_set, has_lock)

        self.server.request_lock(session, granted)
        await has_lock
        return session

    def fail_commit(self, what: str) -> NoReturn:
        """Report an answer that proves nothing."""
        raise CommitOutcomeUnknown(f"simulated: {what}")


class OptimisticStore(SimulatedStore):
    """A client of a server in a network, like PostgreSQL's."""

    optimistic = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._fence = 0
        self._in_doubt = False
        self._gives_up_after = 0.0

    async def travel(self) -> None:
        await asyncio.sleep(self.faults.delay())

    async def answered(self, work: Callable[[], R]) -> R:
        await self._resolve_doubt()
        await self.travel()
        if self.faults.happens("read failed", 0.5):
            raise StorageUnavailable("simulated: the connection was lost")
        result, self._fence = work(), self.server.fence
        await self.travel()
        return result

    async def compare_and_append(self, head: Head, rows: list[Row]) -> bool:
        await self._resolve_doubt()
        async with self.process_lock:
            if self.faults.happens("append refused", 0.3):
                await self.travel()
                raise StorageUnavailable("simulated: the server refused the statement")
            session, fence, answer = self.session, self._fence, self.loop.create_future()
            result: list[bool] = []

            def arrive() -> None:
                self.server.request_lock(session, execute)

            def execute() -> None:
                result.append(self.server.compare_and_append(head, fence, rows))
                self.server.release_lock(session)
                self.server.loop.call_later(self.faults.delay(), self.loop.call_soon_threadsafe, _set, answer)

            if not self._send(arrive):
                await self._lose("the answer to an append was lost")
            await answer
            return result[0]

    async def resolve_commit(self, first: Row) -> bool:
        stored = await self.read(first.position - 1)
        return bool(stored) and stored[0].hash == first.hash

    @asynccontextmanager
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[MemoryTransaction]:
        await self._resolve_doubt()
        async with self.process_lock:
            await self.travel()
            if self.faults.happens("lock refused", 0.3):
                raise StorageUnavailable("simulated: the connection was lost before the lock")
            session = await self.locked()
            self._fence = self.server.fence
            transaction = MemoryTransaction(self)
            try:
                if self.faults.happens("deadlock", 0.3):
                    raise TransactionConflict("simulated: deadlock")
                yield transaction
            except BaseException:
                self.server.release_lock(session)
                raise
            await self._commit(session, transaction)

    async def _commit(self, session: Session, transaction: MemoryTransaction) -> None:
        if self.faults.happens("commit aborted", 0.2):
            self.server.release_lock(session)
            raise TransactionConflict("simulated: serialization failure")
        committed = self.loop.create_future()

        def arrive() -> None:
            # A server that noticed meanwhile that the client is gone has rolled back.
            if self.server.has_lock(session):
                self.server.append(transaction.rows)
                self.server.release_lock(session)
            self.server.loop.call_later(self.faults.delay(), self.loop.call_soon_threadsafe, _set, committed)

        if not transaction.rows:
            self.server.release_lock(session)
        elif self._send(arrive, lambda: self.server.release_lock(session)):
            await committed
        else:
            await self._lose("the answer to a commit was lost")

    def _send(self, arrive: Callable[[], None], broken: Callable[[], None] = lambda: None) -> bool:
        """Send a request that appends; return whether its answer will come.

        Without an answer the request arrived in time, arrives after the client has given up, or never arrives: then the
        server calls `broken` once it notices that the client is gone.
        """
        call_later, delay, chance = self.server.loop.call_later, self.faults.delay(), self.faults.chance
        self._gives_up_after = chance.uniform(0, TIMEOUT_SECONDS)
        if self.faults.happens("answer lost"):
            call_later(delay, arrive)
        elif self.faults.happens("request late"):
            # Often just after the client has looked for its rows, which is the worst moment.
            late = chance.expovariate(10.0) if chance.random() < 0.5 else chance.uniform(0, 2 * TIMEOUT_SECONDS)
            call_later(self._gives_up_after + late, arrive)
        elif self.faults.happens("request lost"):
            call_later(chance.uniform(0, BROKEN_SECONDS), broken)
        else:
            call_later(delay, arrive)
            return True
        return False

    async def _lose(self, what: str) -> NoReturn:
        await asyncio.sleep(self._gives_up_after)
        self._in_doubt = True
        # The client cuts the connection; what is still on its way belongs to the old session.
        self.session = Session(self.loop)
        self.fail_commit(what)

    async def _resolve_doubt(self) -> None:
        """Raise the fence if the outcome of an append is unknown; the server's update waits for the head's lock."""
        if not self._in_doubt:
            return
        async with self.process_lock:
            await self.travel()
            if self.faults.happens("fence failed"):
                raise StorageUnavailable("simulated: the fence could not be raised")
            session = await self.locked()
            self.raise_fence()
            self.server.release_lock(session)
            await self.travel()
        self._in_doubt = False

    def raise_fence(self) -> None:
        """Refuse every append that was sent before."""
        self.server.fence += 1
        self._fence = self.server.fence


class LockingStore(SimulatedStore):
    """A connection to a file on this host, like SQLite's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._unproven = False

    def probe_head(self) -> Head | None:
        return None if self.faults.chance.random() < 0.2 or self._unproven else self.server.head

    async def compare_and_append(self, head: Head, rows: list[Row]) -> bool:
        async with self.transaction() as transaction:
            if await transaction.head() != head or self.server.refuses(rows):
                return False
            await transaction.append(rows)
        return True

    async def resolve_commit(self, first: Row) -> bool:
        self._prove()
        stored = self.server.read(first.position - 1, 1)
        return bool(stored) and stored[0].hash == first.hash

    @asynccontextmanager
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[MemoryTransaction]:
        async with self.process_lock:
            # As in the queue of lock files: the next writer folds while it waits.
            if self.server.is_locked():
                await while_waiting()
            session = await self.locked()
            try:
                self._begin()
                transaction = MemoryTransaction(self)
                yield transaction
                await self._commit(transaction)
            finally:
                self.server.release_lock(session)

    def _begin(self) -> None:
        if self.faults.happens("begin failed", 0.3):
            raise StorageUnavailable("simulated: the database is busy")
        if self._unproven:
            self._prove()
        self.settle_unproven()

    def _prove(self) -> None:
        """Complete a durable checkpoint, after which the log no longer changes its mind."""
        if self.faults.happens("checkpoint failed", 3.0):
            raise StorageUnavailable("simulated: the checkpoint failed, the storage has not proved itself")
        self.settle_unproven()
        self._unproven = False

    def settle_unproven(self) -> None:
        """Let the frames of a failed flush become part of the log, or be overwritten, for good."""
        if self.server.unproven and self.faults.chance.random() < 0.5:
            self.server.append(self.server.unproven)
        self.server.unproven = []

    async def _commit(self, transaction: MemoryTransaction) -> None:
        if not transaction.rows:
            return
        if self.faults.happens("killed in a commit", 0.3):
            self.server.unproven = transaction.rows
            self.kill_now()
            await self.loop.create_future()
        if self.faults.happens("flush failed"):
            self.server.unproven, self._unproven = transaction.rows, True
            self.fail_commit("the flush failed")
        self.server.append(transaction.rows)
        if self.faults.happens("killed after a commit", 0.3):
            self.kill_now()
            await self.loop.create_future()


class MemoryTransaction:
    """A write transaction on the log; its rows are appended when it commits."""

    def __init__(self, store: SimulatedStore) -> None:
        self.rows: list[Row] = []
        self._store = store

    async def head(self) -> Head:
        return await self._answered(lambda: self._store.server.head)

    async def read(self, after: int) -> list[Row]:
        return await self._answered(lambda: self._store.server.read(after, PAGE_ROWS))

    async def find(self, lookup: Lookup) -> LookupResult:
        return await self._answered(lambda: self._store.server.find(lookup))

    async def append(self, rows: list[Row]) -> None:
        await self._store.travel()
        if self._store.server.refuses([*rows]):
            raise StorageUnavailable("simulated: a unique index refused a row")
        self.rows.extend(rows)

    async def _answered(self, work: Callable[[], R]) -> R:
        await self._store.travel()
        if self._store.optimistic and self._store.faults.happens("statement failed", 0.1):
            raise StorageUnavailable("simulated: the connection was lost inside a transaction")
        return work()


class MemoryReadModels:
    """A transaction on the read models. Only snapshots are simulated; the history is refused, and lags."""

    def __init__(self, server: LogServer) -> None:
        self._server = server
        self._writes: list[tuple[str, Sequence[tuple[Value, ...]]]] = []

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        self._refuse_history(statement)
        return self._server.models.execute(statement, values).fetchall()

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        self._refuse_history(statement)
        self._writes.append((statement, rows))

    def commit(self) -> None:
        """Execute what was written."""
        for statement, rows in self._writes:
            self._server.models.executemany(statement, rows)

    def _refuse_history(self, statement: str) -> None:
        if "allowance_snapshots" not in statement:
            raise StorageUnavailable("simulated: the history is not simulated")


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
