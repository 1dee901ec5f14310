"""The read models' tables. Everything in them is derived from the log and can be made again from it.

The history's rows belong to a generation. A model that is made anew is a generation of its own beside the live one,
and becomes live by a change of the checkpoint row that names it.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Table, Text

from ledger.tables import metadata

__all__ = ["checkpoints", "metadata", "reservations", "reserved_blocks", "snapshots"]

checkpoints = Table(
    "allowance_checkpoints",
    metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("projection", Text, primary_key=True),
    Column("model_version", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
)

reservations = Table(
    "allowance_reservations",
    metadata,
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
    metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("model_version", Integer, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

reserved_blocks = Table(
    "allowance_reserved_blocks",
    metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("first_block", BigInteger, primary_key=True, autoincrement=False),
    Column("last_block", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


def _index(*columns: str) -> None:
    Index(
        f"allowance_reservations_{columns[0]}",
        *(reservations.c[column] for column in ("ledger", "generation", *columns, "position")),
    )


_index("miner_ss58", "executor_class")
_index("executor_class")
_index("job_uuid")
_index("status")
_index("reserved_at_ns")
