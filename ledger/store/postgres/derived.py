"""Transactions on the derived tables, in plain SQL; and SQLAlchemy's connections to query them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg

from ledger.errors import StorageUnavailable
from ledger.store.contract import RowExists, Value, check_schema_version

from .session import ServerSession
from .sqlstates import is_table_broken
from .statements import LOCK_SCHEMA, STORED_SCHEMA_VERSION

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
# Shared by the writers of all ledgers; excludes schema steps, and those that change the tables themselves.
_BEGIN_SHARED = f"{_BEGIN}; SELECT FROM allowance_schema FOR SHARE"
_BEGIN_ALONE = f"{_BEGIN}; {LOCK_SCHEMA}"
# A row that no read model uses. Not the head row, for which appends wait.
_LOCK_LEDGER = f"""SELECT ({STORED_SCHEMA_VERSION}) FROM allowance_checkpoints
                   WHERE ledger = $1 AND projection = 'write-lock' AND model_version = 0 FOR UPDATE"""
# Waits for another process that inserts the row, until it has committed or rolled back.
_ADD_LOCK = """INSERT INTO allowance_checkpoints (ledger, projection, model_version, generation, position)
               VALUES ($1, 'write-lock', 0, 0, 0) ON CONFLICT (ledger, projection, model_version) DO NOTHING"""


class PostgresDerivedTransaction:
    """A transaction on the derived tables; a `DerivedTransaction`."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def query(self, statement: str, *values: Value) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._connection.fetch(_numbered_parameters(statement), *values)]

    async def execute_many(self, statement: str, rows: Sequence[tuple[Value, ...]]) -> None:
        if not rows:
            return
        try:
            await self._connection.executemany(_numbered_parameters(statement), rows)
        except asyncpg.IntegrityConstraintViolationError as cause:
            raise RowExists(str(cause)) from cause


async def begin_derived_write(
    session: ServerSession, connection: asyncpg.Connection, ledger: int, *, all_ledgers: bool
) -> asyncpg.Connection:
    """Begin a transaction and lock the ledger's derived tables, so that one process at a time writes them.

    With `all_ledgers`, lock those of every ledger; so too if the table with the ledgers' locks is lost or broken. On
    SQLite the write lock of their file does the same. Appends use none of these locks, so they need not wait.
    """
    try:
        version = await (_lock_all(connection) if all_ledgers else _lock_one(connection, ledger))
        check_schema_version(version)
    except BaseException as error:
        await session.roll_back(connection)
        if all_ledgers or not is_table_broken(error):
            raise
    else:
        return connection
    return await begin_derived_write(session, await session.connection(), ledger, all_ledgers=True)


async def _lock_all(connection: asyncpg.Connection) -> int:
    await connection.execute(_BEGIN_ALONE)
    return _found(await connection.fetchval(STORED_SCHEMA_VERSION))


async def _lock_one(connection: asyncpg.Connection, ledger: int) -> int:
    await connection.execute(_BEGIN_SHARED)
    version: int | None = await connection.fetchval(_LOCK_LEDGER, ledger)
    if version is None:
        await connection.execute(_ADD_LOCK, ledger)
        version = await connection.fetchval(_LOCK_LEDGER, ledger)
    return _found(version)


def _found(version: int | None) -> int:
    if version is None:
        raise StorageUnavailable("allowance_schema has lost its row")
    return version


class DerivedEngine:
    """SQLAlchemy's engine, made when it is first used: its import is slow."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self._connect = connect
        self._engine: AsyncEngine | None = None
        self._connections: WeakSet[asyncpg.Connection] = WeakSet()

    def open(self) -> AsyncEngine:
        """Return the engine."""
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            self._engine = create_async_engine(
                "postgresql+asyncpg://",
                async_creator=self._connect_noted,
                pool_size=2,
                max_overflow=0,
                pool_pre_ping=True,
            )
        return self._engine

    def cut_connections(self) -> None:
        """Cut every connection; the pool tests one before it uses it."""
        for connection in list(self._connections):
            connection.terminate()

    async def close(self) -> None:
        """Close the engine; the next use makes another."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def _connect_noted(self) -> asyncpg.Connection:
        connection = await self._connect()
        self._connections.add(connection)
        return connection


@lru_cache(maxsize=128)
def _numbered_parameters(statement: str) -> str:
    """Replace each `?` by PostgreSQL's `$1`, `$2`, …

    A statement must therefore not contain a `?` in a text: all values are parameters.
    """
    first, *parts = statement.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))
