"""Write transactions on the read models."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from ledger.store.contract import RowExists, Value


class SqliteReadModelTransaction:
    """A transaction on the read models; a `ReadModelTransaction`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.IntegrityError as cause:
            raise RowExists(str(cause)) from cause
