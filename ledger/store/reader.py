"""The contract for reading a log without trusting it: every stored row, even if it is damaged.

`verify`, `export` and the audit read through it. A `Store` cannot serve them, because it assumes an intact log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from ledger.codec import Row
from ledger.errors import CorruptLedger


class StoredLedger(NamedTuple):
    """A ledger's head row, unchecked: after damage or tampering a column may hold anything.

    `has_head` is False if the ledger has events but no head row.
    """

    ledger: Any
    validator_ss58: Any = None
    position: Any = None
    hash: Any = None
    recorded_at_ns: Any = None
    has_head: bool = True


class LogReader(Protocol):
    """A snapshot of everything in a database or an export. To read it changes nothing."""

    async def ledgers(self) -> list[StoredLedger]:
        """Return every ledger that has a head row or events. Raises `NewerLedger`, `StorageUnavailable`."""
        ...

    def pages(self, stored: StoredLedger, after: int | None = None) -> AsyncIterator[list[Row]]:
        """Yield every row of a ledger in pages, by position; of a database also only those after a position.

        Raises `CorruptLedger` at the position after which the stored bytes cannot be decoded.
        """
        ...

    async def head(self, stored: StoredLedger) -> StoredLedger:
        """Return the ledger's head row. An export has it at the end, so read all pages first."""
        ...

    async def versions(self, stored: StoredLedger) -> dict[Any, Any]:
        """Return the versions in the rows of a ledger's streams, by name; none if there are no such rows."""
        ...

    def check_unchanged(self) -> None:
        """Raise `StorageUnavailable` if the pages may not belong to one snapshot after all."""
        ...


# A database without these tables has no log.
LOG_TABLES = ("allowance_schema", "allowance_ledgers", "allowance_events")


def has_log_tables(found: Collection[str]) -> bool:
    """Whether these tables include the log's. Raises `CorruptLedger` if only some of the log's tables are there."""
    missing = [name for name in LOG_TABLES if name not in found]
    if missing and len(missing) < len(LOG_TABLES):
        raise CorruptLedger(1, f"the database has lost the table {' and '.join(missing)}")
    return not missing


STREAMS = "allowance_streams"
_STREAMS_SINCE_VERSION = 3


def check_streams(version: int, found: Collection[str]) -> None:
    """Raise `CorruptLedger` if tables of this schema version lack that of the streams."""
    if version >= _STREAMS_SINCE_VERSION and STREAMS not in found:
        raise CorruptLedger(1, f"the database has lost the table {STREAMS}")


OpenReader = AbstractAsyncContextManager[LogReader]
