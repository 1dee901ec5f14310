"""Control-C that is never lost: where a finalizer swallows `KeyboardInterrupt`, a byte is left behind all the same."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

MOST_SIGNALS = 4096


@contextmanager
def watched_interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGINT has come since; watches on the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reading, writing = socket.socketpair()
    with reading, writing:
        for end in (reading, writing):
            end.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: _came(reading)
        finally:
            signal.set_wakeup_fd(before)


def _came(reading: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return signal.SIGINT in reading.recv(MOST_SIGNALS)
    return False
