"""Jobs, and callers that pick miners for them. It imports little, because its size counts in a memory measurement."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from random import Random
from uuid import UUID

from routing import Allowance, JobRoute, Routing
from routing.cli.files.job_request import JobRequest


def random_job(random: Random, classes: Sequence[str]) -> JobRequest:
    """Return a job of half a minute to four and a half minutes, of any class."""
    return job_of_class(random, random.choice(classes))


def job_of_class(random: Random, executor_class: str) -> JobRequest:
    """Return such a job of this class."""
    return JobRequest(
        uuid=str(UUID(int=random.getrandbits(128), version=4)),
        executor_class=executor_class,
        download_time_limit=round(random.uniform(2, 20), 3),
        execution_time_limit=round(random.uniform(20, 240), 3),
        upload_time_limit=round(random.uniform(2, 10), 3),
    )


async def pick_all(router: Routing, jobs: Sequence[JobRequest]) -> list[JobRoute]:
    """Pick for one job after the other, as one caller."""
    return [await router.pick_miner_for_job_request(job) for job in jobs]


async def pick_at_once(router: Routing, jobs: Sequence[JobRequest], callers: int) -> list[JobRoute]:
    """Pick for all jobs, by this many callers at once."""
    routes = await asyncio.gather(*(pick_all(router, jobs[first::callers]) for first in range(callers)))
    return [route for each in routes for route in each]


async def release_all(ledger: Allowance, routes: Iterable[JobRoute]) -> None:
    """Release the reservations of the routes."""
    ids = [route.allowance_reservation_id for route in routes]
    await asyncio.gather(*(ledger.release(each) for each in ids if each is not None))


async def pick_seconds(ledger: Allowance, jobs: Sequence[JobRequest], callers: int) -> float:
    """Return how long it takes to pick for all jobs, by this many callers at once; release them afterwards."""
    began = time.perf_counter()
    routes = await pick_at_once(Routing(ledger), jobs, callers)
    seconds = time.perf_counter() - began
    await release_all(ledger, routes)
    return seconds
