"""The entry point of the command line `allowance`.

This module imports only what `allowance --help` prints. Each command imports the library when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from routing.cli.io.errors import STORAGE_UNAVAILABLE, WrongUsage, report
from routing.cli.io.output import Output

from .parser import build_parser

if TYPE_CHECKING:
    import socket

__all__ = ["main"]

INTERRUPTED = 130
"""The exit code of a process that SIGINT ends, by the convention of shells: 128 plus the signal's number."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `argv` is without the program's name.

    0: done. 1: the answer is no. 2: wrong usage or input. 3: storage unavailable. 130: interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Looked up before parsing, so that an error in the command line itself is a document, too.
    out = Output(json_wanted="--json" in argv)
    try:
        code = _run_reporting_errors(argv, out)
        out.flush()
    except BrokenPipeError:
        # The reader has stopped reading, as in `allowance history | head`. That is no failure.
        out.abandon()
        return 0
    except OSError as error:
        out.note(f"allowance: cannot write the output: {error.strerror}")
        out.abandon()
        return STORAGE_UNAVAILABLE
    return code


def _run_reporting_errors(argv: Sequence[str], out: Output) -> int:
    try:
        return _run(argv, out)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        out.note("allowance: interrupted")
        return INTERRUPTED
    except Exception as error:
        return report(error, out)


def _run(argv: Sequence[str], out: Output) -> int:
    parser = build_parser(argv)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as help_printed:
        return int(help_printed.code or 0)
    if arguments.command is None:
        raise WrongUsage("a command is needed, such as `allowance demo`; `allowance --help` lists them")
    with _watched_interrupts() as was_interrupted:
        code: int = arguments.run(arguments, out)
        if was_interrupted():
            raise KeyboardInterrupt
    return code


@contextmanager
def _watched_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT has arrived since; it sees signals on the main thread only.

    Python discards a `KeyboardInterrupt` that is raised inside a finalizer, and the command would end as if
    nothing had happened. The wakeup descriptor receives the signal's number as a byte in every case.
    """
    import signal
    import socket
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        for each in (reader, writer):
            each.setblocking(False)
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: signal.SIGINT in _received(reader)
        finally:
            signal.set_wakeup_fd(previous)


def _received(reader: socket.socket, most_bytes: int = 4096) -> bytes:
    with suppress(BlockingIOError):
        return reader.recv(most_bytes)
    return b""
