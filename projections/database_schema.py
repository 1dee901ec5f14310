"""All tables, the log's and the read models'."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import MetaData


def schema() -> MetaData:
    """Return the tables; a function, because it imports SQLAlchemy, which only creating or upgrading tables needs."""
    from .tables import metadata

    return metadata
