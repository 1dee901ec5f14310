"""Lost or broken derived tables, made again: dropped tables, missing indexes, other columns than this release's.

What such a table still holds may not fit the others, so it is made again empty; `rebuild` fills it from the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ledger import Store
from ledger.background_imports import import_in_thread
from ledger.errors import StorageUnavailable
from ledger.store.contract import REMAKE_DERIVED_TABLES

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect, Table
    from sqlalchemy.schema import ExecutableDDLElement

HISTORY_TABLES = ("allowance_checkpoints", "allowance_reservations", "allowance_reserved_blocks")
DERIVED_TABLES = (*HISTORY_TABLES, "allowance_snapshots")


async def remake_broken_tables(store: Store) -> list[str]:
    """Make every derived table again that differs from this release's, in one transaction; return their names.

    The results of verifications, too, if they are lost: the log can be verified again.
    """
    # Before a connection is open: see `HistoryModel.connection`.
    await import_in_thread("projections.tables", "ledger.store.tables")
    from ledger.store.tables import verifications

    async with store.write_derived():
        pass  # A file of derived tables that is missing is made here.
    async with store.derived_connection() as connection:
        dialect, broken = connection.dialect, await connection.run_sync(_broken_tables)
    if broken:
        await _remake(store, broken, dialect)
    if await _has_verifications(store):
        return broken
    async with store.write_verifications(all_ledgers=True) as transaction:
        for statement in _statements(verifications, dialect):
            await transaction.query(statement)
    return [*broken, verifications.name]


async def _remake(store: Store, broken: list[str], dialect: Dialect) -> None:
    from .tables import derived_metadata

    async with store.write_derived(all_ledgers=True) as transaction:
        for name in broken:
            for statement in _statements(derived_metadata.tables[name], dialect):
                await transaction.query(statement)
        if not set(broken).isdisjoint(HISTORY_TABLES):
            # No generation is complete any more; another rebuild under way raises `RebuildOvertaken`.
            await transaction.query("DELETE FROM allowance_checkpoints")


async def _has_verifications(store: Store) -> bool:
    """Return whether the results of verifications can be read; they are in the log's database."""
    from ledger.store.tables import verifications

    columns = ", ".join(column.name for column in verifications.columns)
    try:
        await store.query(f"SELECT {columns} FROM {verifications.name} WHERE ledger = {store.ledger}")
    except StorageUnavailable as error:
        if str(error).endswith(REMAKE_DERIVED_TABLES):
            return False
        raise
    return True


def _broken_tables(connection: Connection) -> list[str]:
    from sqlalchemy import inspect

    from .tables import derived_metadata

    inspector = inspect(connection)
    return [
        name
        for name in DERIVED_TABLES
        if not inspector.has_table(name)
        or _found(inspector, name, connection.dialect) != _expected(derived_metadata.tables[name], connection.dialect)
    ]


def _found(inspector: Any, name: str, dialect: Dialect) -> tuple[object, ...]:
    columns = {
        each["name"]: (each["type"].compile(dialect=dialect), each["nullable"]) for each in inspector.get_columns(name)
    }
    indexes = {each["name"]: each["column_names"] for each in inspector.get_indexes(name)}
    return columns, inspector.get_pk_constraint(name)["constrained_columns"], indexes


def _expected(table: Table, dialect: Dialect) -> tuple[object, ...]:
    columns = {each.name: (each.type.compile(dialect=dialect), each.nullable) for each in table.columns}
    indexes = {str(index.name): [each.name for each in index.columns] for index in table.indexes}
    return columns, [each.name for each in table.primary_key.columns], indexes


def _statements(table: Table, dialect: Dialect) -> list[str]:
    from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

    made: list[ExecutableDDLElement] = [DropTable(table, if_exists=True), CreateTable(table)]
    made += map(CreateIndex, table.indexes)
    return [str(each.compile(dialect=dialect)) for each in made]
