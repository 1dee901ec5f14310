"""A lock among coroutines that many may share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class SharedLock:
    """A lock that many may share or one may hold exclusively, among coroutines of one loop."""

    def __init__(self) -> None:
        self._entrance = asyncio.Lock()
        self._holders = 0
        self._released = asyncio.Event()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Hold the lock together with others."""
        # Held only for a moment here, but during the whole of `exclusive`, its wait included. New holders therefore
        # queue behind a coroutine that waits for exclusive access, and cannot starve it.
        async with self._entrance:
            self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            self._released.set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Wait until nobody holds the lock, and hold it alone."""
        async with self._entrance:
            while self._holders:
                self._released.clear()
                await self._released.wait()
            yield
