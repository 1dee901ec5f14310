"""The log's seals, compared with the digest of the audit's own state at the positions that they name.

Rule: a snapshot counts only if sealed, so a wrong seal could make processes decide on a wrong state. The audit's state
has its own accounts and reservations, and the facts that `GrantCheck` computes again.
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger import SEAL_VERSION, Row, state_digest
from ledger.errors import shortened
from ledger.events import SEALS_STREAM, StateSealed
from projections.audit.miner_facts import AuditMinerFacts
from projections.audit.state import AuditState
from projections.row_checks import RowChecker
from projections.rules import Findings, Rule

from .snapshots import folded_state


class SealCheck:
    """Remembers the digests of the states that will be sealed, and compares the seals with them."""

    def __init__(self, positions: Iterable[int], findings: Findings) -> None:
        self.positions = frozenset(positions)
        """The positions that seals of the log name, looked up before the replay: a seal follows the state it names."""
        self.compared = 0
        self.start = 0
        """The position at which the replay began; seals of positions before it cannot be compared."""
        self._digests: dict[int, str] = {}
        self._findings = findings

    def reach(
        self, state: AuditState, miner_facts: AuditMinerFacts, row_checker: RowChecker, recorded_at_ns: int
    ) -> None:
        """Remember the digest of the replay's state; the replay is at one of the positions."""
        try:
            digest = state_digest(folded_state(state, miner_facts, row_checker, recorded_at_ns)).hex()
        except Exception:  # A damaged log may lead to values that no state can have; then no seal is right.
            digest = "none"
        self._digests[row_checker.position] = digest

    def check(self, row: Row, event: StateSealed) -> None:
        """Check a seal's row, and its digest if its version is known."""
        if row.stream != SEALS_STREAM:
            message = f"a seal is in the stream {shortened(row.stream)}, expected {SEALS_STREAM!r}"
            self._findings.add(row.position, Rule.STREAM_OF_EVENT, message)
        if row.job_uuid is not None or row.settles is not None:
            message = "the row of a seal must have neither a job nor `settles`"
            self._findings.add(row.position, Rule.ROW_COLUMNS, message)
        if row.key != f"seal:{event.position}":
            message = "the row of a seal must have the key of the position that it names"
            self._report(row, event, message, key=None if row.key is None else shortened(row.key))
        if not 0 < event.position < row.position:
            self._report(row, event, "the seal names a position that is not below its own")
        # Another release has other folding rules: what its seals say cannot be computed here.
        elif event.version == SEAL_VERSION and event.position >= self.start:
            self._compare(row, event)

    def _compare(self, row: Row, event: StateSealed) -> None:
        expected = self._digests.pop(event.position, None)
        if expected is None:
            self._report(row, event, "the seal cannot be compared: it is not in its stream, or its position is missing")
            return
        self.compared += 1
        if event.digest != expected:
            details = {"digest": shortened(event.digest), "expected_digest": expected}
            self._report(row, event, "the sealed state is not that of the log at this position", **details)

    def _report(self, row: Row, event: StateSealed, message: str, **details: object) -> None:
        self._findings.add(row.position, Rule.SEALS, message, sealed_position=event.position, **details)
