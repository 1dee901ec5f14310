"""The start of an audit at a sealed position: the replay's state is taken from the sealed one, not from events.

This saves the time of replaying everything before, and leaves that unproved; `NOT_PROVED` says what exactly.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger import ActiveReservation, LedgerState, Lookup, Row, Store, proves, seal_key, state_digest
from ledger.codec import decode
from ledger.errors import CorruptLedger, InvalidInput, SealConflict
from ledger.events import AllowanceReserved, StateSealed
from projections.snapshots import ProgressReport, sealed_positions, state_at

from .replay import Replay
from .state import AccountState, AuditedReservation, AuditState

MOST_NAMED = 5

NOT_PROVED = (
    "that the sealed state follows from the events up to its position; it is believed because the log seals it",
    "the events up to the seal's position: their hashes, columns, facts, claims, routes and settlements",
    "that grants and invalidations follow from the facts, also of later facts (rule grants-follow)",
    "that a later key was not used, and a later job not spent or attempted, before the seal's position",
    "the history's rows of reservations that were made before, and its index of reservations by block",
    "snapshots of positions before the seal's",
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
    if seal is None or not isinstance(event, StateSealed):
        newest = ", ".join(map(str, (await sealed_positions(store))[-MOST_NAMED:]))
        expected = f"a sealed position of this log; the newest are {newest}" if newest else "0: this log has no seal"
        raise InvalidInput("from_seal", position, expected)
    state = await state_at(store, position, progress)
    digest = state_digest(state)
    if not proves(seal, position, digest):
        raise SealConflict(position, event.digest, digest.hex())
    active = Lookup(each.position for each in state.active.values())
    return SealedStart(state, (await store.find(active)).rows if active else {})


def replay_from(start: SealedStart, validator_ss58: str, sealed: list[int]) -> Replay:
    """Return a replay that continues after the sealed position."""
    state = start.state
    audit_state = AuditState(state.chain)
    blocks = state.chain.blocks
    for block in blocks.recorded_blocks():
        if blocks.unit_ns(block):
            audit_state.granted.add(block, block)
            audit_state.sums.add_block(block, blocks.unit_ns(block))
    for stream, chain_account in state.chain.accounts.items():
        account = audit_state.account(stream)
        account.taken = chain_account.taken.copy()
        account.taken.unpack_from(0)  # The audit reads the runs directly.
        account.spent_ns = audit_state.value_ns(
            account, [(first, end - 1) for first, end in zip(account.taken.starts, account.taken.ends, strict=True)]
        )
        chain_account.active.clear()
    active = [_audited(audit_state, each, start.active_rows) for each in state.active.values()]
    versions = {stream: account.version for stream, account in state.chain.accounts.items()} | state.versions
    replay = Replay(validator_ss58, [each for each in sealed if each >= state.position], audit_state)
    replay.continue_after(state.position, state.hash, state.recorded_at_ns, versions, active)
    return replay


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
