"""What a process does that helps with an audit: it audits one stretch of the log, and goes on as it is told.

It is started by a `Helper` (`process.py`), and ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import signal
import sys
from typing import Any, BinaryIO, NamedTuple

from ledger import store_for

from .stretch import Assignment, Stretch

LOOKED_AFTER_SECONDS = 1.0
"""How often one who waits looks whether the process that started it is still there."""


class Task(NamedTuple):
    """What a helper is to do: follow the log to where its stretch begins, and audit it."""

    database_url: str
    assignment: Assignment
    begin: int
    end: int


def main() -> None:
    """Helps: takes a `Task` and then words on standard input, and answers on the pipe that it is given by number.

    All of it is pickled. The answers have a pipe of their own, since whatever is imported may print something.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Who started it is interrupted as well, and ends it.
    with open(int(sys.argv[1]), "wb") as answers:
        asyncio.run(_help(answers, os.getppid()))


async def _help(answers: BinaryIO, parent: int) -> None:
    def say(*words: Any) -> None:
        if os.getppid() != parent:
            raise SystemExit
        pickle.dump(words, answers)
        answers.flush()

    task: Task = pickle.load(sys.stdin.buffer)
    store = store_for(task.database_url, task.assignment.validator_ss58, read_only=True)
    await store.open(None)
    stretch = Stretch(store, task.assignment, lambda audited: say("passed", audited))
    say("begins", await stretch.follow(task.begin))
    say("reached", await stretch.audit(task.end))
    while True:
        match _next_words(parent):
            case ("on", int(border)):
                say("reached", await stretch.audit(border))
            case ("part",):
                say("part", stretch.part())
                break
            case ("end",):
                ending = await stretch.end()
                say("end", (ending, stretch.part()))
                break
            case _:
                break
    await store.close()


def _next_words(parent: int) -> Any:
    """What it is told next; nothing where nobody is there any more."""
    while not select.select([sys.stdin], [], [], LOOKED_AFTER_SECONDS)[0]:
        if os.getppid() != parent:
            return ()
    try:
        return pickle.load(sys.stdin.buffer)
    except EOFError:
        return ()
