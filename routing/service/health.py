"""The health of an open ledger."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ledger.values import seconds
from projections import Availability

from .handle import LedgerHandle


class Health(msgspec.Struct, frozen=True):
    """The health of a ledger.

    `database` is "sqlite" or "postgresql". `head` is "position:hash" (hash in hexadecimal digits): note it elsewhere
    for a later `verify`. `projection_lag` counts the events that the history model has not projected yet;
    `projection_error` says why it cannot project the next one, None if it can. `newest_block` and its age are None
    if no block is recorded. `reserved` counts the active reservations, `overdue` those of them that are overdue.
    """

    database: str
    schema_version: int
    position: int
    head: str
    projection_lag: int
    projection_error: str | None
    newest_block: int | None
    newest_block_age_seconds: float | None
    reserved: int
    overdue: int


class _StateSummary(NamedTuple):
    position: int
    hash: bytes
    newest_block: int
    newest_block_age_ns: int
    reserved: int
    overdue: int


async def health_of(handle: LedgerHandle, database_url: str) -> Health:
    """Return the health of an open ledger. Raises `StorageUnavailable` if the database does not respond."""
    state = await handle.writer.query(_summarize)
    lag = await handle.runtime.run(handle.history.lag(state.position))
    # The next event is decoded only if there is one: a history model without lag cannot have stopped.
    stopped = await handle.runtime.run(handle.history.stopped()) if lag else None
    return Health(
        "sqlite" if database_url.startswith("sqlite") else "postgresql",
        await handle.runtime.run(handle.store.schema_version()),
        state.position,
        f"{state.position}:{state.hash.hex()}",
        lag,
        None if stopped is None else str(stopped),
        state.newest_block or None,
        seconds(state.newest_block_age_ns) if state.newest_block else None,
        state.reserved,
        state.overdue,
    )


def _summarize(state: Availability, now_ns: int) -> _StateSummary:
    newest = state.chain.blocks.newest
    age_ns = now_ns - state.chain.blocks.created_at_ns(newest) if newest else 0
    return _StateSummary(state.position, state.hash, newest, age_ns, len(state.active), len(state.overdue(now_ns)))
