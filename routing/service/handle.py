"""The ledger handle: what one open ledger holds in one process, and the upkeep of its derived tables."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ledger import LedgerWriter, Runtime, SealState, Store, check_newest_rows, encode_state
from ledger.cancellation import cancellation_shield
from ledger.errors import AllowanceException, IdempotencyConflict, LedgerClosed, SealConflict, StorageUnavailable
from projections import Availability, History, ProgressReport, SnapshotStore, sealed_if_due

from .seams import REAL, Seams

if TYPE_CHECKING:
    from projections import RebuildReport

PROJECT_EVERY_ROWS = 1000
SEAL_EVERY_ROWS = 10_000

log = logging.getLogger("allowance.ledger")


class LedgerHandle:
    """One open ledger in one process: runtime, store, writer, history and snapshots.

    Coroutines run on the runtime's loop; only `writer` may be used from any loop.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: Store,
        clock_ns: Callable[[], int],
        validator_ss58: str,
        *,
        read_only: bool,
        seams: Seams = REAL,
    ) -> None:
        self.pid = runtime.pid
        self.runtime = runtime
        self.store = store
        self.validator_ss58 = validator_ss58
        self.history = History(store, validator_ss58, read_only=read_only)
        self.snapshots = SnapshotStore(store)
        self.writer = LedgerWriter(store, self._load_state, clock_ns, runtime, self._start_upkeep_if_due)
        self._read_only = read_only
        self._project_every_rows, self._seal_every_rows = seams.upkeep_every_rows or (
            PROJECT_EVERY_ROWS,
            SEAL_EVERY_ROWS,
        )
        self._upkeep: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Finish what is queued, seal the state if 1,000 rows have come since the last seal, and close the store."""
        # A cancelled caller does not wait; but the store must be closed, since nobody could close it later.
        with cancellation_shield():
            self.runtime.remove_closer(self.close)
            try:
                if not self._read_only:
                    # A seal only makes the next opening faster: without it the ledger closes as well.
                    with suppress(AllowanceException):
                        await self._seal_if_due(self._project_every_rows)
            finally:
                await self.writer.close()
                if self._upkeep is not None:
                    # The upkeep uses the store, so the store must outlive it; its own errors are logged there.
                    await asyncio.wait([self._upkeep])
                self.runtime.remove_fork_pause(self.store.paused_for_fork)
                await self.store.close()

    async def _load_state(self) -> Availability:
        """Return the state of the newest sound snapshot, after the check of the newest rows of the log."""
        await check_newest_rows(self.store)
        try:
            return await self.snapshots.load()
        except StorageUnavailable as cause:
            # The log has the same facts. If the database itself is the reason, reading the log fails just as well.
            log.warning("the snapshots cannot be read, so the whole log is folded: %s", cause)
            return Availability()

    async def rebuild(self, progress: ProgressReport | None) -> RebuildReport:
        """Rebuild every derived table, and replace the state in memory if it differs from the log."""
        # Imported here, since few processes ever rebuild and every one waits for its imports.
        from projections import Rebuild

        rebuild, sealed_position = Rebuild(self.store, self.snapshots), 0
        # A state that cannot be folded has no seal either; the rebuild says at which event.
        with suppress(AllowanceException):
            sealed_position = await self.writer.query(lambda state, _: state.sealed_position)
        report = await rebuild.run(progress, sealed_position)
        position, payload = await self.writer.query(lambda state, _: (state.position, encode_state(state)))
        if not await rebuild.compare_state(position, payload):
            await self.writer.replace_state(rebuild.state)
        return rebuild.report_with(report)

    def _start_upkeep_if_due(self, position: int, appended: int) -> None:
        """After a commit: start the upkeep if the batch completed the next thousand rows.

        Each thousand is completed by exactly one batch of one process. So processes that share a ledger do not repeat
        the upkeep, and need not coordinate.
        """
        completes = position % self._project_every_rows < appended
        if completes and (self._upkeep is None or self._upkeep.done()):
            self._upkeep = self.runtime.loop.create_task(self._run_upkeep())

    async def _run_upkeep(self) -> None:
        try:
            await self._seal_if_due(self._seal_every_rows)
            await self.history.project(await self.writer.query(lambda state, _: state.position))
        except LedgerClosed:
            return
        except Exception:
            # Derived tables may lag: readers fold the unprojected tail themselves, and the next thousand rows start
            # another attempt.
            log.warning("the read models could not be brought up to date", exc_info=True)

    async def _seal_if_due(self, every_rows: int) -> None:
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
            await self.snapshots.save(sealed.snapshot)
