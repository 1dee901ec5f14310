"""The log on PostgreSQL, and on databases that speak its language.

Only tables, row locks and single transaction: no advisory lock, `LISTEN` or sequence. An append that meets no other
is one statement, which moves the head from where it is believed to stand and inserts the rows; contended, a
transaction takes the head's row lock first. Read models are queried through SQLAlchemy, on
connections made the same way.

An append whose answer was lost may still be on its way to the server. Before anything else is read or written,
the head's fence is raised: that waits for whoever holds the head, and shuts out what names the old fence. What is
not in the log then never will be.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import asyncpg

from ledger.background_imports import import_in_thread
from ledger.codec import GENESIS_HASH, Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import InvalidInput, LedgerNotFound, StorageUnavailable
from ledger.store.contract import (
    PAGE_ROWS,
    SCHEMA_VERSION,
    CommitOutcomeUnknown,
    RowExists,
    TransactionConflict,
    Value,
    WhileWaiting,
    check_schema_version,
    do_nothing,
    driver_message,
    is_sqlalchemy_error,
)
from ledger.values import LARGEST_INTEGER

from .reader import BROKEN, PostgresReader, postgres_errors

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

R = TypeVar("R")

CONNECT_TIMEOUT_SECONDS = 10.0
STATEMENT_TIMEOUT_SECONDS = 30
IDLE_TRANSACTION_TIMEOUT_SECONDS = 20
"""Shorter than a statement may wait: the head's lock comes free of a dead client before those in line give up."""
COMMAND_TIMEOUT_SECONDS = 40.0
"""Longer than the server's own timeout, whose answer tells for certain that nothing was done."""
CLOSE_TIMEOUT_SECONDS = 5.0
ENCODINGS = ("UTF8", "SQL_ASCII")
"""Of databases that take every name; another one would refuse some, and with each the whole batch that it is in."""
SHOWN_URL = "postgresql://…"
"""What a refusal shows of a URL, which may hold a password."""
EXPECTED_URL = "postgresql://user:password@host:port/database, with %40 for @, %2F for / and so on inside of the parts"
_SAFE_REASON = re.compile("`ssl|^root certificate file|^direct TLS")
MOST_PAUSE_SECONDS = 0.05
MOST_CREATION_ATTEMPTS = 100

_COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
_HEAD = """SELECT position, hash, recorded_at_ns, fence, (SELECT version FROM allowance_schema)
           FROM allowance_ledgers WHERE ledger = $1 AND validator_ss58 = $2"""
_LOCK_HEAD = f"{_HEAD} FOR UPDATE"
_READ = f"SELECT {_COLUMNS} FROM allowance_events WHERE ledger = $1 AND position > $2 ORDER BY position LIMIT $3"
_FIND = f"""
    WITH found AS (
        SELECT 'key' AS found_by, events.* FROM unnest($2::text[]) AS asked(value) CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND key = asked.value LIMIT 1) AS events
        UNION ALL
        SELECT 'job', events.* FROM unnest($3::text[]) AS asked(value) CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND job_uuid = asked.value
             ORDER BY attempt DESC LIMIT 1) AS events
        UNION ALL
        SELECT 'position', events.* FROM unnest($4::bigint[]) AS asked(value) CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND position = asked.value LIMIT 1) AS events
    ), ends AS (
        SELECT 'settles', events.* FROM found CROSS JOIN LATERAL
            (SELECT * FROM allowance_events WHERE ledger = $1 AND settles = found.position LIMIT 1) AS events
        WHERE found_by <> 'key'
    )
    SELECT found_by, {_COLUMNS} FROM (SELECT * FROM found UNION ALL SELECT * FROM ends) AS known"""
"""Lateral look-ups with a limit are no joins to the planner: each goes through its index, stale numbers or not."""
_APPEND = f"""
    WITH moved AS (
        UPDATE allowance_ledgers SET position = $5, hash = $6, recorded_at_ns = $7
        WHERE ledger = $1 AND position = $2 AND hash = $3 AND fence = $4
          AND (SELECT version FROM allowance_schema) = $8
        RETURNING ledger
    )
    INSERT INTO allowance_events (ledger, {_COLUMNS})
    SELECT moved.ledger, appended.* FROM moved, unnest(
        $9::bigint[], $10::text[], $11::bigint[], $12::bigint[], $13::text[],
        $14::text[], $15::bigint[], $16::bigint[], $17::bytea[], $18::bytea[]
    ) AS appended"""
