"""The differences between a refused fact and the recorded one.

The recorded one is read back from the log, because the state in memory keeps only digests of old facts.
"""

from __future__ import annotations

from typing import Any

from ledger import Store, ValidatedBlock, ValidatedManifests
from ledger.domain.chain import differences, same_hash
from ledger.errors import ConflictingFact
from ledger.values import NANOSECONDS, instant

from .corrections import chain_at


async def describe_conflict(store: Store, refused: ConflictingFact, given: ValidatedBlock | ValidatedManifests) -> None:
    """Add to a refusal the differences of the given fact from the recorded one, as (recorded, given) by name."""
    recorded = await chain_at(store, refused.recorded_position or 0)
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
        recorded_hash = recorded.blocks.block_hash(given.number)
        if not same_hash(recorded_hash, given.block_hash):
            found["block_hash"] = (recorded_hash.hex(), given.block_hash.hex())
    else:
        pairs = differences(recorded.last_manifests, given.manifests)
        found = {f"manifest {key}": (old, new) for key, old, new in pairs}
    refused.describe(found)


def _stake(billionths: int | None) -> float | None:
    return None if billionths is None else billionths / NANOSECONDS
