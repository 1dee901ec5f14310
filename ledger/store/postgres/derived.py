"""Transactions on the derived tables, in plain SQL; and SQLAlchemy's connections to query them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg

from ledger.errors import StorageUnavailable
from ledger.store.contract import RowExists, Value, check_schema_version

from .connecting import Connector
from .connection_pool import MOST_CONNECTIONS
from .session import ServerSession
from .sqlstates import is_table_broken
from .statements import LOCK_SCHEMA, STORED_SCHEMA_VERSION

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Shared by the writers of all ledgers; excludes schema steps, and those that change the tables themselves.
_SHARE_SCHEMA = "SELECT FROM allowance_schema FOR SHARE"
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
    session: ServerSession, connection: asyncpg.Connection, begin: str, ledger: int, *, all_ledgers: bool
) -> asyncpg.Connection:
    """Begin a transaction with `begin`, and lock the ledger's derived tables: one process at a time writes them.

    With `all_ledgers`, lock those of every ledger; so too if the table with the ledgers' locks is lost or broken. On
    SQLite the write lock of their file does the same. Appends use none of these locks, so they need not wait.
    """
    try:
        version = await (_lock_all(connection, begin) if all_ledgers else _lock_one(connection, begin, ledger))
        check_schema_version(version)
    except BaseException as error:
        await session.roll_back(connection)
        if all_ledgers or not is_table_broken(error):
            raise
    else:
        return connection
    return await begin_derived_write(session, await session.connection(), begin, ledger, all_ledgers=True)


async def _lock_all(connection: asyncpg.Connection, begin: str) -> int:
    await connection.execute(f"{begin}; {LOCK_SCHEMA}")
    return _found(await connection.fetchval(STORED_SCHEMA_VERSION))


async def _lock_one(connection: asyncpg.Connection, begin: str, ledger: int) -> int:
    await connection.execute(f"{begin}; {_SHARE_SCHEMA}")
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

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._engine: AsyncEngine | None = None
        self._connections: WeakSet[asyncpg.Connection] = WeakSet()
        """Those that may be used again."""
        self._in_use: set[asyncpg.Connection] = set()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection; at the end give it back, or cut it if it was retired meanwhile."""
        async with self._opened().connect() as connection:
            driver_connection = (await connection.get_raw_connection()).driver_connection
            self._in_use.add(driver_connection)
            try:
                yield connection
            finally:
                self._in_use.discard(driver_connection)
                if driver_connection not in self._connections:
                    await connection.invalidate()

    def _opened(self) -> AsyncEngine:
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            # Behind a pool of transactions, a statement that was prepared is soon in another session.
            uncached = {"prepared_statement_cache_size": 0} if self._connector.is_pooled else {}
            self._engine = create_async_engine(
                "postgresql+asyncpg://",
                async_creator=self._connect_noted,
                connect_args=uncached,
                execution_options={"postgresql_readonly": self._connector.read_only},
                pool_size=MOST_CONNECTIONS,
                max_overflow=0,
                pool_pre_ping=True,
            )
        return self._engine

    def retire(self) -> None:
        """Cut every connection that nobody uses, the others when they are given back; the pool tests one before use."""
        for connection in set(self._connections) - self._in_use:
            connection.terminate()
        self._connections.clear()

    async def close(self) -> None:
        """Close the engine; the next use makes another."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    async def _connect_noted(self) -> asyncpg.Connection:
        connection = await self._connector.connect()
        self._connections.add(connection)
        return connection


@lru_cache(maxsize=128)
def _numbered_parameters(statement: str) -> str:
    """Replace each `?` by PostgreSQL's `$1`, `$2`, …

    A statement must therefore not contain a `?` in a text: all values are parameters.
    """
    first, *parts = statement.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))
