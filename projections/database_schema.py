"""All tables, those of the log and those that are derived from it.

A module of its own, because `tables` imports SQLAlchemy, which a process that creates no tables does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ledger.store.contract import Schema

# Of several releases that share the database, the newest one's model.
_LIVE = """projection = 'history' AND model_version = (
               SELECT max(model_version) FROM allowance_checkpoints AS other
               WHERE other.ledger = live.ledger AND other.projection = 'history')"""

VIEWS = (
    f"""CREATE VIEW allowance_history_position AS
        SELECT ledger, position AS as_of_position FROM allowance_checkpoints AS live WHERE {_LIVE}""",
    f"""CREATE VIEW allowance_history AS
        SELECT reservation.ledger, reservation.position, reservation_id, status, miner_ss58, executor_class, job_uuid,
               amount_ns, job_start_block, reserved_at_ns, expires_at_ns, settled_position, settled_at_ns,
               live.position AS as_of_position
        FROM allowance_checkpoints AS live JOIN allowance_reservations AS reservation
          ON reservation.ledger = live.ledger AND reservation.generation = live.generation
        WHERE {_LIVE}""",
)
"""Views for people who query the history directly; they state the position of the log at which they are true."""


def schema() -> Schema:
    """Import and return the tables.

    A store calls this when it creates a database, on the ledger's thread and under the write lock. The ledger that is
    being opened has no callers yet; other ledgers of the same process wait for the import.
    """
    from ledger.store import tables
    from ledger.store.contract import Schema

    from .tables import derived_metadata

    return Schema(tables.metadata, derived_metadata, VIEWS)
