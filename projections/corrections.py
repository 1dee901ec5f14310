"""What the withdrawal of a fact needs from the log: the facts that remain, folded again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TypeVar

from ledger import Chain, Metagraph, MetagraphNeeded, OffersNeeded, PreparedOffers, Store
from ledger.codec import decode
from ledger.events import (
    MANIFESTS_STREAM,
    SETTINGS_STREAM,
    BlockRecorded,
    BlockWithdrawn,
    Event,
    LedgerOpened,
    ManifestsRecorded,
    ManifestsWithdrawn,
    SettingsChanged,
)

C = TypeVar("C", bound=Chain)


async def chain_at(store: Store, position: int) -> Chain:
    """Fold the chain's facts up to a position, without settings: for the contents of facts, not for amounts.

    From the first event on, because each metagraph and manifest is stored as a difference from the one before.
    """
    chain = Chain()
    after = 0
    while rows := await store.read(after):
        for row in rows:
            if row.position > position:
                return chain
            apply_fact(chain, row.position, decode(row.position, row.payload))
        after = rows[-1].position
        await asyncio.sleep(0)  # A long fold yields the event loop after each page.
    return chain


def apply_fact(chain: Chain, position: int, event: Event) -> None:
    """Apply an event if it is about a block or a sync."""
    match event:
        case BlockRecorded():
            chain.apply_block(position, event)
        case ManifestsRecorded():
            chain.apply_manifests(position, event)
        case BlockWithdrawn():
            chain.withdraw_block(position, event)
        case ManifestsWithdrawn():
            chain.withdraw_manifests(position, event)


async def metagraph_to_return_to(store: Store, needed: MetagraphNeeded) -> Metagraph:
    """Return the metagraph of the block that was recorded at a position."""
    return (await chain_at(store, needed.position)).last_metagraph


async def offers_without(store: Store, needed: OffersNeeded) -> PreparedOffers:
    """Return the fold of the syncs that remain if those at some positions are left out."""
    chain = Chain()
    versions = await fold_syncs(store, chain, needed.until, needed.without)
    return PreparedOffers(chain, needed.without, versions)


async def fold_syncs(store: Store, chain: Chain, until: int, without: Collection[int]) -> tuple[int, int]:
    """Fold the syncs up to a position into a chain, in recording order and with the settings of then, but some.

    Coverage is in the events, so no block is needed. Returns the last versions read: of the syncs, and of the settings.
    """
    versions = {MANIFESTS_STREAM: 0, SETTINGS_STREAM: 0}
    after = 0
    while after < until and (rows := await store.read(after)):
        for row in rows:
            if row.position <= until and row.stream in versions:
                versions[row.stream] = row.version
                _apply_sync(chain, row.position, decode(row.position, row.payload), without)
        after = rows[-1].position
        await asyncio.sleep(0)  # As above.
    return versions[MANIFESTS_STREAM], versions[SETTINGS_STREAM]


def _apply_sync(chain: Chain, position: int, event: Event, without: Collection[int]) -> None:
    match event:
        case LedgerOpened() | SettingsChanged():
            chain.apply_settings(event.settings)
        case ManifestsRecorded() if position in without:
            # The next event with manifests is stored as the difference to this one.
            chain.read_manifests(event)
        case ManifestsRecorded():
            chain.apply_manifests(position, event)
        case ManifestsWithdrawn():
            # Its sync is among those left out; only its manifests are the base of the next difference.
            chain.read_correction(event)
