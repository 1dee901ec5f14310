"""The source and the report of a feeder: the protocol of a chain, and the state of a feed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from ledger import BlockFact


class ChainSource(Protocol):
    """A chain as a feeder reads it: any object with these two methods. Both may raise; the feeder then tries again."""

    async def blocks(self, first: int | None = None, last: int | None = None) -> Sequence[BlockFact]:
        """Return the blocks from `first` to `last`, both included; without arguments, the newest block alone.

        A block that cannot be read, such as one that the node has pruned, is left out, and asked for again later.
        Return only blocks that the chain will not replace any more: a recorded block stays.
        """
        ...

    async def manifests(self, block: BlockFact) -> Mapping[str, Mapping[str, int]]:
        """Ask the miners of `block` what they offer now: `{miner_ss58: {executor_class: executor_count}}`.

        A miner that is left out counts as offering nothing.
        """
        ...


class FeedState(msgspec.Struct, frozen=True, kw_only=True):
    """The work of a feeder since it was made, and its problems now.

    `newest_block` is the newest block that the source returned and the ledger has; None at the start. `recorded_blocks`
    and `recorded_syncs` count the facts that the ledger accepted from this feeder, repeats included. `failures` counts
    attempts that failed, `retries` the attempts after a failure. `missing_blocks` counts the blocks below the newest
    one that were missing when the feeder last looked. `last_success_at` is when the newest block was last read, aware
    UTC. `last_error` names what is wrong now; None if nothing is.
    """

    newest_block: int | None
    recorded_blocks: int
    recorded_syncs: int
    retries: int
    failures: int
    missing_blocks: int
    last_success_at: datetime | None
    last_error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields
