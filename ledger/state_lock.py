"""The lock on the state in memory."""

from __future__ import annotations

import asyncio
import threading


class StateLock:
    """A lock on the state for coroutines of the runtime's loop and for other threads.

    One lock is not enough. Coroutines must wait for each other without blocking the loop, which needs an asyncio
    lock; a caller's thread cannot use that one, because it belongs to the loop.
    """

    def __init__(self) -> None:
        self._among_coroutines = asyncio.Lock()
        self._among_threads = threading.Lock()

    async def acquire(self) -> None:
        """Wait for the lock; only on the runtime's loop."""
        await self._among_coroutines.acquire()
        # This blocks the whole loop while a thread has the lock. Threads run only short queries, which the loop would
        # otherwise have to run itself.
        self._among_threads.acquire()

    def release(self) -> None:
        """Release the lock after `acquire`."""
        self._among_threads.release()
        self._among_coroutines.release()

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free, without waiting; from any thread."""
        return self._among_threads.acquire(blocking=False)

    def release_try(self) -> None:
        """Release the lock after a successful `try_acquire`."""
        self._among_threads.release()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
