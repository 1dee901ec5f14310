"""A simulated store like SQLite's: writers queue, and a commit whose flush fails is unproven until a checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ledger import Head, Row
from ledger.errors import StorageUnavailable
from ledger.store.contract import WhileWaiting, do_nothing
from tests.simulation.memory_store import MemoryTransaction, SimulatedStore


class LockingStore(SimulatedStore):
    """A connection to a file on this host, like SQLite's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._unproven = False

    def probe_head(self) -> Head | None:
        return None if self.faults.chance.random() < 0.2 or self._unproven else self.server.head

    async def append_at(self, head: Head, rows: list[Row], expected: Mapping[str, int]) -> bool:
        async with self.transaction() as transaction:
            if await transaction.head() != head:
                return False
            await transaction.append(rows, expected)
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
