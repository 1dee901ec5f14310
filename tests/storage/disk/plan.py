"""Which lives, faults and power cuts a test of the disk consists of."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from .life import SCRIPTS, Misfortune
from .preload import Fault, Operation


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """One life with at most one misfortune, and the power cuts made from its record."""

    script: str
    misfortune: Misfortune = Misfortune()
    cuts: int = 0
    seed: int = 0
    ignores_syncs: bool = False
    """The control: the disk keeps nothing for a sync."""
    plant: str | None = None
    """A defect of `plants.py` that all processes have."""

    @property
    def command(self) -> str:
        """The command that repeats it."""
        fault, index, killed_after, death = msgspec.structs.astuple(self.misfortune)
        parts = [
            f"python -m tests.storage.disk --script {self.script}",
            f"--fault {fault.name} --index {index}" if fault else "",
            "--killed-after" if killed_after else "",
            f"--death {death}" if death else "",
            f"--cuts {self.cuts} --seed {self.seed}",
            "--ignores-syncs" if self.ignores_syncs else "",
            f"--plant {self.plant}" if self.plant else "",
        ]
        return " ".join(filter(None, parts))


class Verdict(msgspec.Struct):
    """What came of one task."""

    task: Task
    fired: bool = False
    calls: int = 0
    cuts: int = 0
    cuts_that_lost: int = 0
    calls_by_index: list[int] = []
    """The kind of each call on the ledger's files."""
    violations: list[str] = []


_APPLICABLE = {
    Operation.OPEN: (Fault.EIO, Fault.ENOSPC, Fault.KILL),
    Operation.READ: (Fault.EIO, Fault.SHORT, Fault.KILL),
    Operation.WRITE: (Fault.EIO, Fault.ENOSPC, Fault.SHORT, Fault.KILL, Fault.TORN),
    Operation.SYNC: (Fault.EIO, Fault.ENOSPC, Fault.SYNCS_FAIL, Fault.KILL),
    Operation.TRUNCATE: (Fault.EIO, Fault.ENOSPC, Fault.KILL),
    Operation.UNLINK: (Fault.EIO, Fault.KILL),
    Operation.MKDIR: (Fault.EIO, Fault.ENOSPC, Fault.KILL),
}
"""The faults that a kind of call can meet."""
_CHANGES = (Operation.WRITE, Operation.SYNC, Operation.TRUNCATE, Operation.UNLINK)
"""The calls whose failure may leave something behind that a crash brings back."""
CUTS_AFTER_A_FAILED_SYNC = 6
DEATHS_AFTER_A_FAILED_SYNC = ((1, 1), (2, 10), (11, 40))
"""How many calls after a failed sync a process dies: before it can recover, and while it recovers."""
CUTS_OF_A_LIFE = 100


FAULTY_CALLS = {"checkpoint": 150}
"""How many of the last calls of a life meet faults, if not all: those before them are like those of other lives."""


def fault_tasks(script: str, operations: Sequence[int], seed: int) -> Iterator[Task]:
    """Yield a task for each call of a life and each misfortune that it can meet."""
    rng = random.Random(f"{seed} {script}")
    last = FAULTY_CALLS.get(script, len(operations))
    for index, operation in list(enumerate(map(Operation, operations), 1))[-last:]:
        for fault in _APPLICABLE[operation]:
            for misfortune, cuts in _misfortunes(rng, fault, index, operation):
                yield Task(script, misfortune, cuts, seed)


def _misfortunes(
    rng: random.Random, fault: Fault, index: int, operation: Operation
) -> Iterator[tuple[Misfortune, int]]:
    """Yield a fault alone, with a kill after the call that met it, and with a kill soon after; and how many cuts."""
    if operation not in _CHANGES or fault in (Fault.KILL, Fault.TORN):
        yield Misfortune(fault, index), 0
        return
    cuts = CUTS_AFTER_A_FAILED_SYNC if operation is Operation.SYNC else 1
    yield Misfortune(fault, index), cuts
    yield Misfortune(fault, index, killed_after=True), cuts
    if operation is Operation.SYNC and fault is not Fault.ENOSPC:  # To SQLite, any error of a sync is the same.
        for first, last in DEATHS_AFTER_A_FAILED_SYNC:
            yield Misfortune(fault, index, death=index + rng.randint(first, last)), cuts // 2


def cut_tasks(cuts: int, seed: int) -> Iterator[Task]:
    """Yield tasks that together make at least this many power cuts of lives without a fault."""
    for number in range(-(-cuts // CUTS_OF_A_LIFE)):
        script = sorted(SCRIPTS)[number % len(SCRIPTS)]
        yield Task(script, cuts=min(cuts, CUTS_OF_A_LIFE), seed=seed + number)


def sample(tasks: Iterable[Task], count: int, seed: int) -> list[Task]:
    """Return some of the tasks, spread over all of them."""
    every = list(tasks)
    return random.Random(seed).sample(every, min(count, len(every)))
