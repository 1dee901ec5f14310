"""How the derived tables are read and written: transactions in plain SQL, and SQLAlchemy's engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ledger.store.contract import RowExists, Value

from .reader import BUSY_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

ENGINE_MODULES = ("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.sqlite.aiosqlite", "aiosqlite")
"""To be imported on another thread before `new_engine`, and before anything is locked: see `import_in_thread`."""


class SqlTransaction:
    """A `DerivedTransaction`: plain SQL in the transaction under way on a connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.IntegrityError as cause:
            raise RowExists(str(cause)) from cause


def new_engine(uri: str, *, in_memory: bool) -> AsyncEngine:
    """Return an engine of SQLAlchemy on aiosqlite."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import StaticPool

    # A memory database has no WAL, so a second connection would only block the first.
    options: dict[str, Any] = {"poolclass": StaticPool} if in_memory else {"pool_size": 2}
    # isolation_level None: the driver would otherwise begin transactions by itself, with a plain BEGIN.
    return create_async_engine(
        f"sqlite+aiosqlite:///{uri}&uri=true",
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": None},
        **options,
    )
