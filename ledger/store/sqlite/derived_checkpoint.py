"""Checkpoints of the file of derived tables, on a thread of their own.

SQLite would make them inside of a COMMIT, and flush the file on the runtime's loop, where picks wait. Inside of SQLite
a thread does not need Python's lock, so the loop goes on.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from concurrent.futures import Future
from contextlib import closing, suppress

from .wal_size import wal_path

CHECKPOINT_BYTES = 4 << 20
"""The size of the WAL at which a checkpoint is due; the same as SQLite's own limit of 1,000 pages."""
WAL_LIMIT_BYTES = 1 << 20
"""The size to which SQLite cuts the WAL when it starts it again; with a longer one a checkpoint would always be due."""


def is_checkpoint_due(path: str) -> bool:
    """Return True if the WAL of a file is long enough for a checkpoint."""
    with suppress(OSError):
        return os.stat(wal_path(path)).st_size >= CHECKPOINT_BYTES
    return False


async def checkpoint_in_thread(uri: str) -> None:
    """Copy the WAL into its database as far as no reader is in the way; an error is left to the next attempt."""
    done = Future[None]()
    # Not `asyncio.to_thread`: see `import_in_thread`.
    threading.Thread(target=_checkpoint, args=(uri, done), name="allowance-checkpoint", daemon=True).start()
    await asyncio.wrap_future(done)


def _checkpoint(uri: str, done: Future[None]) -> None:
    try:
        with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    finally:
        if done.set_running_or_notify_cancel():
            done.set_result(None)
