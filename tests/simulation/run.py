"""Runs seeds, one world each, in one or several processes of the machine."""

from __future__ import annotations

import gc
import logging
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b

from tests.simulation.oracle import Oracle
from tests.simulation.planted import planted as planted_bug
from tests.simulation.world import World

SEEDS_PER_JOB = 100
COLLECT_EVERY_SEEDS = 20


@dataclass
class Report:
    """What some seeds reached; `failures` has the violations by seed."""

    seeds: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: dict[int, list[str]] = field(default_factory=dict)
    digest: str = ""
    """A digest of the log of the last seed, to show that a seed repeats."""

    def add(self, other: Report) -> None:
        """Add the results of other seeds."""
        self.seeds += other.seeds
        self.counts += other.counts
        self.outcomes += other.outcomes
        self.failures |= other.failures
        self.digest = other.digest

    def __str__(self) -> str:
        by_kind: dict[str, list[str]] = defaultdict(list)
        for (kind, label), count in sorted(self.outcomes.items()):
            by_kind[kind].append(f"{label} {count:,}")
        lines = [f"{kind:22} {len(labels):2} outcomes: {', '.join(labels)}" for kind, labels in by_kind.items()]
        counts = ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()))
        rate = 60 * self.seeds / max(self.seconds, 1e-9)
        summary = f"{self.seeds:,} seeds in {self.seconds:.1f} s ({rate:,.0f} a minute), {len(self.failures)} failures"
        return "\n".join([*lines, counts, summary])


def run_seed(seed: int) -> Report:
    """Run and judge one world."""
    world = World(seed)
    try:
        world.run()
        violations = Oracle(world).judge()
    except Exception:
        violations = [*world.violations, *traceback.format_exc().strip().splitlines()[-3:]]
    counts = world.counts + world.faults.counts
    counts["events"], counts["calls"] = len(world.server.rows), len(world.calls)
    counts["callbacks"] = world.scheduler.callbacks
    digest = blake2b(b"".join(row.hash for row in world.server.rows), digest_size=8).hexdigest()
    return Report(1, 0.0, counts, world.outcomes, {seed: violations} if violations else {}, digest)


def run_seeds(seeds: Iterable[int], planted: str | None = None, *, stop_at_failure: bool = False) -> Report:
    """Run worlds one after another."""
    logging.disable(logging.CRITICAL)
    report, started = Report(), time.perf_counter()
    # A killed process runs no `finally`: its coroutines must not be collected while their world runs. What is not of a
    # world is left out of the collections between worlds, which would otherwise take a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.disable()
    unraisable, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with planted_bug(planted):
            for seed in seeds:
                report.add(run_seed(seed))
                if report.seeds % COLLECT_EVERY_SEEDS == 0:
                    gc.collect()
                if stop_at_failure and report.failures:
                    break
        gc.collect()
    finally:
        sys.unraisablehook = unraisable
        gc.enable()
        gc.unfreeze()
        logging.disable(logging.NOTSET)
    report.seconds = time.perf_counter() - started
    return report


def run_in_jobs(first: int, seeds: int, jobs: int, planted: str | None = None, *, stop: bool = False) -> Report:
    """Run the seeds from `first` on in so many processes of the machine."""
    if jobs == 1:
        return run_seeds(range(first, first + seeds), planted, stop_at_failure=stop)
    report, started = Report(), time.perf_counter()
    starts = range(first, first + seeds, SEEDS_PER_JOB)
    with ProcessPoolExecutor(jobs) as pool:
        parts = [
            pool.submit(run_seeds, range(at, min(at + SEEDS_PER_JOB, first + seeds)), planted, stop_at_failure=stop)
            for at in starts
        ]
        for part in parts:
            report.add(part.result())
            if stop and report.failures:
                pool.shutdown(cancel_futures=True)
                break
    report.seconds = time.perf_counter() - started
    return report
