"""Connections of one kind, which the ledgers of a process borrow for a piece of work.

After a fail-over the next connection may lead to another server, so a ledger that is in doubt retires all connections:
those that nobody uses are cut, and those of other ledgers are cut when they are given back. Another ledger's append is
not disturbed: its outcome is the same as if this ledger did not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg

from .reader import BROKEN

MOST_CONNECTIONS = 4
"""Of each kind in one process. One Python process keeps no more than that busy."""
# Closing only says goodbye to the server; afterwards the connection is cut. Shorter than the runtime's CLOSING_SECONDS.
CLOSE_TIMEOUT_SECONDS = 5.0


class ConnectionPool:
    """Connections of one kind, all with the same settings."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._idle: list[asyncpg.Connection] = []
        self._places = asyncio.Semaphore(MOST_CONNECTIONS)
        self._borrowed: dict[asyncpg.Connection, bool] = {}
        """Whether a borrowed connection may be used again afterwards."""

    async def borrow(self) -> asyncpg.Connection:
        """Return a connection that nobody else uses until `give_back`; wait if there are too many."""
        await self._places.acquire()
        try:
            connection = self._idle_connection() or await self._connect()
        except BaseException:
            self._places.release()
            raise
        self._borrowed[connection] = True
        return connection

    def give_back(self, connection: asyncpg.Connection) -> None:
        """End the use of a connection."""
        self._places.release()
        may_stay = self._borrowed.pop(connection) and not connection.is_closed()
        if may_stay and not connection.is_in_transaction():
            self._idle.append(connection)
        else:
            connection.terminate()

    def _idle_connection(self) -> asyncpg.Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def retire(self) -> None:
        """Let nobody else get one of the connections that are open now."""
        self._borrowed = dict.fromkeys(self._borrowed, False)
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()

    async def close(self) -> None:
        """Close the connections in order, or cut them if the server does not respond."""
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close(timeout=CLOSE_TIMEOUT_SECONDS)
            except (asyncpg.PostgresError, *BROKEN):
                connection.terminate()