_RAISE_FENCE = "UPDATE allowance_ledgers SET fence = fence + 1 WHERE ledger = $1 RETURNING fence"
_FIND_LEDGER = "SELECT ledger FROM allowance_ledgers WHERE validator_ss58 = $1"
_NEW_LEDGER = """INSERT INTO allowance_ledgers (ledger, validator_ss58, position, hash, recorded_at_ns)
                 SELECT coalesce((SELECT max(ledger) FROM allowance_ledgers), 0) + 1, $1, 0, $2, 0
                 ON CONFLICT DO NOTHING"""
_HAS_SCHEMA = "SELECT to_regclass('allowance_schema') IS NOT NULL"
_SCHEMA_VERSION = "SELECT version FROM allowance_schema"

_INTEGRITY = "23"
_CONTENDED = ("40001", "40P01")
_CONNECTION_LOST = ("08", "57P", "25P03", "25P04")
_READ_ONLY = "25006"
"""What a server says to a writer that stands by for another, or that did when the connection was made."""
_CREATED_CONCURRENTLY = ("23505", *_CONTENDED, "42P07", "42701", "42710", "42723", "XX000")
"""How a database says that somebody else made the same thing at the same time."""
_TRIGGER_UNSUPPORTED = ("0A000", "42601", "42710")

log = logging.getLogger("allowance.ledger")


