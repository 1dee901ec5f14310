"""The draw among equals, worked out a second time: a router that draws otherwise is found out."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import gcd


def drawn_places(count: int, job_uuid: str) -> Iterator[int]:
    """The order in which a job tries so many equals: where its digest says, and on in even steps that meet them all."""
    drawn = int.from_bytes(blake2b(job_uuid.encode(), digest_size=16).digest(), "big")
    first = drawn % count
    yield first
    step = drawn // count % count
    while gcd(step, count) > 1:
        step += 1
    for tried in range(1, count):
        yield (first + tried * step) % count
