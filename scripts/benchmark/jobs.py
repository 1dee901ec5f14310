"""Jobs to be routed, and callers that have them routed; light, since the process whose memory is watched loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from random import Random
from uuid import UUID

from routing import Allowance, JobRoute, Routing
from routing.cli.files.job_request import JobRequest


def draw_job(random: Random, classes: Sequence[str]) -> JobRequest:
    """A job of half a minute to four and a half, of any class."""
    return JobRequest(
        uuid=str(UUID(int=random.getrandbits(128), version=4)),
        executor_class=random.choice(classes),
        download_time_limit=round(random.uniform(2, 20), 3),
        execution_time_limit=round(random.uniform(20, 240), 3),
        upload_time_limit=round(random.uniform(2, 10), 3),
    )


async def pick_all(router: Routing, jobs: Sequence[JobRequest]) -> list[JobRoute]:
    """One caller's picks, one after the other."""
    return [await router.pick_miner_for_job_request(job) for job in jobs]


async def pick_at_once(router: Routing, jobs: Sequence[JobRequest], callers: int) -> list[JobRoute]:
    """The jobs' routes, picked by so many callers at once."""
    routes = await asyncio.gather(*(pick_all(router, jobs[first::callers]) for first in range(callers)))
    return [route for each in routes for route in each]


async def release_all(ledger: Allowance, routes: Iterable[JobRoute]) -> None:
    """Gives back what the routes reserved."""
    ids = [route.allowance_reservation_id for route in routes]
    await asyncio.gather(*(ledger.release(each) for each in ids if each is not None))
