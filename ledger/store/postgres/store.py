"""The log on PostgreSQL, and on databases that speak its language.

The store uses only tables, row locks and plain transactions: no advisory lock, `LISTEN` or sequence, which distributed
databases lack. An append without contention is one statement: it compares the head with the expected one, moves it and
inserts the rows. Under contention a transaction first locks the head's row. Read models are queried through SQLAlchemy,
on connections with the same settings.

If the response to an append is lost, the request may still be on its way to the server. To read the log is then not
enough: the append could arrive after the read. So before its next read or write the store raises the head's fence. The
update waits for a transaction that has locked the head, and every append names the fence that it expects, so a request
that arrives later is refused. Rows that are not in the log after that will never be in it.
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

from .reader import BROKEN, PostgresReader, postgres_errors, read_page

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

R = TypeVar("R")

# The timeouts depend on each other: idle transaction < statement < command.
CONNECT_TIMEOUT_SECONDS = 10.0
# Enforced by the server. A statement mostly waits for the head's lock, as long as a SQLite writer waits for its lock.
STATEMENT_TIMEOUT_SECONDS = 30
# Enforced by the server. Shorter than the statement timeout: if a client dies while it holds the head's lock, the
# server releases the lock before the statements that wait for it time out.
IDLE_TRANSACTION_TIMEOUT_SECONDS = 20
# Enforced by the client. Longer than the statement timeout: the server's error proves that nothing was done, but after
# a timeout of the client the outcome is unknown. So the server's must come first.
COMMAND_TIMEOUT_SECONDS = 40.0
# Enforced by the client, for the statements of a schema step; they may rewrite a long log.
UPGRADE_TIMEOUT_SECONDS = 86_400.0
# Closing only says goodbye to the server; afterwards the connection is cut. Shorter than the runtime's CLOSING_SECONDS.
CLOSE_TIMEOUT_SECONDS = 5.0
# Encodings that accept every name. Any other would refuse some names, and with each the whole batch that contains it.
ENCODINGS = ("UTF8", "SQL_ASCII")
# Messages show this instead of the URL, which may hold a password.
SHOWN_URL = "postgresql://…"
EXPECTED_URL = "postgresql://user:password@host:port/database, with %40 for @, %2F for / and so on inside of the parts"
# The driver's messages about these quote no part of the URL, so they can be shown.
_SAFE_REASON = re.compile("`ssl|^root certificate file|^direct TLS")
# The longest pause before a retry. It is random, so that processes that collided do not collide again; and short, about
# the time of a few transactions.
MOST_PAUSE_SECONDS = 0.05
# Attempts to create schema and ledger. Whenever processes collide one of them succeeds, so this is enough for as many
# processes as may start at once on one database.
MOST_CREATION_ATTEMPTS = 100

_COLUMNS = "position, stream, version, recorded_at_ns, key, job_uuid, attempt, settles, payload, hash"
_HEAD = """SELECT position, hash, recorded_at_ns, fence, (SELECT version FROM allowance_schema)
           FROM allowance_ledgers WHERE ledger = $1 AND validator_ss58 = $2"""
_LOCK_HEAD = f"{_HEAD} FOR UPDATE"
# A lateral subquery with a limit is always planned as an index look-up. The planner would turn a join into a scan of
# the log if its statistics are old and say that the log is small.
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
# One statement, hence one round trip and one transaction. If the head, the fence or the schema version is not the
# expected one, the UPDATE moves nothing, `moved` is empty and so nothing is inserted.
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
_LOCK_ALL_HEADS = "SELECT ledger FROM allowance_ledgers ORDER BY ledger FOR UPDATE"

# SQLSTATE codes, or their beginnings; source: PostgreSQL's manual, appendix "Error Codes".
_INTEGRITY = "23"
_CONTENDED = ("40001", "40P01")  # serialization failure, deadlock
_CONNECTION_LOST = ("08", "57P", "25P03", "25P04")  # connection exception, shutdown, idle and transaction timeout
# A write failed on a standby server, or on one that was a standby when the connection was opened.
_READ_ONLY = "25006"
# Another process created the same object at the same time. XX000: PostgreSQL's "tuple concurrently updated".
_CREATED_CONCURRENTLY = ("23505", *_CONTENDED, "42P07", "42701", "42710", "42723", "XX000")
_TRIGGER_UNSUPPORTED = ("0A000", "42601", "42710")  # feature not supported, syntax error, the trigger exists
_COMPLETION_UNKNOWN = "40003"  # statement completion unknown

log = logging.getLogger("allowance.ledger")


class PostgresStore:
    """One ledger in one PostgreSQL database."""

    # To append under the lock takes four round trips instead of one, and nobody else can append during them.
    optimistic = True
    reads_wait_for_writes = False

    def __init__(self, database_url: str, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        self._database_url = database_url
        self._server_settings = _server_settings(database_url)
        self._read_only = read_only
        self._fence = 0
        # The outcome of an append is unknown, and the fence has not been raised since.
        self._in_doubt = False
        # Three sessions, so that reads do not wait for an append, and appends do not wait for read models.
        self._writes = ServerSession(self._connect)
        self._reads = ServerSession(self._connect)
        self._read_model_writes = ServerSession(self._connect)
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
        await self._read_model_writes.close()

    @asynccontextmanager
    async def paused_for_fork(self) -> AsyncIterator[Callable[[], None]]:
        """Yield a function that does nothing: a forked child never uses the sockets that it inherits.

        The child opens its own connections, and the server knows nothing of the fork.
        """
        yield lambda: None

    async def head(self) -> Head:
        with _PostgresErrors():
            await self._resolve_doubt()
            return self._head(
                await self._reads.run(lambda connection: connection.fetchrow(_HEAD, self.ledger, self.validator_ss58))
            )

    async def schema_version(self) -> int:
        with _PostgresErrors():
            return await self._reads.run(_stored_schema_version) or 0

    def probe_head(self) -> Head | None:
        """Return None: nobody can ask a server without waiting."""
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
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[PostgresTransaction]:
        # `while_waiting` is never called: the server does not report who is next in the queue for a row lock.
        with _PostgresErrors(in_transaction=True):
            await self._resolve_doubt()
            async with self._writes.lock:
                # A retry is safe up to the lock, since nothing is written before. After it nothing is retried here: the
                # caller has decided on what it read in this transaction.
                connection, head = await self._writes.run_locked(self._begin)
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
                    # The server refused the statement: nothing was done, and to decide again may help.
                    if _is_constraint_violation(error) or _is_contended(error):
                        return False
                    # The server reports a failure: nothing was done, but to decide again would not help.
                    if _is_definite_failure(error):
                        if _needs_new_connection(error):
                            self._writes.drop()
                        raise
                    # The response is missing: a lost connection, a timeout or a cancellation. The append may be done.
                    self._mark_in_doubt()
                    if isinstance(error, Exception):
                        raise CommitOutcomeUnknown(str(error)) from error
                    raise  # A cancellation stays one, but leaves the doubt behind.

    async def resolve_commit(self, first: Row) -> bool:
        # Another process may have appended a different row at this position. The hash covers the content and the whole
        # log before it, so an equal hash proves that the row is this batch's. A commit is atomic: if the first row is
        # stored, all are.
        stored = await self.read(first.position - 1)
        return bool(stored) and stored[0].hash == first.hash

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with _PostgresErrors():
            await self._resolve_doubt()
            return [tuple(row) for row in await self._reads.run(lambda connection: connection.fetch(statement))]

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[PostgresReader]:
        with postgres_errors():
            connection = await self._connect()
            try:
                # An audit may compute for longer than the timeout between two pages. It holds no lock meanwhile.
                await connection.execute("SET idle_in_transaction_session_timeout = 0")
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    yield PostgresReader(connection)
            finally:
                # To cut the connection never waits, unlike an orderly end; a read-only transaction loses nothing.
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
            async with self._read_model_writes.lock:
                connection = await self._read_model_writes.run_locked(self._begin_read_model_write)
                try:
                    yield PostgresReadModelTransaction(connection)
                    _check_committed(await connection.execute("COMMIT"))
                except BaseException:
                    await _roll_back(self._read_model_writes, connection)
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
            raise StorageUnavailable(f"could not connect within {CONNECT_TIMEOUT_SECONDS:g} s") from cause
        except (asyncpg.UndefinedObjectError, asyncpg.CantChangeRuntimeParamError) as cause:
            expected = f"a URL whose parameters the server accepts ({cause})"
            raise InvalidInput("database_url", SHOWN_URL, expected) from cause
        except ValueError as cause:
            # Most of the driver's messages quote a part of the URL. If the password is not escaped, any part may belong
            # to it, even the port. So only messages that are known to be safe are shown.
            expected = f"a URL that the driver accepts ({cause})" if _SAFE_REASON.search(str(cause)) else EXPECTED_URL
            raise InvalidInput("database_url", SHOWN_URL, expected) from cause
        try:
            encoding = connection.get_settings().server_encoding
            if encoding not in ENCODINGS:
                raise InvalidInput(
                    "database_url", SHOWN_URL, f"the URL of a database whose encoding is UTF8, not {encoding}"
                )
            if self._read_only:
                # Set after the connection is open. As a connection parameter it would make the driver believe that
                # every server is a standby, and `target_session_attrs=read-write` would find none.
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
        """Begin a transaction and lock the head's row.

        READ COMMITTED, because the transaction waits for the lock after its first snapshot. Each later statement gets a
        new snapshot and sees the rows of the append that it waited for; REPEATABLE READ would fail instead.
        """
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            return connection, self._head(await connection.fetchrow(_LOCK_HEAD, self.ledger, self.validator_ss58))
        except BaseException:
            await _roll_back(self._writes, connection)
            raise

    async def _begin_read_model_write(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Begin a transaction and lock the schema's row, so that one process at a time writes read models.

        On SQLite the write lock of the file does the same. Appends do not lock this row, so they need not wait.
        """
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            check_schema_version(await connection.fetchval(f"{_SCHEMA_VERSION} FOR UPDATE"))
        except BaseException:
            await _roll_back(self._read_model_writes, connection)
            raise
        return connection

    async def _commit(self, connection: asyncpg.Connection) -> None:
        try:
            status = await connection.execute("COMMIT")
        except BaseException as error:
            # The server aborted the transaction, so nothing was done. Every other error leaves the outcome open, also
            # one that the server reports: it may have failed after the commit was durable.
            if _is_contended(error):
                raise
            self._mark_in_doubt()
            if isinstance(error, Exception):
                raise CommitOutcomeUnknown(str(error)) from error
            raise
        _check_committed(status)

    async def _append(self, connection: asyncpg.Connection, head: Head, rows: list[Row]) -> bool:
        """Insert the rows and move the head to the last of them if the head is the expected one; return True if so."""
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
        # The state of the connection is unknown, and the server may still be executing the append on it.
        self._writes.drop()

    async def _resolve_doubt(self) -> None:
        """Raise the fence if the outcome of an append is unknown.

        The rows of that append are then in the log, or never will be.
        """
        if self._in_doubt:
            async with self._writes.lock:
                # To raise the fence twice is harmless, so a lost response may be retried.
                self._fence = await self._writes.run_locked(
                    lambda connection: connection.fetchval(_RAISE_FENCE, self.ledger)
                )
            # Only after success: if it fails, the next call tries again, and nobody reads before.
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
        """Create the schema and the ledger if they are missing; retry if another process does so at the same time."""
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
    """A transaction on the read models; a `ReadModelTransaction`."""

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
    """Replace each `?` by PostgreSQL's `$1`, `$2`, …

    A statement must therefore not contain a `?` in a text: all values are parameters.
    """
    first, *parts = statement.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))


