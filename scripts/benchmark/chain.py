"""The artificial chain of all measurements, and a clock that fits it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from io import BytesIO

import msgspec

from routing import BlockFact, ManifestsFact
from routing.cli.demo.network import generate, hotkeys
from routing.cli.files.facts import FactDecoder, numbered_facts

from .sizes import Sizes

Fact = BlockFact | ManifestsFact

SEED = 1
HOTKEY = hotkeys(SEED, "validator", 1)[0]
"""The validator of the ledger."""
SECOND_NS = 10**9
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


def after(facts: Iterable[Fact]) -> int:
    """Return the time one second after the newest block, in nanoseconds since the epoch."""
    newest = max(fact.created_at for fact in facts if isinstance(fact, BlockFact))
    return int(newest.timestamp()) * SECOND_NS + SECOND_NS
