"""The state in memory on which the writer decides: how it follows the log, and when it is discarded."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from ledger.domain.state import LedgerState
from ledger.store.contract import Store, Transaction

from .acknowledged import Acknowledged
from .codec import Row, decode, row_hash
from .counters import Counters
from .errors import CorruptLedger, StorageUnavailable
from .events import Event
from .state_lock import StateLock

S = TypeVar("S", bound=LedgerState)

log = logging.getLogger("allowance.ledger")


class Tail:
    """What others appended since a decision. Each row is decoded at once, so one that cannot be read is noticed."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.events: list[Event] = []

    def read(self, rows: list[Row]) -> None:
        """Take the next rows. Raises `NewerLedger` and `CorruptLedger`."""
        self.events += [decode(row.position, row.payload) for row in rows]
        self.rows += rows


class LiveState(Generic[S]):
    """The state in memory; `current` is None if it is unknown after a failure and must be loaded again.

    A batch holds `lock` from its decision to its commit, because the state is then ahead of the stored log.
    """

    def __init__(self, store: Store, load_state: Callable[[], Awaitable[S]], counters: Counters) -> None:
        self.current: S | None = None
        self.lock = StateLock()
        self.acknowledged = Acknowledged()
        self._store = store
        self._load_state = load_state
        self._counters = counters

    def discard(self) -> None:
        """Forget the state, which may contain rows that were never committed. The next catch-up loads it again."""
        self.current = None

    async def catch_up(self, source: Store | Transaction) -> S:
        """Fold the tail of the log and return the state.

        The state is then at the head, or beyond it if `source` is no transaction and others append at the same time.
        Raises `LogWentBack` if the stored log lacks what this process has acknowledged, this time and ever after;
        `StorageUnavailable` if it does not continue the folded log, `CorruptLedger` if rows are missing. The callers of
        this method discard the state after an error.
        """
        state = self.current
        if state is None:
            await self.acknowledged.check(source)
            state = await self._load_state()
        head = await source.head()
        if state.position > head.position or (state.position == head.position and state.hash != head.hash):
            await self.acknowledged.check(source)
            raise StorageUnavailable(
                f"the stored log was replaced by one that ends at {head.position}; was the database restored?"
            )
        # A failure or cancellation in the middle of the fold must not leave a state that is half folded.
        self.current = None
        await self._fold_until(state, head.position, source)
        self.acknowledged.note(state.position, state.hash)
        self.current = state
        return state

    async def catch_up_before_lock(self) -> None:
        """Bring the state near the head before the lock is acquired, when the fold keeps no other writer waiting."""
        async with self.lock:
            await self.catch_up(self._store)

    def follow(self, tail: Tail, rows: list[Row], events: list[Event]) -> None:
        """Fold what others appended before this process's newest rows, and then these.

        The rows are committed already, so an error here only discards the state.
        """
        state, self.current = self.current, None
        if state is None:
            return
        try:
            if tail.rows and row_hash(state.hash, tail.rows[0]) != tail.rows[0].hash:
                raise CorruptLedger(tail.rows[0].position, "its hash does not follow from the row before it")
            self._counters.foreign_rows += len(tail.rows)
            for row, event in zip([*tail.rows, *rows], [*tail.events, *events], strict=True):
                state.evolve(row, event)
            self.current = state
        except Exception:
            log.warning("the state could not follow the log and will be loaded again", exc_info=True)

    async def _fold_until(self, state: S, position: int, source: Store | Transaction) -> None:
        self._counters.foreign_rows += position - state.position
        while state.position < position:
            rows = await source.read(state.position)
            if not rows:
                raise CorruptLedger(state.position + 1, f"the log ends before it, its head says {position}")
            # The first row's hash covers the hash of the row before it. One check therefore proves that the tail
            # continues the log that was folded so far. `verify` and the audit check every hash.
            if row_hash(state.hash, rows[0]) != rows[0].hash:
                await self.acknowledged.check(source)
                raise StorageUnavailable(
                    f"the stored log was replaced by one that differs at {rows[0].position}; was the database restored?"
                )
            state.fold(rows[: position - state.position])
