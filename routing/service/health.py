"""The health of an open ledger: what an operator's monitoring looks at, and a status that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from ledger import SCHEMA_VERSION, check_newest_rows
from ledger.errors import CorruptLedger, StorageUnavailable
from ledger.results import Result
from ledger.store.urls import redacted_url
from ledger.values import NANOSECONDS, instant, seconds
from projections import Availability, last_verification

from .handle import LedgerHandle

OK = "ok"
# Used where the ledger's settings name no age; generous, because nobody chose them (this project's choice).
OLDEST_BLOCK_SECONDS = 600
"""Fifty blocks. Without a setting the router goes on to choose, so somebody else must say that the feed is dead."""
OLDEST_SYNC_BLOCKS = 7200
"""A day of blocks."""
MOST_AHEAD_SECONDS = 60


class Health(Result, msgspec.Struct, frozen=True):
    """The health of a ledger.

    `database` is "sqlite" or "postgresql". `head` is "position:hash" (hash in hexadecimal digits): note it elsewhere
    for a later `verify`. `projection_lag` counts the events that the history model has not projected yet;
    `projection_error` says why it cannot project the next one, None if it can. `newest_block` and its age are None
    if no block is recorded; `newest_block_hash` is None, too, if the newest block was recorded without one. `reserved`
    counts the active reservations, `overdue` those of them that are overdue.

    `schema_version` is the stored one. `newest_sync` is the block of the newest sync, which is `newest_sync_age_blocks`
    behind the newest block; its age in seconds is that of the block, None if that is not recorded.
    `log_ahead_seconds`: how far the newest event's recorded time is ahead of the clock, 0 if it is not.
    `replication_lag_seconds`: on a PostgreSQL standby, how old what it shows may be. It is 0 if the standby is
    connected to its primary and has replayed everything that it has received, else the age of the newest commit that it
    has replayed, which also counts time without commits; None on a primary and on SQLite.
    `verified_position`, `verified_at`: up to which event the recorded last `verify` found nothing, and when.
    `missing_triggers` names the triggers that the stored tables lack, or that are disabled there. That is no problem,
    since nothing depends on a trigger. It is empty for tables of an older version, which have other triggers.
    `status` is "ok", or says what is wrong; `problems` lists the same.
    """

    database: str
    schema_version: int
    position: int
    head: str
    projection_lag: int
    projection_error: str | None
    newest_block: int | None
    newest_block_hash: str | None
    newest_block_age_seconds: float | None
    reserved: int
    overdue: int
    database_url: str
    validator_ss58: str
    newest_sync: int | None
    newest_sync_age_blocks: int | None
    newest_sync_age_seconds: float | None
    log_ahead_seconds: float
    replication_lag_seconds: float | None
    verified_position: int | None
    verified_at: datetime | None
    missing_triggers: list[str]
    status: str
    problems: list[str]

    def named(self, database_url: str) -> Health:
        """Return the same health under another name of the database, such as that of the export it was read from."""
        return msgspec.structs.replace(self, database_url=database_url)

    def exceeded(
        self,
        *,
        max_block_age_seconds: float | None = None,
        max_lag_events: int | None = None,
        max_overdue: int | None = None,
        max_unverified_seconds: float | None = None,
        now: datetime | None = None,
    ) -> list[str]:
        """Return a sentence for each limit that the ledger exceeds; None is no limit.

        `max_block_age_seconds`: the age of the newest block, which is infinite if no block is recorded.
        `max_lag_events`: the projection lag. `max_overdue`: the overdue reservations. `max_unverified_seconds`: the
        time since the last recorded `verify`, until `now`, aware (default: the time of the call); infinite if there was
        none.

            health.exceeded(max_block_age_seconds=120.0, max_overdue=0)
        """
        now = now or datetime.now(UTC)
        unverified = None if self.verified_at is None else (now - self.verified_at).total_seconds()
        measured = [
            _over_limit("the newest block is", self.newest_block_age_seconds, max_block_age_seconds, "s old"),
            _over_limit("the history is", float(self.projection_lag), max_lag_events, "events behind"),
            _over_limit("there are", float(self.overdue), max_overdue, "overdue reservations"),
            _over_limit("the last verification is", unverified, max_unverified_seconds, "s old"),
        ]
        return [each for each in measured if each]

    def failures(self, *, max_block_age_seconds: float | None = None, **limits: Any) -> list[str]:
        """Return what is wrong, or exceeds a limit of `exceeded`: empty if the ledger is well.

        A limit for the block's age replaces the one that `problems` applies, so it may also be the longer one.
        """
        replaced = None
        if max_block_age_seconds is not None and self.newest_block and self.newest_block_age_seconds is not None:
            replaced = _old_block(self.newest_block, self.newest_block_age_seconds)
        others = [each for each in self.problems if each != replaced]
        return others + self.exceeded(max_block_age_seconds=max_block_age_seconds, **limits)


def _old_block(block: int, age_seconds: float) -> str:
    return f"the newest block, {block}, is {age_seconds:,.0f} s old: does the feed of blocks run?"


def _over_limit(subject: str, measured: float | None, limit: float | None, unit: str) -> str | None:
    """Return a sentence if a measure is above its limit, or if nothing was measured; None otherwise."""
    if limit is None or (measured is not None and measured <= limit):
        return None
    if measured is None:
        return f"{subject} missing, and must be at most {limit:,.10g} {unit}"
    return f"{subject} {measured:,.10g} {unit}, more than {limit:,.10g}"


class _StateSummary(NamedTuple):
    """What the state says, at the clock of the call; ages in ns."""

    position: int
    hash: bytes
    newest_block: int
    newest_block_hash: bytes
    newest_block_age_ns: int
    newest_sync: int | None
    newest_sync_age_ns: int | None
    log_ahead_ns: int
    reserved: int
    overdue: int
    oldest_block_ns: int
    oldest_sync_blocks: int

    @property
    def sync_age_blocks(self) -> int | None:
        """How far the newest sync is behind the newest block."""
        return None if self.newest_sync is None else max(0, self.newest_block - self.newest_sync)

    def problems(self) -> Iterator[str]:
        """Yield sentences for what is wrong with the facts and with the clock."""
        if not self.newest_block:
            yield "no block is recorded"
        elif self.newest_block_age_ns > self.oldest_block_ns:
            yield _old_block(self.newest_block, seconds(self.newest_block_age_ns))
        if self.newest_sync is None:
            yield "no manifests are recorded"
        elif (self.sync_age_blocks or 0) > self.oldest_sync_blocks:
            age = f"{self.sync_age_blocks:,} blocks behind the newest block"
            yield f"the newest sync is {age}: does the feed of manifests run?"
        if self.log_ahead_ns > MOST_AHEAD_SECONDS * NANOSECONDS:
            ahead = f"{self.log_ahead_ns / NANOSECONDS:,.0f} s ahead of the clock"
            yield f"the log's recorded time is {ahead}: is the clock right?"


class _Derived(NamedTuple):
    """What the derived tables say, and what is wrong with them."""

    lag: int
    error: str | None


async def health_of(handle: LedgerHandle, database_url: str) -> Health:
    """Return the health of an open ledger. Raises `StorageUnavailable` if the database does not respond.

    Raises `CorruptLedger` if the state is not in memory and cannot be loaded, because the log is damaged.
    """
    state = await handle.writer.query(_summarize)
    run = handle.runtime.run
    damage = await run(_damage(handle))
    derived = await run(_derived(handle, state.position))
    verified_position, verified_at_ns, verify_problem = await run(_verification(handle))
    refused = await run(_refused(handle))
    schema_version = await run(handle.store.schema_version())
    missing_triggers = await run(handle.store.missing_triggers()) if schema_version == SCHEMA_VERSION else []
    wrong = [
        refused,
        damage,
        *state.problems(),
        derived.error and f"the history stands still: {derived.error}",
        verify_problem,
    ]
    problems = [each for each in wrong if each]
    return Health(
        "sqlite" if database_url.startswith("sqlite") else "postgresql",
        schema_version,
        state.position,
        f"{state.position}:{state.hash.hex()}",
        derived.lag,
        derived.error,
        state.newest_block or None,
        state.newest_block_hash.hex() or None,
        seconds(state.newest_block_age_ns) if state.newest_block else None,
        state.reserved,
        state.overdue,
        str(redacted_url(database_url)),
        handle.validator_ss58,
        state.newest_sync,
        state.sync_age_blocks,
        None if state.newest_sync_age_ns is None else seconds(state.newest_sync_age_ns),
        seconds(max(0, state.log_ahead_ns)),
        await run(handle.store.replication_lag_seconds()),
        verified_position,
        None if verified_at_ns is None else instant(verified_at_ns),
        missing_triggers,
        "; ".join(problems) or OK,
        problems,
    )


async def _refused(handle: LedgerHandle) -> str | None:
    """Say why this process accepts no change."""
    if handle.writer.refusal is not None:
        return f"every change is refused until the ledger is opened again: {handle.writer.refusal}"
    if handle.store.in_doubt:
        return "a commit failed, and no change is accepted until the storage has proved itself"
    return None


async def _damage(handle: LedgerHandle) -> str | None:
    """Check the newest rows as they are stored now: the state in memory was checked when it was loaded."""
    try:
        await check_newest_rows(handle.store)
    except CorruptLedger as damaged:
        return str(damaged)
    return None


async def _derived(handle: LedgerHandle, position: int) -> _Derived:
    try:
        lag = await handle.history.lag(position)
        # The next event is decoded only if there is one: a history model without lag cannot have stopped.
        stopped = await handle.history.stopped() if lag else None
    except StorageUnavailable as lost:
        return _Derived(position, str(lost))
    return _Derived(lag, None if stopped is None else str(stopped))


async def _verification(handle: LedgerHandle) -> tuple[int | None, int | None, str | None]:
    """Return position and time of the recorded verification, and what is wrong with it."""
    try:
        last = await last_verification(handle.store)
    except StorageUnavailable as lost:
        return None, None, f"the last verification cannot be read: {lost}"
    if last is None:
        return None, None, None
    problem = f"`allowance verify` found damage at position {last.first_bad_position}" if last.findings else None
    return last.position, last.verified_at_ns, problem


def _summarize(state: Availability, now_ns: int) -> _StateSummary:
    chain, settings = state.chain, state.chain.settings
    newest, sync = chain.blocks.newest, chain.sync_blocks[-1] if chain.sync_blocks else None
    sync_at_ns = -1 if sync is None else chain.blocks.created_at_ns(sync)
    oldest_ns, oldest_blocks = settings.newest_block_max_age_ns, settings.newest_manifests_max_age_blocks
    return _StateSummary(
        state.position,
        state.hash,
        newest,
        chain.blocks.block_hash(newest),
        now_ns - chain.blocks.created_at_ns(newest) if newest else 0,
        sync,
        None if sync_at_ns < 0 else now_ns - sync_at_ns,
        state.recorded_at_ns - now_ns,
        len(state.active),
        len(state.overdue(now_ns)),
        OLDEST_BLOCK_SECONDS * NANOSECONDS if oldest_ns is None else oldest_ns,
        OLDEST_SYNC_BLOCKS if oldest_blocks is None else oldest_blocks,
    )
