"""Rows written below the library, into tables with or without constraints."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ledger import Row
from ledger.store.sqlite.columns import COLUMNS, narrow

_CREATE_STREAM = """INSERT INTO allowance_streams (ledger, stream, name, version)
                    SELECT asked.ledger, (SELECT coalesce(max(stream), 0) + 1 FROM allowance_streams AS streams
                                          WHERE streams.ledger = asked.ledger), asked.name, 0
                    FROM (SELECT ? AS ledger, ? AS name) AS asked
                    WHERE NOT EXISTS (SELECT 1 FROM allowance_streams AS streams
                                      WHERE streams.ledger = asked.ledger AND streams.name = asked.name)"""
_MOVE_STREAM = "UPDATE allowance_streams SET version = ? WHERE ledger = ? AND name = ?"
_NUMBER = "SELECT stream FROM allowance_streams WHERE ledger = ? AND name = ?"
_INSERT = f"INSERT INTO allowance_events (ledger, {COLUMNS}) VALUES ({', '.join('?' * 11)})"


def insert_rows(connection: sqlite3.Connection, ledger: int, rows: Iterable[Row]) -> None:
    """Insert rows without comparing anything; their streams are moved to the rows' versions."""
    for row in rows:
        connection.execute(_CREATE_STREAM, (ledger, row.stream))
        connection.execute(_MOVE_STREAM, (row.version, ledger, row.stream))
        (number,) = connection.execute(_NUMBER, (ledger, row.stream)).fetchone()
        stored = row._replace(stream=number, key=narrow(row.key), job_uuid=narrow(row.job_uuid))  # type: ignore[arg-type]  # as stored
        connection.execute(_INSERT, (ledger, *stored))
