"""The demo's jobs, and the callers that route and settle them all at once."""

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
ASKS_TWICE_EVERY = 50


class JobOutcome(Enum):
    """What a caller does once its job is routed."""

    SPEND = "spend"
    RELEASE = "release"
    LEAVE = "leave"


class Job(NamedTuple):
    """A request, how it ends, and whether its caller asks twice, as after a lost answer."""

    request: JobRequest
    ending: JobOutcome
    asks_twice: bool


class Clock:
    """A clock that moves only when it is told to; gives nanoseconds since the epoch."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, step_ns: int) -> None:
        """Lets time pass."""
        self.now_ns += step_ns


@dataclass
class Traffic:
    """What became of the jobs. Latencies are seconds that a caller waited for its route."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    settled: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    asked_twice: int = 0
    answered_differently: int = 0

    @property
    def picks_per_second(self) -> float:
        """Jobs routed or refused, a second."""
        return len(self.latencies) / max(self.seconds, 1e-9)

    def latency(self, share: float) -> float:
        """The time within which this share of the callers was answered."""
        if not self.latencies:
            return 0.0
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def draw_jobs(seed: int, count: int, classes: Sequence[str]) -> Iterator[Job]:
    """Draws jobs: some classes are wanted more than others, most jobs run and are paid."""
    random = Random(f"jobs {seed}")
    weights = [2.0**-place for place in range(len(classes))]
    for number in range(count):
        request = JobRequest(
            uuid=str(UUID(int=random.getrandbits(128), version=4)),
            executor_class=random.choices(classes, weights)[0],
            download_time_limit=round(random.uniform(2, 20), 3),
            execution_time_limit=round(random.uniform(20, 240), 3),
            upload_time_limit=round(random.uniform(2, 10), 3),
        )
        (ending,) = random.choices(tuple(JobOutcome), (86, 10, 4))
        yield Job(request, ending, asks_twice=number % ASKS_TWICE_EVERY == 0)


async def route_and_settle(
    ledger: Allowance, jobs: Iterator[Job], clock: Clock, *, callers: int, on_job: Callable[[int], None]
) -> Traffic:
    """Lets callers take the jobs one after the other, each as soon as it is done with the one before."""
    traffic = Traffic()
    router = Routing(ledger)

    async def caller() -> None:
        for job in jobs:
            clock.advance(CLOCK_STEP_NS)
            await _serve(ledger, router, job, traffic)
            on_job(len(traffic.latencies))

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
    except ExceptionGroup as failures:
        # What stopped one caller stops the demo, under its own name.
        raise failures.exceptions[0] from failures
    traffic.seconds = time.perf_counter() - started
    return traffic


async def _serve(ledger: Allowance, router: Routing, job: Job, traffic: Traffic) -> None:
    asked = time.perf_counter()
    try:
        route = await router.pick_miner_for_job_request(job.request)
    except (NotEnoughAllowanceException, JobRoutingException) as refusal:
        traffic.refused[type(refusal).__name__] += 1
        return
    finally:
        traffic.latencies.append(time.perf_counter() - asked)
    if job.asks_twice:
        again = await router.pick_miner_for_job_request(job.request)
        traffic.asked_twice += 1
        traffic.answered_differently += again != route
    await _settle(ledger, route.allowance_reservation_id, job.ending)
    traffic.settled[job.ending.value] += 1


async def _settle(ledger: Allowance, reservation_id: int | None, ending: JobOutcome) -> None:
    if reservation_id is None:
        return
    if ending is JobOutcome.SPEND:
        await ledger.spend(reservation_id)
    elif ending is JobOutcome.RELEASE:
        await ledger.release(reservation_id)
