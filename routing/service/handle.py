"""The ledger handle: what one open ledger holds in one process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ledger import LedgerWriter, Runtime, Store, check_newest_rows, encode_state
from ledger.cancellation import cancellation_shield
from ledger.errors import AllowanceException, StorageUnavailable
from projections import Availability, History, ProgressReport, SnapshotStore

from .seams import REAL, Seams
from .upkeep import Upkeep

if TYPE_CHECKING:
    from projections import RebuildReport

PROJECT_EVERY_ROWS = 1000
SEAL_EVERY_ROWS = 10_000

log: logging.Logger = logging.getLogger("allowance.ledger")


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
        self.pid: int = runtime.pid
        self.runtime = runtime
        self.store = store
        self.validator_ss58 = validator_ss58
        self.history: History = History(store, validator_ss58, read_only=read_only)
        self.snapshots: SnapshotStore = SnapshotStore(store)
        self._read_only = read_only
        self._project_every_rows, seal_every_rows = seams.upkeep_every_rows or (PROJECT_EVERY_ROWS, SEAL_EVERY_ROWS)
        self.upkeep: Upkeep = Upkeep(
            runtime, store, self.history, self.snapshots, self._project_every_rows, seal_every_rows
        )
        self.writer: LedgerWriter[Availability] = LedgerWriter(
            store, self._load_state, clock_ns, runtime, self.upkeep.after_commit
        )
        self.upkeep.writer = self.writer

    async def close(self) -> None:
        """Finish what is queued, seal the state if 1,000 rows have come since the last seal, and close the store."""
        # A cancelled caller does not wait; but the store must be closed, since nobody could close it later.
        with cancellation_shield():
            self.runtime.remove_closer(self.close)
            try:
                await self.upkeep.close()
                if not self._read_only:
                    # A seal only makes the next opening faster: without it the ledger closes as well.
                    with suppress(AllowanceException):
                        await self.upkeep.seal_if_due(self._project_every_rows)
            finally:
                await self.writer.close()
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
