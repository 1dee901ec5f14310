"""Runs tasks in several workers, and adds up their verdicts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import msgspec

from .life import SCRIPTS
from .plan import Task, Verdict, cut_tasks, fault_tasks
from .preload import Fault, build

_ROOT = Path(__file__).parents[3]


@dataclass
class Report:
    """The figures of many tasks, and every violation with the command that repeats it."""

    seed: int
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    indices: set[tuple[str, int]] = field(default_factory=set)
    runs: int = 0
    not_fired: int = 0
    cuts: int = 0
    cuts_that_lost: int = 0
    findings: list[tuple[Task, str]] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        task = verdict.task
        self.runs += 1
        self.cuts += verdict.cuts
        self.cuts_that_lost += verdict.cuts_that_lost
        self.findings += [(task, violation) for violation in verdict.violations]
        fault, index = task.misfortune.fault, task.misfortune.index
        if fault is not Fault.NONE:
            self.not_fired += not verdict.fired
            self.faults[fault.name] += 1
            self.indices.add((task.script, index))

    @property
    def failed(self) -> list[Task]:
        """The tasks with a violation."""
        return list(dict.fromkeys(task for task, _ in self.findings))

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        lines = [f"{task.command}\n    {violation}" for task, violation in self.findings]
        lines.append(
            f"{len(self.indices)} indices, {sum(self.faults.values())} faults ({faults}; {self.not_fired} not reached),"
            f" {self.runs} runs, {self.cuts} power cuts, {self.cuts_that_lost} of them lost something,"
            f" {len(self.findings)} violations in {len(self.failed)} runs, {self.seconds:.0f} s, seed {self.seed}"
        )
        return "\n".join(lines)


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Start workers; raise `CannotRun` if this machine cannot build the preloaded library."""
    with tempfile.TemporaryDirectory(prefix="disk-") as directory:
        library = build(Path(directory))
        running = [_start(library) for _ in range(count)]
        try:
            yield Workers(running)
        finally:
            for worker in running:
                worker.communicate()


class Workers:
    """Several workers; a thread for each gives it one task after the other."""

    def __init__(self, running: list[subprocess.Popen[str]]) -> None:
        self._running = running

    def run(
        self, tasks: Iterable[Task], seed: int, progress: Callable[[Report, Verdict], None] = lambda *_: None
    ) -> Report:
        """Run all tasks; call `progress` after each."""
        report = Report(seed)
        started = time.monotonic()
        for verdict in self.verdicts(tasks):
            report.add(verdict)
            report.seconds = time.monotonic() - started
            progress(report, verdict)
        return report

    def verdicts(self, tasks: Iterable[Task]) -> Iterator[Verdict]:
        """Yield the verdicts as they come."""
        waiting = iter(tasks)
        guard = threading.Lock()
        verdicts: SimpleQueue[Verdict | None] = SimpleQueue()

        def serve(worker: subprocess.Popen[str]) -> None:
            while True:
                with guard:
                    task = next(waiting, None)
                if task is None:
                    break
                verdicts.put(_try(worker, task))
            verdicts.put(None)

        for worker in self._running:
            threading.Thread(target=serve, args=(worker,), daemon=True).start()
        ended = 0
        while ended < len(self._running):
            verdict = verdicts.get()
            if verdict is None:
                ended += 1
            else:
                yield verdict


def all_tasks(running: Workers, cuts: int, seed: int, plant: str | None = None) -> list[Task]:
    """Return the tasks of a full run: every call of every life with each of its faults, and the power cuts."""
    # The first task of each life shows its calls; the life is the same every time, up to the fault.
    lives = list(running.verdicts([Task(script, seed=seed, plant=plant) for script in sorted(SCRIPTS)]))
    lives.sort(key=lambda life: life.task.script)
    faults = [task for life in lives for task in fault_tasks(life.task.script, life.calls_by_index, seed)]
    return [msgspec.structs.replace(task, plant=plant) for task in (*faults, *cut_tasks(cuts, seed))]


def _start(library: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.disk.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "LD_PRELOAD": str(library)},
    )


def _try(worker: subprocess.Popen[str], task: Task) -> Verdict:
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(msgspec.json.encode(task).decode() + "\n")
        worker.stdin.flush()
        return msgspec.json.decode(worker.stdout.readline(), type=Verdict)
    except (OSError, msgspec.DecodeError) as error:
        return Verdict(task, violations=[f"the worker died: {error!r}"])
