"""Connections that the ledgers of one process share, if they have the same URL.

A session of a ledger borrows a connection for a piece of work and gives it back, so a hundred ledgers need no more
connections than a few. A lone ledger gets the same connection each time.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from .connecting import Connector
from .connection_pool import ConnectionPool
from .derived import DerivedEngine


class SharedConnections:
    """The connections of one URL on one event loop.

    There are three kinds, so that reads do not wait for appends, and appends do not wait for read models. Whoever holds
    a connection of one kind may wait for one of a later kind in this order: derived tables, the log's reads.
    """

    def __init__(self, connector: Connector) -> None:
        self.connector = connector
        self.appends = ConnectionPool(connector.connect_for_appends)
        self.derived = ConnectionPool(connector.connect)
        self.reads = ConnectionPool(connector.connect)
        self.engine = DerivedEngine(connector)
        self._users = 0

    @classmethod
    def of(cls, connector: Connector) -> SharedConnections:
        """Return the connections of a connector's URL on the running loop; `leave` them once."""
        by_url = _shared.setdefault(asyncio.get_running_loop(), {})
        shared = by_url.setdefault(_key(connector), cls(connector))
        shared._users += 1
        return shared

    async def leave(self) -> None:
        """End one use; the last user closes the connections."""
        self._users -= 1
        if self._users:
            return
        _shared[asyncio.get_running_loop()].pop(_key(self.connector), None)
        await self.engine.close()
        for pool in (self.appends, self.derived, self.reads):
            await pool.close()

    def retire(self) -> None:
        """Let every later use open a new connection, which may lead to another server."""
        for pool in (self.appends, self.derived, self.reads):
            pool.retire()
        self.engine.retire()


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, bool], SharedConnections]] = WeakKeyDictionary()


def _key(connector: Connector) -> tuple[str, bool]:
    return connector.database_url, connector.read_only