class ServerSession:
    """One connection that one task uses at a time; if it is lost, the next use opens a new one."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        self.lock = asyncio.Lock()
        self._connect = connect
        self._connection: asyncpg.Connection | None = None

    async def run(self, work: Callable[[asyncpg.Connection], Awaitable[R]]) -> R:
        """Wait for the session's lock, then do the same as `run_locked`."""
        async with self.lock:
            return await self.run_locked(work)

    async def run_locked(self, work: Callable[[asyncpg.Connection], Awaitable[R]], *, may_retry: bool = True) -> R:
        """Run work that may be done twice; retry it once if the connection was lost or the database is contended.

        One retry is enough for the usual case: the server or a firewall closed the connection while it was idle, and
        the client notices only when it uses it.
        """
        connection = await self.connection()
        try:
            return await work(connection)
        except Exception as error:
            if _needs_new_connection(error):
                self.drop()
            # Not after a timeout: the caller has waited for it once already.
            if (
                not may_retry
                or isinstance(error, TimeoutError)
                or not (_needs_new_connection(error) or _is_contended(error))
            ):
                raise
        await asyncio.sleep(random.uniform(0, MOST_PAUSE_SECONDS))
        return await self.run_locked(work, may_retry=False)

    async def connection(self) -> asyncpg.Connection:
        """Return the connection; open one if there is none."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        return self._connection

    def drop(self) -> None:
        """Cut the connection; the server rolls back a transaction that is not committed."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Close the connection in order, or cut it if the server does not respond."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=CLOSE_TIMEOUT_SECONDS)
            except (asyncpg.PostgresError, *BROKEN):
                connection.terminate()


