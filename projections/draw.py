"""The order in which a job tries its candidates: best first, and among equals as the job's uuid draws."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b
from math import gcd

from .availability import Entry


def drawn(entries: list[Entry], amount_ns: int, job_uuid: str) -> Iterator[Entry]:
    """The ranked entries with at least the amount, in the order in which this job tries them.

    Entries with equal earliest block and equal share left stand in an order drawn from the job's uuid, so that
    routers at work at once do not all run into the same miner. The draw is pure: it can be replayed.
    """
    seed = int.from_bytes(blake2b(job_uuid.encode(), digest_size=16).digest(), "big")
    start = 0
    while start < len(entries):
        equals = entries[start][:2]
        end = bisect_left(entries, (*equals, 1), start)
        # Equals are ordered by what is available, so those with enough come first.
        enough = bisect_left(entries, (*equals, 1 - amount_ns), start, end)
        for place in permuted(enough - start, seed):
            yield entries[start + place]
        start = end


def permuted(count: int, seed: int) -> Iterator[int]:
    """The numbers below `count` in an order that depends on the seed: steps of a stride that shares no factor."""
    if not count:
        return
    at = seed % count
    stride = seed // count % count
    while gcd(stride, count) != 1:
        stride += 1
    for _ in range(count):
        yield at
        at = (at + stride) % count
