"""The tie-break: the order in which a job tries candidates that are equally good, computed from a seed.

Rule: of the candidates with equal earliest block and equal share left, those with the amount are in order of available
amount and hotkey; the job tries them in the order of `permutation`. Its seed is a digest of the job's uuid and of the
hash of the newest block, so whoever chooses the uuid does not choose the miner. Source: this project's own rule. The
audit repeats it in code of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b
from math import gcd
from typing import Any, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])


def in_trial_order(entries: list[T], amount_ns: int, job_uuid: str, block_hash: bytes) -> Iterator[T]:
    """Yield the entries with at least the amount, best first, in the order in which this job tries them.

    `entries` are sorted tuples that begin with the earliest block, minus the share left, and minus the available ns.
    Entries with equal earliest block and equal share left are tried in an order that depends on the job's uuid, so
    that routers that work at the same time do not all try the same miner first, and on `block_hash`, which is that of
    the newest block (`Chain.tie_break_hash`; empty if the order depends on the uuid alone). It depends on nothing
    else, so that the choice can be replayed.
    """
    seed: int | None = None
    start, after = 0, len(entries)
    while start < after:
        entry = entries[start]
        equals = entry[:2]
        if start + 1 == after or entries[start + 1][:2] != equals:
            # No equals, which is usual once a class is in use: the two searches below are not needed.
            start += 1
            if -entry[2] >= amount_ns:
                yield entry
            continue
        # Available amounts are stored as negative numbers, so 1 is above all of them.
        end = bisect_left(entries, (*equals, 1), start)
        # Equals are sorted by available amount, descending, so those with enough come first.
        enough = bisect_left(entries, (*equals, 1 - amount_ns), start, end)
        if enough - start == 1:
            yield entries[start]
        elif enough > start:
            seed = tie_break_seed(job_uuid, block_hash) if seed is None else seed
            for index in permutation(enough - start, seed):
                yield entries[start + index]
        start = end


def tie_break_seed(job_uuid: str, block_hash: bytes) -> int:
    """Return the seed of a job's tie-break: BLAKE2b-128, as an integer, of its uuid, a zero byte and a block's hash.

    Without a hash it is that of the uuid alone, as in all logs of earlier releases.
    """
    content = job_uuid.encode() + b"\0" + block_hash if block_hash else job_uuid.encode()
    return int.from_bytes(blake2b(content, digest_size=16).digest(), "big")


def permutation(count: int, seed: int) -> Iterator[int]:
    """Yield the numbers below `count` in an order that depends on the seed.

    It starts at seed mod count and goes on in steps of the first number from (seed div count) mod count on that is
    coprime to count, so it meets every number once. Unlike a shuffle it costs nothing for numbers that nobody asks for.
    """
    if not count:
        return
    at = seed % count
    stride = seed // count % count
    while gcd(stride, count) != 1:
        stride += 1
    for _ in range(count):
        yield at
        at = (at + stride) % count