def _check_committed(status: str) -> None:
    # PostgreSQL reports success with the status ROLLBACK if an earlier statement of the transaction had failed.
    if status != "COMMIT":
        raise StorageUnavailable(f"the database responded to COMMIT with {status}; nothing was done")


async def _roll_back(session: ServerSession, connection: asyncpg.Connection) -> None:
    try:
        await connection.execute("ROLLBACK")
    except Exception:
        # The first error is on its way to the caller and says more. Without its connection the server rolls back too.
        session.drop()
    except BaseException:
        session.drop()
        raise  # A cancellation must not be lost.


async def _read(connection: asyncpg.Connection, ledger: int, after: int) -> list[Row]:
    return await read_page(connection, ledger, after, PAGE_ROWS)


async def _find(connection: asyncpg.Connection, ledger: int, lookup: Lookup) -> LookupResult:
    # A caller may pass any integer as a reservation id. One that no column can hold names no row.
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
    stored = await _stored_schema_version(connection)
    if stored is not None:
        if stored < SCHEMA_VERSION:
            await _upgrade(connection)
        return
    from ledger.store.tables import postgres_schema, postgres_triggers

    schema_table, *others = postgres_schema(tables())
    async with connection.transaction():
        # If several processes get here at once, one continues. The others wait at this statement, then fail or find
        # the schema complete, and return. If they executed the other statements too, their locks on several tables
        # could deadlock with ledgers that are already in use.
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


