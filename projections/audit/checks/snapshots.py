"""States that were folded elsewhere, held byte for byte against the one that the audit's own books come to.

A snapshot, or the state of a process that has the ledger open: whoever decided on one that differs decided on
something else than the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from ledger import ActiveReservation, Head, LedgerState, decode_state, encode_state
from ledger.events import CHAIN_STREAM, MANIFESTS_STREAM, SETTINGS_STREAM
from projections.audit.state import AuditedReservation, AuditState
from projections.row_checks import RowChecker
from projections.rules import Findings, Rule
from projections.snapshots import Snapshot

FACT_STREAMS = (SETTINGS_STREAM, CHAIN_STREAM, MANIFESTS_STREAM)
MOST_NAMED = 10


class SnapshotCheck:
    """Waits for the positions at which the states were taken."""

    def __init__(self, waiting: Sequence[tuple[Rule, Snapshot]], findings: Findings) -> None:
        self._waiting = waiting
        """Each with the rule that it is held to: one of a snapshot, or one of a live state."""
        self.positions = frozenset(taken.position for _, taken in waiting)
        self.compared: dict[Rule, int] = dict.fromkeys((Rule.SNAPSHOTS, Rule.LIVE_STATE), 0)
        self._findings = findings

    def compare(self, state: AuditState, row_checker: RowChecker, recorded_at_ns: int) -> None:
        """Compares what was taken at the position that the replay has come to."""
        expected = encoded_state(state, row_checker, recorded_at_ns)
        for rule, taken in self._waiting:
            if taken.position == row_checker.position:
                self.compared[rule] += 1
                if (taken.hash, taken.payload) != (row_checker.hash, expected):
                    self._note(rule, taken, Snapshot(taken.position, row_checker.hash, expected))

    def end(self, position: int) -> None:
        """The log ends here: nothing can have been taken further on."""
        for rule, taken in self._waiting:
            if taken.position > position:
                message = f"a state was taken where the log, which ends at {position}, has no event"
                self._findings.add(taken.position, rule, message)

    def _note(self, rule: Rule, taken: Snapshot, expected: Snapshot) -> None:
        details = {
            "hash": taken.hash.hex(),
            "expected_hash": expected.hash.hex(),
            "digest": _digest(taken.payload),
            "expected_digest": _digest(expected.payload),
            "differs_in": [name for name, _ in zip(_differing(taken, expected), range(MOST_NAMED), strict=False)],
        }
        self._findings.add(taken.position, rule, "the state is not what the log comes to here", **details)


def encoded_state(state: AuditState, row_checker: RowChecker, recorded_at_ns: int) -> bytes:
    """The bytes of the ledger state that the audit's state amounts to."""
    folded = LedgerState()
    folded.position, folded.hash, folded.recorded_at_ns = Head(row_checker.position, row_checker.hash, recorded_at_ns)
    folded.chain = state.chain
    folded.versions = {stream: row_checker.version(stream) for stream in FACT_STREAMS}
    for stream, account in state.chain.accounts.items():
        account.version, account.taken = row_checker.version(stream), state.account_state(stream).taken
        account.active.clear()
    for active in state.active.values():
        if active.account_state.stream in state.chain.accounts:
            folded.add_active(_active_reservation(active))
    return encode_state(folded)


def _active_reservation(active: AuditedReservation) -> ActiveReservation:
    row, event = active.row, active.event
    return ActiveReservation(
        active.reservation_id,
        row.position,
        active.account_state.account,
        event.amount_ns,
        event.blocks,
        event.job_start_block,
        row.recorded_at_ns,
        event.expires_at_ns,
        row.job_uuid,
        row.attempt,
        event.axon,
    )


def _differing(taken: Snapshot, expected: Snapshot) -> Iterator[str]:
    """What the states differ in, as far as they can be read."""
    found, right = LedgerState(), LedgerState()
    try:
        decode_state(taken.payload, found)
        decode_state(expected.payload, right)
    except Exception:  # Whatever bytes it is, they are no state of this release.
        yield "it cannot be read"
        return
    for name in ("position", "recorded_at_ns", "versions"):
        if getattr(found, name) != getattr(right, name):
            yield name
    for name in ("settings", "manifests", "sync_blocks"):
        if getattr(found.chain, name) != getattr(right.chain, name):
            yield name
    if found.active.keys() != right.active.keys():
        yield "the standing reservations"
    for stream in sorted(found.chain.accounts.keys() | right.chain.accounts.keys()):
        if _account_facts(found, stream) != _account_facts(right, stream):
            yield f"the account {' '.join(stream.split(chr(9)))}"


def _account_facts(state: LedgerState, stream: str) -> object:
    account = state.chain.accounts.get(stream)
    if account is None:
        return None
    steps = [(each.starts, each.values) for each in (account.offered, account.counts)]
    return account.version, account.invalidated_below, account.taken.to_bytes(), steps


def _digest(payload: bytes) -> str:
    return blake2b(payload, digest_size=32).hexdigest()
