"""A look at a SQLite file from whatever thread asks, without waiting for anybody.

To hand a question to the ledger's own thread and back costs more than most questions do. A caller who sees here that
nothing was committed since may ask the state in memory himself.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ledger.errors import StorageUnavailable


class HeadProbe:
    """A connection of its own, opened when it is first needed, that one thread at a time may ask."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._closed = False

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """The only row that a query finds; None where there is not one, or where it cannot be had at once."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._closed:
                return None
            if self._connection is None:
                self._connection = self._connect()
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
        """Until left, there is no connection, and nobody can have one opened."""
        with self._lock:
            self._disconnect()
            yield

    def close(self) -> None:
        """Closes the connection for good."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
