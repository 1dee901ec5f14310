"""A check of a SQLite file's head from any thread, without waiting.

To pass a query to the runtime's thread and back costs more than most queries. If this probe shows that nothing was
committed since the state in memory was folded, the caller can run the query on that state in its own thread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ledger.errors import StorageUnavailable


class HeadProbe:
    """A connection of its own, opened at the first use; one thread at a time may query it."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._closed = False

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """Return the only row that a query finds; None if there is not exactly one, or it cannot be read at once.

        None is always a safe result: the caller then uses the slower way through the runtime's thread, which also
        raises the proper error.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._closed:
                return None
            if self._connection is None:
                self._connection = self._connect()
                # The store's timeout of 30 s would block the caller's thread, which may run an event loop.
                self._connection.execute("PRAGMA busy_timeout = 0").fetchone()
            rows = self._connection.execute(query, values).fetchall()
            return rows[0] if len(rows) == 1 else None
        except (sqlite3.Error, StorageUnavailable):
            self._disconnect()
            return None
        finally:
            self._lock.release()

    @contextmanager
    def paused_for_fork(self) -> Iterator[None]:
        """Close the connection and prevent a new one until left: a forked child must not inherit one."""
        with self._lock:
            self._disconnect()
            yield

    def close(self) -> None:
        """Close the connection for good."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
