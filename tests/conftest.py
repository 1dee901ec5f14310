"""Databases to test on: SQLite in a file and in memory, PostgreSQL 16 and 18; each test gets fresh ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import PostgresServer, postgres_server

POSTGRES = ["postgres_16", "postgres_18"]
SHARED = ["sqlite_file", *POSTGRES]
"""The engines whose databases can be opened twice."""


@pytest.fixture(scope="session")
def postgres_16() -> Iterator[PostgresServer]:
    with postgres_server(16) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_18() -> Iterator[PostgresServer]:
    with postgres_server(18) as server:
        yield server


@pytest.fixture(params=["sqlite_memory", *SHARED])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of each engine, empty, that one process opens once."""
    yield from _fresh_database(request)


@pytest.fixture(params=SHARED)
def shared_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of each engine, empty, that can be opened again and by others."""
    yield from _fresh_database(request)


@pytest.fixture(params=POSTGRES)
def server(request: pytest.FixtureRequest) -> PostgresServer:
    """A PostgreSQL server of each version."""
    running: PostgresServer = request.getfixturevalue(request.param)
    return running


@pytest.fixture
def postgres_url(server: PostgresServer) -> Iterator[str]:
    """An empty database on `server`."""
    with server.fresh_database() as url:
        yield url


def _fresh_database(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite_memory":
        yield "sqlite://"
    elif request.param == "sqlite_file":
        directory: Path = request.getfixturevalue("tmp_path")
        yield f"sqlite:///{directory}/ledger.db"
    else:
        server: PostgresServer = request.getfixturevalue(request.param)
        with server.fresh_database() as url:
            yield url