class PostgresStore:
    """One ledger in one PostgreSQL database."""

    optimistic = True
    """Taking the lock costs four more round trips, during which nobody else appends."""
    readers_block_writers = False

    def __init__(self, database_url: str, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        self._database_url = database_url
        self._server_settings = _server_settings(database_url)
        self._read_only = read_only
        self._fence = 0
        self._in_doubt = False
        self._writes = ServerSession(self._connect)
        self._reads = ServerSession(self._connect)
        self._derived = ServerSession(self._connect)
        """For writing the read models: appends do not wait for it."""
        self._engine: AsyncEngine | None = None

    async def open(self, create: Callable[[], MetaData] | None) -> Head:
        with _PostgresErrors():
            if create is not None:
                await self._create(create)
            self.ledger = await self._reads.run(self._find_ledger)
        return await self.head()

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None
        await self._writes.close()
        await self._reads.close()
        await self._derived.close()

    @asynccontextmanager
    async def paused_for_fork(self) -> AsyncIterator[Callable[[], None]]:
        """Gives what does nothing: a forked child never touches the sockets that it inherits."""
        yield lambda: None

    async def head(self) -> Head:
        with _PostgresErrors():
            await self._resolve_doubt()
            return self._head(
                await self._reads.run(lambda connection: connection.fetchrow(_HEAD, self.ledger, self.validator_ss58))
            )

    def probe_head(self) -> Head | None:
        """None: whoever asks the server waits for it."""
        return None

    async def read(self, after: int) -> list[Row]:
        with _PostgresErrors():
            await self._resolve_doubt()
            return await self._reads.run(lambda connection: _read(connection, self.ledger, after))

    async def find(self, lookup: Lookup) -> LookupResult:
        with _PostgresErrors():
            await self._resolve_doubt()
            return await self._reads.run(lambda connection: _find(connection, self.ledger, lookup))

    @asynccontextmanager
    async def transaction(self, _meanwhile: WhileWaiting = do_nothing) -> AsyncIterator[PostgresTransaction]:
        with _PostgresErrors(in_transaction=True):
            await self._resolve_doubt()
            async with self._writes.lock:
                connection, head = await self._writes.attempt(self._begin)
                try:
                    yield PostgresTransaction(self, connection, head)
                except BaseException:
                    await _roll_back(self._writes, connection)
                    raise
                await self._commit(connection)

    async def compare_and_append(self, head: Head, rows: list[Row]) -> bool:
        with _PostgresErrors():
            await self._resolve_doubt()
            async with self._writes.lock:
                connection = await self._writes.connection()
                try:
                    return await self._append(connection, head, rows)
                except BaseException as error:
                    if _is_constraint_violation(error) or _is_contended(error):
                        return False
                    if _is_definite_failure(error):
                        if _needs_new_connection(error):
                            self._writes.drop()
                        raise
                    self._mark_in_doubt()
                    if isinstance(error, Exception):
                        raise CommitOutcomeUnknown(str(error)) from error
                    raise

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with _PostgresErrors():
            await self._resolve_doubt()
            return [tuple(row) for row in await self._reads.run(lambda connection: connection.fetch(statement))]

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[PostgresReader]:
        with postgres_errors():
            connection = await self._connect()
            try:
                # Whoever reads may take its time between two pages.
                await connection.execute("SET idle_in_transaction_session_timeout = 0")
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    yield PostgresReader(connection)
            finally:
                connection.terminate()

    @asynccontextmanager
    async def read_connection(self) -> AsyncIterator[AsyncConnection]:
        await import_in_thread("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg")
        with _PostgresErrors():
            async with self._open_engine().connect() as connection:
                yield connection

    @asynccontextmanager
    async def write_read_models(self) -> AsyncIterator[PostgresReadModelTransaction]:
        with _PostgresErrors():
            async with self._derived.lock:
                connection = await self._derived.attempt(self._begin_read_model_write)
                try:
                    yield PostgresReadModelTransaction(connection)
                    _check_committed(await connection.execute("COMMIT"))
                except BaseException:
                    await _roll_back(self._derived, connection)
                    raise

    async def _connect(self) -> asyncpg.Connection:
        try:
            connection = await asyncpg.connect(
                self._database_url,
                timeout=CONNECT_TIMEOUT_SECONDS,
                command_timeout=COMMAND_TIMEOUT_SECONDS,
                server_settings=self._server_settings,
            )
        except TimeoutError as cause:
            raise StorageUnavailable(f"no connection within {CONNECT_TIMEOUT_SECONDS:g} s") from cause
        except (asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError) as cause:
            raise InvalidInput(
                "database_url", SHOWN_URL, f"a URL whose parameters the server can set ({cause})"
            ) from cause
        except ValueError as cause:
            # Of the driver's reasons only those are told that name no part of a URL, which may be of the password.
            expected = f"a URL that the driver accepts ({cause})" if _SAFE_REASON.search(str(cause)) else EXPECTED_URL
            raise InvalidInput("database_url", SHOWN_URL, expected) from cause
        try:
            encoding = connection.get_settings().server_encoding
            if encoding not in ENCODINGS:
                raise InvalidInput(
                    "database_url", SHOWN_URL, f"the URL of a database whose encoding is UTF8, not {encoding}"
                )
            if self._read_only:
                # Said now and not while it connects: a server would be taken for one that only stands by.
                await connection.execute("SET default_transaction_read_only = on")
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            self._engine = create_async_engine(
                "postgresql+asyncpg://", async_creator=self._connect, pool_size=2, max_overflow=0, pool_pre_ping=True
            )
        return self._engine

    async def _begin(self, connection: asyncpg.Connection) -> tuple[asyncpg.Connection, Head]:
        """Opens a transaction alone at the head: each later statement in it sees what was committed before it."""
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            return connection, self._head(await connection.fetchrow(_LOCK_HEAD, self.ledger, self.validator_ss58))
        except BaseException:
            await _roll_back(self._writes, connection)
            raise

    async def _begin_read_model_write(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Opens a transaction alone among those who write read models, as on SQLite; appends do not wait for it."""
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            check_schema_version(await connection.fetchval(f"{_SCHEMA_VERSION} FOR UPDATE"))
        except BaseException:
            await _roll_back(self._derived, connection)
            raise
        return connection

    async def _commit(self, connection: asyncpg.Connection) -> None:
        try:
            status = await connection.execute("COMMIT")
        except BaseException as error:
            if _is_contended(error):
                raise
            self._mark_in_doubt()
            if isinstance(error, Exception):
                raise CommitOutcomeUnknown(str(error)) from error
            raise
        _check_committed(status)

    async def _append(self, connection: asyncpg.Connection, head: Head, rows: list[Row]) -> bool:
        """Inserts the rows and moves the head to the last of them, if it stands at `head`; whether it did."""
        last = rows[-1]
        status = await connection.execute(
            _APPEND,
            *(self.ledger, head.position, head.hash, self._fence),
            *(last.position, last.hash, last.recorded_at_ns, SCHEMA_VERSION),
            *zip(*rows, strict=True),
        )
        return bool(status == f"INSERT 0 {len(rows)}")

    def _mark_in_doubt(self) -> None:
        self._in_doubt = True
        self._writes.drop()

    async def _resolve_doubt(self) -> None:
        """After this, what was sent and not answered has been done, or never will be."""
        if self._in_doubt:
            async with self._writes.lock:
                self._fence = await self._writes.attempt(
                    lambda connection: connection.fetchval(_RAISE_FENCE, self.ledger)
                )
            self._in_doubt = False

    def _head(self, stored: asyncpg.Record | None) -> Head:
        if stored is None:
            raise LedgerNotFound(self.validator_ss58)
        position, a_hash, recorded_at_ns, self._fence, schema_version = stored
        check_schema_version(schema_version)
        return Head(position, a_hash, recorded_at_ns)

    async def _find_ledger(self, connection: asyncpg.Connection) -> int:
        stored = await _stored_schema_version(connection)
        if stored is None:
            raise LedgerNotFound(self.validator_ss58)
        check_schema_version(stored)
        ledger: int | None = await connection.fetchval(_FIND_LEDGER, self.validator_ss58)
        if ledger is None:
            raise LedgerNotFound(self.validator_ss58)
        return ledger

    async def _create(self, tables: Callable[[], MetaData]) -> None:
        """Makes what is not there; where others do so at the same time, one at a time gets further."""
        for _ in range(MOST_CREATION_ATTEMPTS):
            try:
                await self._writes.run(lambda connection: _create_schema(connection, tables))
                await self._writes.run(self._create_ledger)
                await self._writes.run(self._find_ledger)
            except (asyncpg.PostgresError, LedgerNotFound) as error:
                if not isinstance(error, LedgerNotFound) and _sqlstate(error) not in _CREATED_CONCURRENTLY:
                    raise
                await asyncio.sleep(random.uniform(0, MOST_PAUSE_SECONDS))
            else:
                return

    async def _create_ledger(self, connection: asyncpg.Connection) -> None:
        if await connection.fetchval(_FIND_LEDGER, self.validator_ss58) is None:
            await connection.execute(_NEW_LEDGER, self.validator_ss58, GENESIS_HASH)


class PostgresTransaction:
    """A write transaction on a `PostgresStore`."""

    def __init__(self, store: PostgresStore, connection: asyncpg.Connection, head: Head) -> None:
        self._store = store
        self._connection = connection
        self._head = head

    async def head(self) -> Head:
        return self._head

    async def read(self, after: int) -> list[Row]:
        return await _read(self._connection, self._store.ledger, after)

    async def find(self, lookup: Lookup) -> LookupResult:
        return await _find(self._connection, self._store.ledger, lookup)

    async def append(self, rows: list[Row]) -> None:
        if not await self._store._append(self._connection, self._head, rows):
            raise StorageUnavailable("the head moved inside a write transaction: its row is not locked")
        self._head = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)


class PostgresReadModelTransaction:
    """A transaction on the read models."""

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


@lru_cache(maxsize=128)
def _numbered_parameters(statement: str) -> str:
    """A statement whose values are marked `?`, as PostgreSQL wants them: `$1`, `$2`, …"""
    first, *parts = statement.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))


class ServerSession:
    """One connection, used by one task at a time, and made anew where it was lost."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self.lock = asyncio.Lock()
        self._connect = connect
        self._connection: asyncpg.Connection | None = None

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[R]]) -> R:
        """Does in turn what may be done twice."""
        async with self.lock:
            return await self.attempt(work)

    async def attempt(self, work: Callable[[asyncpg.Connection], Awaitable[R]], *, again: bool = True) -> R:
        """Does what may be done twice, and does it again where the connection turned out lost, or contended."""
        connection = await self.connection()
        try:
            return await work(connection)
        except Exception as error:
            if _needs_new_connection(error):
                self.drop()
            if (
                not again
                or isinstance(error, TimeoutError)
                or not (_needs_new_connection(error) or _is_contended(error))
            ):
                raise
        await asyncio.sleep(random.uniform(0, MOST_PAUSE_SECONDS))
        return await self.attempt(work, again=False)

    async def connection(self) -> asyncpg.Connection:
        """The connection, or a new one."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    def drop(self) -> None:
        """Cuts the connection off; the server undoes what was not committed."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Takes leave of the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=CLOSE_TIMEOUT_SECONDS)
            except (asyncpg.PostgresError, *BROKEN):
                connection.terminate()


