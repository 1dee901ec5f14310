"""The append of rows inside of a write transaction: streams, events, head."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from ledger.codec import Row
from ledger.domain.lookup import Head
from ledger.errors import StorageUnavailable

from .columns import COLUMNS, narrow
from .streams import Streams

_INSERT = f"INSERT INTO allowance_events (ledger, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_MOVE_HEAD = """UPDATE allowance_ledgers SET position = ?, hash = ?, recorded_at_ns = ?
                WHERE ledger = ? AND position = ? AND hash = ?"""


def append_rows(
    connection: sqlite3.Connection,
    ledger: int,
    streams: Streams,
    head: Head,
    rows: list[Row],
    expected: Mapping[str, int],
) -> None:
    """Append rows behind the head. Raises `VersionConflict`, and has then changed nothing."""
    numbers = streams.compare_and_move(connection, ledger, rows, expected)
    connection.executemany(
        _INSERT,
        [
            (ledger, position, numbers[stream], version, at_ns, narrow(key), narrow(job_uuid), *others)
            for position, stream, version, at_ns, key, job_uuid, *others in rows
        ],
    )
    last = rows[-1]
    moved = connection.execute(
        _MOVE_HEAD, (last.position, last.hash, last.recorded_at_ns, ledger, head.position, head.hash)
    )
    # The comparison with the head cannot fail under the lock, unless the file system does not really lock.
    if moved.rowcount != 1:
        raise StorageUnavailable("the head moved inside a write transaction: the file system does not lock the file")
