"""Reading what is stored for what it is: every row that a log has, whatever became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from ledger.codec import Row
from ledger.errors import CorruptLedger


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


class LogReader(Protocol):
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

    def check_unchanged(self) -> None:
        """Raises `StorageUnavailable` where what was read may not be of one moment after all."""
        ...


LOG_TABLES = ("allowance_schema", "allowance_ledgers", "allowance_events")
"""Without which there is no log."""


def has_log_tables(found: Collection[str]) -> bool:
    """Whether a database with these tables has the log's; `CorruptLedger` where it has only some of them."""
    missing = [name for name in LOG_TABLES if name not in found]
    if missing and len(missing) < len(LOG_TABLES):
        raise CorruptLedger(1, f"the database has lost the table {' and '.join(missing)}")
    return not missing


OpenReader = AbstractAsyncContextManager[LogReader]
