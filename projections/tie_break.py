"""The tie-break: the order in which a job tries candidates that are equally good, computed from a seed.

Rule: of the candidates with equal earliest block and equal share left, those with the amount are in order of available
amount and hotkey; the job tries them in the order of `permutation`. Its seed is a digest of the job's uuid and of the
hash of the newest block, so whoever chooses the uuid does not choose the miner. Source: this project's own rule. The
audit repeats it in code of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from math import gcd
from typing import TypeVar

T = TypeVar("T")


def in_trial_order(groups: Iterable[tuple[list[T], int, int]], job_uuid: str, block_hash: bytes) -> Iterator[T]:
    """Yield the entries of groups of equals in the order in which this job tries them.

    A group is a list, the index of its first entry, and how many entries from there on have the amount. These are tried
    in an order that depends on the job's uuid, so that routers that work at the same time do not all try the same miner
    first, and on `block_hash`, which is that of the newest block (`Chain.tie_break_hash`; empty if the order depends on
    the uuid alone). It depends on nothing else, so that the choice can be replayed.
    """
    seed: int | None = None
    for entries, start, enough in groups:
        # Mostly there are no equals once a class is in use.
        if enough == 1:
            yield entries[start]
        elif enough > 1:
            seed = tie_break_seed(job_uuid, block_hash) if seed is None else seed
            for index in permutation(enough, seed):
                yield entries[start + index]


def tie_break_seed(job_uuid: str, block_hash: bytes) -> int:
    """Return the seed of a job's tie-break: BLAKE2b-128, as an integer, of its uuid, a zero byte and a block's hash.

    Without a hash it is that of the uuid alone, as in all logs of earlier releases.
    """
    return int.from_bytes(tie_break_digest(job_uuid, block_hash), "big")


def tie_break_digest(job_uuid: str, block_hash: bytes) -> bytes:
    """Return the 16 bytes of the seed."""
    content = job_uuid.encode() + b"\0" + block_hash if block_hash else job_uuid.encode()
    return blake2b(content, digest_size=16).digest()


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
