"""Lock files, and what a fork does to them.

A lock of `flock` belongs to the open file, which a forked child shares with its parent. A child that kept the file open
would keep its parent's lock alive after the parent's end. So a child closes the lock files that it inherited. To unlock
them would be wrong: it would take the lock away from the parent.
"""

from __future__ import annotations

import os
from typing import Any, Protocol
from weakref import WeakSet

fcntl: Any
try:
    import fcntl
except ImportError:  # pragma: no cover - systems without flock
    fcntl = None


class OpensLockFiles(Protocol):
    """An object that may have lock files open."""

    def close_in_child(self) -> None:
        """Close the files, without unlocking them."""
        ...


# One hook for all: a hook of `os.register_at_fork` can never be removed again.
_users: WeakSet[OpensLockFiles] = WeakSet()


def close_in_children(user: OpensLockFiles) -> None:
    """Call `close_in_child` in every child that is forked from now on, as long as the object exists."""
    _users.add(user)


def open_lock_file(path: str) -> int:
    """Open a lock file, which only its owner can read; create it if it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _close_in_child() -> None:
    for user in list(_users):
        user.close_in_child()


os.register_at_fork(after_in_child=_close_in_child)
