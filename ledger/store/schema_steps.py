"""Schema steps: numbered changes of the tables, by which a newer release upgrades a database that an older one created.

A new database is created at the newest version; an older one is upgraded when it is opened for writing. A store
executes the missing steps in one transaction, under the lock that also serializes the creation of the schema, so a
process that is killed in the middle leaves the old version intact. The statements are literal, since the tables of
`tables.py` change with later releases, but a step never does.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from ledger.store.contract import SCHEMA_VERSION

log = logging.getLogger("allowance.ledger")


class CopyRows(NamedTuple):
    """A copy of many rows, in pieces: `insert` has parameters for a ledger, a position and a number of rows.

    It copies so many of the rows behind them, in this order. `last` returns ledger and position of the last one copied.
    """

    insert: str
    last: str


class SchemaStep(NamedTuple):
    """The statements that change a database of the version before into one of `version`, on each engine."""

    version: int
    sqlite: tuple[str | CopyRows, ...]
    postgres: tuple[str, ...]
    postgres_triggers: tuple[str, ...] = ()
    """Statements that the database may refuse because it does not support triggers."""


# The table is rewritten in place, so that what others have granted or published of it stays. A subquery is not allowed
# where the new values are computed, but a function is.
_POSTGRES_3 = (
    """CREATE TABLE allowance_streams (
           ledger INTEGER NOT NULL,
           stream INTEGER NOT NULL,
           name TEXT NOT NULL,
           version BIGINT NOT NULL,
           PRIMARY KEY (ledger, stream),
           UNIQUE (ledger, name)
       ) WITH (fillfactor = 50)""",
    # Numbered in the order in which they began.
    """INSERT INTO allowance_streams (ledger, stream, name, version)
       SELECT ledger, row_number() OVER (PARTITION BY ledger ORDER BY min(position)), stream, max(version)
       FROM allowance_events GROUP BY ledger, stream""",
    """CREATE FUNCTION allowance_stream_number(of_ledger INTEGER, of_name TEXT) RETURNS INTEGER LANGUAGE sql STABLE AS
       $$ SELECT stream FROM allowance_streams WHERE ledger = of_ledger AND name = of_name $$""",
    """ALTER TABLE allowance_events
           DROP CONSTRAINT allowance_events_ledger_stream_version_key,
           ALTER COLUMN stream TYPE INTEGER USING allowance_stream_number(ledger, stream)""",
    "DROP FUNCTION allowance_stream_number",
    "DROP INDEX IF EXISTS allowance_reservations_job_uuid, allowance_reservations_reserved_at_ns",
    """CREATE VIEW allowance_log AS
       SELECT validator_ss58, events.position, streams.name AS stream, events.version, events.recorded_at_ns, key,
              job_uuid, attempt, settles, convert_from(payload, 'UTF8') AS payload, encode(events.hash, 'hex') AS hash
       FROM allowance_events AS events
       LEFT JOIN allowance_streams AS streams ON streams.ledger = events.ledger AND streams.stream = events.stream
       LEFT JOIN allowance_ledgers AS ledgers ON ledgers.ledger = events.ledger""",
)
_POSTGRES_TRIGGERS_3 = (
    """CREATE OR REPLACE FUNCTION allowance_check_dense() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           IF EXISTS (SELECT 1 FROM (SELECT ledger, min(position) AS first, max(position) AS last, count(*) AS number
                                     FROM added GROUP BY ledger) AS ranges
                      WHERE last - first + 1 <> number
                         OR (first > 1 AND
                             (SELECT before.position FROM allowance_events AS before
                              WHERE before.ledger = ranges.ledger AND before.position = ranges.first - 1) IS NULL))
           THEN
               RAISE EXCEPTION 'positions are dense' USING ERRCODE = 'integrity_constraint_violation';
           END IF;
           RETURN NULL;
       END $$""",
    """CREATE TRIGGER allowance_streams_no_rename BEFORE UPDATE OF ledger, stream, name ON allowance_streams
       FOR EACH ROW EXECUTE FUNCTION allowance_refuse('a stream is never renamed')""",
    """CREATE TRIGGER allowance_streams_no_delete BEFORE DELETE ON allowance_streams
       FOR EACH ROW EXECUTE FUNCTION allowance_refuse('a stream is never deleted')""",
    """CREATE TRIGGER allowance_streams_no_truncate BEFORE TRUNCATE ON allowance_streams
       FOR EACH STATEMENT EXECUTE FUNCTION allowance_refuse('a stream is never deleted')""",
)


_UUID_PATTERN = "-".join("[0-9a-f]" * digits for digits in (8, 4, 4, 4, 12))
# The statements of version 3 on SQLite. The derived tables go first, because the copy then uses their pages.
_SQLITE_3 = (
    "DROP TABLE IF EXISTS allowance_checkpoints",
    "DROP TABLE IF EXISTS allowance_reservations",
    "DROP TABLE IF EXISTS allowance_reserved_blocks",
    "DROP TABLE IF EXISTS allowance_snapshots",
    """CREATE TABLE allowance_streams (
           ledger INTEGER NOT NULL,
           stream INTEGER NOT NULL,
           name TEXT NOT NULL,
           version BIGINT NOT NULL,
           PRIMARY KEY (ledger, stream),
           UNIQUE (ledger, name)
       ) WITHOUT ROWID""",
    # Numbered in the order in which they began.
    """INSERT INTO allowance_streams (ledger, stream, name, version)
       SELECT ledger, row_number() OVER (PARTITION BY ledger ORDER BY min(position)), stream, max(version)
       FROM allowance_events GROUP BY ledger, stream""",
    "DROP TRIGGER IF EXISTS allowance_events_no_update",
    "DROP TRIGGER IF EXISTS allowance_events_no_delete",
    "DROP TRIGGER IF EXISTS allowance_events_no_replace",
    "DROP TRIGGER IF EXISTS allowance_events_dense",
    "ALTER TABLE allowance_events RENAME TO allowance_events_2",
    """CREATE TABLE allowance_events (
           ledger INTEGER NOT NULL,
           position BIGINT NOT NULL,
           stream INTEGER NOT NULL,
           version BIGINT NOT NULL,
           recorded_at_ns BIGINT NOT NULL,
           "key" TEXT,
           job_uuid TEXT,
           attempt BIGINT,
           settles BIGINT,
           payload BLOB NOT NULL,
           hash BLOB NOT NULL,
           PRIMARY KEY (ledger, position),
           CHECK (position > 0 AND version > 0)
       ) WITHOUT ROWID""",
    CopyRows(
        # CROSS JOIN fixes the order: each row of the log looks up its stream. The patterns let only UUIDs in the
        # canonical form reach the function, so damaged text is copied as it is.
        """INSERT INTO allowance_events
           SELECT old.ledger, old.position, streams.stream, old.version, old.recorded_at_ns,
                  CASE WHEN old.key GLOB '{uuid}' THEN allowance_narrow(old.key) ELSE old.key END,
                  CASE WHEN old.job_uuid GLOB '{uuid}' THEN allowance_narrow(old.job_uuid) ELSE old.job_uuid END,
                  old.attempt, old.settles, old.payload, old.hash
           FROM allowance_events_2 AS old
           CROSS JOIN allowance_streams AS streams ON streams.ledger = old.ledger AND streams.name = old.stream
           WHERE (old.ledger, old.position) > (?, ?)
           ORDER BY old.ledger, old.position LIMIT ?""".replace("{uuid}", _UUID_PATTERN),
        "SELECT ledger, position FROM allowance_events ORDER BY ledger DESC, position DESC LIMIT 1",
    ),
    "DROP TABLE allowance_events_2",
    """CREATE UNIQUE INDEX allowance_events_job_uuid ON allowance_events (ledger, job_uuid, attempt)
       WHERE job_uuid IS NOT NULL""",
    'CREATE UNIQUE INDEX allowance_events_key ON allowance_events (ledger, "key") WHERE "key" IS NOT NULL',
    "CREATE UNIQUE INDEX allowance_events_settles ON allowance_events (ledger, settles) WHERE settles IS NOT NULL",
    """CREATE TRIGGER allowance_events_no_update BEFORE UPDATE ON allowance_events
       BEGIN SELECT RAISE(ABORT, 'events are never updated'); END""",
    """CREATE TRIGGER allowance_events_no_delete BEFORE DELETE ON allowance_events
       BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END""",
    """CREATE TRIGGER allowance_events_only_appended BEFORE INSERT ON allowance_events
       WHEN NEW.position <= (SELECT position FROM allowance_ledgers WHERE ledger = NEW.ledger)
         OR (NEW.position > 1 AND NOT EXISTS
             (SELECT 1 FROM allowance_events WHERE ledger = NEW.ledger AND position = NEW.position - 1))
       BEGIN SELECT RAISE(ABORT, 'events are never replaced, and positions are dense'); END""",
    """CREATE TRIGGER allowance_streams_no_rename BEFORE UPDATE OF ledger, stream, name ON allowance_streams
       BEGIN SELECT RAISE(ABORT, 'a stream is never renamed'); END""",
    """CREATE TRIGGER allowance_streams_no_delete BEFORE DELETE ON allowance_streams
       BEGIN SELECT RAISE(ABORT, 'a stream is never deleted'); END""",
    """CREATE VIEW allowance_log AS
    SELECT validator_ss58, events.position, streams.name AS stream, events.version, events.recorded_at_ns,
           CASE WHEN typeof("key") = 'blob' AND length("key") = 16
            THEN lower(substr(hex("key"), 1, 8) || '-' || substr(hex("key"), 9, 4) || '-'
                       || substr(hex("key"), 13, 4) || '-' || substr(hex("key"), 17, 4) || '-'
                       || substr(hex("key"), 21)) ELSE "key" END AS "key",
           CASE WHEN typeof(job_uuid) = 'blob' AND length(job_uuid) = 16
            THEN lower(substr(hex(job_uuid), 1, 8) || '-' || substr(hex(job_uuid), 9, 4) || '-'
                       || substr(hex(job_uuid), 13, 4) || '-' || substr(hex(job_uuid), 17, 4) || '-'
                       || substr(hex(job_uuid), 21)) ELSE job_uuid END AS job_uuid,
           attempt, settles, CAST(payload AS TEXT) AS payload, lower(hex(events.hash)) AS hash
    FROM allowance_events AS events
    LEFT JOIN allowance_streams AS streams ON streams.ledger = events.ledger AND streams.stream = events.stream
    LEFT JOIN allowance_ledgers AS ledgers ON ledgers.ledger = events.ledger""",
)


STEPS = (
    # Version 2: results of `verify`. Nothing that was stored before changes.
    SchemaStep(
        2,
        sqlite=(
            """CREATE TABLE allowance_verifications (
                   ledger INTEGER NOT NULL,
                   position BIGINT NOT NULL,
                   hash BLOB NOT NULL,
                   verified_at_ns BIGINT NOT NULL,
                   findings BIGINT NOT NULL,
                   first_bad_position BIGINT,
                   PRIMARY KEY (ledger)
               )""",
        ),
        postgres=(
            """CREATE TABLE allowance_verifications (
                   ledger INTEGER NOT NULL,
                   position BIGINT NOT NULL,
                   hash BYTEA NOT NULL,
                   verified_at_ns BIGINT NOT NULL,
                   findings BIGINT NOT NULL,
                   first_bad_position BIGINT,
                   PRIMARY KEY (ledger)
               )""",
        ),
    ),
    # Version 3: a row per stream, and streams as numbers; on SQLite also UUIDs as 16 bytes, and no derived tables in
    # the log's file. Every hash stays.
    SchemaStep(3, sqlite=_SQLITE_3, postgres=_POSTGRES_3, postgres_triggers=_POSTGRES_TRIGGERS_3),
)


def missing_steps(stored: int) -> list[SchemaStep]:
    """Return the steps that a database of a stored version lacks, in order; none if it is not older."""
    return [step for step in STEPS if stored < step.version <= SCHEMA_VERSION]


def log_step(step: SchemaStep) -> None:
    """Log that a step begins: a step over a long log may take minutes, during which others wait."""
    log.info("upgrading the tables to schema version %d", step.version, extra={"schema_version": step.version})


PROGRESS_ROWS = 100_000
"""Rows between two lines of the log that report how far a step is."""


def log_progress(step: SchemaStep, done: int, total: int, piece: int) -> None:
    """Log how many of a step's events are done, at every `PROGRESS_ROWS`; `piece` is what this call adds."""
    if done // PROGRESS_ROWS > (done - piece) // PROGRESS_ROWS:
        fields = {"schema_version": step.version, "done": done, "total": total}
        log.info("upgrading to schema version %d: %d of %d events are done", step.version, done, total, extra=fields)
