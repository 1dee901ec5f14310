"""Whether the recorded facts are too old to route on."""

from __future__ import annotations

from ledger import LedgerState
from ledger.errors import ChainFeedStale, ManifestsStale
from ledger.values import seconds


def refuse_stale_feed(state: LedgerState, now_ns: int) -> None:
    """Raise `ChainFeedStale` if the newest block is older than the setting `newest_block_max_age_seconds` allows.

    Ages of blocks are counted from the newest *recorded* block. If the chain has moved on since without being recorded,
    every block is older than its counted age. Without the setting any age is accepted.
    """
    most_ns = state.chain.settings.newest_block_max_age_ns
    blocks = state.chain.blocks
    if most_ns is None or not blocks.newest:
        return
    age_ns = now_ns - blocks.created_at_ns(blocks.newest)
    if age_ns > most_ns:
        raise ChainFeedStale(blocks.newest, seconds(age_ns), seconds(most_ns))


def refuse_stale_manifests(state: LedgerState) -> None:
    """Raise `ManifestsStale` if the newest sync is further behind the newest block than the setting allows.

    Miners may have left or changed since without anybody noticing. Without the setting any age is accepted; without a
    sync there is no allowance, which the pick reports by itself.
    """
    chain = state.chain
    most = chain.settings.newest_manifests_max_age_blocks
    if most is None or not chain.sync_blocks:
        return
    if chain.blocks.newest - chain.sync_blocks[-1] > most:
        raise ManifestsStale(chain.sync_blocks[-1], chain.blocks.newest, most)
