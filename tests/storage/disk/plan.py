"""Which lives, faults and power cuts a test of the disk consists of."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from .life import SCRIPTS
from .preload import Fault, Operation


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """One life with at most one fault, and the power cuts made from its record."""

    script: str
    fault: Fault = Fault.NONE
    index: int = 0
    killed_after: bool = False
    """Kill all processes once the call that met the fault has returned."""
    cuts: int = 0
    seed: int = 0
    ignores_syncs: bool = False
    """The control: the disk keeps nothing for a sync."""
    plant: str | None = None
    """A defect of `plants.py` that all processes have."""

    @property
    def command(self) -> str:
        """The command that repeats it."""
        parts = [f"python -m tests.storage.disk --script {self.script}"]
        if self.fault:
            parts.append(f"--fault {self.fault.name} --index {self.index}")
        parts += ["--killed-after"] if self.killed_after else []
        parts.append(f"--cuts {self.cuts} --seed {self.seed}")
        parts += ["--ignores-syncs"] if self.ignores_syncs else []
        parts += [f"--plant {self.plant}"] if self.plant else []
        return " ".join(parts)


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
CUTS_AFTER_A_FAILED_SYNC = 8
CUTS_OF_A_LIFE = 100


FAULTY_CALLS = {"checkpoint": 150}
"""How many of the last calls of a life meet faults, if not all: those before them are like those of other lives."""


def fault_tasks(script: str, operations: Sequence[int], seed: int) -> Iterator[Task]:
    """Yield a task for each call of a life and each fault that it can meet."""
    last = FAULTY_CALLS.get(script, len(operations))
    for index, operation in list(enumerate(map(Operation, operations), 1))[-last:]:
        for fault in _APPLICABLE[operation]:
            changes = operation in _CHANGES and fault not in (Fault.KILL, Fault.TORN)
            cuts = CUTS_AFTER_A_FAILED_SYNC if changes and operation is Operation.SYNC else int(changes)
            yield Task(script, fault, index, cuts=cuts, seed=seed)
            if changes:
                yield Task(script, fault, index, killed_after=True, cuts=cuts, seed=seed)


def cut_tasks(cuts: int, seed: int) -> Iterator[Task]:
    """Yield tasks that together make at least this many power cuts of lives without a fault."""
    for number in range(-(-cuts // CUTS_OF_A_LIFE)):
        script = sorted(SCRIPTS)[number % len(SCRIPTS)]
        yield Task(script, cuts=min(cuts, CUTS_OF_A_LIFE), seed=seed + number)


def sample(tasks: Iterable[Task], count: int, seed: int) -> list[Task]:
    """Return some of the tasks, spread over all of them."""
    every = list(tasks)
    return random.Random(seed).sample(every, min(count, len(every)))
