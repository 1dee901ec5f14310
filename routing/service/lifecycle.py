"""The lifecycle of a ledger: opened once per process, shared by all callers, opened again after a fork, closed."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ledger import Clock, LedgerWriter, RecordSettings, Runtime, Settings, Store, running_loop
from ledger.errors import (
    AllowanceException,
    ClockUnusable,
    InvalidInput,
    LedgerClosed,
    OutcomeUnknown,
    StorageUnavailable,
)
from ledger.values import flag, name
from projections import Availability, schema

from .handle import LedgerHandle
from .seams import REAL, Seams
from .settings_changes import log_change

# Every ledger of the process shares this lock, because a forked child must replace it: one lock needs one fork hook,
# and a hook per ledger could never be removed again. It is held only while an opening or a closing begins, never while
# one runs, so that no caller waits for the database of another.
_guard = threading.Lock()


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603 - another thread of the parent may hold the lock, and would never release it here
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_guard)

# The handles that a forked child found open. They belong to the parent, so the child must neither close them nor let
# them be garbage collected. It matters if their connections are open in the child. On PostgreSQL they always are: the
# child shares the parent's sockets, and in both cases asyncpg sends a Terminate message, which ends the parent's
# session. On SQLite they are open only after a fork that could not wait for the work under way. The child's copy of the
# parent's runtime refers to the handles too, but only as long as that copy itself exists.
_left_to_parents: list[LedgerHandle] = []


class Lifecycle:
    """Opens one ledger when it is first used, and closes it.

    Threads and event loops that use the ledger at the same time share one opening. A failed opening is tried again at
    the next call. Raises `InvalidInput` for malformed arguments; nothing touches the database before `handle`.
    """

    def __init__(
        self,
        database_url: str,
        validator_ss58: str,
        settings: Settings | None,
        clock_ns: Callable[[], int],
        *,
        read_only: bool,
        environment_settings: Mapping[str, Any] | None = None,
        seams: Seams = REAL,
    ) -> None:
        if settings is not None and not isinstance(settings, Settings):
            raise InvalidInput("settings", settings, "Settings or None")
        self.clock: Clock = _checked_clock(clock_ns, seams.monotonic_ns)
        self.database_url = database_url
        self.validator_ss58: str = name(validator_ss58, "validator_ss58")
        self.read_only: bool = flag(read_only, "read_only")
        self.open_handle: LedgerHandle | None = None
        """The handle if the ledger is open; a forked child must compare its `pid` before using it."""
        self._settings = settings
        self._environment_settings = environment_settings
        """Fields of `Settings` that the environment names."""
        self._settings_applied = False
        self._seams = seams
        self._opening: Future[LedgerHandle] | None = None
        self._opening_pid = 0
        self._connecting: asyncio.Task[Any] | None = None
        """The task of the opening, only while it waits for the database."""
        self._closed = False
        self._new_store()  # Refuses a malformed URL now; the store itself connects only when it is opened.

    async def handle(self) -> LedgerHandle:
        """Return the open ledger's handle in this process; open the ledger first if necessary.

        Raises `LedgerClosed`, `StorageUnavailable`, `NewerLedger`, `CorruptLedger` and, if read-only, `LedgerNotFound`.
        """
        handle = self.open_handle
        if handle is not None and handle.pid == os.getpid():
            handle.writer.refuse_if_log_went_back()
            return handle
        running_loop()  # Checked before the opening begins, for which nobody would wait.
        return await self._wait_for(self._open_once())

    async def close(self) -> None:
        """Finish the changes under way and close the database; a second call does nothing."""
        with _guard:
            self._closed = True
            opening = self._opening if self._opening_pid == os.getpid() else None
            self._opening = None
        if opening is not None:
            # An opening that waits for a database server would keep this call waiting until its own timeout. That still
            # happens if the opening's task has not run its first step yet: then there is nothing to cancel.
            loop = self._seams.runtime().loop
            loop.call_soon_threadsafe(self._stop_connecting)
            # A cancelled caller does not wait, but the closing goes on: nobody could close the ledger later.
            closing = asyncio.run_coroutine_threadsafe(self._close_opened(opening), loop)
            await asyncio.shield(asyncio.wrap_future(closing))
        self._leave_inherited_handle()
        self.open_handle = None

    async def _close_opened(self, opening: Future[LedgerHandle]) -> None:
        """Close the handle; runs on the runtime's loop.

        A failed opening leaves nothing to close; the callers who wait for it receive its error. An error of
        `LedgerHandle.close` is dropped too: each change has reported its own outcome to its caller, and a caller who
        closes a ledger could do nothing about the rest.
        """
        with suppress(AllowanceException):
            handle = await self._wait_for(opening)
            await handle.close()

    def _open_once(self) -> Future[LedgerHandle]:
        with _guard:
            if self._closed:
                raise LedgerClosed
            if self._opening_pid != os.getpid():
                # A forked child inherits its parent's future, which nothing in the child would ever complete.
                self._opening, self._opening_pid = None, os.getpid()
            failed = self._opening is not None and self._opening.done() and self._opening.exception() is not None
            if self._opening is None or failed:
                runtime = self._seams.runtime()
                self._opening = asyncio.run_coroutine_threadsafe(self._open(runtime), runtime.loop)
            return self._opening

    async def _wait_for(self, opening: Future[LedgerHandle]) -> LedgerHandle:
        waiting = asyncio.wrap_future(opening)
        waiting.add_done_callback(_retrieve_exception)
        try:
            # Shielded, since other callers may wait for the same opening.
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if opening.cancelled():
                raise LedgerClosed from None
            raise

    def _stop_connecting(self) -> None:
        """Cancel an opening that is connecting or creating tables; runs on the runtime's loop.

        Nothing is left half done: the tables are created in one transaction, and a later opening creates whatever is
        missing. Once connected, the opening goes on, and `close` closes its handle.
        """
        if self._connecting is not None:
            self._connecting.cancel()

    async def _open(self, runtime: Runtime) -> LedgerHandle:
        # `handle` found an open handle unusable, so it belongs to a parent process.
        if self.open_handle is not None and self.database_url == "sqlite://":
            raise StorageUnavailable("a ledger in memory does not survive a fork; open one in the child")
        self._leave_inherited_handle()
        store = self._new_store()
        runtime.add_fork_pause(store.paused_for_fork)
        try:
            await self._connect(store)
            handle = LedgerHandle(
                runtime, store, self.clock, self.validator_ss58, read_only=self.read_only, seams=self._seams
            )
            if self.open_handle is not None:
                # A parent's: a log that went back is refused in its children too.
                handle.writer.take_over_acknowledged(self.open_handle.writer)
            if not self.read_only:
                await self._record_settings(handle.writer)
                handle.upkeep.catch_up()
        except BaseException:
            runtime.remove_fork_pause(store.paused_for_fork)
            await store.close()
            raise
        self.open_handle = handle
        runtime.add_closer(handle.close)
        return handle

    def _leave_inherited_handle(self) -> None:
        """Keep the handle of a parent process alive before this process forgets it; see `_left_to_parents`."""
        if self.open_handle is not None and self.open_handle.pid != os.getpid():
            _left_to_parents.append(self.open_handle)

    def _new_store(self) -> Store:
        return self._seams.new_store(self.database_url, self.validator_ss58, read_only=self.read_only)

    async def _connect(self, store: Store) -> None:
        self._connecting = asyncio.current_task()
        try:
            await store.open(None if self.read_only else schema)
        finally:
            self._connecting = None

    async def _record_settings(self, writer: LedgerWriter[Availability]) -> None:
        """Append the first event of a new ledger, or settings that differ from the recorded ones."""
        # A forked child opens again what its parent has opened: the program has applied its settings already.
        applied = self._settings_applied
        settings = None if applied or self._settings is None else self._settings.to_recorded()
        named = None if applied else self._environment_settings
        try:
            change = await writer.execute(RecordSettings(self.validator_ss58, settings, named))
        except OutcomeUnknown as unknown:
            # The error's key belongs to this command. The caller, whose own command has not been executed, would
            # repeat the wrong call with it.
            raise StorageUnavailable("the answer was lost while the ledger was opened; open it again") from unknown
        self._settings_applied = True
        by = "the environment" if self._environment_settings else "the settings in code"
        log_change(change, logging.WARNING, by)


def _checked_clock(clock_ns: object, monotonic_ns: Callable[[], int]) -> Clock:
    """Return the clock, read once, so that one like `time.time`, in seconds, is refused before anything is opened."""
    if not callable(clock_ns):
        raise InvalidInput("clock_ns", clock_ns, "a function that returns nanoseconds since the epoch")
    clock = Clock(clock_ns, monotonic_ns)
    try:
        clock()
    except ClockUnusable as unusable:
        refused = InvalidInput("clock_ns", None, f"a clock that returns {unusable.expected}", str(unusable))
        # Set afterwards, since the reading is a repr already.
        refused.value = unusable.reading
        raise refused from unusable
    return clock


def _retrieve_exception(opening: asyncio.Future[LedgerHandle]) -> None:
    """Mark a failure as seen: asyncio would log one that no caller waits for any more."""
    if not opening.cancelled():
        opening.exception()
