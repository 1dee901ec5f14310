"""What an open ledger holds on to in a process, and how what is derived from its log is kept near it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ledger import AllowanceException, LedgerActor, LedgerClosed, Runtime, Store, dump
from projections import History, ProgressReport, Snapshots

if TYPE_CHECKING:
    from projections import RebuildReport

CARED_FOR_EVERY_ROWS = 1000
SNAPSHOT_EVERY_ROWS = 10_000

log = logging.getLogger("allowance.ledger")


class Opened:
    """What an open ledger holds on to in this process."""

    def __init__(
        self, here: Runtime, store: Store, clock_ns: Callable[[], int], validator_ss58: str, *, read_only: bool
    ) -> None:
        self.pid = here.pid
        self._read_only = read_only
        self.runtime = here
        self.store = store
        self.history = History(store, validator_ss58, read_only=read_only)
        self.snapshots = Snapshots(store)
        self.actor = LedgerActor(store, self.snapshots.load, clock_ns, here, self._look_after)
        self._caring: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Finishes what is queued, leaves a snapshot where much has come since the last, and lets go."""
        self.runtime.not_at_exit(self.close)
        if not self._read_only:
            with suppress(AllowanceException):
                await self._take_snapshot(CARED_FOR_EVERY_ROWS)
        await self.actor.close()
        if self._caring is not None:
            await asyncio.wait([self._caring])
        self.runtime.not_at_fork(self.store.parked)
        await self.store.close()

    async def _take_snapshot(self, every_rows: int) -> None:
        await self.snapshots.look()
        taken = await self.actor.ask(lambda state, _: self.snapshots.take(state, every_rows))
        if taken is not None:
            await self.snapshots.save(taken)

    async def rebuild(self, progress: ProgressReport | None) -> RebuildReport:
        """Makes everything derived anew; the state in memory too, where it is not what the log says."""
        from projections import Rebuild

        rebuild = Rebuild(self.store, self.snapshots)
        report = await rebuild.run(progress)
        position, payload = await self.actor.ask(lambda state, _: (state.position, dump(state)))
        if not await rebuild.compare_state(position, payload):
            await self.actor.adopt(rebuild.state)
        return rebuild.report_with(report)

    def _look_after(self, position: int, appended: int) -> None:
        """After a commit: keeps the derived tables near the log, a piece at a time, beside the next batches.

        Of all processes that append, the one does so whose row completes the thousand: they need not ask each other.
        """
        completes = position % CARED_FOR_EVERY_ROWS < appended
        if completes and (self._caring is None or self._caring.done()):
            self._caring = self.runtime.loop.create_task(self._care())

    async def _care(self) -> None:
        try:
            await self._take_snapshot(SNAPSHOT_EVERY_ROWS)
            await self.history.project(await self.actor.ask(lambda state, _: state.position))
        except LedgerClosed:
            return
        except Exception:
            # What is derived can wait: readers fold the tail themselves, and after the next thousand it is tried again.
            log.warning("the read models could not be brought up to date", exc_info=True)