def _check_committed(status: str) -> None:
    if status != "COMMIT":
        raise StorageUnavailable(f"the database answered {status} to a COMMIT; nothing was done")


async def _roll_back(lane: ServerSession, connection: asyncpg.Connection) -> None:
    try:
        await connection.execute("ROLLBACK")
    except Exception:
        lane.drop()
    except BaseException:
        lane.drop()
        raise


async def _read(connection: asyncpg.Connection, ledger: int, after: int) -> list[Row]:
    return [Row(*row) for row in await connection.fetch(_READ, ledger, after, PAGE_ROWS)]


async def _find(connection: asyncpg.Connection, ledger: int, lookup: Lookup) -> LookupResult:
    positions = [position for position in lookup.positions if position <= LARGEST_INTEGER]
    known = LookupResult()
    for found_by, *columns in await connection.fetch(_FIND, ledger, list(lookup.keys), list(lookup.jobs), positions):
        row = Row(*columns)
        if found_by == "key" and row.key is not None:
            known.keys[row.key] = row
        elif found_by == "job" and row.job_uuid is not None:
            known.jobs[row.job_uuid] = row
        elif found_by == "position":
            known.rows[row.position] = row
        elif row.settles is not None:
            known.settlements[row.settles] = row
    return known


async def _stored_schema_version(connection: asyncpg.Connection) -> int | None:
    if not await connection.fetchval(_HAS_SCHEMA):
        return None
    version: int | None = await connection.fetchval(_SCHEMA_VERSION)
    return version


