"""All tables, those of the log and those of the read models.

A module of its own, because `tables` imports SQLAlchemy, which a process that creates no tables does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import MetaData


def schema() -> MetaData:
    """Import and return the tables.

    A store calls this when it creates a database, on the ledger's thread and under the write lock. The ledger that is
    being opened has no callers yet; other ledgers of the same process wait for the import.
    """
    from .tables import metadata

    return metadata
