"""A read-only ledger answers every query, refuses every change and leaves no trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routing import Allowance, BlockFact, LedgerNotFound, ReadOnlyLedger, Routing, Settings, StorageUnavailable
from tests.support.servers import connected
from tests.support.small import GPU, START, VALIDATOR, Clock, job, miner, small_ledger

pytestmark = pytest.mark.compatibility

CLOCK = Clock(START + timedelta(seconds=500))
STAKES = {VALIDATOR: 1.0}


async def everything(url: str) -> Any:
    """Return all stored data with its write times: of each file, or of each row of each table."""
    if url.startswith("sqlite"):
        directory = Path(url.removeprefix("sqlite:///")).parent
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}
    async with connected(url) as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        # xmin, the transaction that wrote the row, shows a row that was overwritten with equal values.
        return {
            name: sorted(str(row) for row in await connection.fetch(f"SELECT xmin, * FROM {name}"))
            for (name,) in tables
        }


Change = Callable[[Allowance, int], Awaitable[Any]]

CHANGES: list[tuple[str, Change]] = [
    (
        "record_facts",
        lambda ledger, _: ledger.record_block(12, START + timedelta(seconds=144), [miner("5Anna")], STAKES),
    ),
    ("record_facts", lambda ledger, _: ledger.record_facts([BlockFact(1, START, [], {})])),
    ("record_facts", lambda ledger, _: ledger.record_manifests(12, {"5Anna": {GPU: 2}})),
    ("reserve", lambda ledger, _: ledger.reserve("5Anna", GPU, 6.0, 11)),
    ("spend", lambda ledger, reservation_id: ledger.spend(reservation_id)),
    ("release", lambda ledger, reservation_id: ledger.release(reservation_id)),
    ("spend", lambda ledger, _: ledger.spend(7)),
    ("expire_due", lambda ledger, _: ledger.expire_due()),
    ("rebuild", lambda ledger, _: ledger.rebuild()),
    ("pick_miner_for_job_request", lambda ledger, _: Routing(ledger).pick_miner_for_job_request(job("job-1"))),
]


async def test_nothing_is_created_or_recorded(shared_url: str, tmp_path: Path) -> None:
    """After every query and every refused change, with other settings, all files and rows are unchanged to the byte.

    Catches a ledger that records settings, updates a snapshot or the history, and files that SQLite creates by itself.
    """
    async with small_ledger(url=shared_url) as ledger:
        reservation_id = (await ledger.reserve("5Anna", GPU, 6.0, 11)).reservation_id
        head = await ledger.head()
    before = await everything(shared_url)
    async with Allowance.open(
        shared_url,
        validator_ss58=VALIDATOR,
        settings=Settings(block_expiry_blocks=5),
        clock_ns=CLOCK,
        read_only=True,
    ) as ledger:
        for name, change in CHANGES:
            with pytest.raises(ReadOnlyLedger) as refused:
                pytest.fail(f"{name} returned {await change(ledger, reservation_id)}")
            assert refused.value.operation == name
        assert await ledger.head() == head
        assert (await ledger.settings()).block_expiry_blocks == 722
        assert (await ledger.reservation(reservation_id)).status == "reserved"
        assert [each.reservation_id for each in (await ledger.history()).items] == [reservation_id]
        assert len(await ledger.find_miners(6.0, GPU, 11)) == 3
        assert (await ledger.health()).overdue == 1
        assert (await ledger.audit()).findings == []
        assert (await ledger.verify([head])).findings == []
        assert (await ledger.at(position=3).head()).position == 3
        await ledger.export(tmp_path.parent / f"{tmp_path.name}.gz")
        await ledger.overview()
        await ledger.receipts()
    assert await everything(shared_url) == before


async def test_opening_a_missing_ledger_creates_nothing(shared_url: str) -> None:
    """Opening creates no file, no table, and no ledger in a database that has others."""
    before = await everything(shared_url)
    with pytest.raises((LedgerNotFound, StorageUnavailable)):
        await Allowance.open(shared_url, validator_ss58=VALIDATOR, read_only=True)
    assert await everything(shared_url) == before
    async with small_ledger(url=shared_url):
        pass
    before = await everything(shared_url)
    with pytest.raises(LedgerNotFound):
        await Allowance.open(shared_url, validator_ss58="5Stranger", read_only=True)
    assert await everything(shared_url) == before
