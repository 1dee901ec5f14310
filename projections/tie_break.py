"""The order in which a job tries its candidates: best first, and among equals as the job's uuid draws."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b
from math import gcd
from typing import Any, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])


def in_trial_order(entries: list[T], amount_ns: int, job_uuid: str) -> Iterator[T]:
    """The ranked entries with at least the amount, in the order in which this job tries them.

    Each begins with its earliest block, its share left and its available ns, the last two as negative numbers.

    Entries with equal earliest block and equal share left stand in an order drawn from the job's uuid, so that
    routers at work at once do not all run into the same miner. The draw is pure: it can be replayed.
    """
    seed: int | None = None
    start, after = 0, len(entries)
    while start < after:
        entry = entries[start]
        equals = entry[:2]
        if start + 1 == after or entries[start + 1][:2] != equals:
            # Nobody equals it, as is usual once a class is in use.
            start += 1
            if -entry[2] >= amount_ns:
                yield entry
            continue
        end = bisect_left(entries, (*equals, 1), start)
        # Equals are ordered by what is available, so those with enough come first.
        enough = bisect_left(entries, (*equals, 1 - amount_ns), start, end)
        if enough - start == 1:
            yield entries[start]
        elif enough > start:
            seed = tie_break_seed(job_uuid) if seed is None else seed
            for place in permutation(enough - start, seed):
                yield entries[start + place]
        start = end


def tie_break_seed(job_uuid: str) -> int:
    """What a job's uuid draws with: 128 bits of its digest."""
    return int.from_bytes(blake2b(job_uuid.encode(), digest_size=16).digest(), "big")


def permutation(count: int, seed: int) -> Iterator[int]:
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
