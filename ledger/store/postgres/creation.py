"""Create the tables and the ledger, and upgrade the tables of an older release."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import asyncpg

from ledger.codec import GENESIS_HASH
from ledger.errors import LedgerNotFound, StorageUnavailable
from ledger.store.contract import SCHEMA_VERSION, Schema, check_schema_version
from ledger.store.triggers import POSTGRES_TRIGGERS, trigger_names

from .search_path import has_schema
from .session import MOST_PAUSE_SECONDS, ServerSession
from .sqlstates import is_created_concurrently, is_trigger_unsupported
from .statements import LOCK_SCHEMA, STORED_SCHEMA_VERSION

# Enforced by the client, for the statements of a schema step; they may rewrite a long log.
UPGRADE_TIMEOUT_SECONDS = 86_400.0
# An error that may come from a concurrent creation means that the other process has committed, so the next attempt
# finds what it made. More attempts are for databases that do not execute the creation in one transaction.
MOST_CREATION_ATTEMPTS = 10

_FIND_LEDGER = "SELECT ledger FROM allowance_ledgers WHERE validator_ss58 = $1"
_NEWEST_LEDGER = "SELECT coalesce(max(ledger), 0) FROM allowance_ledgers"
_NEW_LEDGER = """INSERT INTO allowance_ledgers (ledger, validator_ss58, position, hash, recorded_at_ns)
                 VALUES ($1, $2, 0, $3, 0) ON CONFLICT DO NOTHING"""
# Until the upgrade has ended nobody appends; reads go on until a step rewrites the events. Both tables in one statement
# and before any row: an append locks the tables first, too, and only then the head's row.
_LOCK_LOG = "LOCK TABLE allowance_ledgers, allowance_events IN EXCLUSIVE MODE"
_RAISE_ALL_FENCES = "UPDATE allowance_ledgers SET fence = fence + 1"
# A disabled trigger protects nothing, nor does one that fires only on a replica.
_MISSING_TRIGGERS = """SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS expected(name, number)
                       WHERE NOT EXISTS (
                           SELECT FROM pg_trigger WHERE tgname = name AND NOT tgisinternal AND tgenabled IN ('O', 'A')
                           AND tgrelid = to_regclass(substring(name FROM '^allowance_[a-z]+')))
                       ORDER BY number"""

log = logging.getLogger("allowance.ledger")


async def create(session: ServerSession, validator_ss58: str, tables: Callable[[], Schema]) -> None:
    """Create the schema and the ledger if they are missing; retry if another process does so at the same time.

    Raises the last error if no attempt succeeds.
    """
    attempts_left = MOST_CREATION_ATTEMPTS
    while True:
        attempts_left -= 1
        try:
            await session.run(lambda connection: _create_schema(connection, tables))
            await session.run(lambda connection: _create_ledger(connection, validator_ss58))
        except asyncpg.PostgresError as error:
            if not attempts_left or not is_created_concurrently(error):
                raise
            await asyncio.sleep(random.uniform(0, MOST_PAUSE_SECONDS))
        else:
            return


async def find_ledger(connection: asyncpg.Connection, validator_ss58: str) -> tuple[int, int]:
    """Return the ledger's local id, and the schema version. Raises `LedgerNotFound` and `NewerLedger`."""
    stored = await stored_schema_version(connection)
    if stored is None:
        raise LedgerNotFound(validator_ss58)
    check_schema_version(stored)
    ledger: int | None = await connection.fetchval(_FIND_LEDGER, validator_ss58)
    if ledger is None:
        raise LedgerNotFound(validator_ss58)
    return ledger, stored


async def stored_schema_version(connection: asyncpg.Connection) -> int | None:
    """Return the version of the tables; None if there are none. Raises as `has_schema`."""
    if not await has_schema(connection):
        return None
    version: int | None = await connection.fetchval(STORED_SCHEMA_VERSION)
    return version


async def missing_triggers(connection: asyncpg.Connection) -> list[str]:
    """Return the names of the triggers that the database lacks, or has disabled."""
    return [name for (name,) in await connection.fetch(_MISSING_TRIGGERS, trigger_names(POSTGRES_TRIGGERS))]


async def _create_ledger(connection: asyncpg.Connection, validator_ss58: str) -> None:
    """Insert the ledger's row with the next id; again if another ledger took that id meanwhile.

    Each further attempt follows the success of another process, so this ends however many processes there are.
    """
    tried = 0
    while await connection.fetchval(_FIND_LEDGER, validator_ss58) is None:
        ledger = await connection.fetchval(_NEWEST_LEDGER) + 1
        if ledger == tried:
            raise StorageUnavailable(f"it reports no error, but does not store the row of ledger {ledger}")
        await connection.execute(_NEW_LEDGER, ledger, validator_ss58, GENESIS_HASH)
        tried = ledger


async def _create_schema(connection: asyncpg.Connection, tables: Callable[[], Schema]) -> None:
    stored = await stored_schema_version(connection)
    if stored is not None:
        if stored < SCHEMA_VERSION:
            await _upgrade(connection)
        return
    from ledger.store.tables import postgres_schema

    schema = tables()
    schema_table, *others = postgres_schema(schema.log, schema.derived)
    async with connection.transaction():
        # If several processes get here at once, one continues. The others wait at this statement, then fail or find
        # the schema complete, and return. If they executed the other statements too, their locks on several tables
        # could deadlock with ledgers that are already in use.
        await connection.execute(schema_table)
        if await connection.fetchval(STORED_SCHEMA_VERSION) is not None:
            return
        for statement in others:
            await connection.execute(statement)
        for statement in POSTGRES_TRIGGERS:
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
        await connection.execute(LOCK_SCHEMA, timeout=UPGRADE_TIMEOUT_SECONDS)
        stored = await connection.fetchval(STORED_SCHEMA_VERSION)
        if stored >= SCHEMA_VERSION:
            return
        await connection.execute(_LOCK_LOG, timeout=UPGRADE_TIMEOUT_SECONDS)
        # An append that waits for the lock has read the old schema version already. The server compares the head row
        # again if it has changed, and then refuses the append by its fence.
        await connection.execute(_RAISE_ALL_FENCES, timeout=UPGRADE_TIMEOUT_SECONDS)
        for step in missing_steps(stored):
            log_step(step)
            for statement in step.postgres:
                await connection.execute(statement, timeout=UPGRADE_TIMEOUT_SECONDS)
            for statement in step.postgres_triggers:
                await _create_trigger(connection, statement)
            await connection.execute("UPDATE allowance_schema SET version = $1", step.version)


async def _create_trigger(connection: asyncpg.Connection, statement: str) -> None:
    """Create a trigger if the database supports it; correctness does not depend on it."""
    try:
        # A savepoint: without it a refused statement would abort the creation of the whole schema.
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.PostgresError as error:
        if not is_trigger_unsupported(error):
            raise
        log.info("the database does not support a trigger", extra={"statement": statement, "reason": str(error)})
