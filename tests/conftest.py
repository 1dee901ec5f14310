"""Databases for tests: SQLite in a file and in memory, PostgreSQL 16 and 18. Each test gets an empty one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import ENGINES, new_database
from tests.support.servers import PostgresServer, postgres_server

POSTGRES = ["postgres_16", "postgres_18"]
SHARED = ["sqlite_file", *POSTGRES]
"""The engines whose databases several openings can share. A memory database belongs to one opening."""


@pytest.fixture(scope="session")
def postgres_16() -> Iterator[PostgresServer]:
    """The PostgreSQL 16 server of this test run."""
    with postgres_server(16) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_18() -> Iterator[PostgresServer]:
    """The PostgreSQL 18 server of this test run."""
    with postgres_server(18) as server:
        yield server


@pytest.fixture(params=["sqlite_memory", *SHARED])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of each engine, for a test that opens it once."""
    yield from _fresh_database(request)


@pytest.fixture(params=SHARED)
def shared_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of each engine that can be opened several times, also by other processes."""
    yield from _fresh_database(request)


@pytest.fixture(params=POSTGRES)
def server(request: pytest.FixtureRequest) -> PostgresServer:
    """The PostgreSQL server of each version."""
    running: PostgresServer = request.getfixturevalue(request.param)
    return running


@pytest.fixture
def postgres_url(server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database on `server`."""
    with server.fresh_database() as url:
        yield url


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of an empty SQLite file, for a test that does not depend on the engine."""
    return new_database("sqlite", tmp_path)


@pytest.fixture(params=ENGINES)
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of either engine, for a test that need not run on each PostgreSQL version."""
    return new_database(request.param, tmp_path)


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