async def _upgrade(connection: asyncpg.Connection) -> None:
    """Execute the missing schema steps in one transaction; other processes wait and then find nothing to do."""
    from ledger.store.schema_steps import log_step, missing_steps

    async with connection.transaction():
        # A step may take longer than any other statement, and so may the wait for a process that executes it.
        await connection.execute("SET LOCAL statement_timeout = 0")
        stored = await connection.fetchval(f"{_SCHEMA_VERSION} FOR UPDATE", timeout=UPGRADE_TIMEOUT_SECONDS)
        # Nobody appends meanwhile: every append needs its ledger's head row.
        await connection.execute(_LOCK_ALL_HEADS, timeout=UPGRADE_TIMEOUT_SECONDS)
        for step in missing_steps(stored):
            log_step(step)
            for statement in step.postgres:
                await connection.execute(statement, timeout=UPGRADE_TIMEOUT_SECONDS)
            await connection.execute("UPDATE allowance_schema SET version = $1", step.version)


async def _create_trigger(connection: asyncpg.Connection, statement: str) -> None:
    """Create a trigger if the database supports it; correctness does not depend on it."""
    try:
        # A savepoint: without it a refused statement would abort the creation of the whole schema.
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.PostgresError as error:
        if _sqlstate(error) not in _TRIGGER_UNSUPPORTED:
            raise
        log.info("the database does not support a trigger", extra={"statement": statement, "reason": str(error)})


def _server_settings(database_url: str) -> dict[str, str]:
    """Return the settings of each connection; settings in the URL have precedence over these defaults.

    The isolation level is not up to the URL, because the transactions depend on it. Raises `InvalidInput`.
    """
    try:
        url = urlsplit(database_url)
        given = parse_qs(url.query, strict_parsing=True) if url.query else {}
        # Several hosts, separated by commas, are valid for the driver but have no single port.
        if "," not in url.netloc:
            _ = url.port
    except ValueError:
        # `from None`: the original error quotes the URL.
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
    """Whether a constraint or trigger refused the rows."""
    return (_sqlstate(error) or "").startswith(_INTEGRITY)


def _is_contended(error: BaseException) -> bool:
    return _sqlstate(error) in _CONTENDED


def _is_lost(error: BaseException) -> bool:
    """Whether the connection is lost, or in an unknown state."""
    if isinstance(error, BROKEN):
        return True
    return (_sqlstate(error) or "").startswith(_CONNECTION_LOST)


def _needs_new_connection(error: BaseException) -> bool:
    """Whether a new connection may succeed, since it may reach another server after a fail-over."""
    return _is_lost(error) or _sqlstate(error) == _READ_ONLY


def _is_definite_failure(error: BaseException) -> bool:
    """Whether the server reports that the statement failed, which proves that nothing of it was done."""
    sqlstate = _sqlstate(error)
    return sqlstate is not None and sqlstate != _COMPLETION_UNKNOWN and not _is_lost(error)


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
