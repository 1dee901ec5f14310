"""URLs that name several servers: which one a ledger uses, and what it says if it can use none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from urllib.parse import quote

import asyncpg
import pytest

from ledger import Head
from ledger.store.postgres.database_url import parsed_url
from ledger.store.postgres.store import PostgresStore
from routing import InvalidInput, StorageUnavailable
from tests.support.logs import append, opened, row_after
from tests.support.servers import PostgresServer, connected
from tests.support.standbys import Standby, standby_of

NOWHERE = "/nowhere"


@pytest.fixture
def standby(server: PostgresServer) -> Iterator[Standby]:
    """A standby of the server."""
    with standby_of(server, "second") as standby:
        yield standby


def url_of(database_url: str, *socket_directories: str, parameters: str = "") -> str:
    """Return the URL of a database on several servers."""
    without_host = database_url.partition("?")[0]
    return f"{without_host}?host={quote(','.join(socket_directories), safe=',')}{parameters}"


async def is_standby(store: object) -> bool:
    assert isinstance(store, PostgresStore)
    return bool(await store._reads.run(lambda connection: connection.fetchval("SELECT pg_is_in_recovery()")))


async def test_a_writer_uses_the_primary_and_a_reader_the_first_server(
    server: PostgresServer, standby: Standby, postgres_url: str
) -> None:
    """Whichever order the URL has. Catches a writer that takes the standby because it is named first, and fails."""
    standby_first = url_of(postgres_url, NOWHERE, standby.socket_directory, server.socket_directory)
    standby.catch_up()  # It has the database now.
    async with opened(standby_first) as store:
        await append(store, [row_after(Head())])
        assert not await is_standby(store)
    standby.catch_up()
    async with opened(standby_first, read_only=True) as store:
        assert await is_standby(store)
        assert (await store.head()).position == 1
    async with opened(f"{standby_first}&target_session_attrs=read-write", read_only=True) as store:
        assert not await is_standby(store)
    for wanted, found in (("standby", True), ("prefer-standby", True), ("read-only", True), ("primary", False)):
        async with opened(f"{standby_first}&target_session_attrs={wanted}", read_only=True) as store:
            assert await is_standby(store) == found
    async with opened(f"{postgres_url}&target_session_attrs=prefer-standby", read_only=True) as store:
        assert not await is_standby(store)


async def test_the_error_says_what_each_server_answered(
    server: PostgresServer, standby: Standby, postgres_url: str
) -> None:
    """A writer that finds no primary says why, host by host, without the password."""
    url = url_of(postgres_url.replace("postgres@", "postgres:secret@"), NOWHERE, standby.socket_directory)
    standby.catch_up()
    with pytest.raises(StorageUnavailable) as refused:
        async with opened(url):
            pass
    message = str(refused.value)
    assert f"no host is read-write: {NOWHERE} " in message
    assert "No such file" in message
    assert f"{standby.socket_directory} is a standby" in message
    assert "secret" not in message
    async with connected(postgres_url) as other:
        name = await other.fetchval("SELECT current_database()")
        await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            with pytest.raises(StorageUnavailable, match=f"{server.socket_directory} is read-only"):
                async with opened(url_of(postgres_url, NOWHERE, server.socket_directory)):
                    pass
        finally:
            await other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")


async def test_a_single_standby_is_refused_to_a_writer(standby: Standby, postgres_url: str) -> None:
    """Its log may be older than what was acknowledged."""
    standby.catch_up()
    with pytest.raises(StorageUnavailable, match="is a standby; a ledger that is open for changes needs the primary"):
        async with opened(url_of(postgres_url, standby.socket_directory)):
            pass


async def test_a_server_that_does_not_respond_does_not_take_the_time_of_the_others(
    server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose network is cut accepts a connection and says nothing, or does not even accept it.

    Catches one limit for all hosts: the driver spends it on the first. The next connection begins with the host that
    responded.
    """
    monkeypatch.setattr("ledger.store.postgres.connecting.HOST_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr("ledger.store.postgres.connecting.CONNECT_TIMEOUT_SECONDS", 0.3)
    tried: list[str] = []
    connect = asyncpg.connect

    async def noted(*arguments: object, host: str, **options: object) -> object:
        tried.append(host)
        return await connect(*arguments, host=host, **options)

    monkeypatch.setattr(asyncpg, "connect", noted)
    with socket.socket(socket.AF_INET) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent_port = silent.getsockname()[1]
        url = url_of(postgres_url, "127.0.0.1", server.socket_directory, parameters=f"&port={silent_port},5432")
        async with opened(url) as store:
            await append(store, [row_after(Head())])
    assert tried.count("127.0.0.1") == 1
    assert tried[0] == "127.0.0.1"
    assert set(tried[1:]) == {server.socket_directory}
    await asyncio.sleep(0)  # The driver ends its cancelled attempt.


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@a:1,b:2/db", ["a:1", "b:2"]),
        ("postgresql://u:p@a,b/db?port=7", ["a:7", "b:7"]),
        ("postgresql://[::1]:5,[::2]/db", ["::1:5", "::2"]),
        ("postgresql://%2Ftmp%2Fa,b/db", ["/tmp/a", "b"]),
        ("postgresql:///db?host=/a,/b&port=1,2", ["/a:1", "/b:2"]),
        ("postgresql://u@only:5/db", ["None"]),
        ("postgresql:///db", ["None"]),
    ],
)
def test_the_hosts_of_a_url(url: str, hosts: list[str]) -> None:
    """In the spellings that libpq knows; a single host is left to the driver."""
    assert [str(host) for host in parsed_url(url).hosts] == hosts


def test_several_hosts_in_the_environment_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOST, PGPORT and PGTARGETSESSIONATTRS are used as by libpq."""
    monkeypatch.setenv("PGHOST", "a,b")
    monkeypatch.setenv("PGPORT", "1,2")
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    url = parsed_url("postgresql:///db")
    assert ([str(host) for host in url.hosts], url.session_attributes) == (["a:1", "b:2"], "primary")
    with pytest.raises(InvalidInput):
        parsed_url("postgresql://a:1,b:x/db")
