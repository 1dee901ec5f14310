"""One trial: lives one life, makes its power cuts, and judges each disk; all in forked children of one process."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import TypeVar

from tests.stress.diary import Call

from .judge import judge
from .life import START_NS, Run, live
from .plan import Task, Verdict
from .plants import PLANTS
from .power import STRATEGIES, Disk, lay_out
from .preload import Operation, Record, Recorder

T = TypeVar("T")

JUDGING_SECONDS = 300.0
_CHANGES = (Operation.OPEN, Operation.WRITE, Operation.SYNC, Operation.TRUNCATE, Operation.UNLINK, Operation.END)
SOON = 120
"""How many changes of the files after a fault; the recovery from it is among them."""
_MEMORY = Path("/dev/shm")


def try_task(recorder: Recorder, task: Task) -> Verdict:
    """Live the life of a task and judge what it left."""
    with _directory() as directory:
        plant = None if task.plant is None else PLANTS[task.plant]
        run = live(recorder, task.script, directory, task.misfortune, plant)
        verdict = Verdict(task, run.fired, len(run.calls), calls_by_index=_operations(run.log))
        if run.hung:
            verdict.violations.append(f"hung: {run.hung}")
            return verdict
        return _in_child(lambda: _judge_run(verdict, directory, run)) or _with_violation(verdict, "the judge died")


def imported_by_a_judge() -> list[str]:
    """Return the names of the modules that a process has imported once it has judged a disk."""

    def judge_nothing() -> list[str]:
        with _directory() as directory:
            judge(directory, "alone", [], START_NS)
        return list(sys.modules)

    return _in_child(judge_nothing) or []


def _in_child(work: Callable[[], T]) -> T | None:
    """Return the result of work in a forked child; None if the child dies or hangs."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.send(work())
        os._exit(0)
    theirs.close()
    try:
        if ours.poll(JUDGING_SECONDS):
            result: T = ours.recv()
            return result
    except EOFError:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        ours.close()
    return None


def _with_violation(verdict: Verdict, violation: str) -> Verdict:
    verdict.violations.append(violation)
    return verdict


def _operations(log: Sequence[Record]) -> list[int]:
    """Return the kind of each call that was counted, in order."""
    return [record.operation for record in log if record.operation < Operation.BEGIN]


def _judge_run(verdict: Verdict, directory: Path, run: Run) -> Verdict:
    if not verdict.task.ignores_syncs:
        verdict.violations += [
            f"{each.kind}: {each.detail}" for each in judge(directory, run.script, run.calls, run.now_ns)
        ]
    for cut in _cuts(verdict.task, run):
        _judge_cut(verdict, run, *cut)
    return verdict


def _judge_cut(
    verdict: Verdict, run: Run, where: str, image: dict[str, bytes | None], lost: bool, calls: list[Call]
) -> None:
    verdict.cuts += 1
    verdict.cuts_that_lost += lost
    with _directory() as directory:
        lay_out(image, directory)
        verdict.violations += [
            f"{where}: {each.kind}: {each.detail}" for each in judge(directory, run.script, calls, run.now_ns)
        ]


def _cuts(task: Task, run: Run) -> Iterator[tuple[str, dict[str, bytes | None], bool, list[Call]]]:
    """Yield power cuts at random moments: where, what is on the disk, whether anything is lost, the calls by then."""
    rng = random.Random(f"{task.seed} {task.script} {task.misfortune}")
    first = next((n for n, record in enumerate(run.log) if record.faulted), 0)
    moments = [n for n, record in enumerate(run.log) if n >= first and record.operation in _CHANGES] or [
        len(run.log) - 1
    ]
    chosen = sorted(_moment(rng, task, moments) for _ in range(task.cuts))
    disk, applied = Disk(ignores_syncs=task.ignores_syncs), 0
    for number, moment in enumerate(chosen):
        for record in run.log[applied : moment + 1]:
            disk.apply(record)
        applied = moment + 1
        strategy = rng.choice(STRATEGIES)
        image, lost = disk.image(rng, strategy)
        where = f"cut {number} after record {moment} of {len(run.log)} ({strategy})"
        yield where, image, lost, _calls_by(run, moment)


def _moment(rng: random.Random, task: Task, moments: list[int]) -> int:
    """Return the moment of a cut: more often soon after a fault, and at the end of a life, where checkpoints are."""
    drawn = rng.random()
    if task.misfortune.fault:
        return moments[-1] if drawn < 0.25 else rng.choice(moments[:SOON] if drawn < 0.75 else moments)
    return rng.choice(moments[-len(moments) // 5 :] if drawn < 0.5 else moments)


def _calls_by(run: Run, moment: int) -> list[Call]:
    """Return the calls that had begun by a moment; those that had not returned have no outcome."""
    record = run.log[: moment + 1]
    ended = {each.handle for each in record if each.operation is Operation.END}
    begun = [each.handle for each in record if each.operation is Operation.BEGIN]
    calls = [(number, run.calls[number - 1]) for number in begun if number <= len(run.calls)]
    return [call if number in ended else call._replace(outcome=None) for number, call in calls]


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory in memory, if there is such a place: a disk under test needs no real disk below it."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        yield Path(directory)
