"""The newest stretch of a log, checked whenever a process loads its state: a damaged log must not keep serving.

What a disk damages is mostly what was written last. `allowance verify` checks the whole chain.
"""

from __future__ import annotations

from struct import error as StructError  # noqa: N812 - the standard library names it in lower case

from ledger.domain.lookup import Head
from ledger.store.contract import Store

from .codec import Row, row_hash
from .errors import CorruptLedger

NEWEST_ROWS = 200
"""To read and to hash them takes about 2 ms."""
WAY_OUT = (
    "stop what uses this ledger; `allowance verify` finds all damage, and `allowance guide backup-and-restore` says how"
    " to go back to a backup"
)
_UNHASHABLE = (StructError, TypeError, AttributeError, ValueError, OverflowError)


async def check_newest_rows(store: Store) -> Head:
    """Check the last `NEWEST_ROWS` rows, and that the head is that of the last one; return the head.

    Raises `CorruptLedger` at the first bad position.
    """
    head = await store.head()
    position = max(0, head.position - NEWEST_ROWS - 1)
    # Unless the log is short, the first row that is read only gives the hash that the second one continues.
    last = Head() if position == 0 else None
    while position < head.position:
        rows = await store.read(position)
        if not rows:
            raise _damaged(position + 1, f"the log ends before it, but its head row is at {head.position}")
        # Others may have appended since the head was read.
        for row in rows[: head.position - position]:
            position += 1
            _check(position, row, last)
            last = Head(row.position, row.hash, row.recorded_at_ns)
    if last != head:
        raise _damaged(head.position, "the head row has another hash or time than the last event")
    return head


def _check(position: int, row: Row, previous: Head | None) -> None:
    if row.position != position:
        raise _damaged(position, "the row is missing")
    if previous is not None and _hash_of(previous.hash, row) != row.hash:
        raise _damaged(position, "the row's hash is not that of its columns and the row before it")


def _hash_of(previous: bytes, row: Row) -> bytes | None:
    try:
        return row_hash(previous, row)
    except _UNHASHABLE:
        return None


def _damaged(position: int, reason: str) -> CorruptLedger:
    return CorruptLedger(position, f"{reason}; {WAY_OUT}")
