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
)


def missing_steps(stored: int) -> list[SchemaStep]:
    """Return the steps that a database of a stored version lacks, in order; none if it is not older."""
    return [step for step in STEPS if stored < step.version <= SCHEMA_VERSION]


def log_step(step: SchemaStep) -> None:
    """Log that a step begins: a step over a long log may take minutes, during which others wait."""
    log.info("upgrading the tables to schema version %d", step.version, extra={"schema_version": step.version})
