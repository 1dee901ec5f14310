"""To which log the rows in a file of derived tables belong.

The file beside a log may outlive it: the log is replaced, restored from a backup, or loses its end with a disk. So the
file names, for each ledger, the last event that something in it was derived from, with the hash of the log there. A
hash covers all events before it, so a log with this hash at this position is the one from which the rows were derived.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple, Protocol

from ledger.codec import GENESIS_HASH

BINDINGS_TABLE = """CREATE TABLE allowance_derived_from (
                        ledger INTEGER NOT NULL PRIMARY KEY,
                        validator_ss58 TEXT NOT NULL,
                        position BIGINT NOT NULL,
                        hash BLOB NOT NULL
                    )"""
_FIND = "SELECT validator_ss58, position, hash FROM allowance_derived_from WHERE ledger = ?"
_PUT = "INSERT OR REPLACE INTO allowance_derived_from (ledger, validator_ss58, position, hash) VALUES (?, ?, ?, ?)"
_PROCESSED = "SELECT coalesce(max(position), 0) FROM allowance_checkpoints WHERE ledger = ?"
# The rows of the history are left to its garbage collection: without a checkpoint nobody reads them.
_FORGET = (
    "DELETE FROM allowance_checkpoints WHERE ledger = ?",
    "DELETE FROM allowance_snapshots WHERE ledger = ?",
)


class BoundLog(Protocol):
    """The log to which derived tables must belong."""

    validator_ss58: str
    ledger: int

    def hash_at(self, position: int) -> bytes | None:
        """Return the hash of the event at a position, None if the log has none there."""
        ...


class Binding(NamedTuple):
    """The last event from which something was derived: whose log it is in, and the log's hash there."""

    validator_ss58: str
    position: int
    hash: bytes


def binding(connection: sqlite3.Connection, ledger: int) -> Binding | None:
    """Return what a ledger's derived rows are bound to, None if they are bound to nothing."""
    row = connection.execute(_FIND, (ledger,)).fetchone()
    return None if row is None else Binding(*row)


def belongs_to(bound: Binding | None, log: BoundLog) -> bool:
    """Return True if derived rows were derived from this log."""
    if bound is None or bound.validator_ss58 != log.validator_ss58:
        return False
    return bound.hash == _hash_at(log, bound.position)


def bind_anew(connection: sqlite3.Connection, log: BoundLog) -> Binding:
    """Forget what was derived from another log; return the new binding, from which nothing is derived yet."""
    for statement in _FORGET:
        connection.execute(statement, (log.ledger,))
    return _put(connection, log.ledger, Binding(log.validator_ss58, 0, GENESIS_HASH))


def moved_on(connection: sqlite3.Connection, log: BoundLog, bound: Binding) -> Binding:
    """Bind the derived rows to the last event that they contain by now; return the binding."""
    try:
        (position,) = connection.execute(_PROCESSED, (log.ledger,)).fetchone()
    except sqlite3.OperationalError:
        return bound  # The table is lost, which must not keep a rebuild from making it again.
    a_hash = _hash_at(log, position) if position > bound.position else None
    if a_hash is None:
        return bound
    return _put(connection, log.ledger, Binding(log.validator_ss58, position, a_hash))


def _put(connection: sqlite3.Connection, ledger: int, bound: Binding) -> Binding:
    connection.execute(_PUT, (ledger, *bound))
    return bound


def _hash_at(log: BoundLog, position: int) -> bytes | None:
    return GENESIS_HASH if position == 0 else log.hash_at(position)
