"""Starts the processes, kills some of them, asks what became of every unfinished call, and has the log judged."""

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
from .operations import attempt
from .plan import Plan
from .replay import Finding
from .verdict import verdict

STARTING_SECONDS = 60.0
STOPPING_SECONDS = 60.0
HALTED_SECONDS = 4.0
SETTLED_IN_BYTES = 3_000
"""A worker whose diary is that long is worth killing: it has made some twenty calls."""
PATIENCE = 5
"""On a slow machine a run that has to reach something lasts so many times as long."""
POLL_SECONDS = 0.05
COUNTING_SHARE = 50
"""Counting the claims of a long log takes its time: so many times as long nobody counts."""
LOADED_LATE = (
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
"""What the product imports when it first needs it; a worker that was killed would else spend its next life on that."""


@dataclass
class Report:
    """What a run did, and what is wrong with what it left."""

    seed: int
    findings: list[Finding] = field(default_factory=list)
    rows: int = 0
    claims: int = 0
    """Reservations among the rows."""
    kills: int = 0
    disturbances: int = 0
    asked_again: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """How many calls ended how: by operation and answer or refusal."""

    @property
    def kinds(self) -> set[str]:
        """The kinds of findings."""
        return {finding.kind for finding in self.findings}

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.rows} rows, {self.claims} claims, {self.kills} processes killed,"
            f" {self.disturbances} disturbances, {self.asked_again} calls asked about again",
            *(f"  {count:7} {end}" for end, count in sorted(self.ends.items())),
            f"{len(self.findings)} findings {sorted(self.kinds)}",
            *(f"  {finding.kind}: {finding.detail[:500]}" for finding in self.findings[:20]),
        ]
        return "\n".join(lines)


def torture(plan: Plan, database: Database) -> Report:
    """Runs the plan; the report's findings are empty where the ledger kept every promise."""
    rng = random.Random(plan.seed)
    report = Report(plan.seed)
    plan.diaries.mkdir(parents=True)
    current_runtime().run_blocking(_begin(plan))
    if plan.fault is not None:
        database.strip()
    company = _Company(plan)
    try:
        company.start()
        _stir(plan, database, company, report, rng)
        company.stop_workers(report)
        known = current_runtime().run_blocking(_asked_again(plan, report))
        company.stop_reader(report)
    finally:
        company.kill_all()
    rows = database.rows()
    report.rows = len(rows)
    report.claims = sum(b'"allowance-reserved"' in row.payload for row in rows)
    report.ends = Counter(_end(call) for call in known)
    report.findings += verdict(rows, known, plan.received)
    return report


async def _begin(plan: Plan) -> None:
    """Opens the ledger and records the first blocks."""
    async with Allowance.open(plan.url, validator_ss58=network.ME, settings=network.SETTINGS) as ledger:
        blocks = [
            BlockFact(n, network.created_at(n), network.miners(n, plan.miners), network.STAKES)
            for n in range(1, network.FIRST_BLOCKS + 1)
        ]
        sync = ManifestsFact(1, network.manifests(1, plan.miners, plan.seed))
        await ledger.record_facts([sync, *blocks])


async def _asked_again(plan: Plan, report: Report) -> list[Call]:
    """All calls; those whose end is unknown are made once more, with the same job or key, which tells."""
    known = list(calls(plan.diaries))
    try:
        async with Allowance.open(plan.url, validator_ss58=network.ME) as ledger:
            for at, call in enumerate(known):
                if call.unknown:
                    outcome = await attempt(plan, ledger, 0, call.wish)
                    known[at] = call._replace(outcome=outcome, asked_again=True)
                    report.asked_again += 1
    except AllowanceException as damaged:
        report.findings.append(Finding("broken", f"the ledger cannot be opened any more: {damaged!r}"))
    return known


