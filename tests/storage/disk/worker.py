"""A process with the preloaded library: tries the task in each line of its input, and writes a line with the verdict.

It forks a child for each process of a life and for each judgement, and so must never start a thread itself.
"""

from __future__ import annotations

import importlib
import logging
import sys
from contextlib import suppress

import msgspec

from ledger.store.sqlite import connection

from .life import PAGES_BETWEEN_CHECKPOINTS
from .plan import Task
from .preload import Recorder
from .trial import imported_by_a_judge, try_task


def main() -> None:
    """Serve until the input ends."""
    # The library logs each fault that it meets; there are thousands.
    logging.disable(logging.CRITICAL)
    _import_early()
    connection.PAGES_BETWEEN_CHECKPOINTS = PAGES_BETWEEN_CHECKPOINTS
    recorder = Recorder()
    for line in sys.stdin:
        verdict = try_task(recorder, msgspec.json.decode(line, type=Task))
        sys.stdout.write(msgspec.json.encode(verdict).decode() + "\n")
        sys.stdout.flush()


def _import_early() -> None:
    """Import what a judge imports, so that not every child has to."""
    for module in imported_by_a_judge():
        with suppress(Exception):
            importlib.import_module(module)


if __name__ == "__main__":
    main()
