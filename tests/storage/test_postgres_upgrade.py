"""The step to schema version 3 on PostgreSQL: killed anywhere, beside readers, and what it must not lose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ledger import SCHEMA_VERSION, Lookup, Row
from ledger.events import CHAIN_STREAM
from ledger.store import schema_steps
from ledger.store.postgres.reader import PostgresReader
from routing import StorageUnavailable
from tests.storage.test_old_ledgers import OLDER_LEDGERS, OldLedger, loaded
from tests.storage.test_schema_steps import catalog, rows, stored_version, until_locks_are_awaited
from tests.support.logs import opened
from tests.support.servers import PostgresServer, connected
from tests.support.wire import Fate, wired

KILL = "SELECT pg_terminate_backend(pg_backend_pid())"
STREAMS = "SELECT name, version FROM allowance_streams ORDER BY name"
STREAMS_IN_LOG = "SELECT stream, max(version) FROM allowance_events GROUP BY stream ORDER BY stream"


@pytest.fixture(params=OLDER_LEDGERS, ids=lambda old: old.files.name)
def old(request: pytest.FixtureRequest) -> OldLedger:
    """One of the stored ledgers."""
    found: OldLedger = request.param
    return found


@pytest.fixture(params=["postgres_16", "postgres_18"])
def old_url(request: pytest.FixtureRequest, tmp_path: Path, old: OldLedger) -> Iterator[str]:
    """A PostgreSQL database as an old version wrote it."""
    yield from loaded(request, tmp_path, old.files)


async def stored_rows(url: str, old: OldLedger) -> list[Row]:
    """Read the log without upgrading it."""
    async with opened(url, old.validator_ss58, read_only=True) as store:
        return await store.read(0)


async def upgrade(url: str, old: OldLedger) -> None:
    """Open the log for writing."""
    async with opened(url, old.validator_ss58):
        pass


async def test_a_step_whose_server_process_is_killed_at_any_statement_leaves_the_old_version(
    old_url: str, old: OldLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each statement and after the last one: tables, version and rows are the old ones. Then a step succeeds.

    Catches a step that commits in between, and one whose retry finds half of the changes.
    """
    before = (await catalog(old_url), await stored_version(old_url), await stored_rows(old_url, old))
    step = schema_steps.STEPS[-1]
    statements = (*step.postgres, *step.postgres_triggers)
    for killed_at in range(len(statements) + 1):
        killing = step._replace(postgres=(*statements[:killed_at], KILL, *statements[killed_at:]), postgres_triggers=())
        with monkeypatch.context() as killed:
            killed.setattr(schema_steps, "STEPS", (*schema_steps.STEPS[:-1], killing))
            with pytest.raises(StorageUnavailable):
                await upgrade(old_url, old)
        assert (await catalog(old_url), await stored_version(old_url), await stored_rows(old_url, old)) == before
    streams = await rows(old_url, STREAMS_IN_LOG)
    await upgrade(old_url, old)
    assert await stored_version(old_url) == SCHEMA_VERSION
    assert await stored_rows(old_url, old) == before[2]
    assert await rows(old_url, STREAMS) == streams


@pytest.mark.parametrize("fate", ["request lost", "response lost"])
async def test_a_step_whose_commit_is_lost_is_done_once(
    request: pytest.FixtureRequest, old_url: str, old: OldLedger, fate: Fate
) -> None:
    """The opening finds the new version, or makes it; nobody is told an error."""
    server: PostgresServer = request.getfixturevalue(request.node.callspec.params["old_url"])
    async with wired(server, urlsplit(old_url).path[1:]) as wire:
        wire.cut(b"COMMIT", fate)
        await upgrade(wire.url, old)
    assert await stored_version(old_url) == SCHEMA_VERSION


async def test_a_read_only_store_goes_on_while_another_process_upgrades(old_url: str, old: OldLedger) -> None:
    """Pages, look-ups and the rows of a stream are the same before and after the upgrade under the open store.

    Catches a store that keeps to the version that it found when it was opened: it shows numbers as streams, or nothing.
    """
    async with opened(old_url, old.validator_ss58, read_only=True) as store:
        before = await store.read(0)
        facts = await store.read_streams([CHAIN_STREAM], 0, old.head.position)
        assert facts == [row for row in before if row.stream == CHAIN_STREAM] != []
        await upgrade(old_url, old)
        assert await store.read_streams([CHAIN_STREAM], 0, old.head.position) == facts
    async with opened(old_url, old.validator_ss58, read_only=True) as store:
        assert await store.read(0) == before
        assert (await store.find(Lookup(positions=[1, 7]))).rows == {1: before[0], 7: before[6]}


async def test_pages_and_look_ups_notice_an_upgrade(old_url: str, old: OldLedger) -> None:
    """The first read of any kind after the upgrade is right."""
    async with (
        opened(old_url, old.validator_ss58, read_only=True) as paging,
        opened(old_url, old.validator_ss58, read_only=True) as finding,
    ):
        before = await paging.read(0)
        assert (await finding.find(Lookup(positions=[1]))).rows == {1: before[0]}
        await upgrade(old_url, old)
        assert await paging.read(0) == before
        assert (await finding.find(Lookup(positions=[1]))).rows == {1: before[0]}


async def test_an_upgrade_waits_for_an_audit_that_reads_one_snapshot(old_url: str, old: OldLedger) -> None:
    """A reader that has begun reads the whole log, although somebody upgrades it meanwhile.

    Catches a reader that locks nothing before it takes its snapshot: the rewritten table is empty in the snapshot.
    """
    async with opened(old_url, old.validator_ss58, read_only=True) as store:
        expected = await store.read(0)
        async with store.reader() as reader:
            assert isinstance(reader, PostgresReader)
            await reader._connection.fetchval("SELECT version FROM allowance_schema")  # Takes the snapshot.
            upgrading = asyncio.create_task(upgrade(old_url, old))
            waiting = asyncio.create_task(until_locks_are_awaited(old_url, 1))
            # Without the lock the upgrade ends, and nothing would ever wait.
            await asyncio.wait([upgrading, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            (ledger,) = await reader.ledgers()
            assert [row async for page in reader.pages(ledger) for row in page] == expected
        await upgrading
    assert await stored_rows(old_url, old) == expected


async def test_an_upgrade_keeps_the_rights_of_others(old_url: str, old: OldLedger) -> None:
    """Whoever could read and write events before still can. Catches a step that makes the table anew."""
    async with connected(old_url) as other:
        role = urlsplit(old_url).path[1:] + "_reader"
        await other.execute(f"CREATE ROLE {role}; GRANT SELECT, INSERT ON allowance_events TO {role}")
        try:
            await upgrade(old_url, old)
            for right in ("SELECT", "INSERT"):
                assert await other.fetchval("SELECT has_table_privilege($1, 'allowance_events', $2)", role, right)
        finally:
            await other.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_view_shows_the_log_as_text(old_url: str, old: OldLedger) -> None:
    """One line per event, true at the head, with the stream's name and the hash as people compare it."""
    await upgrade(old_url, old)
    expected = [
        (old.validator_ss58, *row[:8], row.payload.decode(), row.hash.hex()) for row in await stored_rows(old_url, old)
    ]
    assert await rows(old_url, "SELECT * FROM allowance_log ORDER BY position") == expected
    assert expected[-1][1] == old.head.position
