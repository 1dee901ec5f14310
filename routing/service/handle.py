"""What an open ledger holds on to in a process, and how what is derived from its log is kept near it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ledger import LedgerWriter, Runtime, Store, encode_state
from ledger.errors import AllowanceException, LedgerClosed
from projections import History, ProgressReport, SnapshotStore

if TYPE_CHECKING:
    from projections import RebuildReport

PROJECT_EVERY_ROWS = 1000
SNAPSHOT_EVERY_ROWS = 10_000

log = logging.getLogger("allowance.ledger")


class LedgerHandle:
    """What an open ledger holds on to in this process."""

    def __init__(
        self, here: Runtime, store: Store, clock_ns: Callable[[], int], validator_ss58: str, *, read_only: bool
    ) -> None:
        self.pid = here.pid
        self._read_only = read_only
        self.runtime = here
        self.store = store
        self.history = History(store, validator_ss58, read_only=read_only)
        self.snapshots = SnapshotStore(store)
        self.writer = LedgerWriter(store, self.snapshots.load, clock_ns, here, self._look_after)
        self._caring: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Finishes what is queued, leaves a snapshot where much has come since the last, and lets go."""
        self.runtime.remove_closer(self.close)
        if not self._read_only:
            with suppress(AllowanceException):
                await self._take_snapshot(PROJECT_EVERY_ROWS)
        await self.writer.close()
        if self._caring is not None:
            await asyncio.wait([self._caring])
        self.runtime.remove_fork_pause(self.store.paused_for_fork)
        await self.store.close()

    async def _take_snapshot(self, every_rows: int) -> None:
        await self.snapshots.refresh_newest()
        taken = await self.writer.query(lambda state, _: self.snapshots.take_if_due(state, every_rows))
        if taken is not None:
            await self.snapshots.save(taken)

    async def rebuild(self, progress: ProgressReport | None) -> RebuildReport:
        """Makes everything derived anew; the state in memory too, where it is not what the log says."""
        from projections import Rebuild

        rebuild = Rebuild(self.store, self.snapshots)
        report = await rebuild.run(progress)
        position, payload = await self.writer.query(lambda state, _: (state.position, encode_state(state)))
        if not await rebuild.compare_state(position, payload):
            await self.writer.replace_state(rebuild.state)
        return rebuild.report_with(report)

    def _look_after(self, position: int, appended: int) -> None:
        """After a commit: keeps the derived tables near the log, a piece at a time, beside the next batches.

        Of all processes that append, the one does so whose row completes the thousand: they need not ask each other.
        """
        completes = position % PROJECT_EVERY_ROWS < appended
        if completes and (self._caring is None or self._caring.done()):
            self._caring = self.runtime.loop.create_task(self._care())

    async def _care(self) -> None:
        try:
            await self._take_snapshot(SNAPSHOT_EVERY_ROWS)
            await self.history.project(await self.writer.query(lambda state, _: state.position))
        except LedgerClosed:
            return
        except Exception:
            # What is derived can wait: readers fold the tail themselves, and after the next thousand it is tried again.
            log.warning("the read models could not be brought up to date", exc_info=True)
