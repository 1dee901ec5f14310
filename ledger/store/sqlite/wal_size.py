"""A warning if the write-ahead log (WAL) of a SQLite file grows without end.

SQLite starts the WAL again from its beginning once all of it is copied into the database and nobody reads it. A reader
that keeps its transaction open prevents that for as long as it lives.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

# SQLite cuts the file to this size when it starts it again. Under load the WAL needs about 4 MB between two
# checkpoints; a smaller limit would make every round cut the file and let it grow again.
WAL_LIMIT_BYTES = 16 << 20
WAL_WARNING_BYTES = 64 << 20
# A look at the file takes about 2 µs.
COMMITS_BETWEEN_LOOKS = 64

log = logging.getLogger("allowance.ledger")


def wal_path(path: str) -> str:
    """Return the path of a database's WAL. SQLite puts it beside the file to which a symbolic link points."""
    return f"{os.path.realpath(path)}-wal"


class WalSize:
    """Looks at the size of one file's WAL now and then, and warns when it has doubled since the last warning."""

    def __init__(self, path: str) -> None:
        self._wal = wal_path(path)
        self._commits = 0
        self._last_bytes = 0
        self._warning_bytes = WAL_WARNING_BYTES

    def after_commit(self) -> None:
        """Count a commit, and look at the file if it is time."""
        self._commits += 1
        if self._commits % COMMITS_BETWEEN_LOOKS == 0:
            with suppress(OSError):
                self._look(os.stat(self._wal).st_size)

    def _look(self, wal_bytes: int) -> None:
        # One large transaction, such as a restore, makes a large WAL too. But the commits after it start it again, so
        # only a size that lasts from one look to the next is a reader's fault.
        lasts = min(wal_bytes, self._last_bytes)
        self._last_bytes = wal_bytes
        if wal_bytes < WAL_WARNING_BYTES:
            self._warning_bytes = WAL_WARNING_BYTES
        if lasts < self._warning_bytes:
            return
        self._warning_bytes = 2 * wal_bytes
        log.warning(
            "the write-ahead log grows because a program keeps a read transaction open; find it and end it",
            extra={"wal": self._wal, "wal_bytes": wal_bytes},
        )
