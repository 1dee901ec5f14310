"""Create a database's file, tables and ledger, or upgrade the tables of an older release."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.codec import GENESIS_HASH
from ledger.errors import StorageUnavailable
from ledger.store.contract import SCHEMA_VERSION, Schema

from .columns import narrow
from .durability import flush_directory

if TYPE_CHECKING:
    from ledger.store.schema_steps import CopyRows, SchemaStep


# Rows of a copy after which the loop goes on, so that an upgrade can be cancelled; about a tenth of a second.
PIECE_ROWS = 10_000
_BEFORE_ALL = -(2**63)


async def create_or_upgrade(
    connection: sqlite3.Connection, stored: int | None, tables: Callable[[], Schema], *, derived_too: bool
) -> None:
    """Create the tables, or upgrade those of an older release, inside of the transaction under way."""
    if stored is None:
        from ledger.store.tables import sqlite_derived_schema, sqlite_schema

        schema = tables()
        statements = sqlite_schema(schema.log)
        if derived_too:
            statements += [*sqlite_derived_schema(schema.derived), *schema.views]
        # SQLite rolls back table definitions too, so the schema is complete or absent.
        for statement in statements:
            connection.execute(statement)
        connection.execute("INSERT INTO allowance_schema VALUES (1, ?)", (SCHEMA_VERSION,))
    elif stored < SCHEMA_VERSION:
        await _upgrade(connection, stored)


def create_ledger(connection: sqlite3.Connection, validator_ss58: str) -> None:
    """Create a validator's ledger if it does not exist."""
    connection.execute(
        """INSERT INTO allowance_ledgers (ledger, validator_ss58, position, hash, recorded_at_ns)
           SELECT coalesce((SELECT max(ledger) FROM allowance_ledgers), 0) + 1, ?, 0, ?, 0
           WHERE NOT EXISTS (SELECT 1 FROM allowance_ledgers WHERE validator_ss58 = ?)""",
        (validator_ss58, GENESIS_HASH, validator_ss58),
    )


async def _upgrade(connection: sqlite3.Connection, stored: int) -> None:
    from ledger.store.schema_steps import log_step, missing_steps

    connection.create_function("allowance_narrow", 1, narrow, deterministic=True)
    for step in missing_steps(stored):
        log_step(step)
        for statement in step.sqlite:
            if isinstance(statement, str):
                connection.execute(statement)
            else:
                await _copy(connection, statement, step)
        connection.execute("UPDATE allowance_schema SET version = ?", (step.version,))


async def _copy(connection: sqlite3.Connection, copy: CopyRows, step: SchemaStep) -> None:
    """Copy rows in the order of ledger and position, and let the loop go on after each piece.

    The transaction stays open meanwhile. Nobody else uses this connection, because the ledger is not open yet.
    """
    from ledger.store.schema_steps import log_progress

    (total,) = connection.execute("SELECT coalesce(sum(position), 0) FROM allowance_ledgers").fetchone()
    last, done = (_BEFORE_ALL, _BEFORE_ALL), 0
    while copied := connection.execute(copy.insert, (*last, PIECE_ROWS)).rowcount:
        last = connection.execute(copy.last).fetchone()
        done += copied
        log_progress(step, done, max(total, done), copied)
        await asyncio.sleep(0)


def create_private(path: Path) -> None:
    """Create the file with mode 0600, before SQLite would create it readable by others."""
    if not path.exists():
        left = [file for file in (path.with_name(f"{path.name}-{part}") for part in ("wal", "shm")) if file.exists()]
        if left:
            # SQLite would apply them to the new file, to which they do not belong.
            raise StorageUnavailable(
                f"{left[0]} belongs to a file that was moved; stop the processes that have it open, then move it too"
            )
        _make_directories(path.parent)
        # O_EXCL: of several processes exactly one creates it, and none truncates another's file.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _make_directories(directory: Path) -> None:
    """Make missing directories, and make their entries durable; the files in them are SQLite's matter.

    Those that exist are flushed too: an earlier attempt may have made them and failed before its flush.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for parent in directory.absolute().parents:
        flush_directory(str(parent))
