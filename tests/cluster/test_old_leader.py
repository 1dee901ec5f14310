"""What an old leader says that is cut off and goes on: a caller is not misled by it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from routing import Allowance, LogWentBack, OutcomeUnknown, StorageUnavailable
from tests.stress import network as facts
from tests.support.servers import connected

from .nodes import Cluster, Node, running_cluster

KEY = "the-call"
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.05
CANCEL = """SELECT pg_cancel_backend(pid) FROM pg_stat_activity
            WHERE wait_event = 'SyncRep' AND application_name = 'allowance-ledger'"""
POSITIONS = f"SELECT position FROM allowance_log WHERE key = '{KEY}'"


async def cancel_the_wait(leader: Node) -> None:
    """Wait until a commit waits for a standby, and cancel the wait, as an operator does."""
    ends_at = time.monotonic() + WAIT_SECONDS
    async with connected(leader.url("postgres")) as connection:
        while not await connection.fetchval(CANCEL):
            assert time.monotonic() < ends_at, "no commit waits"


async def positions(node: Node) -> list[int]:
    """Return the positions of the call's events on one node."""
    async with connected(node.url("postgres")) as connection:
        return [row[0] for row in await connection.fetch(POSITIONS)]


async def call(ledger: Allowance) -> int:
    """Make the call, or repeat it."""
    return await ledger.record_manifests(2, {"5Anna": {facts.CLASS: 2}}, idempotency_key=KEY)


async def repeated(ledger: Allowance) -> int:
    """Repeat the call until its outcome is known; raise `LogWentBack` at once."""
    ends_at = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return await call(ledger)
        except LogWentBack:
            raise
        except (OutcomeUnknown, StorageUnavailable):
            if time.monotonic() > ends_at:
                raise
        await asyncio.sleep(POLL_SECONDS)


async def through_a_cancelled_wait(cluster: Cluster) -> tuple[list[int], list[int]]:
    """Return where the call is on the old leader, and where on the new one before the retry."""
    old = await asyncio.to_thread(cluster.wait_until_ready)
    opened: dict[str, Any] = {
        "database_url": cluster.url(first=old),
        "validator_ss58": facts.ME,
        "settings": facts.SETTINGS,
    }
    async with Allowance.open(**opened) as ledger:
        await ledger.record_manifests(1, {"5Anna": {facts.CLASS: 1}})
        old.pause_patroni()
        cluster.isolate(old)
        calling: asyncio.Task[Any] = asyncio.create_task(call(ledger))
        await cancel_the_wait(old)
        with pytest.raises(OutcomeUnknown):
            await calling
        new = await asyncio.to_thread(cluster.leader, besides=old)
        # The old leader goes on beside the new one, and shows the row: the call is still not known to be done.
        with pytest.raises(OutcomeUnknown):
            await call(ledger)
        on_old, on_new = await positions(old), await positions(new)
        old.kill()
        for _ in range(2):
            with pytest.raises(LogWentBack):
                await repeated(ledger)
    async with Allowance.open(**opened) as reopened:
        result = await repeated(reopened)
        assert await positions(new) == [result]
    return on_old, on_new


@pytest.mark.long
def test_a_wait_cancelled_on_an_old_leader_is_no_success() -> None:
    """The old leader shows the row, the new one never had it; opened again, the ledger does the call once, by its key.

    Catches a commit with a warning that is acknowledged; a row of a replaced leader that is taken for an outcome; and
    `OutcomeUnknown` for ever instead of `LogWentBack`, after the process has read such a row.
    """
    with running_cluster() as cluster:
        on_old, on_new = asyncio.run(through_a_cancelled_wait(cluster))

    assert len(on_old) == 1
    assert on_new == []
