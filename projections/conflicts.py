"""What a refused fact contradicts, read back from the log; the state in memory keeps digests only."""

from __future__ import annotations

import asyncio
from typing import Any

from ledger import Chain, Store, ValidatedBlock, ValidatedManifests
from ledger.codec import decode
from ledger.domain.chain import differences
from ledger.errors import ConflictingFact
from ledger.events import BlockRecorded, ManifestsRecorded
from ledger.values import NANOSECONDS, instant


async def describe_conflict(store: Store, refused: ConflictingFact, given: ValidatedBlock | ValidatedManifests) -> None:
    """Puts into the refusal in what the given fact differs from the recorded one: (recorded, given) by name."""
    recorded = await _chain_at(store, refused.recorded_position or 0)
    found: dict[str, Any] = {}
    if isinstance(given, ValidatedBlock):
        metagraph = recorded.last_metagraph
        found = {
            **{f"miner {key}": (old, new) for key, old, new in differences(metagraph.miners, given.metagraph.miners)},
            **{
                f"stake {key}": (_stake(old), _stake(new))
                for key, old, new in differences(metagraph.stakes, given.metagraph.stakes)
            },
        }
        recorded_at, given_at = recorded.blocks.created_at_ns(given.number), given.created_at_ns
        if recorded_at != given_at:
            found["created_at"] = (instant(recorded_at), instant(given_at))
    else:
        pairs = differences(recorded.last_manifests, given.manifests)
        found = {f"manifest {key}": (old, new) for key, old, new in pairs}
    refused.describe(found)


def _stake(billionths: int | None) -> float | None:
    return None if billionths is None else billionths / NANOSECONDS


async def _chain_at(store: Store, position: int) -> Chain:
    """The chain's facts as they stood right after a position."""
    chain = Chain()
    after = 0
    while rows := await store.read(after):
        for row in rows:
            if row.position > position:
                return chain
            match event := decode(row.position, row.payload):
                case BlockRecorded():
                    chain.apply_block(row.position, event)
                case ManifestsRecorded():
                    chain.apply_manifests(row.position, event)
        after = rows[-1].position
        await asyncio.sleep(0)  # A long fold lets others have the loop between pages.
    return chain
