"""Observers of the ledgers of this process; metrics are made by one.

Each operation ends with one `Operation`, and each group commit with one `Batch`. While nobody observes, none are made,
and no clock is read for them.
"""

from __future__ import annotations

import logging
from typing import NamedTuple, Protocol

log = logging.getLogger("allowance.ledger")


class Operation(NamedTuple):
    """One call that changes the ledger, as it ended for its caller.

    `operation` is the name of the public call. `outcome` is one word: "routed", "done", "repeated", or why it was
    refused. `knows_class`: whether the ledger has accounts of the class; anybody can ask for any other. `items` is the
    number of facts or expired reservations. `attempts`: how often the command was decided, 0 if it never was.
    `duration_ns` is the time from the call to its result, None if nobody measured. All else is None if the operation
    has no such thing.
    """

    operation: str
    outcome: str
    validator_ss58: str | None
    executor_class: str | None = None
    knows_class: bool = False
    job_uuid: str | None = None
    miner_ss58: str | None = None
    allowance_seconds: float | None = None
    reservation_id: int | None = None
    items: int | None = None
    attempts: int = 0
    duration_ns: int | None = None


class Batch:
    """What one group commit has done: how many commands it had, and what it waited for.

    `lock_waits_ns`: the waits for the write lock, one per transaction. `commits_ns`: the times in which rows were
    inserted and committed. `settled` counts the settlements by status, expiries that a claim caused included.
    `conflicts` and `retries` are those of `Counters`.
    """

    __slots__ = ("commands", "commits_ns", "conflicts", "lock_waits_ns", "retries", "settled")

    def __init__(self, commands: int) -> None:
        self.commands = commands
        self.conflicts = 0
        self.retries = 0
        self.lock_waits_ns: list[int] = []
        self.commits_ns: list[int] = []
        self.settled: dict[str, int] = {}


class Observer(Protocol):
    """Is told what the ledgers of this process do; called from any thread, and must return soon."""

    def operation_ended(self, operation: Operation) -> None:
        """Note an operation, in the thread and the context of its caller."""
        ...

    def batch_ended(self, batch: Batch) -> None:
        """Note a group commit, on the runtime's thread."""
        ...


registered: tuple[Observer, ...] = ()
"""The observers of this process. A tuple, so that a thread which goes through it sees one state of it."""


def add_observer(observer: Observer) -> None:
    """Tell this observer from now on, also in processes that are forked from this one; once if it is added twice."""
    global registered  # noqa: PLW0603 - one list per process is the point
    if observer not in registered:
        registered = (*registered, observer)


def remove_observer(observer: Observer) -> None:
    """Undo `add_observer`."""
    global registered  # noqa: PLW0603 - see above
    registered = tuple(each for each in registered if each is not observer)


def operation_ended(operation: Operation) -> None:
    """Tell all observers. Whatever they raise is logged: the operation has ended, and must not fail afterwards."""
    for observer in registered:
        try:
            observer.operation_ended(operation)
        except Exception:
            log.exception("an observer of operations failed")


def batch_ended(batch: Batch) -> None:
    """Tell all observers, as `operation_ended` does."""
    for observer in registered:
        try:
            observer.batch_ended(batch)
        except Exception:
            log.exception("an observer of batches failed")
