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


class SchemaStep(NamedTuple):
    """The statements that change a database of the version before into one of `version`, on each engine."""

    version: int
    sqlite: tuple[str, ...]
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
    # Version 3: a row per stream, and streams as numbers. Every hash stays.
    SchemaStep(3, sqlite=(), postgres=_POSTGRES_3, postgres_triggers=_POSTGRES_TRIGGERS_3),
)


def missing_steps(stored: int) -> list[SchemaStep]:
    """Return the steps that a database of a stored version lacks, in order; none if it is not older."""
    return [step for step in STEPS if stored < step.version <= SCHEMA_VERSION]


def log_step(step: SchemaStep) -> None:
    """Log that a step begins: a step over a long log may take minutes, during which others wait."""
    log.info("upgrading the tables to schema version %d", step.version, extra={"schema_version": step.version})
