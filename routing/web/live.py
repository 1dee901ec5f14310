"""The events of a ledger for any number of live connections, read from the log once.

Connections have no queues. The newest events stay in one bounded list; a connection that is slower than that continues
in the log, at its own position. So every connection gets every event once, and a slow one costs no memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from ledger.errors import PositionOutOfRange

if TYPE_CHECKING:
    from routing import Allowance, StoredEvent

KEPT_EVENTS = 1024
MOST_FOLLOWERS = 1000
HEARTBEAT_SECONDS = 15.0
"""After this time without an event a connection gets a comment, so that a proxy does not close it."""


class Live:
    """Follows one ledger while anybody listens. All calls come from one event loop."""

    def __init__(self, ledger: Allowance, *, kept: int = KEPT_EVENTS) -> None:
        self.closed: bool = False
        self._followers = 0
        self._ledger = ledger
        self._recent: deque[StoredEvent] = deque(maxlen=kept)
        self._position = 0
        """The last position that was read."""
        self._changed = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End all connections, so that a server can stop."""
        self.closed = True
        self._wake()

    async def join(self, position: int) -> AsyncIterator[list[StoredEvent]]:
        """Return an iterator over the events after a position, in order, some at a time.

        It yields an empty list after a while without any. Raises `PositionOutOfRange` if the log ends before the
        position, and `HTTPException` (503) if too many follow; the iterator raises what `Allowance.follow` raises.
        """
        if self._followers >= MOST_FOLLOWERS:
            raise HTTPException(503, f"{MOST_FOLLOWERS:,} connections follow this ledger already; try again later")
        head = (await self._ledger.head()).position
        if position > head:
            raise PositionOutOfRange(f"position {position}", 0, head)
        return self._since(position, head)

    async def _since(self, position: int, head: int) -> AsyncIterator[list[StoredEvent]]:
        self._followers += 1
        self._start_if_stopped(head)
        try:
            while not self.closed:
                events = await self._next(position)
                position = events[-1].position if events else position
                yield events
        finally:
            self._followers -= 1
            self._stop_if_unused()

    async def _next(self, position: int) -> list[StoredEvent]:
        if self._following is not None and self._following.done():
            self._following.result()
        if position >= self._position:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), HEARTBEAT_SECONDS)
        # Only now, since more events than are kept may have come while it waited.
        if position < self._position - len(self._recent):
            until = min(self._position, position + KEPT_EVENTS)
            return [event async for event in self._ledger.events(after=position, until=until)]
        # Copied, since the list goes on while the connection waits for its reader.
        return [event for event in self._recent if event.position > position]

    def _start_if_stopped(self, head: int) -> None:
        if self._following is None or self._following.done():
            self._recent.clear()
            self._position = head
            self._following = asyncio.create_task(self._follow(head))

    async def _follow(self, position: int) -> None:
        try:
            async for event in self._ledger.follow(after=position):
                self._recent.append(event)
                self._position = event.position
                self._wake()
        finally:
            self._wake()

    def _wake(self) -> None:
        """Wake all connections that wait; later ones wait for the next event."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _stop_if_unused(self) -> None:
        if not self._followers and self._following is not None:
            self._following.cancel()
            self._following = None
