"""The demo's jobs, and the concurrent callers that route and settle them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import NamedTuple
from uuid import UUID

from routing import Allowance, JobRoutingException, NotEnoughAllowanceException, Routing
from routing.cli.files.job_request import JobRequest

CLOCK_STEP_NS = 20_000_000
"""How far the demo's clock moves per job."""
RETRY_EVERY = 50
"""One job in this many is routed twice, to show that retrying is safe."""


class JobOutcome(Enum):
    """What a caller does after its job was routed; `LEAVE`: nothing, as if the caller had crashed."""

    SPEND = "spend"
    RELEASE = "release"
    LEAVE = "leave"


class Job(NamedTuple):
    """A request, what its caller does afterwards, and whether the caller retries, as after a lost connection."""

    request: JobRequest
    outcome: JobOutcome
    is_retried: bool


class Clock:
    """A clock that moves only by `advance`; a call returns nanoseconds since the epoch."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns: int = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, step_ns: int) -> None:
        """Move the clock forward."""
        self.now_ns += step_ns


@dataclass
class Traffic:
    """The outcome of all jobs. `latencies` are the seconds that a caller waited for its route."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    settled: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    asked_twice: int = 0
    answered_differently: int = 0

    @property
    def picks_per_second(self) -> float:
        """Jobs per second, routed or refused."""
        return len(self.latencies) / max(self.seconds, 1e-9)

    def latency(self, share: float) -> float:
        """Return the quantile of the latencies, in seconds: 0.5 is the median."""
        if not self.latencies:
            return 0.0
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def draw_jobs(seed: int, count: int, classes: Sequence[str]) -> Iterator[Job]:
    """Yield random jobs, the same for the same seed: each class is half as frequent as the one before it."""
    random = Random(f"jobs {seed}")
    weights = [2.0**-rank for rank in range(len(classes))]
    for number in range(count):
        request = JobRequest(
            uuid=str(UUID(int=random.getrandbits(128), version=4)),
            executor_class=random.choices(classes, weights)[0],
            download_time_limit=round(random.uniform(2, 20), 3),
            execution_time_limit=round(random.uniform(20, 240), 3),
            upload_time_limit=round(random.uniform(2, 10), 3),
        )
        # In percent: most jobs run, some fail, and a few callers never return.
        (outcome,) = random.choices(tuple(JobOutcome), (86, 10, 4))
        yield Job(request, outcome, is_retried=number % RETRY_EVERY == 0)


async def route_and_settle(
    ledger: Allowance, jobs: Iterator[Job], clock: Clock, *, callers: int, on_job: Callable[[int], None]
) -> Traffic:
    """Route and settle all jobs; each caller starts its next job as soon as its previous one is settled.

    `on_job` is called after each job with the number of jobs done.
    """
    traffic = Traffic()
    router = Routing(ledger)

    async def caller() -> None:
        # All callers share one iterator, so that each job is run once.
        for job in jobs:
            clock.advance(CLOCK_STEP_NS)
            await _route_and_settle_one(ledger, router, job, traffic)
            on_job(len(traffic.latencies))

    started_at = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
    except ExceptionGroup as failures:
        # Report the error of the first caller itself: users know its class, not that of a group.
        raise failures.exceptions[0] from failures
    traffic.seconds = time.perf_counter() - started_at
    return traffic


async def _route_and_settle_one(ledger: Allowance, router: Routing, job: Job, traffic: Traffic) -> None:
    asked_at = time.perf_counter()
    try:
        route = await router.pick_miner_for_job_request(job.request)
    except (NotEnoughAllowanceException, JobRoutingException) as refusal:
        traffic.refused[type(refusal).__name__] += 1
        return
    finally:
        traffic.latencies.append(time.perf_counter() - asked_at)
    if job.is_retried:
        again = await router.pick_miner_for_job_request(job.request)
        traffic.asked_twice += 1
        traffic.answered_differently += again != route
    await _settle(ledger, route.allowance_reservation_id, job.outcome)
    traffic.settled[job.outcome.value] += 1


async def _settle(ledger: Allowance, reservation_id: int | None, outcome: JobOutcome) -> None:
    if reservation_id is None:
        return
    if outcome is JobOutcome.SPEND:
        await ledger.spend(reservation_id)
    elif outcome is JobOutcome.RELEASE:
        await ledger.release(reservation_id)
