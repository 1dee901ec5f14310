"""Commits without a clear result: what their callers are told, and what a retry is told until a commit succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ledger.domain.unit_of_work import Command
from ledger.store.contract import Store

from .call_queue import PendingCall, fail
from .codec import Row
from .deciding import Decider
from .errors import LogWentBack, OutcomeUnknown, StorageUnavailable
from .live_state import LiveState


class UnknownOutcomes:
    """Resolves commits whose result was lost, and remembers those that cannot be resolved yet."""

    def __init__(self, store: Store, live: LiveState[Any], decider: Decider) -> None:
        self._store = store
        self._live = live
        self._decider = decider
        # The keys and jobs of the calls whose outcome is unknown, until a batch is committed again.
        self._unknown: set[str] = set()

    async def resolve(self, batch: list[PendingCall], rows: Sequence[Row], cause: Exception) -> None:
        """After a commit without a clear result, let the store find out whether the rows are stored.

        There are three outcomes. If the rows are stored, the results of the batch are valid. If they never will be,
        every call raises `StorageUnavailable` and nothing was done. If the store cannot know it yet, or if the batch
        only reported what is in the log, `_set_unknown_outcome` sets the errors.
        """
        self._live.discard()
        try:
            committed = await self._store.resolve_commit(rows[0]) if rows else None
        except Exception:
            committed = None
        if committed:
            self._decider.note_committed(rows, batch)
        elif committed is None:
            for call in batch:
                self._set_unknown_outcome(call, cause)
        else:
            unavailable = StorageUnavailable(f"the commit failed, nothing was done: {cause}")
            unavailable.__cause__ = cause
            fail(batch, unavailable)

    def keep(self, batch: list[PendingCall]) -> None:
        """Make sure that a retry which cannot be executed is not taken for the outcome of the first call.

        The retry changed nothing, but `StorageUnavailable` would tell its caller that the first call did not either.
        `LogWentBack` stays: its caller must open the ledger again, and would otherwise repeat the call for ever.
        """
        if not self._unknown:
            return
        if self._live.current is not None:
            self._unknown.clear()
            return
        for call in batch:
            known = [name for name in _names(call.work) if name in self._unknown]
            if known and isinstance(call.error, StorageUnavailable) and not isinstance(call.error, LogWentBack):
                call.error = OutcomeUnknown(known[0], call.work.operation)

    def _set_unknown_outcome(self, call: PendingCall, cause: Exception) -> None:
        """Set the error of a call whose commit was not confirmed: `OutcomeUnknown`, if a key or job can find it out.

        A call that succeeded without a row repeats an earlier one, whose row is perhaps as little confirmed as this
        commit. To tell its caller that nothing was done could be wrong.
        """
        names = _names(call.work)
        if call.row is not None:
            names.insert(0, call.work.retry_key(call.row))
        elif call.error is not None:
            call.error = StorageUnavailable(f"the commit may have failed, this was not done: {cause}")
            return
        if names:
            self._unknown.update(names)
            call.error = OutcomeUnknown(names[0], call.work.operation)
        else:
            call.error = StorageUnavailable(f"the commit is not confirmed, its outcome is not known yet: {cause}")


def _names(command: Command) -> list[str]:
    """Return what a retry of the command would have in common with it: its key and its job, if it has them."""
    return [name for name in (command.key, getattr(command, "job_uuid", None)) if name is not None]
