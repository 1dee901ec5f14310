"""States that were folded elsewhere, compared byte for byte with the audit's own state at the same position.

These are the stored snapshots and the state of the process that has the ledger open. A process that decided on another
state decided on something else than the log. Rule: derived tables never decide; a rebuilt state equals the live one
byte for byte.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from ledger import (
    ActiveReservation,
    Collateral,
    Exclusion,
    Head,
    JobElsewhere,
    LedgerState,
    MinerFacts,
    decode_state,
    encode_state,
)
from ledger.events import CHAIN_STREAM, MANIFESTS_STREAM, SEALS_STREAM, SETTINGS_STREAM
from ledger.values import storable_ns
from projections.audit.miner_facts import AuditMinerFacts
from projections.audit.state import AuditedReservation, AuditState
from projections.row_checks import RowChecker
from projections.rules import Findings, Rule
from projections.snapshots import Snapshot

STREAMS_OF_NO_ACCOUNT = (SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM, SEALS_STREAM)
MOST_NAMED = 10


class SnapshotCheck:
    """Compares snapshots with the replay when it reaches their positions."""

    def __init__(self, snapshots: Sequence[tuple[Rule, Snapshot]], findings: Findings) -> None:
        self._snapshots = snapshots
        """Each with the rule that it would break: `SNAPSHOTS` or `LIVE_STATE`."""
        self.positions = frozenset(snapshot.position for _, snapshot in snapshots)
        self.compared: dict[Rule, int] = dict.fromkeys((Rule.SNAPSHOTS, Rule.LIVE_STATE), 0)
        self._findings = findings

    def compare(
        self, state: AuditState, miner_facts: AuditMinerFacts, row_checker: RowChecker, recorded_at_ns: int
    ) -> None:
        """Compare the snapshots at the replay's position."""
        expected = encode_state(folded_state(state, miner_facts, row_checker, recorded_at_ns))
        for rule, snapshot in self._snapshots:
            if snapshot.position == row_checker.position:
                self.compared[rule] += 1
                if (snapshot.hash, snapshot.payload) != (row_checker.hash, expected):
                    self._report(rule, snapshot, Snapshot(snapshot.position, row_checker.hash, expected))

    def finish(self, position: int) -> None:
        """Report the snapshots after `position`, where the log ends."""
        for rule, snapshot in self._snapshots:
            if snapshot.position > position:
                message = f"the state is of a position after the log's end at {position}"
                self._findings.add(snapshot.position, rule, message)

    def _report(self, rule: Rule, snapshot: Snapshot, expected: Snapshot) -> None:
        details = {
            "hash": snapshot.hash.hex(),
            "expected_hash": expected.hash.hex(),
            "digest": _digest(snapshot.payload),
            "expected_digest": _digest(expected.payload),
            "differs_in": [name for name, _ in zip(_differing(snapshot, expected), range(MOST_NAMED), strict=False)],
        }
        self._findings.add(snapshot.position, rule, "the state is not that of the log at this position", **details)


def folded_state(
    state: AuditState, miner_facts: AuditMinerFacts, row_checker: RowChecker, recorded_at_ns: int
) -> LedgerState:
    """Return the ledger state that corresponds to the audit's state, to be encoded at once."""
    folded = LedgerState()
    folded.position, folded.hash, folded.recorded_at_ns = Head(row_checker.position, row_checker.hash, recorded_at_ns)
    folded.chain = state.chain
    streams = (*STREAMS_OF_NO_ACCOUNT, *miner_facts.streams)
    folded.versions = {stream: row_checker.version(stream) for stream in streams}
    _fill_in(folded.miner_facts, miner_facts)
    # The fold of facts leaves the accounts' reservations empty; the audit fills in its own for the encoding only.
    for stream, account in state.chain.accounts.items():
        account.version, account.taken = row_checker.version(stream), state.account(stream).taken
        account.active.clear()
    for reservation in state.active.values():
        if reservation.account.stream in state.chain.accounts:
            folded.add_active(_active_reservation(reservation))
    return folded


def _fill_in(folded: MinerFacts, facts: AuditMinerFacts) -> None:
    """Give the folded state the audit's miner facts, for the encoding only."""
    folded.exclusions = {miner_ss58: Exclusion(*each) for miner_ss58, each in facts.exclusions.items()}
    folded.collateral = {miner_ss58: Collateral(*each) for miner_ss58, each in facts.collateral.items()}
    folded.incidents = {stream: array("q", times) for stream, times in facts.incidents.items()}
    folded.elsewhere = {
        stream: {job: JobElsewhere(*times) for job, times in jobs.items()} for stream, jobs in facts.elsewhere.items()
    }


def _active_reservation(reservation: AuditedReservation) -> ActiveReservation:
    row, event = reservation.row, reservation.event
    return ActiveReservation(
        reservation.reservation_id,
        row.position,
        reservation.account.chain_account,
        event.amount_ns,
        event.blocks,
        event.job_start_block,
        row.recorded_at_ns,
        storable_ns(event.expires_at_ns),
        row.job_uuid,
        row.attempt,
        event.axon,
    )


def _differing(snapshot: Snapshot, expected: Snapshot) -> Iterator[str]:
    """Yield names of parts in which the states differ, to show where to look; the byte comparison decides."""
    found, right = LedgerState(), LedgerState()
    try:
        decode_state(snapshot.payload, found)
        decode_state(expected.payload, right)
    except Exception:  # Any bytes may be stored; decoding them may fail in any way.
        yield "the state cannot be decoded"
        return
    for name in ("position", "recorded_at_ns", "versions"):
        if getattr(found, name) != getattr(right, name):
            yield name
    for name in ("exclusions", "collateral", "elsewhere", "incidents"):
        if getattr(found.miner_facts, name) != getattr(right.miner_facts, name):
            yield name
    for name in ("settings", "manifests", "sync_blocks"):
        if getattr(found.chain, name) != getattr(right.chain, name):
            yield name
    if found.active.keys() != right.active.keys():
        yield "the active reservations"
    for stream in sorted(found.chain.accounts.keys() | right.chain.accounts.keys()):
        if _account_parts(found, stream) != _account_parts(right, stream):
            yield f"the account {' '.join(stream.split(chr(9)))}"


def _account_parts(state: LedgerState, stream: str) -> object:
    account = state.chain.accounts.get(stream)
    if account is None:
        return None
    steps = [(each.starts, each.values) for each in (account.offered, account.counts)]
    return account.version, account.invalidated_below, account.taken.to_bytes(), steps


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=32).hexdigest()
