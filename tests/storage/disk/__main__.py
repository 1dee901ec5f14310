"""The command: `python -m tests.storage.disk --help`."""

from __future__ import annotations

import argparse
import os
import random
import sys

import msgspec

from .life import SCRIPTS, Misfortune
from .plan import Task, Verdict, cut_tasks
from .plants import PLANTS
from .preload import CannotRun, Fault
from .run import Report, Workers, all_tasks, workers


def main() -> int:
    """Run all faults and cuts, or one task; return 1 if there are violations, 2 if it cannot run."""
    arguments = _parser().parse_args()
    sys.stderr.write(f"seed {arguments.seed}\n")
    try:
        with workers(arguments.jobs) as running:
            report = running.run(_tasks(running, arguments), arguments.seed, _show)
    except CannotRun as reason:
        sys.stderr.write(f"{reason}\n")
        return 2
    sys.stdout.write(f"{report}\n")
    return 1 if report.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.storage.disk", description="Tests a ledger on a disk that fails and loses data."
    )
    parser.add_argument("--cuts", type=int, default=10_000, help="power cuts of lives without a fault")
    parser.add_argument("--no-faults", action="store_true", help="only cut the power")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    one = parser.add_argument_group("one life only")
    one.add_argument("--script", choices=sorted(SCRIPTS))
    one.add_argument("--fault", choices=[fault.name for fault in Fault], default=Fault.NONE.name)
    one.add_argument("--index", type=int, default=0, help="of the system call that meets the fault")
    one.add_argument("--killed-after", action="store_true", help="kill all processes after the faulty call")
    one.add_argument("--death", type=int, default=0, help="the index of the system call at which its process dies")
    parser.add_argument("--ignores-syncs", action="store_true", help="a control: the disk keeps nothing for a sync")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a defect that all processes have")
    return parser


def _tasks(running: Workers, arguments: argparse.Namespace) -> list[Task]:
    cuts, seed = arguments.cuts, arguments.seed
    if arguments.script is not None:
        fault, index = Fault[arguments.fault], arguments.index
        misfortune = Misfortune(fault, index, killed_after=arguments.killed_after, death=arguments.death)
        tasks = [Task(arguments.script, misfortune, cuts, seed)]
    else:
        tasks = list(cut_tasks(cuts, seed)) if arguments.no_faults else all_tasks(running, cuts, seed, arguments.plant)
    defects = {"ignores_syncs": arguments.ignores_syncs, "plant": arguments.plant}
    return [msgspec.structs.replace(task, **defects) for task in tasks]


def _show(report: Report, verdict: Verdict) -> None:
    """Show violations as they come, since a full run takes a quarter of an hour."""
    if verdict.violations:
        sys.stderr.write(f"{verdict.task.command}\n    {verdict.violations[0]}\n")
    if report.runs % 100 == 0:
        sys.stderr.write(f"{report.runs} runs, {report.cuts} cuts, {len(report.findings)} violations\n")


if __name__ == "__main__":
    sys.exit(main())
