"""The command that appends a seal: the digest of the state at a position, so that a snapshot of it can be believed."""

from __future__ import annotations

from ledger.codec import Row, decode
from ledger.errors import CorruptLedger, IdempotencyConflict, NewerLedger, SealConflict
from ledger.events import SEALS_STREAM, StateSealed

from .lookup import Lookup
from .state import SEAL_VERSION, LedgerState
from .unit_of_work import UnitOfWork


class SealState:
    """Append the seal of a position; return its own position, or that of the equal seal that the log has already.

    It is decided on no stream, so it conflicts with nothing, and its key makes each position sealed at most once.
    Raises `SealConflict` if the log has a seal of the position with another digest, and `IdempotencyConflict` if the
    key belongs to a caller's change or to a seal of another version; then this position stays without a seal.
    """

    operation = "seal"
    revertible = True
    streams = ()
    # Not renumbered: it would need the version that the stream of seals has by then. It is decided again.
    stands = False

    def __init__(self, position: int, digest: bytes) -> None:
        self.event = StateSealed(position, SEAL_VERSION, digest.hex())
        self.key = seal_key(position)

    def add_lookups(self, state: LedgerState, lookup: Lookup) -> None:
        lookup.keys.add(self.key)

    def retry_key(self, row: Row) -> str:
        return self.key

    def decide(self, unit_of_work: UnitOfWork) -> int:
        first = unit_of_work.first_outcome(self.key)
        if first is None:
            return unit_of_work.seal(self.event, self.key).position
        row, found = first
        if not isinstance(found, StateSealed) or found.version != SEAL_VERSION or row.stream != SEALS_STREAM:
            raise IdempotencyConflict(self.key, row.position)
        if found.digest != self.event.digest:
            raise SealConflict(self.event.position, found.digest, self.event.digest)
        return row.position


def seal_key(position: int) -> str:
    """Return the idempotency key of a position's seal. It is stored, so it never changes."""
    return f"seal:{position}"


def proves(row: Row, position: int, digest: bytes) -> bool:
    """Return whether a row of the log is a seal which says that the state at a position has this digest.

    A seal of an unknown version proves nothing.
    """
    try:
        event = decode(row.position, row.payload)
    except (CorruptLedger, NewerLedger):
        return False
    return (
        row.stream == SEALS_STREAM
        and row.position > position
        and isinstance(event, StateSealed)
        and (event.position, event.version, event.digest) == (position, SEAL_VERSION, digest.hex())
    )
