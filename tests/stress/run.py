"""One run: starts the processes, kills some of them, retries every unfinished call, and passes the log to the judge."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from ledger import current_runtime
from routing import Allowance, AllowanceException, BlockFact, ManifestsFact

from . import network, reader, worker
from .databases import Database
from .diary import Call, calls
from .judge import judge
from .operations import attempt
from .plan import Plan
from .replay import Finding

STARTING_SECONDS = 60.0
STOPPING_SECONDS = 60.0
NO_PROGRESS_SECONDS = 4.0
BUSY_DIARY_BYTES = 3_000
"""A worker with a diary of this size has made about twenty calls, so that killing it can interrupt something."""
PATIENCE = 5
"""How many times longer than planned a run may last on a slow machine, if it has to reach a number of kills."""
POLL_SECONDS = 0.05
COUNTING_SHARE = 50
"""Counting the claims of a long log is slow, so the pause after a count is this many times as long as the count."""
LAZY_IMPORTS = (
    "aiosqlite",
    "asyncpg",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "ledger.store.postgres.store",
    "ledger.store.sqlite.store",
    "ledger.store.tables",
    "projections.tables",
)
"""Modules that the product imports when it first needs them. The fork server preloads them, so that a replacement of a
killed worker begins to work at once."""


@dataclass
class Report:
    """What a run did, and what is wrong with its log."""

    seed: int
    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    claims: int = 0
    """How many of the rows are reservations."""
    kills: int = 0
    disturbances: int = 0
    retried: int = 0
    """Calls whose outcome was unknown, and that the harness repeated with their job or key."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """The number of calls by operation and outcome, as in "pick: done"."""

    @property
    def kinds(self) -> set[str]:
        """The kinds of the findings."""
        return {finding.kind for finding in self.findings}

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.rows} rows, {self.claims} claims, {self.kills} processes killed,"
            f" {self.disturbances} disturbances, {self.retried} calls retried",
            *(f"  {count:7} {outcome}" for outcome, count in sorted(self.outcomes.items())),
            f"{len(self.findings)} findings {sorted(self.kinds)}",
            *(f"  {finding.kind}: {finding.detail[:500]}" for finding in self.findings[:20]),
        ]
        return "\n".join(lines)


def run_stress_test(plan: Plan, database: Database) -> Report:
    """Run the plan. The report has no findings if the ledger kept every promise."""
    rng = random.Random(plan.seed)
    report = Report(plan.seed)
    plan.diaries.mkdir(parents=True)
    current_runtime().run_blocking(_make_ledger(plan))
    if plan.fault is not None:
        database.drop_constraints()
    processes = _Processes(plan)
    try:
        processes.start()
        _kill_and_disturb(plan, database, processes, report, rng)
        processes.stop_workers(report)
        # Before the reader stops: it must receive the events of the retries too.
        made = current_runtime().run_blocking(_calls_with_outcomes(plan, report))
        processes.stop_reader(report)
    finally:
        processes.kill_all()
    rows = database.rows()
    report.rows = len(rows)
    report.claims = sum(b'"allowance-reserved"' in row.payload for row in rows)
    report.outcomes = Counter(_outcome(call) for call in made)
    report.findings += judge(rows, made, plan.received)
    return report


async def _make_ledger(plan: Plan) -> None:
    """Make the ledger and record the first blocks."""
    async with Allowance.open(plan.url, validator_ss58=network.ME, settings=network.SETTINGS) as ledger:
        blocks = [
            BlockFact(n, network.created_at(n), network.miners(n, plan.miners), network.STAKES)
            for n in range(1, network.FIRST_BLOCKS + 1)
        ]
        sync = ManifestsFact(1, network.manifests(1, plan.miners, plan.seed))
        await ledger.record_facts([sync, *blocks])


async def _calls_with_outcomes(plan: Plan, report: Report) -> list[Call]:
    """Return all calls. If the outcome of one is unknown, retry it: its job or key makes the retry safe."""
    made = list(calls(plan.diaries))
    try:
        async with Allowance.open(plan.url, validator_ss58=network.ME) as ledger:
            for index, call in enumerate(made):
                if call.unknown:
                    outcome = await attempt(plan, ledger, 0, call.request)
                    made[index] = call._replace(outcome=outcome, retried=True)
                    report.retried += 1
    except AllowanceException as damaged:
        report.findings.append(Finding("broken", f"the ledger cannot be opened any more: {damaged!r}"))
    return made


def _kill_and_disturb(
    plan: Plan, database: Database, processes: _Processes, report: Report, rng: random.Random
) -> None:
    """Kill and disturb until the time is over, the claims are made, or a fault has stopped all progress."""
    began = progressed = counted = time.monotonic()
    claims = 0
    while (now := time.monotonic()) < began + plan.seconds * (PATIENCE if _must_continue(plan, report) else 1):
        if report.kills < (now - began) * plan.kills_per_second - 1:
            report.kills += processes.kill_one(rng)
        if report.disturbances < (now - began) * plan.disturbances_per_second - 1:
            database.disturb(rng)
            report.disturbances += 1
        if plan.claims is not None and now > counted:
            if (stored := database.claims()) != claims or not claims:
                claims, progressed = stored, now
            counted = time.monotonic() + COUNTING_SHARE * (time.monotonic() - now)
        if plan.claims is not None and claims >= plan.claims and report.kills >= plan.least_kills:
            return
        if plan.fault and now > progressed + NO_PROGRESS_SECONDS:
            return
        processes.replace_dead(report)
        time.sleep(POLL_SECONDS)


def _must_continue(plan: Plan, report: Report) -> bool:
    """Whether the run continues after its time, because it has not killed enough processes yet."""
    return bool(plan.least_kills) or (plan.kills_per_second > 0 and not report.kills)


def _outcome(call: Call) -> str:
    outcome = call.outcome
    if outcome is None or (outcome.result is None and outcome.refused is None):
        return f"{call.request.operation}: {'unknown' if outcome is None or outcome.broken is None else 'broken'}"
    return f"{call.request.operation}: {outcome.refused or 'done'}"


class _Processes:
    """The processes of a run. They are forks of a server process that has imported everything and opened nothing."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._workers: dict[int, BaseProcess] = {}
        self._reader: BaseProcess | None = None
        self._lives = 0
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([worker.__name__, reader.__name__, *LAZY_IMPORTS])

    def start(self) -> None:
        """Start the reader and all workers, and wait until each worker has begun its diary."""
        self._reader = self._process(reader.main, "reader", self._plan)
        for index in range(self._plan.processes):
            self._start_worker(index)
        deadline = time.monotonic() + STARTING_SECONDS
        while not all(self._has_diary(index) or self._died(index) for index in self._workers):
            if time.monotonic() > deadline:
                raise TimeoutError("the workers did not start")
            time.sleep(POLL_SECONDS)

    def kill_one(self, rng: random.Random) -> bool:
        """Kill a busy worker and start another one; return False if no worker is busy."""
        busy = [index for index in self._workers if self._has_diary(index, BUSY_DIARY_BYTES)]
        if not busy:
            return False
        index = rng.choice(busy)
        self._workers[index].kill()
        self._workers[index].join()
        self._start_worker(index)
        return True

    def replace_dead(self, report: Report) -> None:
        """Report each worker that the harness did not kill but that died, and start another one."""
        for index in self._workers:
            if self._died(index):
                report.findings.append(Finding("worker died", self._last_words(index)))
                self._start_worker(index)

    def stop_workers(self, report: Report) -> None:
        """Let each worker finish its calls."""
        for process in self._workers.values():
            process.terminate()
        for index, process in self._workers.items():
            process.join(STOPPING_SECONDS)
            if process.exitcode != 0 and self._has_diary(index):
                report.findings.append(Finding("worker died", self._last_words(index)))

    def stop_reader(self, report: Report) -> None:
        """Let the reader read to the end of the log."""
        assert self._reader is not None
        self._reader.terminate()
        self._reader.join(STOPPING_SECONDS)
        if self._reader.exitcode != 0:
            errors = self._plan.errors(self._reader.name).read_text()
            report.findings.append(Finding("reader", f"exit {self._reader.exitcode}: {errors[-2000:]}"))

    def kill_all(self) -> None:
        """Kill every process that is still running."""
        for process in (*self._workers.values(), self._reader):
            if process is not None:
                process.kill()
                process.join()

    def _start_worker(self, index: int) -> None:
        self._lives += 1
        self._workers[index] = self._process(worker.main, f"worker-{index}-{self._lives:04}", self._plan)

    def _process(self, main: Callable[[Plan, str], None], name: str, plan: Plan) -> BaseProcess:
        process = self._context.Process(target=main, args=(plan, name), name=name, daemon=True)
        process.start()
        return process

    def _died(self, index: int) -> bool:
        return not self._workers[index].is_alive()

    def _has_diary(self, index: int, least_bytes: int = 0) -> bool:
        """Whether a worker has a diary of this size. Before it has one, it ignores every signal except SIGKILL."""
        diary = self._diary(index)
        return diary.exists() and diary.stat().st_size >= least_bytes

    def _diary(self, index: int) -> Path:
        return self._plan.diaries / f"{self._workers[index].name}.jsonl"

    def _last_words(self, index: int) -> str:
        process = self._workers[index]
        return f"{process.name}, exit {process.exitcode}: {self._plan.errors(process.name).read_text()[-2000:]}"
