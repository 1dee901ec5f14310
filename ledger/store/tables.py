"""The log's tables. Constraints enforce the log's invariants here; the code checks them again.

Positions are dense because every append reads the next one from the head row and moves that row in the same
transaction. `allowance_events` is append-only: no code updates, deletes or replaces a row. Triggers refuse it as a
second defence: `triggers.py`.

The tables are described in SQLAlchemy's terms, from which the statements for both engines are generated. The names of
tables, columns and constraints are stored: a change needs a new schema version, and a step in `schema_steps.py`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import registry
from sqlalchemy.schema import CreateIndex, CreateTable

from .triggers import SQLITE_TRIGGERS

metadata = MetaData()

schema = Table(
    "allowance_schema",
    metadata,
    # A key that can only be 1 makes this a table of one row.
    Column("one", Integer, CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
)

ledgers = Table(
    "allowance_ledgers",
    metadata,
    # Not a sequence: SQLite has none, and the distributed databases that speak PostgreSQL's language differ there.
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("validator_ss58", Text, nullable=False, unique=True),
    Column("position", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("recorded_at_ns", BigInteger, nullable=False),
)

# One row per stream. An append compares and moves the version of each stream that it continues, so no index over
# streams and versions is needed.
streams = Table(
    "allowance_streams",
    metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    # A small local number, the next one of the ledger. Like the ledger's id it is in no hash.
    Column("stream", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("ledger", "name"),
    sqlite_with_rowid=False,
)

events = Table(
    "allowance_events",
    metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    # The stream's number in `allowance_streams`.
    Column("stream", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("recorded_at_ns", BigInteger, nullable=False),
    Column("key", Text),
    Column("job_uuid", Text),
    Column("attempt", BigInteger),
    Column("settles", BigInteger),
    Column("payload", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("position > 0 AND version > 0"),
    # SQLite then stores the rows in the order of the primary key, and a page of the log is one range of the file.
    sqlite_with_rowid=False,
)

# The last result of `verify`, one row per ledger. It is the only table that cannot be derived from the log, and nothing
# but `health` and `verify --since` reads it.
verifications = Table(
    "allowance_verifications",
    metadata,
    Column("ledger", Integer, primary_key=True, autoincrement=False),
    # The rows up to this one are as they were written.
    Column("position", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("verified_at_ns", BigInteger, nullable=False),
    Column("findings", BigInteger, nullable=False),
    Column("first_bad_position", BigInteger),
)


def _unique_where_present(*columns: str) -> None:
    # A partial index: most rows have none of these columns, and those rows cost neither space nor time in it.
    present = events.c[columns[0]].is_not(None)
    Index(
        f"allowance_events_{columns[0]}",
        events.c.ledger,
        *(events.c[column] for column in columns),
        unique=True,
        sqlite_where=present,
        postgresql_where=present,
    )


_unique_where_present("key")
_unique_where_present("job_uuid", "attempt")
_unique_where_present("settles")

_UUID_OF = """CASE WHEN typeof({column}) = 'blob' AND length({column}) = 16
            THEN lower(substr(hex({column}), 1, 8) || '-' || substr(hex({column}), 9, 4) || '-'
                       || substr(hex({column}), 13, 4) || '-' || substr(hex({column}), 17, 4) || '-'
                       || substr(hex({column}), 21)) ELSE {column} END AS {column}"""
# The log as text, for people who query it; no code reads it.
_SQLITE_VIEW = f"""CREATE VIEW IF NOT EXISTS allowance_log AS
    SELECT validator_ss58, events.position, streams.name AS stream, events.version, events.recorded_at_ns,
           {_UUID_OF.format(column='"key"')},
           {_UUID_OF.format(column="job_uuid")},
           attempt, settles, CAST(payload AS TEXT) AS payload, lower(hex(events.hash)) AS hash
    FROM allowance_events AS events
    LEFT JOIN allowance_streams AS streams ON streams.ledger = events.ledger AND streams.stream = events.stream
    LEFT JOIN allowance_ledgers AS ledgers ON ledgers.ledger = events.ledger"""

# A counter against late appends. Every append names the fence that it expects. A client that lost the response to an
# append raises the fence; if the lost request reaches the server afterwards, it names the old fence and is refused.
# SQLite needs none, because a process's appends to a file cannot arrive late.
_POSTGRES_FENCE = "ALTER TABLE allowance_ledgers ADD COLUMN IF NOT EXISTS fence BIGINT NOT NULL DEFAULT 0"

# PostgreSQL writes a new version of a row at each update. With room for it in the same page, no index changes.
_POSTGRES_FILLFACTOR = "ALTER TABLE allowance_streams SET (fillfactor = 50)"

# The log as text, for people who query it; no code reads it.
_POSTGRES_VIEW = """CREATE OR REPLACE VIEW allowance_log AS
    SELECT validator_ss58, events.position, streams.name AS stream, events.version, events.recorded_at_ns, key,
           job_uuid, attempt, settles, convert_from(payload, 'UTF8') AS payload, encode(events.hash, 'hex') AS hash
    FROM allowance_events AS events
    LEFT JOIN allowance_streams AS streams ON streams.ledger = events.ledger AND streams.stream = events.stream
    LEFT JOIN allowance_ledgers AS ledgers ON ledgers.ledger = events.ledger"""


def sqlite_schema(log: MetaData) -> list[str]:
    """Return the statements that create the log's schema on SQLite; they skip what exists."""
    return [*_create(log, registry.load("sqlite")()), *SQLITE_TRIGGERS, _SQLITE_VIEW]


def sqlite_derived_schema(derived: MetaData) -> list[str]:
    """Return the statements that create the derived tables on SQLite; they skip what exists."""
    return _create(derived, registry.load("sqlite")())


def postgres_schema(log: MetaData, derived: MetaData) -> list[str]:
    """Return the statements that create the schema on PostgreSQL, without triggers; they skip what exists."""
    dialect = registry.load("postgresql")()
    return [*_create(log, dialect), *_create(derived, dialect), _POSTGRES_FENCE, _POSTGRES_FILLFACTOR, _POSTGRES_VIEW]


def _create(tables: MetaData, dialect: Dialect) -> list[str]:
    # The schema's own table comes first. Only one process can create it; all others wait there until it has committed,
    # and so never run the other statements at the same time.
    statements = []
    for table in sorted(tables.sorted_tables, key=lambda each: each.name != schema.name):
        statements.append(str(CreateTable(table, if_not_exists=True).compile(dialect=dialect)))
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            statements.append(str(CreateIndex(index, if_not_exists=True).compile(dialect=dialect)))
    return statements
