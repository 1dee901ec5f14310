"""The draw among equals, worked out a second time: a router that draws otherwise is found out."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import gcd


def tie_break_number(job_uuid: str) -> int:
    """What a job draws with: its digest."""
    return int.from_bytes(blake2b(job_uuid.encode(), digest_size=16).digest(), "big")


def later_places(count: int, drawn: int) -> Iterator[int]:
    """Which of so many equals a job tries after the one at `drawn % count`: in even steps that meet them all."""
    step = drawn // count % count
    while gcd(step, count) > 1:
        step += 1
    return ((drawn + tried * step) % count for tried in range(1, count))
