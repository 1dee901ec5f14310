"""The queues in which calls from any thread wait for the writer, and how their callers are woken.

Callers wait on loops of their own, and the writer wakes each loop once per batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .codec import Row
from .errors import LedgerClosed, LedgerOverloaded
from .runtime import Runtime

# The bound keeps memory finite when the database is slower than the callers. 10,000 calls are about twenty full
# batches; a caller who would wait longer than that gets `LedgerOverloaded` at once.
QUEUE_CAPACITY = 10_000
# A bound on the size of one commit, so that the first caller of a long queue does not wait for the last.
BATCH_COMMANDS = 512


class PendingCall:
    """A command or query that waits in a queue, and the future with which its caller waits."""

    __slots__ = ("attempts", "error", "first", "future", "loop", "moved", "result", "row", "work")

    def __init__(self, work: Any, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
        self.work = work
        # Futures are not thread-safe: only the caller's own loop may resolve this one.
        self.loop = loop
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None
        # The last row that the command appended; None if it appended none. `first` is the index of its first row.
        self.row: Row | None = None
        self.first = 0
        # Whether a pick got another miner than its first decision had chosen: 0 or 1.
        self.moved = 0
        # How often the command was decided.
        self.attempts = 0


class CallQueue:
    """A bounded queue of calls from any thread, and the task on the runtime's loop that processes it."""

    def __init__(self, runtime: Runtime, process: Callable[[deque[PendingCall]], Any]) -> None:
        """Let `process` remove the calls that it handles from the queue; it returns them with result or error."""
        self._runtime = runtime
        self._process = process
        self._waiting: deque[PendingCall] = deque()
        self._woken = False
        self._running: asyncio.Task[None] | None = None
        self._emptied_at = runtime.loop.time()

    @property
    def idle_seconds(self) -> float:
        """For how long the queue has been empty; 0 while a call waits or is processed."""
        is_running = self._running is not None and not self._running.done()
        return 0.0 if is_running or self._waiting else self._runtime.loop.time() - self._emptied_at

    @property
    def length(self) -> int:
        """The number of waiting calls; from any thread."""
        return len(self._waiting)

    def put(self, call: PendingCall) -> None:
        """Append a call; from any thread. Raises `LedgerOverloaded` if the queue is full."""
        if len(self._waiting) >= QUEUE_CAPACITY:
            raise LedgerOverloaded(len(self._waiting))
        self._waiting.append(call)
        # To wake another thread's loop costs a system call, so only the first call after a pause does it.
        if not self._woken:
            self._woken = True
            loop = self._runtime.loop
            try:
                (loop.call_soon if call.loop is loop else loop.call_soon_threadsafe)(self._wake)
            except RuntimeError as cause:
                # The loop is closed. Without the reset, the next call would trust this wake-up and wait for ever.
                self._woken = False
                raise LedgerClosed from cause

    async def finish(self) -> None:
        """Process all waiting calls, even if the caller is cancelled."""
        self._wake()
        # `wait` does not pass a cancellation on to the task, unlike a plain `await`. A cancelled task would leave the
        # callers of its batch without a result, and they would wait for ever. The cancellation itself is dropped here:
        # the ledger must still close its store, and the cancelled caller does not wait for that.
        while self._running is not None and not self._running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._running])

    def _wake(self) -> None:
        if self._running is None or self._running.done():
            self._running = self._runtime.loop.create_task(self._run_until_empty())

    async def _run_until_empty(self) -> None:
        while True:
            # Cleared before the check, not after it: a call that another thread appends after the check then wakes
            # the queue again, and is not lost.
            self._woken = False
            if not self._waiting:
                self._emptied_at = self._runtime.loop.time()
                return
            resolve_futures(await self._process(self._waiting))
            # On SQLite a whole batch may run without waiting for anything. Without this, a queue that is never empty
            # would keep the loop from all other work, queries among it.
            await asyncio.sleep(0)


async def yield_to_writers() -> None:
    """Let waiting commands go first; for work on the runtime's loop that writes in several transactions.

    The first round of the loop runs `_wake`, which starts the command queue's task. In the second one the task's batch
    begins its transaction, or queues for it ahead of the work that called this. The third round is for a command that
    arrives while this function is called: its thread has queued it, but calls for `_wake` only a moment later.
    """
    for _ in range(3):
        await asyncio.sleep(0)


def drain(waiting: deque[PendingCall]) -> list[PendingCall]:
    """Remove and return all waiting calls."""
    calls = []
    while waiting:
        calls.append(waiting.popleft())
    return calls


def next_batch(waiting: deque[PendingCall]) -> list[PendingCall]:
    """Remove and return the next commands, without cancelled ones; at most one per idempotency key.

    A second command with the same key waits for the next batch. Stored keys are looked up once per batch, before the
    first command is decided, so in the same batch the second would not find the first.
    """
    batch: list[PendingCall] = []
    postponed: list[PendingCall] = []
    keys: set[str] = set()
    while waiting and len(batch) < BATCH_COMMANDS:
        call = waiting.popleft()
        key = call.work.key
        if call.future.cancelled():
            continue
        if key is not None and key in keys:
            postponed.append(call)
            continue
        if key is not None:
            keys.add(key)
        batch.append(call)
    waiting.extendleft(reversed(postponed))
    return batch


def fail(calls: list[PendingCall], error: Exception) -> None:
    """Give the calls an error in place of their results."""
    for call in calls:
        call.result, call.error = None, error


def resolve_futures(calls: list[PendingCall]) -> None:
    """Pass results and errors to the callers, and wake each of their loops once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[PendingCall]] = {}
    for call in calls:
        by_loop.setdefault(call.loop, []).append(call)
    own_loop = asyncio.get_running_loop()
    for loop, calls_of_loop in by_loop.items():
        if loop is own_loop:
            # A caller on the runtime's own loop, as every blocking caller is: it need not be woken from its sleep.
            _resolve(calls_of_loop)
            continue
        with suppress(RuntimeError):  # The loop is closed, so nobody waits for these results.
            loop.call_soon_threadsafe(_resolve, calls_of_loop)


def _resolve(calls: list[PendingCall]) -> None:
    for call in calls:
        if call.future.done():
            continue  # The caller was cancelled after its batch had begun. The command stays committed.
        if call.error is not None:
            call.future.set_exception(call.error)
        else:
            call.future.set_result(call.result)
