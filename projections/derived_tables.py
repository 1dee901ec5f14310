"""Lost or broken derived tables, made again: dropped tables, missing indexes, other columns than this release's.

What such a table still holds may not fit the others, so it is made again empty; `rebuild` fills it from the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ledger import Store
from ledger.background_imports import import_in_thread

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect, Table
    from sqlalchemy.schema import ExecutableDDLElement

HISTORY_TABLES = ("allowance_checkpoints", "allowance_reservations", "allowance_reserved_blocks")
DERIVED_TABLES = (*HISTORY_TABLES, "allowance_snapshots", "allowance_verifications")
"""All tables but those of the log."""


async def remake_broken_tables(store: Store) -> list[str]:
    """Make every derived table again that differs from this release's, in one transaction; return their names."""
    # Before a connection is open: see `HistoryModel.connection`.
    await import_in_thread("projections.tables")
    async with store.read_connection() as connection:
        broken: list[str] = await connection.run_sync(_broken_tables)
        statements = [each for name in broken for each in _statements(name, connection.dialect)]
    if not broken:
        return []
    async with store.write_read_models() as transaction:
        for statement in statements:
            await transaction.query(statement)
        if not set(broken).isdisjoint(HISTORY_TABLES):
            # No generation is complete any more; another rebuild under way raises `RebuildOvertaken`.
            await transaction.query("DELETE FROM allowance_checkpoints")
    return broken


def _broken_tables(connection: Connection) -> list[str]:
    from sqlalchemy import inspect

    from .tables import metadata

    inspector = inspect(connection)
    return [
        name
        for name in DERIVED_TABLES
        if not inspector.has_table(name)
        or _found(inspector, name, connection.dialect) != _expected(metadata.tables[name], connection.dialect)
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


def _statements(name: str, dialect: Dialect) -> list[str]:
    from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

    from .tables import metadata

    table = metadata.tables[name]
    made: list[ExecutableDDLElement] = [DropTable(table, if_exists=True), CreateTable(table)]
    made += map(CreateIndex, table.indexes)
    return [str(each.compile(dialect=dialect)) for each in made]
