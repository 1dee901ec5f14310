"""What this process has acknowledged or read as committed, kept apart from the state.

The writer discards its state after an error, and folds it again from the stored log. After a fail-over or a restore the
stored log may lack what was acknowledged before, and the same error may have announced the fail-over. So what must
still be in the log is kept here, and compared whenever the state was discarded.
"""

from __future__ import annotations

from collections import deque

from ledger.domain.lookup import Lookup
from ledger.store.contract import Store, Transaction

from .errors import LogWentBack

# Heads that are remembered, to find the last one that a log has kept. Only the newest is needed to notice the loss.
REMEMBERED_HEADS = 1000


class Acknowledged:
    """The newest heads that this process has acknowledged or read as committed, and whether the log has lost one."""

    def __init__(self) -> None:
        self._heads: deque[tuple[int, bytes]] = deque(maxlen=REMEMBERED_HEADS)
        self._lost: LogWentBack | None = None

    def note(self, position: int, a_hash: bytes) -> None:
        """Remember a committed head."""
        if position and (not self._heads or position > self._heads[-1][0]):
            self._heads.append((position, a_hash))

    def refuse_if_lost(self) -> None:
        """Raise `LogWentBack` if a comparison has ever failed."""
        if self._lost is not None:
            lost = self._lost
            raise LogWentBack(lost.acknowledged_position, lost.stored_position, lost.kept_position)

    async def check(self, source: Store | Transaction) -> None:
        """Raise `LogWentBack` unless the stored log has the newest head; one look-up by position."""
        self.refuse_if_lost()
        if self._heads and not await _kept(source, [self._heads[-1]]):
            stored = (await source.head()).position
            kept = await _kept(source, list(self._heads))
            self._lost = LogWentBack(self._heads[-1][0], stored, max(kept, default=0))
            self.refuse_if_lost()


async def _kept(source: Store | Transaction, heads: list[tuple[int, bytes]]) -> list[int]:
    """Return the positions of those heads that the stored log has."""
    lookup = Lookup()
    lookup.positions.update(position for position, _ in heads)
    rows = (await source.find(lookup)).rows
    return [position for position, a_hash in heads if position in rows and rows[position].hash == a_hash]
