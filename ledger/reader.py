"""Reading what is stored for what it is: every row that a log has, whatever became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from .codec import Row


class StoredLedger(NamedTuple):
    """A ledger as its head row tells of it, unchecked: after damage or tampering any value may be anything.

    `has_head` is False where there are events, and no head row for them.
    """

    ledger: Any
    validator_ss58: Any = None
    position: Any = None
    hash: Any = None
    recorded_at_ns: Any = None
    has_head: bool = True


class Reader(Protocol):
    """All that a database, or an export, holds, as it stood at one moment; reading it changes nothing."""

    async def ledgers(self) -> list[StoredLedger]:
        """Every ledger that has a head row or events. Raises `NewerLedger`, `StorageUnavailable`."""
        ...

    def pages(self, stored: StoredLedger) -> AsyncIterator[list[Row]]:
        """Every row of a ledger, by position.

        Raises `CorruptLedger` where stored bytes cannot be made out any further.
        """
        ...

    async def head(self, stored: StoredLedger) -> StoredLedger:
        """The ledger's head row; of an export, known only when its rows were read."""
        ...

    def check_undisturbed(self) -> None:
        """Raises `StorageUnavailable` where what was read may not be of one moment after all."""
        ...


OpenReader = AbstractAsyncContextManager[Reader]
