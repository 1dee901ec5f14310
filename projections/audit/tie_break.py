"""The tie-break among equal candidates, computed a second time.

The audit repeats this rule on purpose and shares nothing with the router's own tie-break, so that a router that
breaks ties by another rule is found. Rule: candidates that are equal in earliest block and in the share left are tried
in an order that depends on the job's uuid, so several routers do not all try the same miner first, and on the hash of
the newest block, so whoever chooses the uuid does not choose the miner.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import gcd


def tie_break_number(job_uuid: str, block_hash: bytes) -> int:
    """Return the number that orders equal candidates: a BLAKE2b-128 digest, big-endian.

    It is the digest of the job's uuid; with a hash, a zero byte and the hash follow the uuid.
    """
    digest = blake2b(job_uuid.encode(), digest_size=16)
    if block_hash:
        digest.update(bytes(1))
        digest.update(block_hash)
    return int.from_bytes(digest.digest(), "big")


def step_of(count: int, number: int) -> int:
    """Return the distance between the `count` equals that a job tries one after the other, in a circle."""
    step = number // count % count
    # Only steps that share no factor with the count visit every index.
    while gcd(step, count) > 1:
        step += 1
    return step


def indexes(count: int, number: int) -> Iterator[int]:
    """Yield the indexes of `count` equals in the order in which a job tries them, each once."""
    yield number % count
    step = step_of(count, number)
    yield from ((number + tried * step) % count for tried in range(1, count))
