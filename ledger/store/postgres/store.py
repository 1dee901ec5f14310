"""The log on PostgreSQL, and on databases that speak its language.

The store uses only tables, row locks and plain transactions: no advisory lock, `LISTEN` or sequence, which distributed
databases lack. An append without contention is one statement: it compares the head with the expected one, moves it and
inserts the rows. Under contention a transaction first locks the head's row. Read models are queried through SQLAlchemy,
on connections with the same settings.

If the response to an append is lost, `fence.py` finds out whether it is in the log. Until then the store accepts no
change; reads go on, and show what the server shows as committed. All connections are cut when an outcome is in doubt,
so that reads, too, continue on the server that the next connection finds.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg

from ledger.background_imports import import_in_thread
from ledger.codec import GENESIS_HASH, Row
from ledger.domain.lookup import Head, Lookup, LookupResult
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.store.contract import (
    PAGE_ROWS,
    SCHEMA_VERSION,
    CommitOutcomeUnknown,
    RowExists,
    RowsBehind,
    Schema,
    TransactionConflict,
    Value,
    WhileWaiting,
    check_schema_version,
    do_nothing,
    driver_message,
    is_sqlalchemy_error,
    refuse_other_versions,
)
from ledger.values import LARGEST_INTEGER

from .connecting import Connector
from .fence import raise_fence, stored_hash
from .reader import BROKEN, PostgresReader, postgres_errors, read_page
from .session import MOST_PAUSE_SECONDS, NotConfirmed, ServerSession
from .sqlstates import (
    CREATED_CONCURRENTLY,
    TRIGGER_UNSUPPORTED,
    is_constraint_violation,
    is_contended,
    is_lock_timeout,
    is_read_only,
    proves_nothing_done,
    sqlstate,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# Enforced by the client, for the statements of a schema step; they may rewrite a long log.
UPGRADE_TIMEOUT_SECONDS = 86_400.0
# Enforced by the client, for an append or a COMMIT. It is short because callers wait for it, and because queries wait
# for an optimistic append. Commits that take this long mostly wait for a standby that is gone.
APPEND_TIMEOUT_SECONDS = 10.0
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
# The writer waits here without keeping queries waiting, so the short limit on locks does not apply. One round trip.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = 0"
_FIND_LEDGER = "SELECT ledger FROM allowance_ledgers WHERE validator_ss58 = $1"
_NEW_LEDGER = """INSERT INTO allowance_ledgers (ledger, validator_ss58, position, hash, recorded_at_ns)
                 SELECT coalesce((SELECT max(ledger) FROM allowance_ledgers), 0) + 1, $1, 0, $2, 0
                 ON CONFLICT DO NOTHING"""
_ATTEMPTS = "SELECT position FROM allowance_events WHERE ledger = $1 AND job_uuid = $2 ORDER BY attempt"
_HAS_SCHEMA = "SELECT to_regclass('allowance_schema') IS NOT NULL"
_SCHEMA_VERSION = "SELECT version FROM allowance_schema"
_LOCK_ALL_HEADS = "SELECT ledger FROM allowance_ledgers ORDER BY ledger FOR UPDATE"
_RAISE_ALL_FENCES = "UPDATE allowance_ledgers SET fence = fence + 1"

log = logging.getLogger("allowance.ledger")


class PostgresStore:
    """One ledger in one PostgreSQL database."""

    reads_wait_for_writes = False
    keeps_derived_apart = False

    def __init__(self, database_url: str, validator_ss58: str, *, read_only: bool) -> None:
        self.validator_ss58 = validator_ss58
        self.ledger = 0
        self._connector = Connector(database_url, read_only=read_only)
        self._fence = 0
        # The outcome of an append is unknown, and the fence has not been raised since.
        self._in_doubt = False
        # The server did not respond to that append in time: to ask again at once would only take as long again.
        self._is_late = False
        # Three sessions, so that reads do not wait for an append, and appends do not wait for read models.
        self._writes = ServerSession(self._connector.connect_for_appends)
        self._reads = ServerSession(self._connector.connect)
        self._read_model_writes = ServerSession(self._connector.connect)
        self._engine: AsyncEngine | None = None
        self._engine_connections: WeakSet[asyncpg.Connection] = WeakSet()

    @property
    def optimistic(self) -> bool:
        # To append under the lock takes four round trips instead of one, and nobody else can append during them. But in
        # doubt nothing may be decided, not even that a call was done before, until the fence is raised; a transaction
        # does that first.
        return not self._in_doubt

    @property
    def in_doubt(self) -> bool:
        return self._in_doubt

    async def open(self, create: Callable[[], Schema] | None) -> Head:
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
            return self._head(
                await self._reads.run(lambda connection: connection.fetchrow(_HEAD, self.ledger, self.validator_ss58))
            )

    async def schema_version(self) -> int:
        with _PostgresErrors():
            return await self._reads.run(_stored_schema_version) or 0

    def probe_head(self) -> Head | None:
        """Return None: nobody can ask a server without waiting."""
        return None

    async def read(self, after: int, limit: int | None = None) -> list[Row]:
        most = PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)
        with _PostgresErrors():
            return await self._reads.run(lambda connection: read_page(connection, self.ledger, after, most))

    async def read_streams(self, streams: Collection[str], after: int, until: int) -> list[Row]:
        found: list[Row] = []
        while after < until and (page := await self.read(after)):
            found += [row for row in page if row.stream in streams and row.position <= until]
            after = page[-1].position
        return found

    async def find(self, lookup: Lookup) -> LookupResult:
        with _PostgresErrors():
            return await self._reads.run(lambda connection: _find(connection, self.ledger, lookup))

    async def attempts_of(self, job_uuid: str) -> list[int]:
        with _PostgresErrors():
            rows = await self._reads.run(lambda connection: connection.fetch(_ATTEMPTS, self.ledger, job_uuid))
            return [position for (position,) in rows]

    @asynccontextmanager
    async def transaction(self, while_waiting: WhileWaiting = do_nothing) -> AsyncIterator[PostgresTransaction]:
        # `while_waiting` is never called: the server does not report who is next in the queue for a row lock.
        with _PostgresErrors(in_transaction=True):
            async with self._writes.lock:
                # A retry is safe up to the lock, since nothing is written before. After it nothing is retried here: the
                # caller has decided on what it read in this transaction.
                connection, head = await self._writes.run_locked(self._begin)
                try:
                    yield PostgresTransaction(self, connection, head)
                except BaseException:
                    await self._writes.roll_back(connection)
                    raise
                await self._commit(connection)

    async def append(
        self, events: RowsBehind, expected: Mapping[str, int], *, at: Head | None = None, since: Head | None = None
    ) -> list[Row] | None:
        if at is not None:
            rows = events(at)
            return rows if await self._append_at(at, rows) else None
        try:
            async with self.transaction() as transaction:
                if since is not None and since.position and since.hash != await transaction.hash_at(since.position):
                    return None
                rows = events(await transaction.head())
                await transaction.append(rows, expected)
        except StorageUnavailable as error:
            if error.__cause__ is not None and is_constraint_violation(error.__cause__):
                raise RowExists(str(error.__cause__)) from error
            raise
        return rows

    async def _append_at(self, head: Head, rows: list[Row]) -> bool:
        with _PostgresErrors():
            async with self._writes.lock:
                connection = await self._writes.run_locked(self._end_doubt)
                try:
                    with self._writes.committing(connection, APPEND_TIMEOUT_SECONDS):
                        return await self._append(connection, head, rows)
                except BaseException as error:
                    if not proves_nothing_done(error):
                        self._note_doubt(error)
                        raise
                    if is_constraint_violation(error):
                        raise RowExists(str(error)) from error
                    if is_contended(error) or is_lock_timeout(error):
                        return False  # To decide again may help.
                    if is_read_only(error):
                        self._drop_connections()
                    raise

    async def resolve_commit(self, first: Row) -> bool:
        if self._is_late:
            raise StorageUnavailable("the server did not confirm an append in time; its outcome is not known yet")
        with _PostgresErrors():
            async with self._writes.lock:
                stored = await self._writes.run_locked(lambda connection: self._find_fenced(connection, first.position))
        # Another process may have appended a different row at this position. The hash covers the content and the whole
        # log before it, so an equal hash proves that the row is this batch's. A commit is atomic: if the first row is
        # stored, all are.
        return stored == first.hash

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        with _PostgresErrors():
            return [tuple(row) for row in await self._reads.run(lambda connection: connection.fetch(statement))]

    async def derived_query(self, statement: str) -> list[tuple[Any, ...]]:
        return await self.query(statement)

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[PostgresReader]:
        with postgres_errors():
            connection = await self._connector.connect()
            try:
                # An audit may compute for longer than the timeout between two pages. It holds no lock meanwhile.
                await connection.execute("SET idle_in_transaction_session_timeout = 0")
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    yield PostgresReader(connection)
            finally:
                # To cut the connection never waits, unlike an orderly end; a read-only transaction loses nothing.
                connection.terminate()

    @asynccontextmanager
    async def derived_connection(self) -> AsyncIterator[AsyncConnection]:
        await import_in_thread("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg")
        with _PostgresErrors():
            async with self._open_engine().connect() as connection:
                yield connection

    @asynccontextmanager
    async def write_derived(self) -> AsyncIterator[PostgresDerivedTransaction]:
        with _PostgresErrors():
            async with self._read_model_writes.lock:
                connection = await self._read_model_writes.run_locked(self._begin_read_model_write)
                try:
                    yield PostgresDerivedTransaction(connection)
                    _check_committed(await connection.execute("COMMIT"))
                except BaseException:
                    await self._read_model_writes.roll_back(connection)
                    raise

    def write_verifications(self) -> AbstractAsyncContextManager[PostgresDerivedTransaction]:
        return self.write_derived()

    async def _connect_engine(self) -> asyncpg.Connection:
        connection = await self._connector.connect()
        self._engine_connections.add(connection)
        return connection

    def _drop_connections(self) -> None:
        """Cut every connection on which something is read or written later, so that all lead to one server again.

        After a fail-over the old primary may still respond. Audits read one snapshot and keep their connections.
        """
        for session in (self._writes, self._reads, self._read_model_writes):
            session.drop()
        for connection in list(self._engine_connections):
            connection.terminate()  # The pool tests a connection before it uses it.

    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            from sqlalchemy.ext.asyncio import create_async_engine

            self._engine = create_async_engine(
                "postgresql+asyncpg://",
                async_creator=self._connect_engine,
                pool_size=2,
                max_overflow=0,
                pool_pre_ping=True,
            )
        return self._engine

    async def _begin(self, connection: asyncpg.Connection) -> tuple[asyncpg.Connection, Head]:
        """Begin a transaction and lock the head's row.

        READ COMMITTED, because the transaction waits for the lock after its first snapshot. Each later statement gets a
        new snapshot and sees the rows of the append that it waited for; REPEATABLE READ would fail instead.
        """
        if self._in_doubt:
            self._fence = await raise_fence(self._writes, connection, self.ledger, self.validator_ss58)
        await connection.execute(_BEGIN)
        try:
            head = self._head(await connection.fetchrow(_LOCK_HEAD, self.ledger, self.validator_ss58))
            # Only now: after an error the next call may reach another server, and must raise the fence there.
            self._in_doubt = False
            return connection, head
        except BaseException:
            await self._writes.roll_back(connection)
            raise

    async def _begin_read_model_write(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Begin a transaction and lock the schema's row, so that one process at a time writes read models.

        On SQLite the write lock of the file does the same. Appends do not lock this row, so they need not wait.
        """
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            check_schema_version(await connection.fetchval(f"{_SCHEMA_VERSION} FOR UPDATE"))
        except BaseException:
            await self._read_model_writes.roll_back(connection)
            raise
        return connection

    async def _commit(self, connection: asyncpg.Connection) -> None:
        try:
            with self._writes.committing(connection, APPEND_TIMEOUT_SECONDS):
                status = await connection.execute("COMMIT")
        except BaseException as error:
            if not proves_nothing_done(error):
                self._note_doubt(error)
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

    def _note_doubt(self, error: BaseException) -> None:
        """Note that the outcome of an append is unknown. Raises `CommitOutcomeUnknown`, except for a cancellation."""
        self._in_doubt, self._is_late = True, isinstance(error, TimeoutError)
        # The server may still be executing the append on one of them, and the next may lead to another server.
        self._drop_connections()
        if isinstance(error, Exception):
            raise CommitOutcomeUnknown(driver_message(error)) from error

    async def _end_doubt(self, connection: asyncpg.Connection) -> asyncpg.Connection:
        """Raise the fence if the outcome of an append is unknown: its rows are then in the log, or never will be."""
        if self._in_doubt:
            self._fence = await raise_fence(self._writes, connection, self.ledger, self.validator_ss58)
            self._in_doubt = False
        return connection

    async def _find_fenced(self, connection: asyncpg.Connection, position: int) -> bytes | None:
        """Raise the fence; return the hash of the row at a position, read on the same connection after that."""
        self._fence = await raise_fence(self._writes, connection, self.ledger, self.validator_ss58)
        found = await stored_hash(connection, self.ledger, position)
        self._in_doubt = False
        return found

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

    async def _create(self, tables: Callable[[], Schema]) -> None:
        """Create the schema and the ledger if they are missing; retry if another process does so at the same time."""
        for _ in range(MOST_CREATION_ATTEMPTS):
            try:
                await self._writes.run(lambda connection: _create_schema(connection, tables))
                await self._writes.run(self._create_ledger)
                await self._writes.run(self._find_ledger)
            except (asyncpg.PostgresError, LedgerNotFound) as error:
                if not isinstance(error, LedgerNotFound) and sqlstate(error) not in CREATED_CONCURRENTLY:
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
        return await read_page(self._connection, self._store.ledger, after, PAGE_ROWS)

    async def find(self, lookup: Lookup) -> LookupResult:
        return await _find(self._connection, self._store.ledger, lookup)

    async def hash_at(self, position: int) -> bytes | None:
        """Return the hash of the row at a position; None if there is none."""
        return await stored_hash(self._connection, self._store.ledger, position)

    async def append(self, rows: list[Row], expected: Mapping[str, int]) -> None:
        refuse_other_versions(expected, await _versions(self._connection, self._store.ledger, expected))
        if not await self._store._append(self._connection, self._head, rows):
            raise StorageUnavailable("the head moved inside a write transaction: its row is not locked")
        self._head = Head(rows[-1].position, rows[-1].hash, rows[-1].recorded_at_ns)


