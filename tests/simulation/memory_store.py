"""The simulated stores: clients of a `LogServer` that keep the contract of `ledger/store/contract.py`, and its faults.

`OptimisticStore` behaves like PostgreSQL: requests and answers travel, and may be late or lost; the head is compared; a
fence settles what an answer that was lost leaves open. `LockingStore` behaves like SQLite: reads are immediate, writers
queue, and a commit whose flush fails is unproven until a checkpoint.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any, NoReturn, TypeVar

from ledger import Head, Lookup, Row
from ledger.domain.lookup import LookupResult
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.store.contract import (
    CommitOutcomeUnknown,
    RowExists,
    RowsBehind,
    TailReader,
    Value,
    VersionConflict,
    give_tail,
    refuse_other_versions,
)
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
    keeps_derived_apart = False
    in_doubt = False
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

    async def read(self, after: int, limit: int | None = None) -> list[Row]:
        return await self.answered(lambda: self.server.read(after, min(limit or PAGE_ROWS, PAGE_ROWS)))

    async def read_streams(self, streams: Collection[str], after: int, until: int) -> list[Row]:
        return await self.answered(
            lambda: [row for row in self.server.read(after, until - after) if row.stream in streams]
        )

    async def find(self, lookup: Lookup) -> LookupResult:
        return await self.answered(lambda: self.server.find(lookup))

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        return await self.answered(lambda: self.server.models.execute(statement).fetchall())

    async def derived_query(self, statement: str) -> list[tuple[Any, ...]]:
        return await self.query(statement)

    def attempts_of(self, job_uuid: str) -> NoReturn:
        """Refuse: queries of the history are not simulated."""
        raise NotImplementedError

    def write_verifications(self) -> NoReturn:
        """Refuse: exports and verifications are not simulated."""
        raise NotImplementedError

    @asynccontextmanager
    async def write_derived(self) -> AsyncIterator[MemoryReadModels]:
        """Begin a transaction on the snapshots; its statements do not suspend, so no other can come in between."""
        await self.travel()
        if self.faults.happens("read models refused"):
            raise StorageUnavailable("simulated: the read models cannot be written")
        models = MemoryReadModels(self.server)
        yield models
        models.commit()
        await self.travel()

    async def append(
        self,
        events: RowsBehind,
        expected: Mapping[str, int],
        *,
        at: Head | None = None,
        since: Head | None = None,
        read_tail: TailReader | None = None,
    ) -> list[Row] | None:
        if at is not None:
            rows = events(at)
            return rows if await self.append_at(at, rows, expected) else None
        async with self.transaction() as transaction:
            if since is not None and not self.server.has(since):
                return None
            head = await transaction.head()
            await give_tail(transaction, since, read_tail)
            rows = events(head)
            if self.server.refuses(rows):
                raise RowExists("simulated: a unique index refused a row")
            await transaction.append(rows, expected)
        self.faults.counts["decisions renumbered"] += since is not None and since.position != head.position
        return rows

    async def append_at(self, head: Head, rows: list[Row], expected: Mapping[str, int]) -> bool:
        raise NotImplementedError

    def transaction(self) -> AbstractAsyncContextManager[MemoryTransaction]:
        raise NotImplementedError

    def reader(self) -> NoReturn:
        """Refuse: exports and verifications are not simulated."""
        raise NotImplementedError

    def derived_connection(self) -> NoReturn:
        """Refuse: queries of the history are not simulated."""
        raise StorageUnavailable("simulated: the history is not simulated")

    async def locked(self) -> Session:
        """Wait for the head's lock and return the session that has it; a cancelled wait leaves the lock to others."""
        session, has_lock = self.session, self.loop.create_future()

        def granted() -> None:
            if session.broken or has_lock.cancelled():
                self.server.loop.call_later(self.faults.delay(), self.server.release_lock, session)
            else:
                self.loop.call_soon_threadsafe(set_future, has_lock)

        self.server.request_lock(session, granted)
        try:
            await has_lock
        except asyncio.CancelledError:
            if not has_lock.cancelled():
                self.server.release_lock(session)
            raise
        return session

    def fail_commit(self, what: str) -> NoReturn:
        """Report an answer that proves nothing."""
        raise CommitOutcomeUnknown(f"simulated: {what}")


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

    async def append(self, rows: list[Row], expected: Mapping[str, int]) -> None:
        await self._store.travel()
        try:
            refuse_other_versions(expected, self._store.server.versions)
        except VersionConflict:
            self._store.faults.counts["version conflicts"] += 1
            raise
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


def set_future(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