async def _create_schema(connection: asyncpg.Connection, tables: Callable[[], MetaData]) -> None:
    if await _stored_schema_version(connection) is not None:
        return
    from ledger.store.tables import postgres_schema, postgres_triggers

    schema_table, *others = postgres_schema(tables())
    async with connection.transaction():
        # Of those who make it at once one goes on. Others wait here and then fail, or find it made: were they to go
        # through the rest as well, its locks would meet those of the ledgers that are in use by then.
        await connection.execute(schema_table)
        if await connection.fetchval(_SCHEMA_VERSION) is not None:
            return
        for statement in others:
            await connection.execute(statement)
        for statement in postgres_triggers():
            await _create_trigger(connection, statement)
        await connection.execute(
            "INSERT INTO allowance_schema (one, version) VALUES (1, $1) ON CONFLICT DO NOTHING", SCHEMA_VERSION
        )


async def _create_trigger(connection: asyncpg.Connection, statement: str) -> None:
    """Makes a trigger where the database has such; nothing rests on it."""
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.PostgresError as error:
        if _sqlstate(error) not in _TRIGGER_UNSUPPORTED:
            raise
        log.info("the database takes no such guard", extra={"statement": statement, "reason": str(error)})


def _server_settings(database_url: str) -> dict[str, str]:
    """What each connection is set to, where the URL does not set it otherwise."""
    try:
        url = urlsplit(database_url)
        given = parse_qs(url.query, strict_parsing=True) if url.query else {}
        if "," not in url.netloc:
            _ = url.port
    except ValueError:
        raise InvalidInput("database_url", SHOWN_URL, EXPECTED_URL) from None
    defaults = {
        "application_name": "allowance-ledger",
        "statement_timeout": f"{STATEMENT_TIMEOUT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION_TIMEOUT_SECONDS}s",
    }
    session = {name: value for name, value in defaults.items() if name not in given}
    session["default_transaction_isolation"] = "read committed"
    return session


def _sqlstate(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, asyncpg.PostgresError) else None


def _is_constraint_violation(error: BaseException) -> bool:
    """Whether a constraint of the tables refuses the rows."""
    return (_sqlstate(error) or "").startswith(_INTEGRITY)


def _is_contended(error: BaseException) -> bool:
    return _sqlstate(error) in _CONTENDED


def _is_lost(error: BaseException) -> bool:
    """Whether the connection is gone, or cannot be trusted any more."""
    if isinstance(error, BROKEN):
        return True
    return (_sqlstate(error) or "").startswith(_CONNECTION_LOST)


def _needs_new_connection(error: BaseException) -> bool:
    """Whether another connection may do what this one cannot."""
    return _is_lost(error) or _sqlstate(error) == _READ_ONLY


def _is_definite_failure(error: BaseException) -> bool:
    """Whether the server itself says that the statement failed, so that nothing of it was done."""
    sqlstate = _sqlstate(error)
    return sqlstate is not None and sqlstate != "40003" and not _is_lost(error)


class _PostgresErrors:
    """Raise `StorageUnavailable` for errors of the driver or network, `TransactionConflict` for contention."""

    def __init__(self, *, in_transaction: bool = False) -> None:
        self._in_transaction = in_transaction

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        if self._in_transaction and _is_contended(error):
            raise TransactionConflict(str(error)) from error
        if isinstance(error, (asyncpg.PostgresError, *BROKEN)) or is_sqlalchemy_error(error):
            raise StorageUnavailable(driver_message(error)) from error
