"""The upkeep of an open ledger: it seals the state, saves snapshots, and projects the history.

Nobody waits for any of this, so it runs in the moments in which nobody calls. Callers who leave no such moment would
keep it from ever running; so after a time it goes on in spite of them, in pieces between their batches.

Each thousand of events is completed by exactly one batch of one process. That process is responsible for the upkeep,
until another one has completed the next thousand. So processes that share a ledger hardly ever do the same work, and
need not coordinate.
"""

from __future__ import annotations

import asyncio
import logging

from ledger import LedgerWriter, Runtime, SealState, Store, yield_to_writers
from ledger.errors import IdempotencyConflict, LedgerClosed, SealConflict
from projections import Availability, History, SnapshotStore, rows_per_transaction, sealed_if_due

IDLE_SECONDS = 0.005
"""How long nobody must have called. Longer than a lone caller needs between two picks."""
MOST_BACKLOG_THOUSANDS = 20
"""How many times `every_rows` the history may be behind until it goes on under load; a page then takes 0.2 s."""

log: logging.Logger = logging.getLogger("allowance.ledger")


class _Relieved(Exception):
    """Another process has completed a later thousand of events, and is responsible now."""


class Upkeep:
    """The upkeep of one ledger in one process, on the runtime's loop."""

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        history: History,
        snapshots: SnapshotStore,
        every_rows: int,
        seal_every_rows: int,
    ) -> None:
        self.writer: LedgerWriter[Availability]
        self._runtime = runtime
        self._store = store
        self._history = history
        self._snapshots = snapshots
        self._every_rows = every_rows
        self._seal_every_rows = seal_every_rows
        self._position = 0
        """That of the last commit of this process."""
        self._due = 0
        """The position of the last commit that completed a thousand, and made this process responsible."""
        self._projected = 0
        """The last known checkpoint of the history."""
        self._may_seal = False
        """Whether this process has completed a thousand; an opening alone appends nothing."""
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    def after_commit(self, position: int, appended: int) -> None:
        """Note a commit, and begin if its batch completed the next thousand rows."""
        self._position = position
        if position % self._every_rows < appended:
            self._may_seal = True
            self.begin(position)

    def begin(self, position: int) -> None:
        """Become responsible at a position of the log; harmless if the upkeep is under way."""
        self._due, self._position = position, max(position, self._position)
        if self._task is None or self._task.done():
            self._task = self._runtime.loop.create_task(self._run())

    def catch_up(self) -> None:
        """Begin if the history may be far behind, because its tables are missing, or nobody was responsible."""
        if self._position >= self._every_rows:
            self.begin(self._position)

    async def close(self) -> None:
        """End before the next piece."""
        self._is_closing = True
        if self._task is not None:
            # Its own errors are logged there.
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        due = 0
        while due != self._due:
            due = self._due
            try:
                await self._wait_for_turn(due + self._every_rows)
                if self._may_seal:
                    await self.seal_if_due(self._seal_every_rows)
                await self._pause(self._projected)
                await self._history.project(due, self._pause)
            except (LedgerClosed, _Relieved):
                return
            except Exception:
                # Derived tables may lag: readers fold the unprojected tail themselves, and the next thousand rows start
                # another attempt.
                log.warning("the derived tables could not be brought up to date", exc_info=True)

    async def _pause(self, projected: int) -> int:
        """Wait for the turn of the next piece of the history; return how many events it may have."""
        self._projected = max(projected, self._projected)
        most_backlog = MOST_BACKLOG_THOUSANDS * self._every_rows
        await self._wait_for_turn(projected + most_backlog)
        return rows_per_transaction(self._store, self._position - projected - most_backlog)

    async def _wait_for_turn(self, last_position: int) -> None:
        """Return when nobody has called for a while, or when the log has gone beyond a position.

        Raises `LedgerClosed` and `_Relieved` if this process must not go on.
        """
        await yield_to_writers()
        while self.writer.idle_seconds < IDLE_SECONDS and self._position <= last_position:
            if self._is_closing:
                raise LedgerClosed
            await asyncio.sleep(IDLE_SECONDS)
        if self._is_closing:
            raise LedgerClosed
        if (await self._store.head()).position // self._every_rows > self._due // self._every_rows:
            raise _Relieved

    async def seal_if_due(self, every_rows: int) -> None:
        """Seal the committed state and save a snapshot of it, if so many rows have come since the last seal.

        Seals of other processes count, because the state has folded them.
        """
        sealed = await self.writer.query(lambda state, _: sealed_if_due(state, every_rows))
        if sealed is None:
            return
        try:
            await self.writer.execute(SealState(sealed.snapshot.position, sealed.digest))
        except SealConflict as conflict:
            log.error("%s", conflict, extra={"allowance": conflict.to_dict()})
        except IdempotencyConflict as taken:
            # A caller used the key, or a release with other folding rules sealed this position. Another will be sealed.
            log.warning("position %s stays without a seal: %s", sealed.snapshot.position, taken)
        else:
            position = sealed.snapshot.position
            log.info("sealed the state at position %d", position, extra={"position": position})
            await self._snapshots.save(sealed.snapshot)
