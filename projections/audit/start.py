"""The start of an audit at a sealed position: accounts and reservations are taken from the sealed state.

Only the facts before it are replayed, because the grants of later blocks follow from them; they are few beside the
claims and settlements, whose replay takes nearly all the time. `NOT_PROVED` says what that leaves open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from ledger import SEAL_VERSION, ActiveReservation, LedgerState, Lookup, Row, Store, proves, seal_key, state_digest
from ledger.codec import decode
from ledger.errors import CorruptLedger, InvalidInput, SealConflict
from ledger.events import CHAIN_STREAM, MANIFESTS_STREAM, SETTINGS_STREAM, AllowanceReserved, StateSealed
from projections.snapshots import ProgressReport, sealed_positions, state_at

from .checks.snapshots import STREAMS_OF_NO_ACCOUNT
from .miner_facts import AuditedCollateral, AuditedExclusion, AuditedJobElsewhere, AuditMinerFacts
from .replay import Replay
from .state import AccountState, AuditedReservation, AuditState

MOST_NAMED = 5
ROWS_PER_PAGE = 1000

NOT_PROVED = (
    "that the sealed state follows from the events up to its position: its taken blocks, active reservations, and what"
    " it knows about miners beside their allowance are believed because the log seals them",
    "the events up to the seal's position, except facts: their hashes, columns, claims, routes and settlements",
    "that a later key was not used, a later job not spent or attempted, and a later job elsewhere, end or incident not"
    " recorded, before the seal's position",
    "the history's rows of reservations that were made before, and its index of reservations by block",
    "snapshots of positions up to the seal's",
    "the choice of a miner that a later claim names at a position before the seal's",
    "that no reservation held a block that was withdrawn before the seal's position",
)
"""What an audit from a seal does not prove."""


class SealedStart(NamedTuple):
    """The state at a sealed position, and the log's rows of the reservations that are active in it."""

    state: LedgerState
    active_rows: dict[int, Row]


async def sealed_start(store: Store, position: int, progress: ProgressReport | None) -> SealedStart:
    """Return the state that the log seals at a position.

    It is that of a sealed snapshot, at the position or before it, and of the events from there on. Raises
    `InvalidInput` if the log has no seal of the position, and `SealConflict` if the state there has another digest.
    """
    lookup = Lookup()
    lookup.keys.add(seal_key(position))
    seal = (await store.find(lookup)).keys.get(seal_key(position))
    event = None if seal is None else decode(seal.position, seal.payload)
    if seal is None or not isinstance(event, StateSealed) or event.version != SEAL_VERSION:
        newest = ", ".join(map(str, (await sealed_positions(store))[-MOST_NAMED:]))
        expected = f"a sealed position of this log; the newest are {newest}" if newest else "left out: no seal is known"
        raise InvalidInput("from_seal", position, expected)
    state = await state_at(store, position, progress)
    digest = state_digest(state)
    if not proves(seal, position, digest):
        raise SealConflict(position, event.digest, digest.hex())
    active = Lookup(each.position for each in state.active.values())
    return SealedStart(state, (await store.find(active)).rows if active else {})


async def replay_from(start: SealedStart, store: Store, replay: Replay) -> Replay:
    """Have a new replay continue after the sealed position; return it."""
    state = start.state
    audit_state = replay.state
    async for row in _facts(store, state.position):
        replay.process_fact_before_seal(row)
    for stream, chain_account in state.chain.accounts.items():
        account = audit_state.account(stream)
        account.taken = chain_account.taken.copy()
        account.taken.unpack_from(0)  # The audit reads the runs directly.
        account.spent_ns = audit_state.value_ns(
            account, [(first, end - 1) for first, end in zip(account.taken.starts, account.taken.ends, strict=True)]
        )
    _take_over(replay.miner_facts, state)
    active = [_audited(audit_state, each, start.active_rows) for each in state.active.values()]
    versions = {stream: account.version for stream, account in state.chain.accounts.items()} | state.versions
    replay.continue_after(state.position, state.hash, state.recorded_at_ns, versions, active)
    return replay


async def _facts(store: Store, until: int) -> AsyncIterator[Row]:
    """Yield the rows of facts up to a position, a page in memory at a time."""
    streams = {SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM}
    for after in range(0, until, ROWS_PER_PAGE):
        for row in await store.read_streams(streams, after, min(after + ROWS_PER_PAGE, until)):
            yield row
        await asyncio.sleep(0)  # Processing a page blocks the event loop.


def _take_over(facts: AuditMinerFacts, state: LedgerState) -> None:
    """Take over the miner facts of the sealed state."""
    known = state.miner_facts
    facts.streams = state.versions.keys() - set(STREAMS_OF_NO_ACCOUNT)
    facts.exclusions = {name: AuditedExclusion(*each) for name, each in known.exclusions.items()}
    facts.collateral = {name: AuditedCollateral(*each) for name, each in known.collateral.items()}
    facts.incidents = {stream: list(times) for stream, times in known.incidents.items()}
    facts.elsewhere = {
        stream: {job: AuditedJobElsewhere(*times) for job, times in jobs.items()}
        for stream, jobs in known.elsewhere.items()
    }


def _audited(state: AuditState, active: ActiveReservation, rows: dict[int, Row]) -> AuditedReservation:
    """Return an active reservation as the log has it, applied to its account."""
    row = rows.get(active.position)
    event = None if row is None else decode(row.position, row.payload)
    if row is None or not isinstance(event, AllowanceReserved):
        raise CorruptLedger(active.position, "the row of an active reservation is missing")
    account: AccountState = state.account(active.account.stream)
    reservation = AuditedReservation(row, event, account, event.blocks, state.value_ns(account, event.blocks))
    account.active[row.position] = state.active[row.position] = reservation
    account.held_ns += reservation.value_ns
    account.spent_ns -= reservation.value_ns
    return reservation