class PostgresDerivedTransaction:
    """A transaction on the read models; a `DerivedTransaction`."""

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


def _check_committed(status: str) -> None:
    # PostgreSQL reports success with the status ROLLBACK if an earlier statement of the transaction had failed.
    if status != "COMMIT":
        raise StorageUnavailable(f"the database responded to COMMIT with {status}; nothing was done")


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


async def _versions(connection: asyncpg.Connection, ledger: int, streams: Iterable[str]) -> dict[str, int]:
    query = """SELECT stream, max(version) FROM allowance_events WHERE ledger = $1 AND stream = ANY($2::text[])
               GROUP BY stream"""
    return dict(map(tuple, await connection.fetch(query, ledger, list(streams))))


async def _stored_schema_version(connection: asyncpg.Connection) -> int | None:
    if not await connection.fetchval(_HAS_SCHEMA):
        return None
    version: int | None = await connection.fetchval(_SCHEMA_VERSION)
    return version


async def _create_schema(connection: asyncpg.Connection, tables: Callable[[], Schema]) -> None:
    stored = await _stored_schema_version(connection)
    if stored is not None:
        if stored < SCHEMA_VERSION:
            await _upgrade(connection)
        return
    from ledger.store.tables import postgres_schema, postgres_triggers

    schema = tables()
    schema_table, *others = postgres_schema(schema.log, schema.derived)
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
        await connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        stored = await connection.fetchval(f"{_SCHEMA_VERSION} FOR UPDATE", timeout=UPGRADE_TIMEOUT_SECONDS)
        # Nobody appends meanwhile: every append needs its ledger's head row.
        await connection.execute(_LOCK_ALL_HEADS, timeout=UPGRADE_TIMEOUT_SECONDS)
        # An append that waits for the lock has read the old schema version already. The server compares the head row
        # again if it has changed, and then refuses the append by its fence.
        await connection.execute(_RAISE_ALL_FENCES, timeout=UPGRADE_TIMEOUT_SECONDS)
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
        if sqlstate(error) not in TRIGGER_UNSUPPORTED:
            raise
        log.info("the database does not support a trigger", extra={"statement": statement, "reason": str(error)})


class _PostgresErrors:
    """Raise `StorageUnavailable` for errors of the driver or network, `TransactionConflict` for contention."""

    def __init__(self, *, in_transaction: bool = False) -> None:
        self._in_transaction = in_transaction

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None:
            return
        if self._in_transaction and is_contended(error):
            raise TransactionConflict(str(error)) from error
        if isinstance(error, (asyncpg.PostgresError, NotConfirmed, *BROKEN)) or is_sqlalchemy_error(error):
            raise StorageUnavailable(driver_message(error)) from error
