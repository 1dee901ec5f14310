"""A simulated store like PostgreSQL's: requests and answers travel, and may be late or lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from ledger import Head, Row
from ledger.errors import StorageUnavailable
from ledger.store.contract import RowExists, TransactionConflict, VersionConflict, WhileWaiting, do_nothing
from tests.simulation.log_server import Session
from tests.simulation.memory_store import (
    BROKEN_SECONDS,
    TIMEOUT_SECONDS,
    MemoryTransaction,
    SimulatedStore,
    set_future,
)

R = TypeVar("R")


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

    async def append_at(self, head: Head, rows: list[Row], expected: Mapping[str, int]) -> bool:
        await self._resolve_doubt()
        async with self.process_lock:
            if self.faults.happens("append refused", 0.3):
                await self.travel()
                raise StorageUnavailable("simulated: the server refused the statement")
            session, fence, answer = self.session, self._fence, self.loop.create_future()
            result: list[bool | RowExists | VersionConflict] = []

            def arrive() -> None:
                self.server.request_lock(session, execute)

            def execute() -> None:
                try:
                    result.append(self.server.append_at(head, fence, rows, expected))
                except (RowExists, VersionConflict) as refused:
                    result.append(refused)
                self.server.release_lock(session)
                self.server.loop.call_later(self.faults.delay(), self.loop.call_soon_threadsafe, set_future, answer)

            if not self._send(arrive):
                await self._lose("the answer to an append was lost")
            await answer
            if isinstance(result[0], Exception):
                raise result[0]
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
            self.server.loop.call_later(self.faults.delay(), self.loop.call_soon_threadsafe, set_future, committed)

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
