"""Whether another writer has a SQLite file open, in this process or in another one.

Every writer holds a shared lock on the lock file `.lock-open` while it has the file open. A writer that can lock it
exclusively is alone. The operating system releases the lock of a process that is killed.

Writers enter under the lock of the write-lock queue, so the first one can finish its work before the next one looks.
"""

from __future__ import annotations

import os

from .lock_files import close_in_children, fcntl, open_lock_file


class WriterPresence:
    """One writer's lock on the file `.lock-open`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        close_in_children(self)

    def enter(self) -> bool:
        """Lock the file; return True if this writer is alone, and holds the lock exclusively until `share`.

        Without `flock` every writer believes that it is alone.
        """
        if fcntl is None:
            return True
        if self._file is None:
            self._file = open_lock_file(f"{self._path}.lock-open")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Hold the lock together with other writers."""
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def leave(self) -> None:
        """Release the lock."""
        file, self._file = self._file, None
        if file is not None:
            # A child that was forked in the meantime shares the open file, so closing it would not unlock it.
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def close_in_child(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