def _stir(plan: Plan, database: Database, company: _Company, report: Report, rng: random.Random) -> None:
    """Kills and disturbs until the time is up, the claims are made, or a fault has brought everything to a halt."""
    began = moved = counted = time.monotonic()
    claims = 0
    while (now := time.monotonic()) < began + plan.seconds * (PATIENCE if _waited_for(plan, report) else 1):
        if report.kills < (now - began) * plan.kills_per_second - 1:
            report.kills += company.kill_one(rng)
        if report.disturbances < (now - began) * plan.disturbances_per_second - 1:
            database.disturb(rng)
            report.disturbances += 1
        if plan.claims is not None and now > counted:
            if (stored := database.claims()) != claims or not claims:
                claims, moved = stored, now
            counted = time.monotonic() + COUNTING_SHARE * (time.monotonic() - now)
        if plan.claims is not None and claims >= plan.claims and report.kills >= plan.least_kills:
            return
        if plan.fault and now > moved + HALTED_SECONDS:
            return
        company.look_after(report)
        time.sleep(POLL_SECONDS)


def _waited_for(plan: Plan, report: Report) -> bool:
    """Whether a run that takes longer than it should goes on."""
    return bool(plan.least_kills) or (plan.kills_per_second > 0 and not report.kills)


def _end(call: Call) -> str:
    outcome = call.outcome
    if outcome is None or (outcome.answer is None and outcome.refused is None):
        return f"{call.wish.what}: {'unknown' if outcome is None or outcome.broken is None else 'broken'}"
    return f"{call.wish.what}: {outcome.refused or 'done'}"


class _Company:
    """The processes of a run. They are forked from one that has imported everything and opened nothing."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._workers: dict[int, BaseProcess] = {}
        self._reader: BaseProcess | None = None
        self._lives = 0
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([worker.__name__, reader.__name__, *LOADED_LATE])

    def start(self) -> None:
        """Starts the reader and all workers, and waits until they are at work."""
        self._reader = self._process(reader.main, "reader", self._plan)
        for index in range(self._plan.processes):
            self._start_worker(index)
        give_up = time.monotonic() + STARTING_SECONDS
        while not all(self._at_work(index) or self._died(index) for index in self._workers):
            if time.monotonic() > give_up:
                raise TimeoutError("the workers did not start")
            time.sleep(POLL_SECONDS)

    def kill_one(self, rng: random.Random) -> bool:
        """Kills a worker in the middle of whatever it does, and starts another in its place; whether there was one."""
        at_work = [index for index in self._workers if self._at_work(index, SETTLED_IN_BYTES)]
        if not at_work:
            return False
        index = rng.choice(at_work)
        self._workers[index].kill()
        self._workers[index].join()
        self._start_worker(index)
        return True

    def look_after(self, report: Report) -> None:
        """Notes a worker that died by itself, and starts another in its place."""
        for index in self._workers:
            if self._died(index):
                report.findings.append(Finding("worker died", self._last_words(index)))
                self._start_worker(index)

    def stop_workers(self, report: Report) -> None:
        """Has each worker finish what it does."""
        for process in self._workers.values():
            process.terminate()
        for index, process in self._workers.items():
            process.join(STOPPING_SECONDS)
            if process.exitcode != 0 and self._at_work(index):
                report.findings.append(Finding("worker died", self._last_words(index)))

    def stop_reader(self, report: Report) -> None:
        """Has the reader read to the end."""
        assert self._reader is not None
        self._reader.terminate()
        self._reader.join(STOPPING_SECONDS)
        if self._reader.exitcode != 0:
            errors = self._plan.errors(self._reader.name).read_text()
            report.findings.append(Finding("reader", f"exit {self._reader.exitcode}: {errors[-2000:]}"))

    def kill_all(self) -> None:
        """Leaves no process behind."""
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

    def _at_work(self, index: int, written: int = 0) -> bool:
        """Whether it has a diary, so long; before that it heeds no signal but SIGKILL."""
        diary = self._diary(index)
        return diary.exists() and diary.stat().st_size >= written

    def _diary(self, index: int) -> Path:
        return self._plan.diaries / f"{self._workers[index].name}.jsonl"

    def _last_words(self, index: int) -> str:
        process = self._workers[index]
        return f"{process.name}, exit {process.exitcode}: {self._plan.errors(process.name).read_text()[-2000:]}"
