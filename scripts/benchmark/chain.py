"""The artificial chain of all measurements, and a clock that fits it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from io import BytesIO

import msgspec

from routing import Allowance, BlockFact, ManifestsFact, Miner
from routing.cli.demo.network import generate, hotkeys
from routing.cli.files.facts import FactDecoder, numbered_facts

from .sizes import Sizes

Fact = BlockFact | ManifestsFact

SEED = 1
HOTKEY = hotkeys(SEED, "validator", 1)[0]
"""The validator of the ledger."""
SECOND_NS = 10**9
BLOCK_SECONDS = 12
MOST_BLOCKS = 10**6
"""More than any measurement uses."""


class Clock:
    """A clock that starts at a time of the chain, and returns nanoseconds since the epoch."""

    def __init__(self, start_ns: int) -> None:
        self._ahead_ns = start_ns - time.monotonic_ns()

    def __call__(self) -> int:
        return time.monotonic_ns() + self._ahead_ns


def facts_lines(sizes: Sizes, miners: int | None = None) -> bytes:
    """Return the `FACTS.jsonl` of the network, or of one with another number of miners."""
    lines = generate(
        SEED,
        miners=miners or sizes.miners,
        validators=sizes.validators,
        classes=sizes.classes,
        blocks=sizes.blocks,
    )
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def parsed(lines: bytes) -> list[Fact]:
    """Parse the lines of a facts file."""
    return [fact for batch in numbered_facts(BytesIO(lines)) for _, fact in batch]


def endless(sizes: Sizes) -> Iterator[list[Fact]]:
    """Yield the facts of one block after the other: the block, and the syncs before it."""
    decoder = FactDecoder()
    facts: list[Fact] = []
    network = generate(
        SEED, miners=sizes.miners, validators=sizes.validators, classes=sizes.classes, blocks=MOST_BLOCKS
    )
    for line in network:
        facts.append(decoder.fact(msgspec.json.encode(line)))
        if line["type"] == "block":
            yield facts
            facts = []


def first_facts(sizes: Sizes, miners: int) -> tuple[ManifestsFact, BlockFact]:
    """Return the first sync and the first block of a network with this many miners."""
    sync, block = parsed(facts_lines(replace(sizes, blocks=1), miners))
    assert isinstance(sync, ManifestsFact)
    assert isinstance(block, BlockFact)
    return sync, block


class Feed:
    """Continues a chain with blocks that are like its newest block."""

    def __init__(self, newest: BlockFact) -> None:
        self._miners = tuple(newest.miners)
        self._stakes = newest.stakes
        self._number = newest.number
        self._created_at: datetime = newest.created_at

    def next(self) -> BlockFact:
        """Return the next block. Its miners are new objects, as those of a real feed."""
        return self._next([replace(miner) for miner in self._miners])

    async def timed(self, ledger: Allowance) -> float:
        """Record the next block; return the seconds that it took."""
        block = self.next()
        started = time.perf_counter()
        await ledger.record_block(block.number, block.created_at, block.miners, block.stakes)
        return time.perf_counter() - started

    def next_of_file(self) -> BlockFact:
        """Return the next block. Its miners and stakes are the same objects as before, as those of an import."""
        return self._next(self._miners)

    def _next(self, miners: Iterable[Miner]) -> BlockFact:
        self._number += 1
        self._created_at += timedelta(seconds=BLOCK_SECONDS)
        stakes = self._stakes if miners is self._miners else dict(self._stakes)
        return BlockFact(self._number, self._created_at, miners, stakes)


def newest_block(facts: Iterable[Fact]) -> BlockFact:
    """Return the last block of the facts."""
    return [fact for fact in facts if isinstance(fact, BlockFact)][-1]


def after(facts: Iterable[Fact]) -> int:
    """Return the time one second after the newest block, in nanoseconds since the epoch."""
    newest = max(fact.created_at for fact in facts if isinstance(fact, BlockFact))
    return int(newest.timestamp()) * SECOND_NS + SECOND_NS
