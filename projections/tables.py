"""The tables of the read models. Everything in them is derived from the log and can be rebuilt from it.

Every row of the history belongs to a generation. A rebuilt history is another generation beside the live one, and goes
live when the checkpoint row names it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, TableClause, Text, column
from sqlalchemy.ext.compiler import compiles

derived_metadata = MetaData()
"""Apart from the log's tables, because a SQLite file has them in another file beside it."""

checkpoints = Table(
    "allowance_checkpoints",
    derived_metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("projection", Text, primary_key=True),
    Column("model_version", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
)

# Without rowid, SQLite stores rows in the order of the primary key: the rows of a page are neighbours. Snapshots are
# too large for that.
reservations = Table(
    "allowance_reservations",
    derived_metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("reservation_id", BigInteger, nullable=False),
    Column("miner_ss58", Text, nullable=False),
    Column("executor_class", Text, nullable=False),
    Column("job_uuid", Text),
    Column("amount_ns", BigInteger, nullable=False),
    Column("blocks", LargeBinary, nullable=False),
    Column("job_start_block", BigInteger, nullable=False),
    Column("reserved_at_ns", BigInteger, nullable=False),
    Column("expires_at_ns", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("settled_position", BigInteger),
    Column("settled_at_ns", BigInteger),
    sqlite_with_rowid=False,
)

snapshots = Table(
    "allowance_snapshots",
    derived_metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("model_version", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

reserved_blocks = Table(
    "allowance_reserved_blocks",
    derived_metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("first_block", BigInteger, primary_key=True, autoincrement=False),
    Column("last_block", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


INDEXES = {
    "miner": ("miner_ss58",),
    "account": ("miner_ss58", "executor_class"),
    "executor_class": ("executor_class",),
    "status": ("status",),
}
"""Columns by the name of the index. Each index ends with the position, so its rows come in the order of a page.

There is none for a job or a time: the log's own index finds a job's reservations, and a time is a position of the log.
"""

for _name, _columns in INDEXES.items():
    Index(
        f"{reservations.name}_{_name}",
        *(reservations.c[each] for each in ("ledger", "generation", *_columns, "position")),
    )


class Indexed(TableClause):
    """The table of reservations, read through one of its indexes; None is the primary key.

    SQLite needs the hint: it expects few rows in a generation, and would read all of them by the primary key.
    """

    inherit_cache = False

    def __init__(self, index: str | None) -> None:
        super().__init__(reservations.name, *(column(each.name, each.type) for each in reservations.c))
        self.hint = "" if index is None else f" INDEXED BY {reservations.name}_{index}"


@compiles(Indexed)
def _compile(element: Indexed, compiler: Any, **options: Any) -> str:
    return str(compiler.visit_table(element, **options))


@compiles(Indexed, "sqlite")
def _compile_on_sqlite(element: Indexed, compiler: Any, **options: Any) -> str:
    return str(compiler.visit_table(element, **options)) + (element.hint if options.get("asfrom") else "")
