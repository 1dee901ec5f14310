"""All tables, those of the log and those that are derived from it.

A module of its own, because `tables` imports SQLAlchemy, which a process that creates no tables does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ledger.store.contract import Schema


def schema() -> Schema:
    """Import and return the tables.

    A store calls this when it creates a database, on the ledger's thread and under the write lock. The ledger that is
    being opened has no callers yet; other ledgers of the same process wait for the import.
    """
    from ledger.store import tables
    from ledger.store.contract import Schema

    from .tables import VIEWS, derived_metadata

    return Schema(tables.metadata, derived_metadata, VIEWS)
