"""Create the tables and the ledger, and upgrade the tables of an older release."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import asyncpg

from ledger.codec import GENESIS_HASH
from ledger.errors import LedgerNotFound
from ledger.store.contract import SCHEMA_VERSION, Schema, check_schema_version

from .session import MOST_PAUSE_SECONDS, ServerSession
from .sqlstates import CREATED_CONCURRENTLY, TRIGGER_UNSUPPORTED, sqlstate
from .statements import STORED_SCHEMA_VERSION

# Enforced by the client, for the statements of a schema step; they may rewrite a long log.
UPGRADE_TIMEOUT_SECONDS = 86_400.0
# Attempts to create schema and ledger. Whenever processes collide one of them succeeds, so this is enough for as many
# processes as may start at once on one database.
MOST_CREATION_ATTEMPTS = 100

_FIND_LEDGER = "SELECT ledger FROM allowance_ledgers WHERE validator_ss58 = $1"
_NEW_LEDGER = """INSERT INTO allowance_ledgers (ledger, validator_ss58, position, hash, recorded_at_ns)
                 SELECT coalesce((SELECT max(ledger) FROM allowance_ledgers), 0) + 1, $1, 0, $2, 0
                 ON CONFLICT DO NOTHING"""
_HAS_SCHEMA = "SELECT to_regclass('allowance_schema') IS NOT NULL"
# Until the upgrade has ended nobody appends; reads go on until a step rewrites the events. Both tables in one statement
# and before any row: an append locks the tables first, too, and only then the head's row.
_LOCK_LOG = "LOCK TABLE allowance_ledgers, allowance_events IN EXCLUSIVE MODE"
_RAISE_ALL_FENCES = "UPDATE allowance_ledgers SET fence = fence + 1"

log = logging.getLogger("allowance.ledger")


async def create(session: ServerSession, validator_ss58: str, tables: Callable[[], Schema]) -> None:
    """Create the schema and the ledger if they are missing; retry if another process does so at the same time."""
    for _ in range(MOST_CREATION_ATTEMPTS):
        try:
            await session.run(lambda connection: _create_schema(connection, tables))
            await session.run(lambda connection: _create_ledger(connection, validator_ss58))
            await session.run(lambda connection: find_ledger(connection, validator_ss58))
        except (asyncpg.PostgresError, LedgerNotFound) as error:
            if not isinstance(error, LedgerNotFound) and sqlstate(error) not in CREATED_CONCURRENTLY:
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
    """Return the version of the tables; None if there are none."""
    if not await connection.fetchval(_HAS_SCHEMA):
        return None
    version: int | None = await connection.fetchval(STORED_SCHEMA_VERSION)
    return version


async def _create_ledger(connection: asyncpg.Connection, validator_ss58: str) -> None:
    if await connection.fetchval(_FIND_LEDGER, validator_ss58) is None:
        await connection.execute(_NEW_LEDGER, validator_ss58, GENESIS_HASH)


async def _create_schema(connection: asyncpg.Connection, tables: Callable[[], Schema]) -> None:
    stored = await stored_schema_version(connection)
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
        if await connection.fetchval(STORED_SCHEMA_VERSION) is not None:
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
        stored = await connection.fetchval(f"{STORED_SCHEMA_VERSION} FOR UPDATE", timeout=UPGRADE_TIMEOUT_SECONDS)
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
        if sqlstate(error) not in TRIGGER_UNSUPPORTED:
            raise
        log.info("the database does not support a trigger", extra={"statement": statement, "reason": str(error)})
